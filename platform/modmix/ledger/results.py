"""Replicates (claimed, then finished once), their histories, and packs."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from modmix.ledger.database import (
    HISTORIES,
    PACKS,
    PREDICTIONS,
    REPLICATES,
    STUDIES,
    STUDY_CONFIGURATIONS,
    STUDY_REPLICATES,
    Database,
)
from modmix.ledger.records import ENDED, Lease, PackRecord, ReplicateRecord, Result, dump, number
from modmix.ledger.studies import is_alive


class Results(Database):
    """The replicates of studies, and the packs that train them."""

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
            conditions = [REPLICATES.c.finished > since]
        else:
            conditions = [sa.true()]
        return [record for condition in conditions for record in self._replicates(study, condition)]

    def _replicates(self, study: str, condition: sa.ColumnElement[bool]) -> list[ReplicateRecord]:
        query = (
            sa.select(
                REPLICATES,
                STUDY_REPLICATES.c.origin,
                STUDY_REPLICATES.c.configuration.label("study_configuration"),
            )
            .join(STUDY_REPLICATES, STUDY_REPLICATES.c.replicate == REPLICATES.c.key)
            .join(
                STUDY_CONFIGURATIONS,
                (STUDY_CONFIGURATIONS.c.study == STUDY_REPLICATES.c.study)
                & (STUDY_CONFIGURATIONS.c.configuration == STUDY_REPLICATES.c.configuration),
            )
            .where(STUDY_REPLICATES.c.study == study, condition)
            .order_by(STUDY_CONFIGURATIONS.c.number, REPLICATES.c.seed)
        )
        with self._transaction() as db:
            rows = db.execute(query).all()
        return [_replicate_record(row) for row in rows]

    def replicate_states(self, study: str) -> dict[str, str]:
        """State of each replicate a study needs, by key."""
        query = (
            sa.select(REPLICATES.c.key, REPLICATES.c.state)
            .join(STUDY_REPLICATES, STUDY_REPLICATES.c.replicate == REPLICATES.c.key)
            .where(STUDY_REPLICATES.c.study == study)
        )
        with self._transaction() as db:
            return {row.key: row.state for row in db.execute(query)}

    def recover(self, study: str, *, packs: bool = True) -> int:
        """Mark running replicates whose driver is dead as interrupted; return how many.

        Args:
            packs: also mark the study's running packs (only before any pack was started).
        """
        with self._transaction() as db:
            living = [row.lease_token for row in db.execute(sa.select(STUDIES)) if is_alive(row)]
            orphaned = (REPLICATES.c.state == "running") & (
                REPLICATES.c.owner.is_(None) | REPLICATES.c.owner.not_in(living)
            )
            mine = sa.select(STUDY_REPLICATES.c.replicate).where(STUDY_REPLICATES.c.study == study)
            found = db.execute(
                sa.update(REPLICATES)
                .where(orphaned, REPLICATES.c.key.in_(mine))
                .values(state="interrupted", owner=None)
            )
            if packs:
                db.execute(
                    sa.update(PACKS)
                    .where(PACKS.c.study == study, PACKS.c.state == "running")
                    .values(state="interrupted")
                )
        return int(found.rowcount)

    def adopt(self, study: str) -> int:
        """Mark replicates that other studies have finished as reused; return how many."""
        ended = sa.select(REPLICATES.c.key).where(REPLICATES.c.state.in_(ENDED))
        with self._transaction() as db:
            found = db.execute(
                sa.update(STUDY_REPLICATES)
                .where(
                    STUDY_REPLICATES.c.study == study,
                    STUDY_REPLICATES.c.origin == "",
                    STUDY_REPLICATES.c.replicate.in_(ended),
                )
                .values(origin="reused")
            )
        return int(found.rowcount)

    def reset_failures(self, study: str) -> int:
        """Let a study's failed replicates be trained again; return how many."""
        mine = sa.select(STUDY_REPLICATES.c.replicate).where(STUDY_REPLICATES.c.study == study)
        failed = (REPLICATES.c.state == "failed") & REPLICATES.c.key.in_(mine)
        with self._transaction() as db:
            keys = list(db.execute(sa.select(REPLICATES.c.key).where(failed)).scalars())
            for key in keys:
                db.execute(
                    sa.update(REPLICATES)
                    .where(REPLICATES.c.key == key)
                    .values(state="pending", reason="", metrics="{}")
                )
                db.execute(
                    sa.update(STUDY_REPLICATES)
                    .where(STUDY_REPLICATES.c.study == study, STUDY_REPLICATES.c.replicate == key)
                    .values(origin="")
                )
                db.execute(sa.delete(HISTORIES).where(HISTORIES.c.replicate == key))
        return len(keys)

    def claim(self, lease: Lease, pack: str, keys: Sequence[str]) -> list[str]:
        """Take replicates for training; return those that were free.

        A replicate that another living driver trains, or that has ended meanwhile, is not free.
        """
        free = ("pending", "interrupted")
        with self._transaction() as db:
            # One statement: of two drivers that want the same replicate, one gets it.
            taken = db.execute(
                sa.update(REPLICATES)
                .where(REPLICATES.c.key.in_(keys), REPLICATES.c.state.in_(free))
                .values(
                    state="running",
                    owner=lease.token,
                    pack=pack,
                    attempts=REPLICATES.c.attempts + 1,
                )
                .returning(REPLICATES.c.key)
            )
            mine = set(taken.scalars())
            claimed = [key for key in keys if key in mine]
            if not claimed:
                return []
            where = (PACKS.c.id == pack) & (PACKS.c.study == lease.study)
            renewed = db.execute(
                sa.update(PACKS).where(where).values(state="running", started=time.time())
            )
            if renewed.rowcount == 0:
                db.execute(
                    sa.insert(PACKS).values(
                        id=pack,
                        study=lease.study,
                        replicates=json.dumps(list(keys)),
                        state="running",
                        started=time.time(),
                    )
                )
        return claimed

    def finish(self, lease: Lease, results: Sequence[Result]) -> list[str]:
        """Record results; return the keys that had none before. Results are never overwritten.

        A result and its predictions are one transaction.
        """
        now = time.time()
        with self._transaction() as db:
            # Write first: SQLite then takes its lock, and later reads stay valid.
            mine = sa.update(STUDIES).where(STUDIES.c.name == lease.study)
            db.execute(mine.values(updated=STUDIES.c.updated))
            open_ = self._open(db, [result.replicate for result in results])
            new = []
            for result in results:
                if result.replicate in open_:
                    open_.remove(result.replicate)  # the first one counts
                    new.append(result)
            if not new:
                return []
            db.execute(
                sa.update(REPLICATES)
                .where(REPLICATES.c.key == sa.bindparam("of"))
                .values(owner=None, finished=now),
                [
                    {
                        "of": result.replicate,
                        "state": result.state,
                        "epochs": result.epochs,
                        "best_epoch": result.best_epoch,
                        "metrics": dump(dict(result.metrics)),
                        "reason": result.reason,
                        "seconds": result.seconds,
                    }
                    for result in new
                ],
            )
            blobs = [
                {
                    "replicate": result.replicate,
                    "columns": zlib.compress(dump(dict(result.history)).encode()),
                }
                for result in new
            ]
            keys = [result.replicate for result in new]
            for part in chunks(keys):
                db.execute(sa.delete(HISTORIES).where(HISTORIES.c.replicate.in_(part)))
                db.execute(
                    sa.update(STUDY_REPLICATES)
                    .where(
                        STUDY_REPLICATES.c.study == lease.study,
                        STUDY_REPLICATES.c.replicate.in_(part),
                    )
                    .values(origin="trained")
                )
            db.execute(sa.insert(HISTORIES), blobs)
            kept = [
                {"replicate": r.replicate, "rows": r.predictions.rows, "data": r.predictions.data}
                for r in new
                if r.predictions is not None and r.state == "done"
            ]
            if kept:
                db.execute(sa.insert(PREDICTIONS), kept)
            seconds = sum(result.seconds for result in new)
            db.execute(mine.values(device_seconds=STUDIES.c.device_seconds + seconds, updated=now))
        return keys

    @staticmethod
    def _open(db: sa.Connection, keys: Sequence[str]) -> set[str]:
        """Those without a result, locked until the end of the transaction."""
        found: set[str] = set()
        for part in chunks(sorted(keys)):  # same order everywhere, see `insert_new`
            query = (
                sa.select(REPLICATES.c.key)
                .where(REPLICATES.c.key.in_(part), REPLICATES.c.state.not_in(ENDED))
                .order_by(REPLICATES.c.key)
                .with_for_update()
            )
            found |= set(db.execute(query).scalars())
        return found

    def unclaim(self, lease: Lease, keys: Sequence[str], *, state: str = "interrupted") -> None:
        """Release replicates that this driver claimed and will not finish now."""
        with self._transaction() as db:
            for begin in range(0, len(keys), 500):
                db.execute(
                    sa.update(REPLICATES)
                    .where(
                        REPLICATES.c.key.in_(keys[begin : begin + 500]),
                        REPLICATES.c.state == "running",
                        REPLICATES.c.owner == lease.token,
                    )
                    .values(state=state, owner=None)
                )

    def history(self, replicate: str) -> dict[str, list[float]]:
        """One replicate's columns ("epoch", "val/error", …), one value per evaluation."""
        return self.histories([replicate]).get(replicate, {})

    def histories(self, keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
        """Histories by replicate key, of those that have one."""
        found: dict[str, dict[str, list[float]]] = {}
        with self._transaction() as db:
            for begin in range(0, len(keys), 500):
                query = sa.select(HISTORIES).where(
                    HISTORIES.c.replicate.in_(keys[begin : begin + 500])
                )
                for row in db.execute(query):
                    columns = json.loads(zlib.decompress(row.columns))
                    found[row.replicate] = {k: [*map(number, v)] for k, v in columns.items()}
        return found

    # ------------------------------------------------------------ packs

    def packs(self, study: str) -> list[PackRecord]:
        """The packs of a study, by start time."""
        query = sa.select(PACKS).where(PACKS.c.study == study).order_by(PACKS.c.started)
        with self._transaction() as db:
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

    def pack_starts(self, packs: Sequence[str]) -> dict[str, float]:
        """When packs of any study started, in seconds since 1970, by their ids."""
        query = sa.select(PACKS.c.id, PACKS.c.started).where(PACKS.c.started.is_not(None))
        with self._transaction() as db:
            return {
                row.id: row.started
                for part in chunks(packs)
                for row in db.execute(query.where(PACKS.c.id.in_(part)))
            }

    def update_pack(
        self,
        study: str,
        pack: str,
        *,
        state: str | None = None,
        note: Mapping[str, Any] | None = None,
        failed: bool = False,
    ) -> None:
        values: dict[str, Any] = {}
        if state is not None:
            values |= {"state": state, "finished": time.time()}
        if note is not None:
            values["note"] = dump(note)
        if failed:
            values["failures"] = PACKS.c.failures + 1
        with self._transaction() as db:
            db.execute(
                sa.update(PACKS).where(PACKS.c.study == study, PACKS.c.id == pack).values(values)
            )


def chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    """The keys in chunks that fit into one SQL statement."""
    return [keys[begin : begin + 500] for begin in range(0, len(keys), 500)]


def _replicate_record(row: Any) -> ReplicateRecord:
    return ReplicateRecord(
        key=row.key,
        configuration=row.study_configuration,
        seed=row.seed,
        state=row.state,
        owner=row.owner,
        pack=row.pack,
        attempts=row.attempts,
        epochs=row.epochs,
        best_epoch=row.best_epoch,
        metrics={k: number(v) for k, v in json.loads(row.metrics).items()},
        reason=row.reason,
        seconds=row.seconds,
        finished=row.finished,
        origin=row.origin,
    )
