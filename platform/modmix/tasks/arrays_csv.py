"""Reader for a user's CSV or TSV with a header: input columns, a label and an optional split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import SPLIT_NAMES, Loaded, label_name, listed, missing, pick
from modmix.tasks.arrays_read import words as text_of
from modmix.tasks.csv_file import line_of, read_blocks, read_header
from modmix.tasks.data import Array
from modmix.tasks.files import Progress
from modmix.tasks.options import suggestion


def read_csv(path: Path, options: Mapping[str, Any], folder: Path, progress: Progress) -> Loaded:
    """Read the columns needed; numeric inputs are spooled to temporary files in ``folder``."""
    known, delimiter = read_header(path)
    label = label_name(path, options, known)
    split = pick(path, options["split"], SPLIT_NAMES[:2], known)
    columns = _columns(path, options, known, {label, split})
    texts = [name for name in options["tokens"] or () if len(columns.get(name, ())) == 1]
    text_columns = (label, split, *(columns[name][0] for name in texts))
    # As Python's strings: an array of text is as wide as the longest one.
    words = {c: list[Array]() for c in text_columns if c is not None}
    for name in columns.keys() - texts:
        if (both := next((c for c in columns[name] if c in words), None)) is not None:
            raise DataError(
                f"{path}: column {both!r} must be text or numbers, got it in `tokens` and in the "
                f"numeric input {name!r}; leave it out of one"
            )
    types = {c: "float64" for names in columns.values() for c in names}
    types |= dict.fromkeys(words, "string")
    with ExitStack() as stack:
        files = {
            name: (names, stack.enter_context(TemporaryFile(dir=folder)))
            for name, names in columns.items()
            if name not in texts
        }
        for block in read_blocks(path, types, delimiter=delimiter, progress=progress):
            for names, file in files.values():
                file.write(np.stack([block[c].to_numpy() for c in names], axis=1).tobytes())
            for column, parts in words.items():
                parts.append(block[column].to_numpy(zero_copy_only=False))
        if not sum(map(len, words[label])):
            raise DataError(f"{path}: must have rows below its header, got none")
        numbers = {name: _mapped(file, len(names)) for name, (names, file) in files.items()}
    return Loaded(
        path=path,
        inputs={
            name: numbers[name] if name in numbers else np.concatenate(words[columns[name][0]])
            for name in columns
        },
        labels=_labels(np.concatenate(words[label]).astype(np.str_)),
        label_name=label,
        split=None if split is None else np.concatenate(words[split]).astype(np.str_),
        split_name=split or "",
        place=lambda row: f"line {line_of(path, row + 1, delimiter):,}",
    )


def _mapped(file: IO[bytes], columns: int) -> Array:
    """Map a temporary file as float64 (N, columns); the unlinked file lives as long as the map."""
    file.flush()
    rows = file.tell() // (columns * np.dtype(np.float64).itemsize)
    return np.memmap(file, np.float64, "r", shape=(rows, columns))


def _columns(
    path: Path, options: Mapping[str, Any], known: Sequence[str], taken: set[str | None]
) -> dict[str, list[str]]:
    """Input -> its columns, with "prefix*" expanded in file order."""
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
    places = dict.fromkeys(known)  # for lookups in constant time
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
            raise DataError(
                f"{path}: {pattern!r} cannot be an input, it holds the labels or the split"
            )
        return [pattern]
    found = [name for name in known if name.startswith(pattern[:-1]) and name not in taken]
    if not found:
        raise missing(path, pattern, known)
    return found


def _labels(texts: npt.NDArray[np.str_]) -> Array:
    """Parse labels as int64 or float64 if all are numbers; "007" keeps labels as text."""
    texts = text_of(texts, "", str)
    distinct = np.unique(texts).tolist()
    if all(re.fullmatch(r"[-+]?(0|[1-9]\d{0,17})", word) for word in distinct):
        return texts.astype(np.int64)
    if all(
        re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word) for word in distinct
    ) and any(re.search("[.eE]", word) for word in distinct):
        return texts.astype(np.float64)
    return texts
