"""Reader for a user's .npz: one array per input, labels and an optional split. Never unpickles."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import (
    LABEL_NAMES,
    SPLIT_NAMES,
    Loaded,
    array_row,
    label_name,
    listed,
    missing,
    pick,
    words,
)
from modmix.tasks.data import SPLITS, Array

_NO_INPUTS = (*LABEL_NAMES, *SPLIT_NAMES, "class_names")
_LENGTHS = "_lengths"
# What zipfile and zlib raise for damaged files: OSError for an offset beyond the end, RuntimeError
# (NotImplementedError is a subclass) for a member that looks encrypted or of an unknown format.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


def read_npz(path: Path, options: Mapping[str, Any]) -> Loaded:
    if options["columns"] is not None:
        raise DataError(f"{path}: the option `columns` is for CSV files; remove it")
    with path.open("rb") as start:
        is_zip = start.read(2) == b"PK"  # numpy checks the start of a file, zipfile its end
    if not (is_zip and zipfile.is_zipfile(path)):
        raise DataError(
            f"{path}: is not a whole .npz file (truncated, or of another kind); write it again "
            "with numpy.savez"
        )
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return _loaded(_Archive(path, file), options)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: is damaged or truncated ({error}); write or copy the file again"
        ) from error


class _Archive:
    """Lazy access to the arrays of an .npz by name.

    Arrays stored per split, as ``train_NAME``, ``test_NAME`` and optionally ``val_NAME``, appear as
    one concatenated array NAME, with an additional array ``split`` of split names.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        files = list(file.files)
        labels = next((n for n in LABEL_NAMES if f"train_{n}" in files), None)
        self._parts = [s for s in SPLITS if f"{s}_{labels}" in files]
        if not {"train", "test"} <= set(self._parts):
            self._parts = []
        self._apart = [
            name
            for name in (n.removeprefix("train_") for n in files)
            if self._parts and all(f"{s}_{name}" in files for s in self._parts)
        ]
        self.names = [*self._apart, *(n for n in files if n not in self._split_names())]
        if self._apart:
            self.names.append("split")
            self._words = [
                np.full(len(self._read(f"{s}_{labels}")), s, dtype="U5") for s in self._parts
            ]

    def _split_names(self) -> set[str]:
        return {f"{s}_{name}" for s in self._parts for name in self._apart}

    def __getitem__(self, name: str) -> Array:
        if name == "split" and self._apart:
            return np.concatenate(self._words)
        if name not in self._apart:
            return self._read(name)
        parts = [self._read(f"{s}_{name}") for s in self._parts]
        for split, part, expected in zip(self._parts, parts, self._words, strict=True):
            if part.shape[1:] != parts[0].shape[1:] or len(part) != len(expected):
                raise DataError(
                    f"{self.path}: '{split}_{name}' must have {len(expected):,} rows of shape "
                    f"{parts[0].shape[1:]}, got the shape {part.shape}; write it again"
                )
        return np.concatenate(parts)

    def _read(self, name: str) -> Array:
        try:
            array = self._file[name]
        except ValueError as error:
            if "pickle" in str(error) or "Object" in str(error):
                raise DataError(
                    f"{self.path}: {name!r} is an object array, which only pickle could load and "
                    "modmix never does; save it as numbers or text of one length"
                ) from error
            raise DataError(
                f"{self.path}: {name!r} cannot be read ({error}); write it again"
            ) from error
        if not isinstance(array, np.ndarray):
            raise DataError(f"{self.path}: {name!r} is not an array; write it with numpy.savez")
        return array


def _loaded(file: _Archive, options: Mapping[str, Any]) -> Loaded:
    path, tokens = file.path, options["tokens"] or ()
    label = label_name(path, options, file.names)
    split = _split_name(path, options["split"], file.names)
    for name in (*(options["inputs"] or ()), *tokens):
        if name not in file.names:
            raise missing(path, name, file.names)
        if name in (label, split):
            raise DataError(f"{path}: {name!r} cannot be an input, it holds the labels")
    arrays = {name: file[name] for name in options["inputs"] or _possible(file.names)}
    if options["inputs"] is None:
        arrays = {
            name: array
            for name, array in arrays.items()
            if name not in (label, split)
            and array.ndim > 0
            and (array.dtype.kind not in "US" or name in tokens)
        }
    if not arrays:
        raise DataError(
            f"{path}: must have at least one numeric array beside {label!r}, got "
            f"{listed(file.names)}"
        )
    labels = file[label]
    lengths = {
        name: file[name + _LENGTHS]
        for name, array in arrays.items()
        if name + _LENGTHS in file.names and array.dtype.kind in "iu"
    }
    return Loaded(
        path=path,
        inputs=arrays,
        labels=labels,
        label_name=label,
        split=None if split is None else file[split],
        split_name=split or "",
        class_names=_class_names(file, labels),
        lengths=lengths,
    )


def _possible(names: Sequence[str]) -> list[str]:
    """Arrays that can be inputs: not labels, splits, class names or lengths of another array."""
    return [
        name
        for name in names
        if name not in _NO_INPUTS
        and not (name.endswith(_LENGTHS) and name.removesuffix(_LENGTHS) in names)
    ]


def _split_name(path: Path, asked: str | None, known: Sequence[str]) -> str | None:
    found = [name for name in SPLIT_NAMES if name in known]
    if asked is None and len(found) > 1:
        raise DataError(
            f"{path}: defines the split more than once ({', '.join(found)}); set the option `split`"
        )
    return pick(path, asked, SPLIT_NAMES, known)


def _class_names(file: _Archive, labels: Array) -> tuple[str, ...] | None:
    """Names of integer labels 0, 1, … from the array ``class_names``; None without a usable one."""
    if "class_names" not in file.names or labels.dtype.kind not in "iu":
        return None
    names = file["class_names"]
    if names.ndim != 1:
        return None
    if names.dtype.kind in "SU":
        names = words(names, f"{file.path}: 'class_names'", array_row)
    found = tuple(str(name) for name in names)
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(f"{file.path}: 'class_names' must be distinct, got {twice!r} twice")
    return found
