"""Labels and splits of a user's file, encoded as integers; errors name the offending row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import Loaded, words
from modmix.tasks.data import Array

_SPLIT_WORDS = {
    "0": 0,
    "1": 1,
    "2": 2,
    "train": 0,
    "training": 0,
    "val": 1,
    "valid": 1,
    "validation": 1,
    "test": 2,
}
_TEST_WORDS = {"0": 0, "1": 2, "false": 0, "true": 2}


def encode_labels(
    loaded: Loaded, classes: int | None
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Encode labels as class indices from 0; return (N,) int64 and the class names.

    Text labels are stripped and numbered in sorted order. Integer labels keep their values if the
    number of classes is known, and are numbered in ascending order otherwise; −1 and +1 are always
    classes 0 and 1. Shape (N, 1) is accepted as (N,).

    Raises:
        DataError: fractional, negative, out-of-range or empty labels, a single class, or more than
            one class per two rows.
    """
    raw, where = loaded.labels, f"{loaded.path}: {loaded.label_name!r}"
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim != 1 or len(raw) == 0:
        hint = "; of one-hot rows, save labels.argmax(1)" if raw.ndim == 2 else ""
        raise DataError(f"{where} must have one label per example, got the shape {raw.shape}{hint}")
    raw = _whole_or_words(loaded, raw, where)
    if raw.dtype.kind == "U":
        if (empty := np.flatnonzero(raw == "")).size:
            raise DataError(
                f"{where} must not be empty, got nothing in {loaded.place(int(empty[0]))}; fill it "
                "in or leave the row out"
            )
    elif np.array_equal(np.unique(raw), [-1, 1]):
        if classes is None and loaded.class_names is None:
            return (raw > 0).astype(np.int64), ("-1", "1")
        raw = (raw > 0).astype(np.int64)
    elif (negative := np.flatnonzero(raw < 0)).size:
        row = int(negative[0])
        raise DataError(
            f"{where} must be 0 or more (or -1 and 1), got {raw[row]} in {loaded.place(row)}; "
            "leave out rows without a label, or add the same number to all"
        )
    known = _known_classes(loaded, raw, classes, where)
    if known is not None:
        return raw.astype(np.int64), known
    values, labels_N = np.unique(raw, return_inverse=True)
    _check_count(len(values), len(raw), str(values[0]), where)
    return labels_N.astype(np.int64), tuple(str(int(v) if v.dtype == bool else v) for v in values)


def _whole_or_words(loaded: Loaded, raw: Array, where: str) -> Array:
    """Labels as integers, bool or text; integral floats become int64."""
    if raw.dtype.kind in "US":
        return words(raw, where, loaded.place)
    if raw.dtype.kind == "f":
        if (broken := np.flatnonzero(~(raw == np.round(raw)) | (np.abs(raw) > 2**53))).size:
            row = int(broken[0])
            raise DataError(
                f"{where} must be whole numbers or words, got {raw[row]} in {loaded.place(row)}; "
                "convert them, or is it another column?"
            )
        return raw.astype(np.int64)
    if raw.dtype.kind not in "biu":
        raise DataError(
            f"{where} must be whole numbers or words, got {raw.dtype} (the first is {raw[0]!s}); "
            "convert them"
        )
    return raw


def _known_classes(
    loaded: Loaded, raw: Array, classes: int | None, where: str
) -> tuple[str, ...] | None:
    """Class names if the file or the option `classes` defines the number of classes, else None."""
    names = loaded.class_names
    if names is not None and classes is not None and len(names) != classes:
        raise DataError(
            f"{loaded.path}: 'class_names' must have as many names as the option `classes` says, "
            f"got {len(names)} and {classes}"
        )
    if names is None and classes is not None:
        if raw.dtype.kind == "U":
            raise DataError(
                f"{where} must be whole numbers for the option `classes`, got words; remove it"
            )
        names = tuple(str(k) for k in range(classes))
    if names is None:
        return None
    if (beyond := np.flatnonzero(raw >= len(names))).size:
        row = int(beyond[0])
        raise DataError(
            f"{where} must be from 0 to {len(names) - 1} ({len(names)} classes), got {raw[row]} in "
            f"{loaded.place(row)}; correct it, or the number of classes"
        )
    found = np.unique(raw)
    _check_count(len(found), len(raw), str(found[0]), where)
    return names


def _check_count(found: int, rows: int, first: str, where: str) -> None:
    if found < 2:
        raise DataError(f"{where} must have at least two classes, got only {first!r}")
    if found > max(2, rows // 2):
        raise DataError(
            f"{where} must name classes, got {found:,} different ones in {rows:,} rows; is it "
            "another column?"
        )


def check_classes(
    loaded: Loaded,
    labels_N: npt.NDArray[np.int64],
    splits_N: npt.NDArray[np.uint8],
    class_names: tuple[str, ...],
) -> None:
    """Check that every class occurs in the training split.

    Raises:
        DataError: naming the first class that does not.
    """
    unseen = np.setdiff1d(labels_N, labels_N[splits_N == 0])
    if unseen.size:
        raise DataError(
            f"{loaded.path}: every class must have a training row, class "
            f"{class_names[unseen[0]]!r} has none; correct the split or leave the class out"
        )


def given_splits(loaded: Loaded, rows: int) -> npt.NDArray[np.uint8]:
    """Split index per row, (N,), from a training count, test flags or a split name per row."""
    given, name = loaded.split, loaded.split_name
    assert given is not None
    where = f"{loaded.path}: {name!r}"
    if given.shape == (rows, 1):
        given = given[:, 0]
    if given.size == 1 and given.dtype.kind in "iu" and rows > 1:
        count = int(given.reshape(()))
        if not 0 < count < rows:
            raise DataError(f"{where} must be from 1 to {rows - 1} ({rows} rows), got {count}")
        return np.where(np.arange(rows) < count, 0, 2).astype(np.uint8)
    if given.shape != (rows,):
        raise DataError(f"{where} must have one entry per row ({rows}), got shape {given.shape}")
    texts = words(given, where, loaded.place)
    flags = name == "is_test" or given.dtype.kind == "b"
    numbers = _TEST_WORDS if flags else _SPLIT_WORDS
    splits_N = np.empty(rows, dtype=np.uint8)
    for word in np.unique(texts):
        if word.lower() not in numbers:
            row = int(np.flatnonzero(texts == word)[0])
            known = "true or false" if flags else "train, val, test or 0, 1, 2"
            raise DataError(f"{where} must be {known}, got {str(word)!r} in {loaded.place(row)}")
        splits_N[texts == word] = numbers[word.lower()]
    return splits_N
