"""Writes results into the tables; the transactions are those of `results`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from modmix.ledger.records import Lease, Result, dump
from modmix.ledger.tables import HISTORIES, OUTCOMES, PREDICTIONS, REPLICATES


def chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    """The keys in chunks that fit into one SQL statement."""
    return [keys[begin : begin + 500] for begin in range(0, len(keys), 500)]


def recorded_at(db: sa.Connection, study: str, keys: Sequence[str], moment: float) -> list[str]:
    """Those of these replicates whose results were recorded at this time."""
    found: set[str] = set()
    for part in chunks(keys):
        shared = sa.select(REPLICATES.c.key).where(
            REPLICATES.c.key.in_(part), REPLICATES.c.finished == moment
        )
        own = sa.select(OUTCOMES.c.replicate).where(
            OUTCOMES.c.study == study,
            OUTCOMES.c.replicate.in_(part),
            OUTCOMES.c.finished == moment,
        )
        found |= {*db.execute(shared).scalars(), *db.execute(own).scalars()}
    return [key for key in keys if key in found]


def without_result(db: sa.Connection, study: str, results: Sequence[Result]) -> list[Result]:
    """The first result of each replicate that has none in this study; locks their rows."""
    free: set[str] = set()
    for part in chunks(sorted({r.replicate for r in results})):  # as ordered in `insert_new`
        own = sa.select(OUTCOMES.c.replicate).where(
            OUTCOMES.c.study == study, OUTCOMES.c.replicate.in_(part)
        )
        query = (
            sa.select(REPLICATES.c.key)
            .where(
                REPLICATES.c.key.in_(part),
                REPLICATES.c.key.not_in(own),
                REPLICATES.c.state != "done",
            )
            .order_by(REPLICATES.c.key)
            .with_for_update()
        )
        free |= set(db.execute(query).scalars())
    new = []
    for result in results:
        if result.replicate in free:
            free.remove(result.replicate)
            new.append(result)
    return new


def _values(result: Result, moment: float) -> dict[str, Any]:
    return {
        "state": result.state,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "metrics": dump(dict(result.metrics)),
        "reason": result.reason,
        "seconds": result.seconds,
        "finished": moment,
        "environment": dump(dict(result.environment)),
    }


def _history(result: Result) -> bytes:
    return zlib.compress(dump(dict(result.history)).encode())


def record_trained(db: sa.Connection, results: Sequence[Result], moment: float) -> None:
    if not results:
        return
    db.execute(
        sa.update(REPLICATES).where(REPLICATES.c.key == sa.bindparam("of")).values(owner=None),
        [{"of": result.replicate, **_values(result, moment)} for result in results],
    )
    histories = [{"replicate": r.replicate, "columns": _history(r)} for r in results]
    db.execute(sa.insert(HISTORIES), histories)
    kept = [
        {"replicate": r.replicate, "rows": r.predictions.rows, "data": r.predictions.data}
        for r in results
        if r.predictions is not None
    ]
    if kept:
        db.execute(sa.insert(PREDICTIONS), kept)


def record_outcomes(
    db: sa.Connection, study: str, lease: Lease, results: Sequence[Result], moment: float
) -> None:
    """Record pruned and failed replicates of a study; other studies may train them."""
    if not results:
        return
    packs: dict[str, str | None] = {}
    for part in chunks([result.replicate for result in results]):
        theirs = sa.select(REPLICATES.c.key, REPLICATES.c.pack).where(REPLICATES.c.key.in_(part))
        packs |= {row.key: row.pack for row in db.execute(theirs)}
        db.execute(
            sa.update(REPLICATES)
            .where(
                REPLICATES.c.key.in_(part),
                REPLICATES.c.state == "running",
                REPLICATES.c.owner == lease.token,
            )
            .values(state="pending", owner=None)
        )
    db.execute(
        sa.insert(OUTCOMES),
        [
            {
                "study": study,
                "replicate": result.replicate,
                "pack": packs.get(result.replicate),
                "columns": _history(result),
                **_values(result, moment),
            }
            for result in results
        ],
    )
