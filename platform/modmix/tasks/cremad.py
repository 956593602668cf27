"""The task ``cremad``: acted emotions, 7,442 clips of 91 actors.

Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset" (2014): ``AudioWAV/*.wav``
and ``VideoFlash/*.flv``, named ACTOR_SENTENCE_EMOTION_LEVEL. The emotion is the label.

There is no official split. By default actors are split at random, so that no actor is in two
splits. The lists of OGM-GE (2022) and much later work, given as options, have all 91 actors in
both: results on the two kinds of split are not comparable.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.clips import ClipTask
from modmix.tasks.files import Source
from modmix.tasks.media import Listed
from modmix.tasks.media_decode import Item
from modmix.tasks.media_lists import read_lines, with_validation
from modmix.tasks.splits import permutation

EMOTIONS = {
    "NEU": "neutral",
    "HAP": "happy",
    "SAD": "sad",
    "FEA": "fear",
    "DIS": "disgust",
    "ANG": "anger",
}
_CODES = list(EMOTIONS)
# Such as 1001_DFA_ANG_XX. One clip of the release has a level of one letter: 1040_ITH_SAD_X.
_NAME = re.compile(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]{1,2}")
SOUNDS, VIDEOS = "AudioWAV", "VideoFlash"


class CremaD(ClipTask):
    name: ClassVar[str] = "cremad"
    max_seconds = 20.0  # clips last 1 to 5 seconds; one file of the release is a minute long

    def _lists(self) -> dict[str, Path]:
        """The files that name the items of a split, by split; empty: actors are split at random.

        Raises:
            DataError: only one of the training and test lists is given.
        """
        given = {s: self.options[f"{s}_list"] for s in ("train", "val", "test")}
        lists = {split: Path(path) for split, path in given.items() if path is not None}
        if lists and not {"train", "test"} <= set(lists):
            raise DataError(
                "task cremad: the options train_list and test_list must be given both or neither, "
                f"got {', '.join(f'{split}_list' for split in lists)} alone"
            )
        return lists

    def sources(self) -> tuple[Source, ...]:
        mend = "the list must have a line STEM,EMOTION per clip, such as 1001_DFA_ANG_XX,ANG"
        return tuple(Source(path=path, mend=mend) for path in self._lists().values())

    def listed(self) -> Listed:
        for folder in (SOUNDS, VIDEOS):
            if not (self.root / folder).is_dir():
                raise DataError(
                    f"{self.root}: must have the folders {SOUNDS} (with .wav files) and {VIDEOS} "
                    f"(with .flv files) of CREMA-D, found no {folder}; set `path` to the folder "
                    "that holds both"
                )
        lists = self._lists()
        items = self._of_lists(lists) if lists else self._of_actors()
        return Listed(items=tuple(items), class_names=tuple(EMOTIONS.values()))

    def _of_lists(self, lists: dict[str, Path]) -> list[Item]:
        items: list[Item] = []
        seen: dict[str, Path] = {}
        for split, path in lists.items():
            for number, line in read_lines(path):
                stem, _, emotion = (part.strip() for part in line.partition(","))
                found = _NAME.fullmatch(stem)
                if found is None or emotion not in EMOTIONS or found[2] != emotion:
                    raise DataError(
                        f"{path}: line {number:,} must be a clip and its emotion, such as "
                        f"1001_DFA_ANG_XX,ANG, got {line[:60]!r}; correct or remove it"
                    )
                if stem in seen:
                    raise DataError(
                        f"{path}: line {number:,} must not name a clip again, got {stem}, which "
                        f"is in {seen[stem]}; remove one of the lines"
                    )
                seen[stem] = path
                items.append(_item(stem, emotion, split))
        if "val" in lists:
            return items
        share, seed = self.options["val_fraction"], self.options["split_seed"]
        return with_validation(items, share, seed, "cremad")

    def _of_actors(self) -> list[Item]:
        """All clips in the folders, with the actors split at random."""
        stems = {path.stem for path in (self.root / SOUNDS).glob("*.wav")}
        stems |= {path.stem for path in (self.root / VIDEOS).glob("*.flv")}
        clips = [(stem, found) for stem in sorted(stems) if (found := _NAME.fullmatch(stem))]
        actors = sorted({found[1] for _, found in clips})
        test, val = self.options["test_actors"], self.options["val_actors"]
        if len(actors) <= test + val:
            raise DataError(
                f"{self.root}: must have clips of more than {test + val} actors (test_actors + "
                f"val_actors), found {len(actors)}; complete it or set the options lower"
            )
        order = permutation(len(actors), self.options["split_seed"], "cremad", "actors")
        names = np.array(["test"] * test + ["val"] * val + ["train"] * (len(actors) - test - val))
        split_of = {actors[place]: str(names[n]) for n, place in enumerate(order)}
        return [_item(stem, found[2], split_of[found[1]]) for stem, found in clips]


def _item(stem: str, emotion: str, split: str) -> Item:
    files = (f"{VIDEOS}/{stem}.flv", f"{SOUNDS}/{stem}.wav")
    return Item(files=files, label=_CODES.index(emotion), split=split)
