"""What is checked of a media task's items: lost ones, files in two splits, files that were changed.

Lost items are missing or cannot be read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from modmix.base.errors import DataError
from modmix.tasks.data import SPLITS
from modmix.tasks.media_decode import Item

_NAMED = 3  # files named in a message
_SAMPLED, _BEGINNING = 16, 1 << 16  # items, up to twice as many, and bytes that are read of each


def excess(
    items: Sequence[Item], lost: Collection[int], share: float
) -> tuple[str, list[int]] | None:
    """Which lost items are more than a share of all, or of a split, as text and numbers.

    A test split is often a tenth of all items: it must not vanish unnoticed.
    """
    for split in ("", *SPLITS):
        chosen = [n for n, item in enumerate(items) if split in ("", item.split)]
        gone = sorted(set(chosen).intersection(lost))
        if (more := _more_than(share, len(gone), len(chosen), split)) is not None:
            return more, gone
    return None


def excess_of_prepared(items: Sequence[Item], rows: Mapping[str, int], share: float) -> str | None:
    """As `excess`, from the number of rows of each split in prepared arrays."""
    total = Counter(item.split for item in items)
    for split in ("", *SPLITS):
        listed = total[split] if split else len(items)
        lost = listed - (rows[split] if split else sum(rows.values()))
        if (more := _more_than(share, lost, listed, split)) is not None:
            return more
    return None


def _more_than(share: float, lost: int, items: int, split: str) -> str | None:
    where = f" of the {split} split" if split else ""
    return f"{lost:,} of {items:,} items{where}" if lost > share * items else None


def sample_of(root: Path, items: Sequence[Item]) -> str:
    """A digest of the beginnings of a few of the items' files, evenly spaced.

    Of a folder, its first file is taken. It tells noisy copies of all files from the originals,
    which have the same names and sizes; single files that differ are not noticed. Missing files
    and those without permission are left out, as in the arrays.

    Raises:
        DataError: a file cannot be read, as when a disk fails: that must not look like other data.
    """
    hasher = hashlib.sha256()
    for item in items[:: max(1, len(items) // _SAMPLED)]:
        for name in item.files:
            path = root / name
            try:
                path = min(path.iterdir(), default=path) if path.is_dir() else path
                with path.open("rb") as file:
                    hasher.update(file.read(_BEGINNING))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
                continue
            except OSError as error:
                raise DataError(
                    f"{path} cannot be read ({error.strerror or error}): check its disk"
                ) from error
    return hasher.hexdigest()


def reason_of(item: Item, reason: str) -> str:
    """ "a.mp4: has no duration"; many reasons begin with the name of the file already."""
    names = [PurePath(file).name for file in item.files]
    is_named = any(reason.startswith(f"{name}: ") for name in names)
    return reason if is_named else f"{names[0]}: {reason}"


def some(names: Iterable[str]) -> str:
    """The first names, for a message."""
    found = list(names)
    return ", ".join(found[:_NAMED]) + (", …" if len(found) > _NAMED else "")


def in_two_splits(items: Sequence[Item]) -> list[str]:
    """Files of which there are items in more than one split."""
    splits: dict[str, set[str]] = {}
    for item in items:
        for name in item.files:
            splits.setdefault(name, set()).add(item.split)
    return [name for name, found in splits.items() if len(found) > 1]


def last_change(root: Path, items: Sequence[Item]) -> int:
    """When a file of these items was changed last, in ns; 0: all are missing."""
    newest = 0
    for name in {name for item in items for name in item.files}:
        with suppress(OSError):
            newest = max(newest, (root / name).stat().st_ctime_ns)
    return newest
