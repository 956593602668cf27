"""Read a user's .npz or CSV into memory: inputs by modality, labels, and what says the split."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modmix.errors import DataError
from modmix.tasks.data import Array
from modmix.tasks.options import suggestion

LABEL_NAMES = ("labels", "label")
SPLIT_NAMES = ("split", "is_test", "n_train")
_NOT_MODALITIES = (*LABEL_NAMES, *SPLIT_NAMES, "class_names")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A file's content, not yet checked: raw arrays with one row per example.

    ``lines`` is what to add to a row's number (from 0) to name its line in the file; None where
    the file has no lines.
    """

    path: Path
    inputs: Mapping[str, Array]
    labels: Array
    label_name: str
    split: Array | None = None
    split_name: str = ""
    class_names: tuple[str, ...] | None = None
    lines: int | None = None

    def place(self, row: int) -> str:
        """Name a row as its file would."""
        return f"row {row} (from 0)" if self.lines is None else f"line {row + self.lines:,}"


def read_file(path: Path, options: Mapping[str, Any]) -> Loaded:
    """Read an .npz, .csv or .csv.gz file.

    Raises:
        DataError: another kind of file, a damaged one, or one without the arrays asked for.
    """
    name = path.name.lower()
    try:
        if name.endswith(".npz"):
            return _read_npz(path, options)
        if name.endswith((".csv", ".csv.gz")):
            return _read_csv(path, options)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: is damaged or truncated ({error}); write or copy the file again"
        ) from error
    raise DataError(
        f"{path}: must be an .npz, .csv or .csv.gz file; convert it with numpy or pandas"
    )


def _pick(path: Path, asked: str | None, usual: Iterable[str], known: Sequence[str]) -> str | None:
    """Find the name of the labels or of the split among the names in the file."""
    if asked is None:
        return next((name for name in usual if name in known), None)
    if asked not in known:
        raise _missing(path, asked, known)
    return asked


def _missing(path: Path, name: str, known: Sequence[str]) -> DataError:
    listed = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
    return DataError(f"{path}: has no {name!r}{suggestion(name, known)}; it has {listed}")


def _label_name(path: Path, options: Mapping[str, Any], known: Sequence[str]) -> str:
    label = _pick(path, options["label"], LABEL_NAMES, known)
    if label is None:
        listed = ", ".join(known[:30])
        raise DataError(
            f"{path}: must have labels, named by the option `label` or called 'labels', got "
            f"{listed}{suggestion('labels', known)}"
        )
    return label


# ---------------------------------------------------------------- npz


def _read_npz(path: Path, options: Mapping[str, Any]) -> Loaded:
    if options["columns"] is not None:
        raise DataError(f"{path}: the option `columns` is for CSV files; remove it")
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: is not a whole .npz file (truncated, or of another kind); write it again "
            "with numpy.savez"
        )
    with np.load(path, allow_pickle=False) as file:
        known = list(file.files)
        label = _label_name(path, options, known)
        split = _npz_split_name(path, options["split"], known)
        arrays = {name: _npz_array(path, file, name) for name in _npz_names(path, options, known)}
        labels = _npz_array(path, file, label)
        if options["modalities"] is None:
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
    if options["modalities"] is None:
        return [name for name in known if name not in _NOT_MODALITIES]
    for name in options["modalities"]:
        if name not in known:
            raise _missing(path, name, known)
    return list(options["modalities"])


def _npz_split_name(path: Path, asked: str | None, known: Sequence[str]) -> str | None:
    found = [name for name in SPLIT_NAMES if name in known]
    if asked is None and len(found) > 1:
        raise DataError(
            f"{path}: says the split more than once ({', '.join(found)}); name one in the option "
            "`split`"
        )
    return _pick(path, asked, SPLIT_NAMES, known)


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


# ---------------------------------------------------------------- csv


def _read_csv(path: Path, options: Mapping[str, Any]) -> Loaded:
    known = _header(path)
    label = _label_name(path, options, known)
    split = _pick(path, options["split"], SPLIT_NAMES[:2], known)
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
        lines=2,
    )


def _open_text(path: Path) -> io.TextIOBase:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[return-value]
    return path.open(encoding="utf-8-sig", newline="")


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
    names = options["modalities"] or list(asked)
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
            raise _missing(path, pattern, known)
        if pattern in taken:
            raise DataError(f"{path}: {pattern!r} cannot be an input, it says the answer or split")
        return [pattern]
    found = [name for name in known if name.startswith(pattern[:-1]) and name not in taken]
    if not found:
        raise _missing(path, pattern, known)
    return found


def _parse(path: Path, numeric: list[str], words: list[str]) -> Any:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import csv as arrow_csv

    try:
        return arrow_csv.read_csv(
            path,
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
    with _open_text(path) as file:
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
    """Labels as whole numbers where all are, as floats (refused later) where all are numbers."""
    words = np.asarray(texts, dtype=np.str_)
    distinct = set(words.tolist())
    if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", word) for word in distinct):
        return words.astype(np.int64)
    if all(_is_number(word) for word in distinct):
        return words.astype(np.float64)
    return words
