"""Read a user's CSV or CSV.GZ with a header: columns by modality, a label, perhaps a split."""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import SPLIT_NAMES, Loaded, label_name, missing, pick
from modmix.tasks.data import Array
from modmix.tasks.options import suggestion


def read_csv(path: Path, options: Mapping[str, Any]) -> Loaded:
    known = _header(path)
    label = label_name(path, options, known)
    split = pick(path, options["split"], SPLIT_NAMES[:2], known)
    columns = _columns(path, options, known, {label, split})
    numeric = list(dict.fromkeys(name for names in columns.values() for name in names))
    table = _parse(path, numeric, [label] if split is None else [label, split])
    if table.num_rows == 0:
        raise DataError(f"{path}: must have rows below its header, got none")

    def column(name: str) -> Array:
        values: Array = table[name].to_numpy()
        return values

    return Loaded(
        path=path,
        inputs={
            modality: np.stack([column(name) for name in names], axis=1)
            for modality, names in columns.items()
        },
        labels=_integers_or_words(column(label)),
        label_name=label,
        split=None if split is None else np.asarray(column(split), dtype=np.str_),
        split_name=split or "",
        is_text=True,
    )


def _open_text(path: Path, errors: str = "strict") -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors=errors, newline="")
    return path.open(encoding="utf-8-sig", errors=errors, newline="")


def _header(path: Path) -> list[str]:
    try:
        with _open_text(path) as file:
            names = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text ({error}); convert it") from error
    repeated = [name for name in names if names.count(name) > 1]
    if not names or repeated:
        came = f"{repeated[0]!r} more than once" if repeated else "an empty file"
        raise DataError(f"{path}: must begin with a line of distinct column names, got {came}")
    return names


def _columns(
    path: Path, options: Mapping[str, Any], known: Sequence[str], taken: set[str | None]
) -> dict[str, list[str]]:
    """Give each modality its columns, with "prefix*" expanded in the order of the file."""
    asked = options["columns"]
    if asked is None:
        raise DataError(
            f'{path}: a CSV needs the option `columns`, as {{audio: ["audio_*"], age: ["age"]}}; '
            f"its columns are {', '.join(known[:30])}"
        )
    names = options["inputs"] or list(asked)
    for name in names:
        if name not in asked:
            raise DataError(
                f"{path}: `columns` has no modality {name!r}{suggestion(name, asked)}; it has "
                f"{', '.join(asked)}"
            )
    return {
        name: [c for pattern in asked[name] for c in _expand(path, pattern, known, taken)]
        for name in names
    }


def _expand(path: Path, pattern: str, known: Sequence[str], taken: set[str | None]) -> list[str]:
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


def _parse(path: Path, numeric: list[str], words: list[str]) -> Any:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import csv as arrow_csv

    try:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=16 << 20),  # a row must fit in one
            convert_options=arrow_csv.ConvertOptions(
                include_columns=numeric + words,
                column_types={
                    **dict.fromkeys(numeric, pyarrow.float32()),
                    **dict.fromkeys(words, pyarrow.string()),
                },
                null_values=[],
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: {_explain(path, numeric) or error}") from None
    except OSError as error:  # a broken gzip stream; a missing file was found before
        raise EOFError(error) from None


def _explain(path: Path, numeric: list[str]) -> str | None:
    """Find the first line of a CSV that cannot be parsed, and say what is wrong."""
    with _open_text(path, errors="replace") as file:
        reader = csv.reader(file)
        header = next(reader)
        wanted = [(i, name) for i, name in enumerate(header) if name in numeric]
        for fields in reader:
            if not fields:
                continue
            where = f"line {reader.line_num:,}"
            if len(fields) != len(header):
                return f"{where} must have {len(header)} columns as the header, got {len(fields)}"
            for i, name in wanted:
                if not _is_number(fields[i]):
                    return f"{where} must hold a number in column {name!r}, got {fields[i][:40]!r}"
    return None


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _integers_or_words(texts: Array) -> Array:
    """Labels as whole numbers where all are, as floats (refused later) where all are such."""
    words = np.asarray(texts, dtype=np.str_)
    distinct = set(words.tolist())
    if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", word) for word in distinct):
        return words.astype(np.int64)
    if all(_is_number(word) for word in distinct) and re.search("[.eE]", "".join(distinct)):
        return words.astype(np.float64)
    return words
