"""The ledger: studies, points, replicates and their results. The one truth; the rest mirrors it.

    studies            one row a study: its file, its state, its lease, its seconds
    points             a method with resolved hyperparameters, named by a digest
    replicates         a point trained with one seed in one setting, named by a digest: the result
    histories          a replicate's metrics at each evaluation (compressed JSON)
    study_points       which points a study has, and their mirrored MLflow runs
    study_replicates   which replicates a study needs, and whether it trained or found them
    entries            what each part of a study asked for: a grid's or a sampler's numbered points
    packs              which replicates are (or were) trained together, so that they resume together

One writer: the driver that holds the study's lease. Every method is one transaction, so a kill at
any moment leaves what was before it or what was after it. SQLite runs in WAL mode with full
synchronisation, so a finished replicate survives the machine's death, too.

This is the only file with sqlalchemy.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Float, Integer, LargeBinary, String, Table, Text

from modmix.errors import InputError, LeaseError, LedgerError

HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0  # a lease without a heartbeat for so long is free

REPLICATE_STATES = ("pending", "running", "done", "pruned", "failed", "interrupted")
ENDED = ("done", "pruned", "failed")

_METADATA = sa.MetaData()
_studies = Table(
    "studies",
    _METADATA,
    Column("name", String(100), primary_key=True),
    Column("spec", Text, nullable=False),  # the checked study file as JSON
    Column("text", Text, nullable=False),  # the file as the user wrote it
    Column("source", Text, nullable=False),  # where it lay
    Column("state", String(20), nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("wall_seconds", Float, nullable=False, default=0.0),
    Column("device_seconds", Float, nullable=False, default=0.0),
    Column("details", Text, nullable=False, default="{}"),  # task, fingerprint, versions, classes
    Column("signatures", Text, nullable=False, default="{}"),  # of the parts, by part/method
    Column("lease_token", String(32)),
    Column("lease_host", Text),
    Column("lease_pid", Integer),
    Column("lease_process_start", Float),
    Column("lease_heartbeat", Float),
    Column("mlflow_run", String(64)),
)
_points = Table(
    "points",
    _METADATA,
    Column("key", String(32), primary_key=True),
    Column("method", String(64), nullable=False),
    Column("params", Text, nullable=False),
)
_replicates = Table(
    "replicates",
    _METADATA,
    Column("key", String(32), primary_key=True),
    Column("point", String(32), nullable=False, index=True),
    Column("seed", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("owner", String(32)),  # lease token of the driver that trains it
    Column("pack", String(32)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("epochs", Integer, nullable=False, default=0),
    Column("best_epoch", Float, nullable=False, default=0.0),
    Column("metrics", Text, nullable=False, default="{}"),
    Column("reason", Text, nullable=False, default=""),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("finished", Float),
)
_histories = Table(
    "histories",
    _METADATA,
    Column("replicate", String(32), primary_key=True),
    Column("columns", LargeBinary, nullable=False),
)
_study_points = Table(
    "study_points",
    _METADATA,
    Column("study", String(100), primary_key=True),
    Column("point", String(32), primary_key=True),
    Column("number", Integer, nullable=False),  # order of first appearance in the study
    Column("mlflow_run", String(64)),
    Column("mirrored", String(32)),  # digest of what the mirror last wrote
)
_study_replicates = Table(
    "study_replicates",
    _METADATA,
    Column("study", String(100), primary_key=True),
    Column("replicate", String(32), primary_key=True),
    Column("point", String(32), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("origin", String(8), nullable=False, default=""),  # "", "trained" or "reused"
)
_entries = Table(
    "entries",
    _METADATA,
    Column("study", String(100), primary_key=True),
    Column("part", String(100), primary_key=True),
    Column("method", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),  # within part and method, in order of asking
    Column("point", String(32), nullable=False),
    Column("batch", Integer, nullable=False, default=0),
    Column("proposal", Text, nullable=False, default="{}"),  # what the sampler proposed
    Column("state", String(12), nullable=False, default="pending"),  # then done, pruned, failed
    Column("values", Text),  # the objectives' means that the sampler was told
    Column("told", Integer),  # when it was told, in the same sequence as "batch"
)
_packs = Table(
    "packs",
    _METADATA,
    Column("id", String(32), primary_key=True),
    Column("study", String(100), primary_key=True),
    Column("replicates", Text, nullable=False),  # keys, in order
    Column("state", String(12), nullable=False),  # running, done, interrupted
    Column("note", Text, nullable=False, default="{}"),  # how it was trained and why
    Column("failures", Integer, nullable=False, default=0),
    Column("started", Float),
    Column("finished", Float),
)


# ---------------------------------------------------------------- records


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study as the ledger knows it. ``state``: running, finished, stopped or failed."""

    name: str
    spec: Mapping[str, Any]
    text: str
    source: str
    state: str
    created: float
    updated: float
    wall_seconds: float
    device_seconds: float
    details: Mapping[str, Any]
    mlflow_run: str | None


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """One point of a study: what the study asked for, and where it is mirrored."""

    key: str
    number: int
    method: str
    params: Mapping[str, Any]
    mlflow_run: str | None
    mirrored: str | None


