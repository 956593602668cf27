"""The task ``ave``: 4,143 audio-visual events in 28 classes.

Tian et al., "Audio-Visual Event Localization in Unconstrained Videos" (ECCV 2018): ``AVE/ID.mp4``
and ``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` with lines
Category&VideoID&Quality&Start&End. An example is the event from start to end (seconds). A video
may have several events.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from modmix.base.errors import DataError
from modmix.tasks.clips import ClipTask
from modmix.tasks.data import SPLITS
from modmix.tasks.files import Source
from modmix.tasks.media import Listed
from modmix.tasks.media_decode import Item
from modmix.tasks.media_lists import read_lines

VIDEOS = "AVE"
_ID = re.compile(r"[\w-]+")


class Ave(ClipTask):
    name: ClassVar[str] = "ave"

    def sources(self) -> tuple[Source, ...]:
        mend = (
            "set `path` to the folder of the AVE data set, with trainSet.txt, valSet.txt, "
            f"testSet.txt and the folder {VIDEOS} of .mp4 files"
        )
        return tuple(Source(path=self.root / f"{split}Set.txt", mend=mend) for split in SPLITS)

    def listed(self) -> Listed:
        if not (self.root / VIDEOS).is_dir():
            raise DataError(f"{self.root / VIDEOS}: must be a folder; {self.sources()[0].mend}")
        rows = [
            (split, *row)
            for split, source in zip(SPLITS, self.sources(), strict=True)
            for row in _rows(source.path)
        ]
        names = sorted({category for _, category, *_ in rows})
        items = tuple(
            Item(
                files=(f"{VIDEOS}/{video}.mp4",),
                label=names.index(category),
                split=split,
                start=start,
                end=end,
            )
            for split, category, video, start, end in rows
        )
        return Listed(items=items, class_names=tuple(names))


def _rows(path: Path) -> Iterator[tuple[str, str, float, float]]:
    """Category, video, start and end of each line; a header is skipped."""
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split("&")]
        if number == 1 and fields[0].lower() == "category":
            continue
        try:
            category, video, _, start, end = fields
            times = float(start), float(end)
        except ValueError:
            times, video = (0.0, 0.0), ""
        if not 0 <= times[0] < times[1] < math.inf or _ID.fullmatch(video) is None:
            raise DataError(
                f"{path}: line {number:,} must be Category&VideoID&Quality&Start&End with a start "
                f"before the end, got {line[:80]!r}; correct or remove it"
            )
        yield category, video, *times
