"""Split files of media tasks: lines, and a validation split drawn from the training items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.media_decode import Item
from modmix.tasks.splits import stratified


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines of a text file that are not blank, without a BOM.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text ({error}); convert it") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def with_validation(
    items: Sequence[Item],
    share: float,
    seed: int,
    task: str,
    groups: Sequence[str] | None = None,
) -> list[Item]:
    """The items with a share of those for training, class by class, in validation.

    Items of the same one of ``groups``, given by item, stay together.

    Raises:
        DataError: that would be none.
    """
    training = [n for n, item in enumerate(items) if item.split == "train"]
    labels_N = np.array([items[n].label for n in training], dtype=np.int64)
    rows = max(1, round(share * len(training)))
    chosen_N = stratified(labels_N, rows, seed, task, "val")
    if not chosen_N.any():
        raise DataError(
            f"task {task}: validation takes items of classes with two or more for training, there "
            "is no such class; add items or give a list of validation items"
        )
    moved = {training[n] for n in np.flatnonzero(chosen_N)}
    if groups is not None:
        taken = {groups[n] for n in moved}
        moved = {n for n in training if groups[n] in taken}
    return [replace(item, split="val") if n in moved else item for n, item in enumerate(items)]
