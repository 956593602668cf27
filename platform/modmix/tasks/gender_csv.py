"""Users of the task ``gender`` from a CSV: read in blocks, shuffled into splits, standardised.

A header names the columns: ``name`` and ``user_id`` (text, may be empty), ``gender`` (female or
male, or f or m) and the activity counts ``f1``, ``f2``, … up to the option ``features``. Rows pass
through a file of plain records, so that memory holds one block of the CSV and about 30 bytes a
row, for the random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import missing
from modmix.tasks.base import Contents
from modmix.tasks.characters import (
    Codes,
    alphabet_of,
    codes_of,
    id_type,
    ids_of,
    text_of,
    vocabulary_of,
)
from modmix.tasks.csv_file import line_of, read_blocks, read_header
from modmix.tasks.data import ROWS, SPLITS, Array, Input
from modmix.tasks.files import Progress
from modmix.tasks.splits import Moments, permutation
from modmix.tasks.writer import Writer, extra_file, input_file, labels_file

TEXTS = ("name", "user_id")
LABEL = "gender"
CLASS_NAMES = ("male", "female")
_LABELS = {"male": 0, "m": 0, "female": 1, "f": 1}
_UNUSED = len(SPLITS)
_CHUNK_ROWS = 1 << 16
# Shares of the rows that become test and validation: those of the paper's 7.5 million users.
_TEST_SHARE, _VAL_SHARE = 2 / 15, 1 / 15

Splits = npt.NDArray[np.uint8]


def write_csv(
    path: Path, options: Mapping[str, Any], writer: Writer, progress: Progress
) -> Contents:
    """Write every split of the users in a CSV.

    Raises:
        DataError: missing columns, a wrong row, too few rows, or a split with one gender only.
    """
    table = _copy_rows(path, options, writer, progress)
    splits_N = _assign(path, table.labels_N, options)
    writer.content("splits", splits_N)
    alphabets, moments = _statistics(path, table, splits_N)
    for name in TEXTS:
        writer.alphabet(name, text_of(alphabets[name]))
    writer.scaled("activity", moments.mean_D, moments.scale_D)
    vocabularies = {name: vocabulary_of(alphabets[name]) for name in TEXTS}
    inputs = (*token_inputs(vocabularies, options), activity_input(options))

    def converted(records_n: Array, name: str) -> Array:
        if name in alphabets:
            return ids_of(records_n[name], alphabets[name])
        return moments.apply(np.log1p(records_n["counts"]))

    rows = {split: int((splits_N == number).sum()) for number, split in enumerate(SPLITS)}
    with ExitStack() as stack:
        files = {
            (number, one.name): stack.enter_context(
                writer.array(input_file(split, one.name), (rows[split], *one.shape), one.dtype)
            )
            for number, split in enumerate(SPLITS)
            for one in inputs
        }
        done = 0
        for records_n, split_n in table.chunks(splits_N):
            for (number, name), file in files.items():
                file.append(converted(records_n[split_n == number], name))
            progress("write", done := done + len(split_n), len(splits_N))
    table.file.unlink()
    for number, split in enumerate(SPLITS):
        writer.put(labels_file(split), table.labels_N[splits_N == number], np.int64)
        writer.put(extra_file(split, ROWS), np.flatnonzero(splits_N == number), np.int64)
    return Contents(inputs=inputs, class_names=CLASS_NAMES, rows=rows, extras=(ROWS,))


def token_inputs(vocabularies: Mapping[str, int], options: Mapping[str, Any]) -> tuple[Input, ...]:
    """The texts as inputs."""
    return tuple(
        Input(
            name=name,
            shape=(options["length"],),
            kind="tokens",
            dtype=id_type(vocabulary),
            vocabulary=vocabulary,
        )
        for name, vocabulary in vocabularies.items()
    )


def activity_input(options: Mapping[str, Any]) -> Input:
    return Input(name="activity", shape=(options["features"],))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A CSV's rows as records of code points, counts and label, in a file; labels in memory too."""

    file: Path
    record: np.dtype[Any]
    labels_N: npt.NDArray[np.uint8]

    def chunks(self, splits_N: Splits) -> Iterator[tuple[Array, Splits]]:
        """Records (n,) and the numbers of their splits (n,), a bounded number at a time."""
        with self.file.open("rb") as file:
            for first in range(0, len(splits_N), _CHUNK_ROWS):
                records_n = np.fromfile(file, self.record, _CHUNK_ROWS)
                yield records_n, splits_N[first : first + _CHUNK_ROWS]


