"""Read a user's .npz: one array per modality, labels, and what says the split. Never pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import (
    LABEL_NAMES,
    SPLIT_NAMES,
    Loaded,
    label_name,
    missing,
    pick,
)
from modmix.tasks.data import Array

_NOT_MODALITIES = (*LABEL_NAMES, *SPLIT_NAMES, "class_names")


def read_npz(path: Path, options: Mapping[str, Any]) -> Loaded:
    if options["columns"] is not None:
        raise DataError(f"{path}: the option `columns` is for CSV files; remove it")
    with path.open("rb") as start:
        is_zip = start.read(2) == b"PK"  # numpy goes by the beginning, zipfile by the end
    if not (is_zip and zipfile.is_zipfile(path)):
        raise DataError(
            f"{path}: is not a whole .npz file (truncated, or of another kind); write it again "
            "with numpy.savez"
        )
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        known = list(file.files)
        label = label_name(path, options, known)
        split = _npz_split_name(path, options["split"], known)
        arrays = {name: _npz_array(path, file, name) for name in _npz_names(path, options, known)}
        labels = _npz_array(path, file, label)
        if options["inputs"] is None:
            arrays = {n: a for n, a in arrays.items() if a.dtype.kind not in "US" and a.ndim > 0}
            arrays = {n: a for n, a in arrays.items() if n not in (label, split)}
        if not arrays:
            raise DataError(
                f"{path}: must have at least one numeric array beside {label!r}, got "
                f"{', '.join(known)}"
            )
        for name in arrays:
            if name in (label, split):
                raise DataError(f"{path}: {name!r} cannot be a modality, it says the answer")
        return Loaded(
            path=path,
            inputs=arrays,
            labels=labels,
            label_name=label,
            split=None if split is None else _npz_array(path, file, split),
            split_name=split or "",
            class_names=_npz_class_names(path, file, labels),
        )


def _npz_names(path: Path, options: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    if options["inputs"] is None:
        return [name for name in known if name not in _NOT_MODALITIES]
    for name in options["inputs"]:
        if name not in known:
            raise missing(path, name, known)
    return list(options["inputs"])


def _npz_split_name(path: Path, asked: str | None, known: Sequence[str]) -> str | None:
    found = [name for name in SPLIT_NAMES if name in known]
    if asked is None and len(found) > 1:
        raise DataError(
            f"{path}: says the split more than once ({', '.join(found)}); name one in the option "
            "`split`"
        )
    return pick(path, asked, SPLIT_NAMES, known)


def _npz_array(path: Path, file: Any, name: str) -> Array:
    try:
        array = file[name]
    except ValueError as error:
        if "pickle" in str(error) or "Object" in str(error):
            raise DataError(
                f"{path}: {name!r} is an object array, which only pickle could load and modmix "
                "never does; save it as numbers or text of one length"
            ) from error
        raise DataError(f"{path}: {name!r} cannot be read ({error}); write it again") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name!r} is not an array; write the file with numpy.savez")
    return array


def _npz_class_names(path: Path, file: Any, labels: Array) -> tuple[str, ...] | None:
    """Names of integer labels 0, 1, …, where the file has them."""
    if "class_names" not in file.files or labels.dtype.kind not in "iu":
        return None
    names = _npz_array(path, file, "class_names")
    return tuple(str(name) for name in names) if names.ndim == 1 else None
