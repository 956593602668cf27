"""Stored test predictions of replicates, and the test splits they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from modmix.base.predictions import (
    ExamplePredictions,
    ExampleTargets,
    integers_from_bytes,
    integers_to_bytes,
)
from modmix.ledger.database import Database, insert_new
from modmix.ledger.recording import chunks
from modmix.ledger.retrying import retried
from modmix.ledger.tables import PREDICTIONS, TEST_SPLITS

_AT_ONCE = 16  # replicates whose predictions are read together


class StoredPredictions(Database):
    """Predictions by replicate (written by `Results.finish`), test splits by fingerprint."""

    @retried
    def add_test_split(self, fingerprint: str, split: ExampleTargets) -> None:
        """Keep a test split, unless it is known."""
        numbers = None if split.rows_N is None else integers_to_bytes(split.rows_N)
        row = {
            "fingerprint": fingerprint,
            "rows": len(split.target_N),
            "targets": integers_to_bytes(split.target_N),
            "numbers": numbers,
        }
        with self._transaction(self._writer) as db:
            insert_new(db, TEST_SPLITS, [row])

    @retried
    def test_split(self, fingerprint: str) -> ExampleTargets | None:
        """A test split; None if no predictions on this data were ever kept."""
        query = sa.select(TEST_SPLITS).where(TEST_SPLITS.c.fingerprint == fingerprint)
        with self._transaction() as db:
            row = db.execute(query).one_or_none()
        if row is None:
            return None
        numbers = None if row.numbers is None else integers_from_bytes(row.numbers, row.rows)
        return ExampleTargets(integers_from_bytes(row.targets, row.rows), numbers)

    @retried
    def with_predictions(self, keys: Sequence[str]) -> set[str]:
        """Those of these replicates whose predictions are stored."""
        found: set[str] = set()
        with self._transaction() as db:
            for part in chunks(keys):
                query = sa.select(PREDICTIONS.c.replicate).where(PREDICTIONS.c.replicate.in_(part))
                found |= set(db.execute(query).scalars())
        return found

    def predictions(self, keys: Sequence[str]) -> Iterator[tuple[str, ExamplePredictions]]:
        """Yield predictions by replicate, in this order, of those that have some.

        Reads a few replicates at a time.
        """
        for begin in range(0, len(keys), _AT_ONCE):
            part = keys[begin : begin + _AT_ONCE]
            rows = self._predictions(part)
            for key in part:
                if key in rows:
                    yield key, ExamplePredictions.from_bytes(rows[key].data, rows[key].rows)

    @retried
    def _predictions(self, keys: Sequence[str]) -> dict[str, Any]:
        query = sa.select(PREDICTIONS).where(PREDICTIONS.c.replicate.in_(keys))
        with self._transaction() as db:
            return {row.replicate: row for row in db.execute(query)}
