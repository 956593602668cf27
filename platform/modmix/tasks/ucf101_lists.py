"""The official lists of UCF101, and a validation split of the training list by group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modmix.base.errors import DataError
from modmix.tasks.media_lists import read_lines
from modmix.tasks.splits import permutation

_VIDEO = re.compile(r"(?P<name>v_\w+_g(?P<group>\d+)_c\d+)(\.avi)?")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video as listed: its name without .avi, the number of its class from 0, its group."""

    name: str
    label: int
    group: int


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes from classInd.txt, whose lines are ``1 ApplyEyeMakeup``.

    Raises:
        DataError: a line is wrong, or the numbers are not 1, 2, ….
    """
    names: list[str] = []
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            raise DataError(
                f"{path}: line {number:,} must be {len(names) + 1} and the name of a class, got "
                f"{line[:80]!r}; use the official file"
            )
        names.append(fields[1])
    if len(names) < 2:
        raise DataError(f"{path}: must name at least 2 classes, got {len(names)}")
    return tuple(names)


def read_videos(path: Path, class_names: Sequence[str]) -> list[Video]:
    """Videos of a list, whose lines are ``Class/v_Class_g01_c01.avi`` and maybe the class's number.

    Raises:
        DataError: a line is wrong, or a video is listed twice.
    """
    numbers = {name.lower(): number for number, name in enumerate(class_names)}
    videos: list[Video] = []
    for number, line in read_lines(path):
        label, found = _parsed(line, numbers)
        if label is None or found is None:
            raise DataError(
                f"{path}: line {number:,} must be a class of classInd.txt, a slash and "
                "v_NAME_gNN_cNN.avi, with or without the number of the class, got "
                f"{line[:80]!r}; use the official file"
            )
        videos.append(Video(name=found["name"], label=label, group=int(found["group"])))
    seen: set[str] = set()
    for video in videos:
        if video.name.lower() in seen:
            raise DataError(f"{path}: lists {video.name} twice; use the official file")
        seen.add(video.name.lower())
    return videos


def _parsed(line: str, numbers: dict[str, int]) -> tuple[int | None, re.Match[str] | None]:
    """Number of the class, from 0, and the parts of the video's name; None where they are wrong."""
    file, *rest = line.split()
    folder, _, name = file.rpartition("/")
    label = numbers.get(folder.lower())
    if rest and (label is None or rest != [str(label + 1)]):
        return None, None
    return label, _VIDEO.fullmatch(name)


def validation_videos(
    videos: Sequence[Video], class_names: Sequence[str], share: float, seed: int
) -> set[Video]:
    """The videos of a random fraction of each class's groups, at least one, but not all.

    Raises:
        DataError: no class has two groups.
    """
    chosen: set[tuple[int, int]] = set()
    for label, name in enumerate(class_names):
        groups = sorted({video.group for video in videos if video.label == label})
        count = min(max(1, round(share * len(groups))), len(groups) - 1)
        order = permutation(len(groups), seed, "ucf101", "val", name)
        chosen |= {(label, groups[n]) for n in order[: max(0, count)]}
    if not chosen:
        raise DataError(
            "task ucf101: validation takes groups (gNN) of classes that have two or more in the "
            "training list, there is no such class; use the official list"
        )
    return {video for video in videos if (video.label, video.group) in chosen}