@dataclass(frozen=True, kw_only=True)
class ReplicateRecord:
    """One replicate of a study: a point, a seed, and the result as far as there is one."""

    key: str
    point: str
    seed: int
    state: str
    owner: str | None
    pack: str | None
    attempts: int
    epochs: int
    best_epoch: float
    metrics: Mapping[str, float]  # "val/error" (percent), "test/error", …; NaN where undefined
    reason: str
    seconds: float
    finished: float | None
    origin: str  # "trained" or "reused" by this study, "" while it has no result


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One numbered point of one part and method: of a grid, or proposed by a sampler."""

    part: str
    method: str
    number: int
    point: str
    batch: int = 0  # when it was asked: asks and tells of a sampler count as one sequence
    proposal: Mapping[str, Any] = field(default_factory=dict)
    state: str = "pending"
    values: tuple[float, ...] | None = None
    told: int | None = None


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    id: str
    replicates: tuple[str, ...]
    state: str
    note: Mapping[str, Any]
    failures: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """A replicate's end, ready to be recorded. ``history``: column -> value per evaluation."""

    replicate: str
    state: str
    reason: str = ""
    epochs: int = 0
    best_epoch: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one study's results, kept alive by a heartbeat."""

    study: str
    token: str


@dataclass(frozen=True, kw_only=True)
class NewPoint:
    """A point to be added, with the replicates it needs: (replicate key, seed)."""

    key: str
    method: str
    params: Mapping[str, Any]
    replicates: Sequence[tuple[str, int]]


