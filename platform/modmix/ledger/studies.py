"""Studies, and the leases by which each has one driver."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from modmix.base.errors import InputError, LeaseError
from modmix.ledger.database import STUDIES, Database, insert_new
from modmix.ledger.records import Lease, StudyRecord, dump

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0  # without a heartbeat for this long, a lease expires


class Studies(Database):
    """Studies and leases."""

    def start_study(
        self,
        name: str,
        *,
        spec: Mapping[str, Any],
        text: str,
        source: str,
        details: Mapping[str, Any],
    ) -> None:
        """Add a study, or update the file of an existing one."""
        now = time.time()
        values = {
            "spec": dump(spec),
            "text": text,
            "source": source,
            "state": "running",
            "updated": now,
            "details": dump(details),
        }
        with self._transaction() as db:
            insert_new(db, STUDIES, [{"name": name, "created": now, **values}])
            db.execute(sa.update(STUDIES).where(STUDIES.c.name == name).values(values))

    def study(self, name: str) -> StudyRecord:
        """One study.

        Raises:
            InputError: there is no such study; the message lists known ones.
        """
        with self._transaction() as db:
            row = db.execute(sa.select(STUDIES).where(STUDIES.c.name == name)).one_or_none()
        if row is None:
            known = [record.name for record in self.studies()]
            listing = f"it has {', '.join(known[:10])}" if known else "it is empty"
            raise InputError(
                f"no study {name!r} in the ledger {self.redacted_url} ({listing}): "
                "run its file first, or set MODMIX_HOME to the folder it ran in"
            )
        return _study_record(row)

    def has_study(self, name: str) -> bool:
        with self._transaction() as db:
            query = sa.select(STUDIES.c.name).where(STUDIES.c.name == name)
            return db.execute(query).first() is not None

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._transaction() as db:
            rows = db.execute(sa.select(STUDIES).order_by(STUDIES.c.created)).all()
        return [_study_record(row) for row in rows]

    def set_state(self, study: str, state: str) -> None:
        with self._transaction() as db:
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == study)
                .values(state=state, updated=time.time())
            )

    def add_seconds(self, study: str, *, wall: float = 0.0, device: float = 0.0) -> None:
        with self._transaction() as db:
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == study)
                .values(
                    wall_seconds=STUDIES.c.wall_seconds + wall,
                    device_seconds=STUDIES.c.device_seconds + device,
                    updated=time.time(),
                )
            )

    # ------------------------------------------------------------ leases

    def acquire(self, study: str) -> Lease:
        """Take the study's lease.

        Raises:
            LeaseError: a live driver holds it; the message names host and process.
        """
        token = uuid.uuid4().hex
        with self._transaction() as db:
            row = db.execute(sa.select(STUDIES).where(STUDIES.c.name == study)).one()
            if is_alive(row):
                raise LeaseError(
                    f"study {study!r} is being run by process {row.lease_pid} on "
                    f"{row.lease_host}: wait until it ends, or stop it with Ctrl-C there"
                )
            # Compare-and-swap on the old token: of two drivers that saw a free lease, one wins.
            taken = db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == study)
                .where(STUDIES.c.lease_token.is_not_distinct_from(row.lease_token))
                .values(
                    lease_token=token,
                    lease_host=socket.gethostname(),
                    lease_pid=os.getpid(),
                    lease_process_start=_process_start(os.getpid()),
                    lease_heartbeat=time.time(),
                )
            )
        if taken.rowcount != 1:
            raise LeaseError(
                f"study {study!r} was just started by another driver: wait until it ends"
            )
        return Lease(study=study, token=token)

    def heartbeat(self, lease: Lease) -> bool:
        """Renew a lease; False if another driver has taken it over."""
        with self._transaction() as db:
            kept = db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == lease.study, STUDIES.c.lease_token == lease.token)
                .values(lease_heartbeat=time.time())
            )
        return kept.rowcount == 1

    def release(self, lease: Lease) -> None:
        with self._transaction() as db:
            db.execute(
                sa.update(STUDIES)
                .where(STUDIES.c.name == lease.study, STUDIES.c.lease_token == lease.token)
                .values(lease_token=None, lease_heartbeat=None)
            )

    def holder(self, study: str) -> tuple[str, int] | None:
        """Host and process id of the live driver of a study, or None."""
        with self._transaction() as db:
            row = db.execute(sa.select(STUDIES).where(STUDIES.c.name == study)).one_or_none()
        return (row.lease_host, row.lease_pid) if row is not None and is_alive(row) else None

    def set_study_run(self, study: str, run: str | None) -> None:
        """Record the id of the study's MLflow run."""
        with self._transaction() as db:
            db.execute(sa.update(STUDIES).where(STUDIES.c.name == study).values(mlflow_run=run))


def _process_start(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_alive(row: Any) -> bool:
    """Whether the driver in a study's row is alive.

    On this host the process itself is checked, so a killed driver frees its study at once (start
    times tell recycled process ids apart); on other hosts the heartbeat decides.
    """
    if row.lease_token is None or row.lease_heartbeat is None:
        return False
    if row.lease_host == socket.gethostname():
        started = _process_start(row.lease_pid)
        if started is None or abs(started - (row.lease_process_start or started)) > 1.0:
            return False
    return bool(time.time() - row.lease_heartbeat < LEASE_SECONDS)


def _study_record(row: Any) -> StudyRecord:
    return StudyRecord(
        name=row.name,
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
