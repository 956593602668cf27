"""Stored test predictions as a Parquet or CSV file: a row per replicate and test example."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modmix.analysis.frames import Snapshot, short
from modmix.base.errors import InputError
from modmix.base.predictions import ExamplePredictions, ExampleTargets
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, ReplicateRecord

FORMATS = ("parquet", "csv")
_ROWS_AT_ONCE = 100_000

# Column -> meaning; ``task`` only in studies of several.
COLUMNS: Mapping[str, str] = {
    "task": "the task's name in the study file",
    "method": "the method",
    "configuration": "short key of the configuration, as in the study's tables",
    "seed": "the replicate's seed",
    "row": "row number of the example in the task's source, or its position in the test split",
    "target": "number of the true class, from 0",
    "predicted": "number of the predicted class",
    "p_true": "probability of the true class",
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` wrote. ``missing``: finished replicates without predictions."""

    path: Path
    rows: int
    replicates: int
    missing: int


def finished(snapshot: Snapshot) -> list[ReplicateRecord]:
    """The finished replicates of a study's configurations."""
    return [
        r for r in snapshot.replicates if r.state == "done" and r.configuration in snapshot.by_key
    ]


def no_predictions(name: str) -> str:
    """Why nothing is stored, and the remedy, as a message."""
    return (
        f"study {name!r} has no stored test predictions: set predictions: true in its file before "
        "it runs (with reuse: false, models that were trained without them are trained again)"
    )


def export(ledger: Ledger, snapshot: Snapshot, path: Path, form: str) -> Exported:
    """Write the predictions of all finished replicates that have some; see `COLUMNS`.

    Rows are in the order of configurations, seeds and the prepared test split. Memory holds the
    predictions of a few replicates.

    Raises:
        InputError: unknown format, or no predictions are stored.
    """
    if form not in FORMATS:
        raise InputError(f"the format must be one of {', '.join(FORMATS)}, got {form!r}")
    done = finished(snapshot)
    stored = ledger.with_predictions([r.key for r in done])
    mine = [r for r in done if r.key in stored]
    if not mine:
        raise InputError(no_predictions(snapshot.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        rows = _write(_batches(ledger, snapshot, mine), temporary, form)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(path=path, rows=rows, replicates=len(mine), missing=len(done) - len(mine))


def _write(batches: Iterator[Any], path: Path, form: str) -> int:
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import csv, parquet

    first = next(batches)
    writer: Any
    if form == "csv":
        writer = csv.CSVWriter(str(path), first.schema)
    else:
        writer = parquet.ParquetWriter(str(path), first.schema, compression="zstd")
    rows = 0
    with writer:
        for batch in itertools.chain([first], batches):
            writer.write_table(pyarrow.Table.from_batches([batch]))
            rows += batch.num_rows
    return rows


def _batches(
    ledger: Ledger, snapshot: Snapshot, replicates: list[ReplicateRecord]
) -> Iterator[Any]:
    """Record batches of at most `_ROWS_AT_ONCE` rows."""
    by_key = {replicate.key: replicate for replicate in replicates}
    splits: dict[str, ExampleTargets] = {}
    for key, found in ledger.predictions(list(by_key)):
        replicate = by_key[key]
        configuration = snapshot.by_key[replicate.configuration]
        fingerprint = configuration.fingerprint
        if fingerprint not in splits:
            split = ledger.test_split(fingerprint)
            assert split is not None, fingerprint  # stored before any prediction on it
            splits[fingerprint] = split
        for first in range(0, len(found.classes_N), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            yield _batch(snapshot, configuration, replicate, found, splits[fingerprint], part)


def _batch(
    snapshot: Snapshot,
    configuration: ConfigurationRecord,
    replicate: ReplicateRecord,
    found: ExamplePredictions,
    split: ExampleTargets,
    part: slice,
) -> Any:
    import pyarrow

    classes_n = found.classes_N[part]

    def same(value: str | int) -> Any:
        return pyarrow.repeat(pyarrow.scalar(value), len(classes_n))

    columns = {
        "task": same(configuration.task),
        "method": same(configuration.method),
        "configuration": same(short(configuration.key)),
        "seed": same(replicate.seed),
        "row": pyarrow.array(split.numbers_N[part]),
        "target": pyarrow.array(split.target_N[part].astype(np.int32)),
        "predicted": pyarrow.array(classes_n.astype(np.int32)),
        "p_true": pyarrow.array(found.p_true_N[part].astype(np.float32)),
    }
    if not snapshot.tasks:
        del columns["task"]
    return pyarrow.RecordBatch.from_pydict(columns)
