"""Read a user's CSV or CSV.GZ with a header: columns by input, a label, perhaps a split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import SPLIT_NAMES, Loaded, label_name, listed, missing, pick, words
from modmix.tasks.csv_file import line_of, read_blocks, read_header
from modmix.tasks.data import Array
from modmix.tasks.files import Progress
from modmix.tasks.options import suggestion


def read_csv(path: Path, options: Mapping[str, Any], progress: Progress) -> Loaded:
    known, delimiter = read_header(path)
    label = label_name(path, options, known)
    split = pick(path, options["split"], SPLIT_NAMES[:2], known)
    columns = _columns(path, options, known, {label, split})
    texts = [name for name in options["tokens"] or () if len(columns.get(name, ())) == 1]
    types = {c: "float64" for names in columns.values() for c in names}
    types |= {columns[name][0]: "string" for name in texts}
    types |= dict.fromkeys([label] if split is None else [label, split], "string")
    inputs: dict[str, list[Array]] = {name: [] for name in columns}
    labels: list[Array] = []
    splits: list[Array] = []
    for block in read_blocks(path, types, delimiter=delimiter, progress=progress):
        for name, names in columns.items():
            inputs[name].append(np.stack([_numpy(block[c], types[c]) for c in names], axis=1))
        labels.append(_numpy(block[label], "string"))
        splits.append(_numpy(block[split or label], "string"))
    if not sum(map(len, labels)):
        raise DataError(f"{path}: must have rows below its header, got none")
    return Loaded(
        path=path,
        inputs={
            name: np.concatenate(parts)[:, 0] if name in texts else np.concatenate(parts)
            for name, parts in inputs.items()
        },
        labels=_labels(np.concatenate(labels)),
        label_name=label,
        split=None if split is None else np.concatenate(splits),
        split_name=split or "",
        place=lambda row: f"line {line_of(path, row + 1, delimiter):,}",
    )


def _numpy(column: Any, kind: str) -> Array:
    values: Array = column.to_numpy(zero_copy_only=False)
    return values.astype(np.str_) if kind == "string" else values


def _columns(
    path: Path, options: Mapping[str, Any], known: Sequence[str], taken: set[str | None]
) -> dict[str, list[str]]:
    """Give each input its columns, with "prefix*" expanded in the order of the file."""
    asked = options["columns"]
    if asked is None:
        raise DataError(
            f'{path}: a CSV needs the option `columns`, as {{audio: ["audio_*"], age: ["age"]}}; '
            f"its columns are {listed(known)}"
        )
    for name in (*(options["inputs"] or ()), *(options["tokens"] or ())):
        if name not in asked:
            raise DataError(
                f"{path}: `columns` has no input {name!r}{suggestion(name, asked)}; it has "
                f"{', '.join(asked)}"
            )
    places = dict.fromkeys(known)  # a list would be searched once for every column
    return {
        name: [c for pattern in asked[name] for c in _expand(path, pattern, places, taken)]
        for name in options["inputs"] or asked
    }


def _expand(
    path: Path, pattern: str, known: Mapping[str, None], taken: set[str | None]
) -> list[str]:
    if not pattern.endswith("*"):
        if pattern not in known:
            raise missing(path, pattern, known)
        if pattern in taken:
            raise DataError(f"{path}: {pattern!r} cannot be an input, it says the answer or split")
        return [pattern]
    found = [name for name in known if name.startswith(pattern[:-1]) and name not in taken]
    if not found:
        raise missing(path, pattern, known)
    return found


def _labels(texts: npt.NDArray[np.str_]) -> Array:
    """Labels as numbers where all are, but words where a number has leading zeros."""
    texts = words(texts, "", str)
    distinct = np.unique(texts).tolist()
    if all(re.fullmatch(r"[-+]?(0|[1-9]\d{0,17})", word) for word in distinct):
        return texts.astype(np.int64)
    if all(
        re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) for word in distinct
    ) and any(re.search("[.eE]", word) for word in distinct):
        return texts.astype(np.float64)
    return texts