def _dump(value: Any) -> str:
    return json.dumps(_without_nan(value), sort_keys=True, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _process_start(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


# ---------------------------------------------------------------- the ledger


class Ledger:
    """A database of studies. Safe to share between the threads of one process.

    Args:
        url: an SQLAlchemy URL: ``sqlite:////path/ledger.db`` or ``postgresql+psycopg://…``.

    Raises:
        InputError: the database cannot be opened, or is of another kind or version.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.make_url(url)
            self._engine = sa.create_engine(self.url, **self._options())
            if self.url.get_backend_name() == "sqlite":
                sa.event.listen(self._engine, "connect", _configure_sqlite)
            self._create_tables()
        except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            shown = self.url.render_as_string(hide_password=True) if hasattr(self, "url") else ""
            raise InputError(
                f"the ledger {shown or 'named by MODMIX_LEDGER'} cannot be opened "
                f"({_first_line(error)}): check the path or the database, or unset MODMIX_LEDGER"
            ) from error

    def _create_tables(self) -> None:
        # Two processes that meet a new database both find a table missing, and the slower one is
        # told that it exists by now: then it looks again.
        for attempt in range(20):
            try:
                _METADATA.create_all(self._engine)
                return
            except (sa.exc.OperationalError, sa.exc.ProgrammingError, sa.exc.IntegrityError):
                if attempt == 19:
                    raise
                time.sleep(0.1)

    def _options(self) -> dict[str, Any]:
        if self.url.get_backend_name() == "sqlite":
            return {"connect_args": {"timeout": 60, "check_same_thread": False}}
        return {"pool_pre_ping": True}

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(
                f"the ledger {self.url.render_as_string(hide_password=True)} could not be used "
                f"({_first_line(error)}): mend that, then type the same command again; "
                "what was recorded is kept"
            ) from error

    # ------------------------------------------------------------ studies

    def start_study(
        self,
        name: str,
        *,
        spec: Mapping[str, Any],
        text: str,
        source: str,
        details: Mapping[str, Any],
    ) -> None:
        """Add a study, or renew the file of one that is continued or extended."""
        now = time.time()
        values = {
            "spec": _dump(spec),
            "text": text,
            "source": source,
            "state": "running",
            "updated": now,
            "details": _dump(details),
        }
        with self._transaction() as db:
            found = db.execute(sa.update(_studies).where(_studies.c.name == name).values(values))
            if found.rowcount == 0:
                db.execute(sa.insert(_studies).values(name=name, created=now, **values))

    def study(self, name: str) -> StudyRecord:
        """One study.

        Raises:
            InputError: there is none of that name; the message lists those there are.
        """
        with self._transaction() as db:
            row = db.execute(sa.select(_studies).where(_studies.c.name == name)).one_or_none()
        if row is None:
            known = [record.name for record in self.studies()]
            listing = f"it knows {', '.join(known[:10])}" if known else "it is empty"
            raise InputError(
                f"no study {name!r} in the ledger {self.url.render_as_string(hide_password=True)} "
                f"({listing}): run its file first, or set MODMIX_HOME to the folder it ran in"
            )
        return _study_record(row)

    def has_study(self, name: str) -> bool:
        with self._transaction() as db:
            query = sa.select(_studies.c.name).where(_studies.c.name == name)
            return db.execute(query).first() is not None

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._transaction() as db:
            rows = db.execute(sa.select(_studies).order_by(_studies.c.created)).all()
        return [_study_record(row) for row in rows]

    def set_state(self, study: str, state: str) -> None:
        with self._transaction() as db:
            db.execute(
                sa.update(_studies)
                .where(_studies.c.name == study)
                .values(state=state, updated=time.time())
            )

    def add_seconds(self, study: str, *, wall: float = 0.0, device: float = 0.0) -> None:
        with self._transaction() as db:
            db.execute(
                sa.update(_studies)
                .where(_studies.c.name == study)
                .values(
                    wall_seconds=_studies.c.wall_seconds + wall,
                    device_seconds=_studies.c.device_seconds + device,
                    updated=time.time(),
                )
            )

    # ------------------------------------------------------------ leases

    def acquire(self, study: str) -> Lease:
        """Take the study's lease.

        Raises:
            LeaseError: a living driver holds it; the message names host and process.
        """
        token = uuid.uuid4().hex
        with self._transaction() as db:
            row = db.execute(sa.select(_studies).where(_studies.c.name == study)).one()
            if _alive(row):
                raise LeaseError(
                    f"study {study!r} is being run by process {row.lease_pid} on "
                    f"{row.lease_host}: wait until it ends, or stop it with Ctrl-C there"
                )
            # The condition on the old token makes this a compare-and-swap: of two drivers that
            # both saw a free lease, one writes and the other finds no row to write.
            taken = db.execute(
                sa.update(_studies)
                .where(_studies.c.name == study)
                .where(_studies.c.lease_token.is_not_distinct_from(row.lease_token))
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
                f"study {study!r} was started by another driver this very moment: wait for it"
            )
        return Lease(study=study, token=token)

    def heartbeat(self, lease: Lease) -> bool:
        """Keep a lease alive; False when another driver has taken it over."""
        with self._transaction() as db:
            kept = db.execute(
                sa.update(_studies)
                .where(_studies.c.name == lease.study, _studies.c.lease_token == lease.token)
                .values(lease_heartbeat=time.time())
            )
        return kept.rowcount == 1

    def release(self, lease: Lease) -> None:
        with self._transaction() as db:
            db.execute(
                sa.update(_studies)
                .where(_studies.c.name == lease.study, _studies.c.lease_token == lease.token)
                .values(lease_token=None, lease_heartbeat=None)
            )

    def holder(self, study: str) -> tuple[str, int] | None:
        """Host and process of the living driver of a study, or None."""
        with self._transaction() as db:
            row = db.execute(sa.select(_studies).where(_studies.c.name == study)).one_or_none()
        return (row.lease_host, row.lease_pid) if row is not None and _alive(row) else None

    # ------------------------------------------------------------ points and entries

    def add(self, study: str, points: Sequence[NewPoint], entries: Sequence[Entry]) -> None:
        """Add points with their replicates, and the entries that asked for them.

        What is there already stays as it is; so a replicate that another study has finished is
        found with its result.
        """
        with self._transaction() as db:
            self._insert_new(
                db, _points, "key",
                [{"key": p.key, "method": p.method, "params": _dump(p.params)} for p in points],
            )  # fmt: skip
            self._insert_new(
                db, _replicates, "key",
                [
                    {"key": key, "point": p.key, "seed": seed, "state": "pending"}
                    for p in points
                    for key, seed in p.replicates
                ],
            )  # fmt: skip
            mine = _study_points.c.study == study
            first = db.execute(sa.select(sa.func.count()).where(mine)).scalar_one()
            known = set(db.execute(sa.select(_study_points.c.point).where(mine)).scalars())
            fresh = list(dict.fromkeys(p.key for p in points if p.key not in known))
            if fresh:
                db.execute(
                    sa.insert(_study_points),
                    [
                        {"study": study, "point": key, "number": first + i}
                        for i, key in enumerate(fresh)
                    ],
                )
            self._insert_new(
                db, _study_replicates, "replicate",
                [
                    {"study": study, "replicate": key, "point": p.key, "seed": seed, "origin": ""}
                    for p in points
                    for key, seed in p.replicates
                ],
                _study_replicates.c.study == study,
            )  # fmt: skip
            if entries:
                db.execute(
                    sa.insert(_entries),
                    [
                        {
                            "study": study,
                            "part": e.part,
                            "method": e.method,
                            "number": e.number,
                            "point": e.point,
                            "batch": e.batch,
                            "proposal": _dump(e.proposal),
                            "state": e.state,
                        }
                        for e in entries
                    ],
                )

    @staticmethod
    def _insert_new(
        db: sa.Connection,
        table: Table,
        key: str,
        rows: Iterable[dict[str, Any]],
        where: sa.ColumnElement[bool] | None = None,
    ) -> None:
        unique = {row[key]: row for row in rows}
        keys = list(unique)
        present: set[str] = set()
        for begin in range(0, len(keys), 500):  # databases limit the variables of one statement
            query = sa.select(table.c[key]).where(table.c[key].in_(keys[begin : begin + 500]))
            present |= set(db.execute(query if where is None else query.where(where)).scalars())
        new = [row for name, row in unique.items() if name not in present]
        if new:
            db.execute(sa.insert(table), new)

    def keep_only_entries(self, study: str, signatures: Mapping[tuple[str, str], str]) -> None:
        """Forget the entries of parts that the study file no longer has, or has changed.

        ``signatures`` names, by part and method, what its entries depend on. Results are not
        touched: what is asked again is found again.
        """
        now = {"/".join(key): value for key, value in signatures.items()}
        with self._transaction() as db:
            text = db.execute(
                sa.select(_studies.c.signatures).where(_studies.c.name == study)
            ).scalar_one()
            before = json.loads(text)
            pairs = sa.select(_entries.c.part, _entries.c.method).where(_entries.c.study == study)
            for part, method in db.execute(pairs.distinct()).all():
                key = f"{part}/{method}"
                if key not in now or before.get(key) != now[key]:
                    db.execute(
                        sa.delete(_entries).where(
                            _entries.c.study == study,
                            _entries.c.part == part,
                            _entries.c.method == method,
                        )
                    )
            db.execute(
                sa.update(_studies).where(_studies.c.name == study).values(signatures=_dump(now))
            )

    def keep_only_points(
        self, study: str, points: Iterable[str], replicates: Iterable[str]
    ) -> None:
        """Drop from a study the points and replicates that its file no longer asks for.

        Their results stay in the ledger for whichever study asks for them.
        """
        with self._transaction() as db:
            for table, column, kept in (
                (_study_points, _study_points.c.point, set(points)),
                (_study_replicates, _study_replicates.c.replicate, set(replicates)),
            ):
                mine = sa.select(column).where(table.c.study == study)
                for key in set(db.execute(mine).scalars()) - kept:
                    db.execute(sa.delete(table).where(table.c.study == study, column == key))

    def entries(self, study: str) -> list[Entry]:
        """All entries of a study, by part, method and number."""
        query = (
            sa.select(_entries)
            .where(_entries.c.study == study)
            .order_by(_entries.c.part, _entries.c.method, _entries.c.number)
        )
        with self._transaction() as db:
            rows = db.execute(query).all()
        return [
            Entry(
                part=row.part,
                method=row.method,
                number=row.number,
                point=row.point,
                batch=row.batch,
                proposal=json.loads(row.proposal),
                state=row.state,
                values=tuple(map(_number, json.loads(row.values))) if row.values else None,
                told=row.told,
            )
            for row in rows
        ]

    def tell(
        self,
        study: str,
        entry: Entry,
        *,
        state: str,
        values: Sequence[float] | None,
        told: int,
    ) -> None:
        """Record what a sampler is told of an entry (before it is told)."""
        with self._transaction() as db:
            db.execute(
                sa.update(_entries)
                .where(
                    _entries.c.study == study,
                    _entries.c.part == entry.part,
                    _entries.c.method == entry.method,
                    _entries.c.number == entry.number,
                )
                .values(
                    state=state,
                    values=None if values is None else _dump(list(values)),
                    told=told,
                )
            )

    def points(self, study: str) -> list[PointRecord]:
        """The points of a study, in order of first appearance."""
        query = (
            sa.select(_study_points, _points.c.method, _points.c.params)
            .join(_points, _points.c.key == _study_points.c.point)
            .where(_study_points.c.study == study)
            .order_by(_study_points.c.number)
        )
        with self._transaction() as db:
            rows = db.execute(query).all()
        return [
            PointRecord(
                key=row.point,
                number=row.number,
                method=row.method,
                params=json.loads(row.params),
                mlflow_run=row.mlflow_run,
                mirrored=row.mirrored,
            )
            for row in rows
        ]

    # ------------------------------------------------------------ replicates

    def replicates(self, study: str) -> list[ReplicateRecord]:
        """The replicates a study needs, by point number and seed, with their results."""
        query = (
            sa.select(
                _replicates,
                _study_replicates.c.origin,
                _study_replicates.c.point.label("study_point"),
            )
            .join(_study_replicates, _study_replicates.c.replicate == _replicates.c.key)
            .join(
                _study_points,
                (_study_points.c.study == _study_replicates.c.study)
                & (_study_points.c.point == _study_replicates.c.point),
            )
            .where(_study_replicates.c.study == study)
            .order_by(_study_points.c.number, _replicates.c.seed)
        )
        with self._transaction() as db:
            rows = db.execute(query).all()
        return [_replicate_record(row) for row in rows]

    def replicate_states(self, study: str) -> dict[str, str]:
        """State of each replicate a study needs, by key."""
        query = (
            sa.select(_replicates.c.key, _replicates.c.state)
            .join(_study_replicates, _study_replicates.c.replicate == _replicates.c.key)
            .where(_study_replicates.c.study == study)
        )
        with self._transaction() as db:
            return {row.key: row.state for row in db.execute(query)}

    def recover(self, study: str) -> int:
        """Mark as interrupted what is running without a living owner; return how many."""
        with self._transaction() as db:
            living = [row.lease_token for row in db.execute(sa.select(_studies)) if _alive(row)]
            orphaned = (_replicates.c.state == "running") & (
                _replicates.c.owner.is_(None) | _replicates.c.owner.not_in(living)
            )
            mine = sa.select(_study_replicates.c.replicate).where(
                _study_replicates.c.study == study
            )
            found = db.execute(
                sa.update(_replicates)
                .where(orphaned, _replicates.c.key.in_(mine))
                .values(state="interrupted", owner=None)
            )
            db.execute(
                sa.update(_packs)
                .where(_packs.c.study == study, _packs.c.state == "running")
                .values(state="interrupted")
            )
        return int(found.rowcount)

    def adopt(self, study: str) -> int:
        """Count as reused what other studies have finished for this one; return how many."""
        ended = sa.select(_replicates.c.key).where(_replicates.c.state.in_(ENDED))
        with self._transaction() as db:
            found = db.execute(
                sa.update(_study_replicates)
                .where(
                    _study_replicates.c.study == study,
                    _study_replicates.c.origin == "",
                    _study_replicates.c.replicate.in_(ended),
                )
                .values(origin="reused")
            )
        return int(found.rowcount)

    def forget_failures(self, study: str) -> int:
        """Let a study's failed replicates be trained again; return how many."""
        mine = sa.select(_study_replicates.c.replicate).where(_study_replicates.c.study == study)
        failed = (_replicates.c.state == "failed") & _replicates.c.key.in_(mine)
        with self._transaction() as db:
            keys = list(db.execute(sa.select(_replicates.c.key).where(failed)).scalars())
            for key in keys:
                db.execute(
                    sa.update(_replicates)
                    .where(_replicates.c.key == key)
                    .values(state="pending", reason="", metrics="{}")
                )
                db.execute(
                    sa.update(_study_replicates)
                    .where(_study_replicates.c.study == study, _study_replicates.c.replicate == key)
                    .values(origin="")
                )
                db.execute(sa.delete(_histories).where(_histories.c.replicate == key))
        return len(keys)

    def claim(self, lease: Lease, pack: str, keys: Sequence[str]) -> list[str]:
        """Take replicates for training; return those that were free.

        A replicate that another living driver trains, or that has ended meanwhile, is not free.
        """
        free = ("pending", "interrupted")
        with self._transaction() as db:
            rows = db.execute(
                sa.select(_replicates.c.key).where(
                    _replicates.c.key.in_(keys), _replicates.c.state.in_(free)
                )
            )
            wanted = set(rows.scalars())
            claimed = [key for key in keys if key in wanted]
            if not claimed:
                return []
            db.execute(
                sa.update(_replicates)
                .where(_replicates.c.key.in_(claimed), _replicates.c.state.in_(free))
                .values(
                    state="running",
                    owner=lease.token,
                    pack=pack,
                    attempts=_replicates.c.attempts + 1,
                )
            )
            where = (_packs.c.id == pack) & (_packs.c.study == lease.study)
            renewed = db.execute(
                sa.update(_packs).where(where).values(state="running", started=time.time())
            )
            if renewed.rowcount == 0:
                db.execute(
                    sa.insert(_packs).values(
                        id=pack,
                        study=lease.study,
                        replicates=json.dumps(list(keys)),
                        state="running",
                        started=time.time(),
                    )
                )
        return claimed

    def finish(self, lease: Lease, results: Sequence[Result]) -> list[str]:
        """Record results; return the keys that were new. A result is recorded once, for ever."""
        new: list[str] = []
        now = time.time()
        with self._transaction() as db:
            for result in results:
                done = db.execute(
                    sa.update(_replicates)
                    .where(
                        _replicates.c.key == result.replicate,
                        _replicates.c.state.not_in(ENDED),
                    )
                    .values(
                        state=result.state,
                        owner=None,
                        epochs=result.epochs,
                        best_epoch=result.best_epoch,
                        metrics=_dump(dict(result.metrics)),
                        reason=result.reason,
                        seconds=result.seconds,
                        finished=now,
                    )
                )
                if done.rowcount == 0:
                    continue
                new.append(result.replicate)
                blob = zlib.compress(_dump(dict(result.history)).encode())
                db.execute(sa.delete(_histories).where(_histories.c.replicate == result.replicate))
                db.execute(sa.insert(_histories).values(replicate=result.replicate, columns=blob))
                db.execute(
                    sa.update(_study_replicates)
                    .where(
                        _study_replicates.c.study == lease.study,
                        _study_replicates.c.replicate == result.replicate,
                    )
                    .values(origin="trained")
                )
            seconds = sum(r.seconds for r in results if r.replicate in set(new))
            if seconds:
                db.execute(
                    sa.update(_studies)
                    .where(_studies.c.name == lease.study)
                    .values(device_seconds=_studies.c.device_seconds + seconds, updated=now)
                )
        return new

    def let_go(self, lease: Lease, keys: Sequence[str], *, state: str = "interrupted") -> None:
        """Give back replicates that this driver claimed and will not finish now."""
        with self._transaction() as db:
            for begin in range(0, len(keys), 500):
                db.execute(
                    sa.update(_replicates)
                    .where(
                        _replicates.c.key.in_(keys[begin : begin + 500]),
                        _replicates.c.state == "running",
                        _replicates.c.owner == lease.token,
                    )
                    .values(state=state, owner=None)
                )

    def history(self, replicate: str) -> dict[str, list[float]]:
        """One replicate's columns ("epoch", "val/error", …), a value an evaluation."""
        return self.histories([replicate]).get(replicate, {})

    def histories(self, keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
        """Histories by replicate key; a key without one is left out."""
        found: dict[str, dict[str, list[float]]] = {}
        with self._transaction() as db:
            for begin in range(0, len(keys), 500):
                query = sa.select(_histories).where(
                    _histories.c.replicate.in_(keys[begin : begin + 500])
                )
                for row in db.execute(query):
                    columns = json.loads(zlib.decompress(row.columns))
                    found[row.replicate] = {k: [*map(_number, v)] for k, v in columns.items()}
        return found

    # ------------------------------------------------------------ packs

    def packs(self, study: str) -> list[PackRecord]:
        """The packs of a study, in order of their start."""
        query = sa.select(_packs).where(_packs.c.study == study).order_by(_packs.c.started)
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
            values["note"] = _dump(note)
        if failed:
            values["failures"] = _packs.c.failures + 1
        with self._transaction() as db:
            db.execute(
                sa.update(_packs).where(_packs.c.study == study, _packs.c.id == pack).values(values)
            )

    # ------------------------------------------------------------ what the mirror keeps here

    def set_study_run(self, study: str, run: str | None) -> None:
        """Keep the id of the study's own MLflow run."""
        with self._transaction() as db:
            db.execute(sa.update(_studies).where(_studies.c.name == study).values(mlflow_run=run))

    def set_point_run(
        self, study: str, point: str, *, run: str | None, mirrored: str | None
    ) -> None:
        """Keep the id of a point's MLflow run, and a digest of what was last written to it."""
        with self._transaction() as db:
            db.execute(
                sa.update(_study_points)
                .where(_study_points.c.study == study, _study_points.c.point == point)
                .values(mlflow_run=run, mirrored=mirrored)
            )


# ---------------------------------------------------------------- helpers


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _alive(row: Any) -> bool:
    """Whether the driver named in a study's row still lives.

    On this host the process itself is asked (a killed driver frees its study at once; a recycled
    process number is told apart by its start time); elsewhere the heartbeat decides.
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


def _replicate_record(row: Any) -> ReplicateRecord:
    return ReplicateRecord(
        key=row.key,
        point=row.study_point,
        seed=row.seed,
        state=row.state,
        owner=row.owner,
        pack=row.pack,
        attempts=row.attempts,
        epochs=row.epochs,
        best_epoch=row.best_epoch,
        metrics={k: _number(v) for k, v in json.loads(row.metrics).items()},
        reason=row.reason,
        seconds=row.seconds,
        finished=row.finished,
        origin=row.origin,
    )


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
