"""The task ``kinetics_sounds``: audio-visual actions, clips of 10 s in 31 classes.

Arandjelović and Zisserman, "Look, Listen and Learn" (ICCV 2017), a subset of Kinetics. Lists have
lines ID_START,10,LABEL or ID_START_END,10,LABEL. Clips are found by ID and start anywhere below the
folder ``path``, whether they are sorted by split, by class or not at all, and however START is
padded with zeros. The audio is that of a .wav file of the same name if there is one, otherwise
that of the video.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from modmix.base.errors import DataError
from modmix.tasks.clips import ClipTask
from modmix.tasks.files import Source
from modmix.tasks.media import Listed
from modmix.tasks.media_decode import Item
from modmix.tasks.media_lists import read_lines, with_validation

_VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".flv")
_SOUND = ".wav"
_IDENTIFIER = 11  # characters of a YouTube identifier, which may itself end in _ and digits

Clip = tuple[str, int]  # identifier, start in seconds


class KineticsSounds(ClipTask):
    name: ClassVar[str] = "kinetics_sounds"

    def _lists(self) -> dict[str, Path]:
        given = {split: self.options[f"{split}_list"] for split in ("train", "val", "test")}
        return {split: Path(path) for split, path in given.items() if path is not None}

    def sources(self) -> tuple[Source, ...]:
        mend = "the list must have a line ID_START,10,LABEL or ID_START_END,10,LABEL per clip"
        return tuple(Source(path=path, mend=mend) for path in self._lists().values())

    def listed(self) -> Listed:
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: must be a folder with the clips of Kinetics-Sounds as "
                "ID_START_END.mp4, in subfolders or not; correct the option `path`"
            )
        rows = [(split, *row) for split, path in self._lists().items() for row in _rows(path)]
        names = sorted({label for *_, label in rows})
        videos, sounds = self._index()
        items: list[Item] = []
        for split, stem, label in rows:
            clip = _clip(stem)
            files = [videos.get(clip, f"{stem}.mp4"), *([sounds[clip]] if clip in sounds else [])]
            items.append(Item(files=tuple(files), label=names.index(label), split=split))
        if "val" not in self._lists():
            share, seed = self.options["val_fraction"], self.options["split_seed"]
            videos_N = [_clip(stem)[0] for _, stem, _ in rows]
            items = with_validation(items, share, seed, "kinetics_sounds", videos_N)
        return Listed(items=tuple(items), class_names=tuple(names))

    def _index(self) -> tuple[dict[Clip, str], dict[Clip, str]]:
        """Relative names of the video and audio files below the folder, by clip."""
        videos: dict[Clip, str] = {}
        sounds: dict[Clip, str] = {}
        for folder, subfolders, names in os.walk(self.root):
            subfolders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                extension = file.suffix.lower()
                if extension in (_SOUND, *_VIDEO):
                    found = sounds if extension == _SOUND else videos
                    found.setdefault(_clip(file.stem), file.relative_to(self.root).as_posix())
        return videos, sounds


def _clip(stem: str) -> Clip:
    """Identifier and start of a clip's name; (name, 0) if it has another form."""
    identifier, rest = stem[:_IDENTIFIER], stem[_IDENTIFIER:]
    found = re.fullmatch(r"_(\d+)(?:_\d+)?", rest)
    return (identifier, int(found[1])) if found else (stem, 0)


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """Name of the clip and label of each line."""
    for number, line in read_lines(path):
        fields = [field.strip() for field in next(csv.reader([line], skipinitialspace=True))]
        wrong = len(fields) < 3 or not all(fields[:3]) or not _is_number(fields[1])
        if wrong or "/" in fields[0] or "\\" in fields[0]:
            raise DataError(
                f"{path}: line {number:,} must be ID_START,10,LABEL, got {line[:80]!r}; correct "
                "or remove it"
            )
        yield fields[0], ", ".join(fields[2:])  # a label may have commas without quotes


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?", text) is not None