def _copy_rows(
    path: Path, options: Mapping[str, Any], writer: Writer, progress: Progress
) -> _Table:
    """Read the columns of every row, check them and write them as records."""
    known, delimiter = read_header(path)
    counts = [f"f{i + 1}" for i in range(options["features"])]
    for column in (*TEXTS, LABEL, *counts):
        if column not in known:
            raise missing(path, column, known)
    types = dict.fromkeys((*TEXTS, LABEL), "string") | dict.fromkeys(counts, "float64")
    fields: list[Any] = [(name, "<u4", (options["length"],)) for name in TEXTS]
    record = np.dtype([*fields, ("counts", "<f8", (len(counts),)), (LABEL, "u1")])
    labels, before = [np.empty(0, dtype=np.uint8)], 0
    target = writer.folder / "records.raw"
    with target.open("wb") as file:
        blocks = read_blocks(path, types, delimiter=delimiter, progress=progress)
        for block in chain.from_iterable(map(_parts, blocks)):
            records_n = np.empty(block.num_rows, dtype=record)
            for name in TEXTS:
                records_n[name] = codes_of(block[name].to_pylist(), options["length"])
            records_n["counts"] = np.stack([block[c].to_numpy() for c in counts], axis=1)
            _check_counts(path, records_n["counts"], before, delimiter)
            records_n[LABEL] = _labels(path, block[LABEL].to_pylist(), before, delimiter)
            labels.append(records_n[LABEL].copy())
            writer.content_bytes(records_n.tobytes())
            file.write(records_n.tobytes())
            before += block.num_rows
    return _Table(file=target, record=record, labels_N=np.concatenate(labels))


def _parts(block: Any) -> Iterator[Any]:
    """Parts of a record batch, so that few texts are Python's at a time."""
    return (block.slice(first, _CHUNK_ROWS) for first in range(0, block.num_rows, _CHUNK_ROWS))


def _statistics(path: Path, table: _Table, splits_N: Splits) -> tuple[dict[str, Codes], Moments]:
    """The characters of each text, and mean and deviation of the activity, in training rows."""
    moments = Moments(table.record["counts"].shape[0])
    alphabets: dict[str, Codes] = dict.fromkeys(TEXTS, np.empty(0, dtype=np.uint32))
    for records_n, split_n in table.chunks(splits_N):
        training_n = records_n[split_n == 0]
        moments.add(np.log1p(training_n["counts"]))
        for name in TEXTS:
            alphabets[name] = alphabet_of(alphabets[name], training_n[name])
    for name in TEXTS:
        if not len(alphabets[name]):
            raise DataError(
                f"{path}: column {name!r} must have text in the training rows, got none"
            )
    return alphabets, moments


def _check_counts(path: Path, counts_nF: Array, before: int, delimiter: str) -> None:
    is_right_nF = np.isfinite(counts_nF) & (counts_nF >= 0)
    if not is_right_nF.all():
        row, column = (int(i) for i in np.argwhere(~is_right_nF)[0])
        raise DataError(
            f"{path}: line {line_of(path, before + row + 1, delimiter):,} must hold finite counts "
            f"from 0, got {counts_nF[row, column]:g} in column 'f{column + 1}'; correct or remove "
            "it"
        )


def _labels(path: Path, texts: list[str], before: int, delimiter: str) -> npt.NDArray[np.uint8]:
    found = [_LABELS.get(text.strip().lower()) for text in texts]
    if None in found:
        row = found.index(None)
        raise DataError(
            f"{path}: line {line_of(path, before + row + 1, delimiter):,} must have female or "
            f"male in column {LABEL!r}, got {texts[row][:40]!r}; correct or remove it"
        )
    return np.array(found, dtype=np.uint8)


def _assign(path: Path, labels_N: npt.NDArray[np.uint8], options: Mapping[str, Any]) -> Splits:
    """Give each row, in a random order, the number of its split in `SPLITS`, or `_UNUSED`.

    Raises:
        DataError: too few rows, or a split with one gender only.
    """
    rows = len(labels_N)
    test = options["test_rows"] or max(1, round(_TEST_SHARE * rows))
    val = options["val_rows"] or max(1, round(_VAL_SHARE * rows))
    train = options["train_rows"] or max(1, rows - test - val)
    if train + val + test > rows:
        raise DataError(
            f"{path}: must have rows for training ({train:,}), validation ({val:,}) and test "
            f"({test:,}), got {rows:,} in all; set train_rows, val_rows and test_rows lower"
        )
    order_N = permutation(rows, options["seed"], "gender", "splits")
    splits_N = np.full(rows, _UNUSED, dtype=np.uint8)
    splits_N[order_N[:test]] = 2
    splits_N[order_N[test : test + val]] = 1
    splits_N[order_N[test + val : test + val + train]] = 0
    for number, split in enumerate(SPLITS):
        found = np.flatnonzero(np.bincount(labels_N[splits_N == number]))
        if len(found) < len(CLASS_NAMES):
            raise DataError(
                f"{path}: the {split} rows must have users of both genders, got only "
                f"{CLASS_NAMES[int(found[0])]}; set {split}_rows higher or add rows"
            )
    return splits_N
