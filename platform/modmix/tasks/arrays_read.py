"""What a user's file holds once read, whatever its kind; and how its names are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modmix.base.errors import DataError
from modmix.tasks.data import Array
from modmix.tasks.options import suggestion

LABEL_NAMES = ("labels", "label")
SPLIT_NAMES = ("split", "is_test", "n_train")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A file's content, not yet checked: raw arrays with one row per example.

    ``is_text`` says how people count its rows: a table's from 1, an array's from 0.
    """

    path: Path
    inputs: Mapping[str, Array]
    labels: Array
    label_name: str
    split: Array | None = None
    split_name: str = ""
    class_names: tuple[str, ...] | None = None
    is_text: bool = False

    def place(self, row: int) -> str:
        """Name a row as its file would."""
        return f"data row {row + 1:,}" if self.is_text else f"row {row} (from 0)"


def pick(path: Path, asked: str | None, usual: Iterable[str], known: Sequence[str]) -> str | None:
    """Find the name of the labels or of the split among the names in the file."""
    if asked is None:
        return next((name for name in usual if name in known), None)
    if asked not in known:
        raise missing(path, asked, known)
    return asked


def missing(path: Path, name: str, known: Sequence[str]) -> DataError:
    listed = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
    return DataError(f"{path}: has no {name!r}{suggestion(name, known)}; it has {listed}")


def label_name(path: Path, options: Mapping[str, Any], known: Sequence[str]) -> str:
    label = pick(path, options["label"], LABEL_NAMES, known)
    if label is None:
        listed = ", ".join(known[:30])
        raise DataError(
            f"{path}: must have labels, named by the option `label` or called 'labels', got "
            f"{listed}{suggestion('labels', known)}"
        )
    return label
