"""Contents of a user's file, independent of its format, and the lookup of names in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.data import Array
from modmix.tasks.options import suggestion

LABEL_NAMES = ("labels", "label")
SPLIT_NAMES = ("split", "is_test", "n_train")


def array_row(row: int) -> str:
    return f"row {row} (from 0)"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Unchecked contents of a file: raw arrays with one row per example.

    Text is an array of text or bytes, or of Python's strings where their lengths may differ much.

    ``lengths`` are the sequence lengths (N,) of token inputs. ``place`` formats a row index for
    error messages: as a line number from 1 for a CSV, as a row number from 0 for an array.
    """

    path: Path
    inputs: Mapping[str, Array]
    labels: Array
    label_name: str
    split: Array | None = None
    split_name: str = ""
    class_names: tuple[str, ...] | None = None
    lengths: Mapping[str, Array] = field(default_factory=dict)
    place: Callable[[int], str] = array_row


def words(values: Array, where: str, place: Callable[[int], str]) -> npt.NDArray[np.str_]:
    """Convert values to stripped text; bytes are decoded as UTF-8.

    Raises:
        DataError: bytes that are not UTF-8.
    """
    if values.dtype.kind == "S":
        values = np.array(strings(values, where, place), np.str_)
    return np.char.strip(values.astype(np.str_))


def strings(texts_N: Array, where: str, place: Callable[[int], str]) -> list[str]:
    """The texts (N,) as a list, each of its own length; bytes are decoded as UTF-8.

    Raises:
        DataError: bytes that are not UTF-8.
    """
    found: list[Any] = texts_N.tolist()
    if texts_N.dtype.kind != "S":
        return found
    for row, value in enumerate(found):
        try:
            found[row] = value.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(
                f"{where} must be UTF-8 text, got {value!r} in {place(row)}; decode it before "
                "saving"
            ) from None
    return found


def pick(path: Path, asked: str | None, usual: Iterable[str], known: Sequence[str]) -> str | None:
    """The name asked for, or else the first of the usual names that the file has, or None.

    Raises:
        DataError: the file does not have the name asked for.
    """
    if asked is None:
        return next((name for name in usual if name in known), None)
    if asked not in known:
        raise missing(path, asked, known)
    return asked


def listed(known: Iterable[str]) -> str:
    """The first 30 names, comma-separated."""
    names = list(known)
    return ", ".join(names[:30]) + (", …" if len(names) > 30 else "")


def missing(path: Path, name: str, known: Iterable[str]) -> DataError:
    """The error for a name that the file does not have."""
    return DataError(f"{path}: has no {name!r}{suggestion(name, known)}; it has {listed(known)}")


def label_name(path: Path, options: Mapping[str, Any], known: Sequence[str]) -> str:
    """Name of the labels in the file.

    Raises:
        DataError: there is none.
    """
    label = pick(path, options["label"], LABEL_NAMES, known)
    if label is None:
        raise DataError(
            f"{path}: must have labels, named by the option `label` or called 'labels', got "
            f"{listed(known)}{suggestion('labels', known)}"
        )
    return label
