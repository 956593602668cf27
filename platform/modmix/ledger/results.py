"""Replicates (claimed, then finished), their histories, and packs.

A trained replicate (``done``) is recorded once for all studies. That a replicate was pruned or has
failed is the outcome of one study: others do not see it, and train the replicate themselves.
"""

from __future__ import annotations

import itertools
import json
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from modmix.ledger.database import Database, insert_new
from modmix.ledger.recording import (
    chunks,
    record_outcomes,
    record_trained,
    recorded_at,
    without_result,
)
from modmix.ledger.records import Lease, PackRecord, ReplicateRecord, Result, dump, number
from modmix.ledger.retrying import retried
from modmix.ledger.studies import living_tokens
from modmix.ledger.tables import (
    HISTORIES,
    OUTCOMES,
    PACKS,
    REPLICATES,
    STUDIES,
    STUDY_CONFIGURATIONS,
    STUDY_REPLICATES,
)

# What `OUTCOMES` has in place of the columns of `REPLICATES`.
_OF_RESULT = (
    "state",
    "pack",
    "epochs",
    "best_epoch",
    "metrics",
    "reason",
    "seconds",
    "finished",
    "environment",
)


class Results(Database):
    """The replicates of studies, and the packs that train them."""

    @retried
    def replicates(
        self, study: str, *, configurations: Sequence[str] | None = None, since: float | None = None
    ) -> list[ReplicateRecord]:
        """The replicates a study needs, by configuration number and seed, with their results.

        Args:
            study: its name.
            configurations: only those of these configurations, ordered within each 500.
            since: only those that ended after this time (seconds since 1970).
        """
        conditions: list[sa.ColumnElement[bool]]
        if configurations is not None:
            conditions = [
                STUDY_REPLICATES.c.configuration.in_(part) for part in chunks(configurations)
            ]
        elif since is not None:
            conditions = [sa.func.coalesce(OUTCOMES.c.finished, REPLICATES.c.finished) > since]
        else:
            conditions = [sa.true()]
        with self._reading(study) as (db, key):
            rows = [row for one in conditions for row in db.execute(_replicates(key, one))]
        return [_replicate_record(row) for row in rows]

    @retried
    def replicate_states(self, study: str) -> dict[str, str]:
        """State of each replicate a study needs, by key."""
        with self._reading(study) as (db, key):
            query = (
                sa.select(
                    REPLICATES.c.key,
                    sa.func.coalesce(OUTCOMES.c.state, REPLICATES.c.state).label("state"),
                )
                .join(STUDY_REPLICATES, STUDY_REPLICATES.c.replicate == REPLICATES.c.key)
                .outerjoin(OUTCOMES, _own_outcome())
                .where(STUDY_REPLICATES.c.study == key)
            )
            return {row.key: row.state for row in db.execute(query)}

    @retried
    def recover(self, study: str, *, packs: bool = True) -> int:
        """Mark running replicates whose driver is dead as interrupted; return how many.

        Args:
            packs: also mark the study's running packs (only before any pack was started).
        """
        with self._writing(study) as (db, key):
            mine = sa.select(STUDY_REPLICATES.c.replicate).where(STUDY_REPLICATES.c.study == key)
            running = (REPLICATES.c.state == "running") & REPLICATES.c.key.in_(mine)
            owner = REPLICATES.c.owner
            # Owners before leases: one that begins in between is alive, and its claims stay. So do
            # one's own, although the heartbeat may be late after the machine was suspended.
            owners = set(db.scalars(sa.select(owner).where(running).distinct()))
            dead = owners - {*living_tokens(db), self._held.get(key), None}
            found = db.execute(
                sa.update(REPLICATES)
                .where(running, owner.is_(None) | owner.in_(sorted(dead)))
                .values(state="interrupted", owner=None)
            )
            if packs:
                db.execute(
                    sa.update(PACKS)
                    .where(PACKS.c.study == key, PACKS.c.state == "running")
                    .values(state="interrupted")
                )
        return int(found.rowcount)

    @retried
    def adopt(self, study: str, keys: Collection[str] | None = None) -> int:
        """Mark replicates that are trained already as reused; return how many.

        Those that other studies have pruned, or that failed there, are not taken over; this study's
        own outcomes are, where its file has them again.

        Args:
            study: its name.
            keys: only these replicates; all if None.
        """
        replicate = STUDY_REPLICATES.c.replicate
        trained = sa.exists().where(REPLICATES.c.key == replicate, REPLICATES.c.state == "done")
        own = sa.exists().where(_own_outcome())
        some = [sa.true()] if keys is None else [replicate.in_(p) for p in chunks(sorted(keys))]
        with self._writing(study) as (db, key):
            mine = (STUDY_REPLICATES.c.study == key) & (STUDY_REPLICATES.c.origin == "")
            statement = sa.update(STUDY_REPLICATES).where(mine, trained | own)
            return sum(
                int(db.execute(statement.where(one).values(origin="reused")).rowcount)
                for one in some
            )

    @retried
    def reset_failures(self, study: str) -> int:
        """Let the replicates that failed in this study be trained again; return how many.

        Failure counts of packs are reset, so that abandoned packs are retried.
        """
        with self._writing(study) as (db, key):
            failed = (OUTCOMES.c.study == key) & (OUTCOMES.c.state == "failed")
            keys = list(db.execute(sa.select(OUTCOMES.c.replicate).where(failed)).scalars())
            for part in chunks(keys):
                db.execute(
                    sa.update(STUDY_REPLICATES)
                    .where(STUDY_REPLICATES.c.study == key, STUDY_REPLICATES.c.replicate.in_(part))
                    .values(origin="")
                )
            db.execute(sa.delete(OUTCOMES).where(failed))
            db.execute(sa.update(PACKS).where(PACKS.c.study == key).values(failures=0))
        return len(keys)

    def claim(self, lease: Lease, pack: str, keys: Sequence[str]) -> list[str]:
        """Take replicates for training; return those that were free.

        A replicate that another living driver trains, or that has ended meanwhile, is not free.
        """
        attempts = itertools.count()
        return self.retry(lambda: self._claim(lease, pack, keys, again=next(attempts) > 0))

    def _claim(self, lease: Lease, pack: str, keys: Sequence[str], *, again: bool) -> list[str]:
        """As `claim`. ``again``: an earlier attempt may have succeeded without our knowing."""
        with self._writing(lease) as (db, key):
            free: sa.ColumnElement[bool] = REPLICATES.c.state.in_(("pending", "interrupted"))
            if again:
                mine = (REPLICATES.c.owner == lease.token) & (REPLICATES.c.pack == pack)
                free = free | ((REPLICATES.c.state == "running") & mine)
            own = sa.select(OUTCOMES.c.replicate).where(
                OUTCOMES.c.study == key, OUTCOMES.c.replicate.in_(keys)
            )
            # One statement: of two drivers that want the same replicate, one gets it.
            taken = db.execute(
                sa.update(REPLICATES)
                .where(REPLICATES.c.key.in_(keys), REPLICATES.c.key.not_in(own), free)
                .values(
                    state="running",
                    owner=lease.token,
                    pack=pack,
                    attempts=REPLICATES.c.attempts + 1,
                )
                .returning(REPLICATES.c.key)
            )
            found = set(taken.scalars())
            claimed = [one for one in keys if one in found]
            if claimed:
                row = {
                    "id": pack,
                    "study": key,
                    "replicates": json.dumps(list(keys)),
                    "state": "running",
                    "started": time.time(),
                }
                insert_new(db, PACKS, [row], renew=["state", "started"])
        return claimed

    def finish(self, lease: Lease, results: Sequence[Result]) -> list[str]:
        """Record results; return the keys that had none before. Results are never overwritten.

        A result and its predictions are one transaction.
        """
        moment = time.time()
        attempts = itertools.count()
        return self.retry(lambda: self._finish(lease, results, moment, again=next(attempts) > 0))

    def _finish(
        self, lease: Lease, results: Sequence[Result], moment: float, *, again: bool
    ) -> list[str]:
        with self._writing(lease) as (db, key):
            keys = [result.replicate for result in results]
            if again and (recorded := recorded_at(db, key, keys, moment)):
                return recorded  # the earlier attempt has succeeded without our knowing
            new = without_result(db, key, results)
            if not new:
                return []
            record_trained(db, [r for r in new if r.state == "done"], moment)
            record_outcomes(db, key, lease, [r for r in new if r.state != "done"], moment)
            keys = [result.replicate for result in new]
            for part in chunks(keys):
                db.execute(
                    sa.update(STUDY_REPLICATES)
                    .where(STUDY_REPLICATES.c.study == key, STUDY_REPLICATES.c.replicate.in_(part))
                    .values(origin="trained")
                )
            seconds = sum(result.seconds for result in new)
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == key)
                .values(device_seconds=STUDIES.c.device_seconds + seconds, updated=moment)
            )
        return keys

    @retried
    def unclaim(self, lease: Lease, keys: Sequence[str], *, state: str = "interrupted") -> None:
        """Release replicates that this driver claimed and will not finish now."""
        with self._writing(lease) as (db, _):
            for part in chunks(keys):
                db.execute(
                    sa.update(REPLICATES)
                    .where(
                        REPLICATES.c.key.in_(part),
                        REPLICATES.c.state == "running",
                        REPLICATES.c.owner == lease.token,
                    )
                    .values(state=state, owner=None)
                )

    @retried
    def histories(self, study: str, keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
        """Histories by replicate key, of those that have one, as this study sees them.

        A history has columns ("epoch", "val/error", …) with one value per evaluation.
        """
        found: dict[str, bytes] = {}
        with self._reading(study) as (db, key):
            for part in chunks(keys):
                shared = sa.select(HISTORIES).where(HISTORIES.c.replicate.in_(part))
                own = sa.select(OUTCOMES.c.replicate, OUTCOMES.c["columns"]).where(
                    OUTCOMES.c.study == key, OUTCOMES.c.replicate.in_(part)
                )
                for query in (shared, own):
                    found |= {row.replicate: row.columns for row in db.execute(query)}
        return {replicate: _columns(data) for replicate, data in found.items() if data}

    # ------------------------------------------------------------ packs

    @retried
    def packs(self, study: str) -> list[PackRecord]:
        """The packs of a study, by start time."""
        with self._reading(study) as (db, key):
            query = sa.select(PACKS).where(PACKS.c.study == key).order_by(PACKS.c.started)
            rows = db.execute(query).all()
        return [
            PackRecord(
                id=row.id,
                replicates=tuple(json.loads(row.replicates)),
                state=row.state,
                note=json.loads(row.note),
                failures=row.failures,
            )
            for row in rows
        ]

    @retried
    def pack_starts(self, packs: Sequence[str]) -> dict[str, float]:
        """When packs of any study started, in seconds since 1970, by their ids."""
        query = sa.select(PACKS.c.id, PACKS.c.started).where(PACKS.c.started.is_not(None))
        with self._transaction() as db:
            return {
                row.id: row.started
                for part in chunks(packs)
                for row in db.execute(query.where(PACKS.c.id.in_(part)))
            }

    @retried
    def update_pack(
        self,
        study: str,
        pack: str,
        *,
        state: str | None = None,
        note: Mapping[str, Any] | None = None,
        failures: int | None = None,
    ) -> None:
        """Update a pack that has already been claimed.

        Args:
            note: merged into the stored note.
            failures: the new failure count.
        """
        values: dict[str, Any] = {}
        if state is not None:
            values |= {"state": state, "finished": time.time()}
        if failures is not None:
            values["failures"] = failures
        with self._writing(study) as (db, key):
            this = (PACKS.c.study == key) & (PACKS.c.id == pack)
            if note is not None:
                noted = db.execute(sa.select(PACKS.c.note).where(this)).scalar()
                values["note"] = dump({**json.loads(noted or "{}"), **note})
            db.execute(sa.update(PACKS).where(this).values(values))


def _own_outcome() -> sa.ColumnElement[bool]:
    """Joins `OUTCOMES` to `STUDY_REPLICATES`."""
    return (OUTCOMES.c.study == STUDY_REPLICATES.c.study) & (
        OUTCOMES.c.replicate == STUDY_REPLICATES.c.replicate
    )


def _replicates(key: str, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return (
        sa.select(
            REPLICATES,
            *(OUTCOMES.c[name].label(f"own_{name}") for name in _OF_RESULT),
            STUDY_REPLICATES.c.origin,
            STUDY_REPLICATES.c.configuration.label("study_configuration"),
        )
        .join(STUDY_REPLICATES, STUDY_REPLICATES.c.replicate == REPLICATES.c.key)
        .join(
            STUDY_CONFIGURATIONS,
            (STUDY_CONFIGURATIONS.c.study == STUDY_REPLICATES.c.study)
            & (STUDY_CONFIGURATIONS.c.configuration == STUDY_REPLICATES.c.configuration),
        )
        .outerjoin(OUTCOMES, _own_outcome())
        .where(STUDY_REPLICATES.c.study == key, condition)
        .order_by(STUDY_CONFIGURATIONS.c.number, REPLICATES.c.seed)
    )


def _replicate_record(row: Any) -> ReplicateRecord:
    own = row.own_state is not None
    of = {name: getattr(row, f"own_{name}" if own else name) for name in _OF_RESULT}
    return ReplicateRecord(
        key=row.key,
        configuration=row.study_configuration,
        seed=row.seed,
        state=of["state"],
        owner=None if own else row.owner,
        pack=of["pack"],
        attempts=row.attempts,
        epochs=of["epochs"],
        best_epoch=of["best_epoch"],
        metrics={k: number(v) for k, v in json.loads(of["metrics"]).items()},
        reason=of["reason"],
        seconds=of["seconds"],
        finished=of["finished"],
        origin=row.origin,
        environment=json.loads(of["environment"] or "{}"),
    )


def _columns(data: bytes) -> dict[str, list[float]]:
    return {k: [*map(number, v)] for k, v in json.loads(zlib.decompress(data)).items()}
