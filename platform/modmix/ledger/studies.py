"""Studies, and the leases by which each has one driver.

A lease is a token in the study's row, renewed by a heartbeat in the database's time, so that the
clocks of drivers do not matter. Writes of a driver are fenced by its token (`Database._writing`): a
driver that was paused for longer than its lease cannot write over the one that followed it.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

import sqlalchemy as sa

from modmix.base.errors import InputError, LeaseError
from modmix.base.owner import owner_and_name
from modmix.ledger.database import Database, insert_new, now
from modmix.ledger.processes import is_gone, process_space, process_start
from modmix.ledger.records import Lease, StudyRecord, dump
from modmix.ledger.retrying import retried
from modmix.ledger.tables import STUDIES, STUDY_COLUMNS

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0  # without a heartbeat for this long, a lease expires


class Studies(Database):
    """Studies and leases."""

    @retried
    def start_study(
        self,
        name: str,
        *,
        spec: Mapping[str, Any],
        text: str,
        source: str,
        details: Mapping[str, Any],
    ) -> None:
        """Add a study, or update the file of an existing one that no other driver has leased."""
        moment = time.time()
        values = {
            "spec": dump(spec),
            "text": text,
            "source": source,
            "state": "running",
            "updated": moment,
            "details": dump(details),
        }
        with self._writing(name) as (db, key):
            insert_new(db, STUDIES, [{"name": key, "created": moment, **values}])
            token = STUDIES.c.lease_token
            free = token.is_(None) | (token == self._held.get(key))
            db.execute(sa.update(STUDIES).where(STUDIES.c.name == key, free).values(values))

    @retried
    def study(self, name: str) -> StudyRecord:
        """One study.

        Raises:
            InputError: there is no such study; the message lists known ones.
        """
        with self._reading(name) as (db, key):
            row = db.execute(sa.select(STUDIES).where(STUDIES.c.name == key)).one_or_none()
        if row is None:
            plain = owner_and_name(name)[1]
            known = [record.name for record in self.studies()]
            known.sort(key=lambda other: _likeness(owner_and_name(other)[1], plain), reverse=True)
            more = f" and {len(known) - 10:,} more" if len(known) > 10 else ""
            listing = f"it has {', '.join(known[:10])}{more}" if known else "it is empty"
            raise InputError(
                f"no study {name!r} in the ledger {self.redacted_url} ({listing}): "
                "run its file first, or set MODMIX_HOME to the folder it ran in"
            )
        return self._study_record(row)

    @retried
    def has_study(self, name: str) -> bool:
        with self._reading(name) as (db, key):
            query = sa.select(STUDIES.c.name).where(STUDIES.c.name == key)
            return db.execute(query).first() is not None

    @retried
    def studies(self) -> list[StudyRecord]:
        """All studies of all owners, oldest first."""
        with self._transaction() as db:
            rows = db.execute(sa.select(STUDIES).order_by(STUDIES.c.created)).all()
        return [self._study_record(row) for row in rows]

    @retried
    def set_state(self, study: str, state: str) -> None:
        with self._writing(study) as (db, key):
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == key)
                .values(state=state, updated=time.time())
            )

    # ------------------------------------------------------------ leases

    def acquire(self, study: str) -> Lease:
        """Take the study's lease; from then on, all writes of this object to it are fenced.

        A study without owner, of a ledger from before there were any, becomes one's own.

        Raises:
            LeaseError: a live driver holds it; the message names host and process.
        """
        token = uuid.uuid4().hex
        return self.retry(lambda: self._acquire(study, token))

    def _acquire(self, study: str, token: str) -> Lease:
        with self._transaction(self._writer) as db:
            key = self._key(db, study)
            self._check_own(key)
            query = _leases(db).where(STUDIES.c.name == key).with_for_update()
            row = db.execute(query).one()
            if is_alive(row) and row.lease_token != token:
                raise LeaseError(
                    f"study {study!r} is being run by process {row.lease_pid} on "
                    f"{row.lease_host}: wait until it ends, or stop it with Ctrl-C there"
                )
            key = self._make_own(db, key)
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == key)
                .values(
                    lease_token=token,
                    lease_host=socket.gethostname(),
                    lease_space=process_space(),
                    lease_pid=os.getpid(),
                    lease_process_start=process_start(os.getpid()),
                    lease_heartbeat=now(db),
                )
            )
        self._held[key] = token
        return Lease(study=study, token=token)

    def _make_own(self, db: sa.Connection, key: str) -> str:
        """Give a study without owner to this one; return its key."""
        owner, name = owner_and_name(key)
        if owner:
            return key
        own = f"{self.owner}/{name}"
        for column in STUDY_COLUMNS:
            db.execute(sa.update(column.table).where(column == key).values({column.name: own}))
        return own

    def hold(self, lease: Lease) -> None:
        """Fence all writes of this object to a study by a lease that another one acquired."""
        with self._reading(lease.study) as (_, key):
            self._held[key] = lease.token

    @retried
    def is_current(self, lease: Lease) -> bool:
        """Whether a lease has been neither taken over nor given back."""
        with self._reading(lease.study) as (db, key):
            query = sa.select(STUDIES.c.lease_token).where(STUDIES.c.name == key)
            return db.execute(query).scalar() == lease.token

    def heartbeat(self, lease: Lease) -> bool:
        """Renew a lease; False if another driver has taken it over. Not repeated after errors.

        The time since the last heartbeat is added to the study's wall-clock time.
        """
        with self._transaction(self._writer) as db:
            kept = db.execute(
                sa.update(STUDIES)
                .where(
                    STUDIES.c.name == self._key(db, lease.study),
                    STUDIES.c.lease_token == lease.token,
                )
                .values(lease_heartbeat=now(db), wall_seconds=_wall_seconds(db))
            )
        return kept.rowcount == 1

    @retried
    def release(self, lease: Lease) -> None:
        """Give a lease back, unless it was taken over."""
        with self._transaction(self._writer) as db:
            key = self._key(db, lease.study)
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == key, STUDIES.c.lease_token == lease.token)
                .values(lease_token=None, lease_heartbeat=None, wall_seconds=_wall_seconds(db))
            )
        if self._held.get(key) == lease.token:
            del self._held[key]

    @retried
    def holder(self, study: str) -> tuple[str, int] | None:
        """Host and process id of the live driver of a study, or None."""
        with self._reading(study) as (db, key):
            row = db.execute(_leases(db).where(STUDIES.c.name == key)).one_or_none()
        return (row.lease_host, row.lease_pid) if row is not None and is_alive(row) else None

    @retried
    def set_study_run(self, study: str, run: str | None) -> None:
        """Record the id of the study's MLflow run."""
        with self._writing(study) as (db, key):
            db.execute(sa.update(STUDIES).where(STUDIES.c.name == key).values(mlflow_run=run))

    def _study_record(self, row: Any) -> StudyRecord:
        return StudyRecord(
            name=self._shown(row.name),
            key=row.name,
            spec=json.loads(row.spec),
            text=row.text,
            source=row.source,
            state=row.state,
            created=row.created,
            updated=row.updated,
            wall_seconds=row.wall_seconds or 0.0,
            device_seconds=row.device_seconds or 0.0,
            details=json.loads(row.details or "{}"),
            mlflow_run=row.mlflow_run,
        )


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _wall_seconds(db: sa.Connection) -> sa.ColumnElement[float]:
    """A study's wall-clock time up to now.

    A machine that was suspended adds no more than a lease lasts.
    """
    age = now(db) - STUDIES.c.lease_heartbeat
    counted = sa.case((age < 0, 0.0), (age > LEASE_SECONDS, LEASE_SECONDS), else_=age)
    return STUDIES.c.wall_seconds + counted


def living_tokens(db: sa.Connection) -> list[str]:
    """The leases of all live drivers."""
    held = _leases(db).where(STUDIES.c.lease_token.is_not(None))
    return [row.lease_token for row in db.execute(held) if is_alive(row)]


def _leases(db: sa.Connection) -> sa.Select[Any]:
    return sa.select(
        STUDIES.c.lease_token,
        STUDIES.c.lease_host,
        STUDIES.c.lease_space,
        STUDIES.c.lease_pid,
        STUDIES.c.lease_process_start,
        (now(db) - STUDIES.c.lease_heartbeat).label("lease_age"),
    )


def is_alive(row: Any) -> bool:
    """Whether the driver of a row of `_leases` is alive.

    Where its process id means the same here, a killed driver frees its study at once; everywhere
    else the heartbeat alone decides.
    """
    if row.lease_token is None or row.lease_age is None:
        return False
    here = row.lease_space is not None and row.lease_space == process_space()
    if here and is_gone(row.lease_pid, row.lease_process_start):
        return False
    return bool(row.lease_age < LEASE_SECONDS)
