"""Tables, connections and transactions."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Float, Integer, LargeBinary, String, Table, Text
from sqlalchemy.dialects import postgresql, sqlite

from modmix.base.errors import InputError, LedgerError
from modmix.base.home import sqlite_path

# Of the tables below. Databases of another version are refused, and nothing in them is changed.
SCHEMA_VERSION = 4

METADATA = sa.MetaData()
VERSION = Table(
    "ledger_version",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
)
STUDIES = Table(
    "studies",
    METADATA,
    Column("name", String(100), primary_key=True),
    Column("spec", Text, nullable=False),  # the checked study file as JSON
    Column("text", Text, nullable=False),  # the file as the user wrote it
    Column("source", Text, nullable=False),  # path of the file
    Column("state", String(20), nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("wall_seconds", Float, nullable=False, default=0.0),
    Column("device_seconds", Float, nullable=False, default=0.0),
    Column("details", Text, nullable=False, default="{}"),  # task, fingerprint, versions, classes
    Column("signatures", Text, nullable=False, default="{}"),  # of the parts, by "part/method"
    Column("lease_token", String(32)),
    Column("lease_host", Text),
    Column("lease_pid", Integer),
    Column("lease_process_start", Float),
    Column("lease_heartbeat", Float),
    Column("mlflow_run", String(64)),
)
CONFIGURATIONS = Table(
    "configurations",
    METADATA,
    Column("key", String(32), primary_key=True),
    Column("method", String(64), nullable=False),
    Column("params", Text, nullable=False),
)
REPLICATES = Table(
    "replicates",
    METADATA,
    Column("key", String(32), primary_key=True),
    Column("configuration", String(32), nullable=False, index=True),
    Column("seed", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("owner", String(32)),  # lease token of the driver training it
    Column("pack", String(32)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("epochs", Integer, nullable=False, default=0),
    Column("best_epoch", Float, nullable=False, default=0.0),
    Column("metrics", Text, nullable=False, default="{}"),
    Column("reason", Text, nullable=False, default=""),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("finished", Float),
)
HISTORIES = Table(
    "histories",
    METADATA,
    Column("replicate", String(32), primary_key=True),
    Column("columns", LargeBinary, nullable=False),
)
PREDICTIONS = Table(
    "predictions",
    METADATA,
    Column("replicate", String(32), primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),  # of the test split; see `base.predictions`
)
TEST_SPLITS = Table(
    "test_splits",
    METADATA,
    Column("fingerprint", String(64), primary_key=True),  # of the data
    Column("rows", Integer, nullable=False),
    Column("targets", LargeBinary, nullable=False),  # true classes
    Column("numbers", LargeBinary),  # row numbers in the source; null: unknown
)
STUDY_CONFIGURATIONS = Table(
    "study_configurations",
    METADATA,
    Column("study", String(100), primary_key=True),
    Column("configuration", String(32), primary_key=True),
    Column("number", Integer, nullable=False),  # order of first appearance in the study
    Column("task", String(100), nullable=False, default=""),  # in a study of several
    Column("fingerprint", String(64), nullable=False, default=""),  # of the data
    Column("options", Text, nullable=False, default="{}"),  # of the task, those that vary
    Column("mlflow_run", String(64)),
    Column("mirrored", String(32)),  # digest of what the mirror last wrote
)
STUDY_REPLICATES = Table(
    "study_replicates",
    METADATA,
    Column("study", String(100), primary_key=True),
    Column("replicate", String(32), primary_key=True),
    Column("configuration", String(32), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("origin", String(8), nullable=False, default=""),  # "", "trained" or "reused"
)
ENTRIES = Table(
    "entries",
    METADATA,
    Column("study", String(100), primary_key=True),
    Column("part", String(100), primary_key=True),
    Column("method", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),  # within part and method, in order of proposal
    Column("configuration", String(32), nullable=False),
    Column("batch", Integer, nullable=False, default=0),
    Column("proposal", Text, nullable=False, default="{}"),  # what the sampler proposed
    Column("state", String(12), nullable=False, default="pending"),  # then done, pruned, failed
    Column("values", Text),  # means of the objectives, as told to the sampler
    Column("step", Integer),  # epoch of the values, if pruned
    Column("told", Integer),  # when it was told; same counter as "batch"
)
PACKS = Table(
    "packs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("study", String(100), primary_key=True),
    Column("replicates", Text, nullable=False),  # keys, in order
    Column("state", String(12), nullable=False),  # running, done, interrupted
    Column("note", Text, nullable=False, default="{}"),  # how it was trained, and why so
    Column("failures", Integer, nullable=False, default=0),
    Column("started", Float),
    Column("finished", Float),
)


class Database:
    """A database with the ledger's tables. Safe to share between threads of one process.

    Args:
        url: an SQLAlchemy URL: ``sqlite:////path/ledger.db`` or ``postgresql+psycopg://…``.

    Raises:
        InputError: the database cannot be opened, or has an unsupported kind or version.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.make_url(url)
        except (sa.exc.SQLAlchemyError, ValueError):
            # The text is not shown: what cannot be parsed may contain a password anywhere.
            raise InputError(
                "MODMIX_LEDGER is not a database URL: write postgresql+psycopg://user@host/name "
                "(a password's special characters as %XX), or unset it"
            ) from None
        try:
            path = sqlite_path(url)
            if path is not None and _is_read_only(path):
                self._engine = sa.create_engine(self.url, creator=lambda: _open_read_only(path))
                self._check_version()
                return
            self._engine = sa.create_engine(self.url, **self._options())
            if self.url.get_backend_name() == "sqlite":
                sa.event.listen(self._engine, "connect", _configure_sqlite)
            self._create_tables()
        except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            raise InputError(
                f"the ledger {self.redacted_url} cannot be opened "
                f"({_first_line(error)}): check the path or the database, or set MODMIX_LEDGER "
                "or MODMIX_HOME to another one"
            ) from error

    @property
    def redacted_url(self) -> str:
        """The URL without its password, or the path of an SQLite file; for messages."""
        if self.url.get_backend_name() == "sqlite":
            return str(self.url.database)
        return self.url.set(query={}).render_as_string(hide_password=True)

    def _create_tables(self) -> None:
        # Of two processes that create the tables at once, the slower one fails and tries again.
        for attempt in range(20):
            try:
                if sa.inspect(self._engine).has_table(VERSION.name):
                    self._check_version()
                METADATA.create_all(self._engine)
                self._check_version()
                return
            except (
                sa.exc.OperationalError,
                sa.exc.ProgrammingError,
                sa.exc.IntegrityError,
            ) as error:
                if attempt == 19 or not _RACE.search(str(error.orig)):
                    raise
                time.sleep(0.1)

    def _check_version(self) -> None:
        with self._engine.begin() as db:
            found = db.execute(sa.select(VERSION.c.version)).scalars().all()
            if not found:
                db.execute(sa.insert(VERSION).values(version=SCHEMA_VERSION))
            elif set(found) != {SCHEMA_VERSION}:
                raise InputError(
                    f"the ledger {self.redacted_url} has version {max(found)}, this modmix "
                    f"supports version {SCHEMA_VERSION}: use the modmix that wrote it, or set "
                    "MODMIX_HOME to a new folder"
                )

    def _options(self) -> dict[str, Any]:
        if self.url.get_backend_name() == "sqlite":
            return {"connect_args": {"timeout": 60, "check_same_thread": False}}
        return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 15}}

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(
                f"the ledger {self.redacted_url} could not be used ({_first_line(error)}): "
                "fix this and run the same command again; recorded results are kept"
            ) from error


def insert_new(
    db: sa.Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    renew: Sequence[str] = (),
) -> None:
    """Insert rows whose keys are new; safe against concurrent inserts.

    Args:
        renew: columns to update in rows that exist already.
    """
    if not rows:
        return
    insert = postgresql.insert if db.dialect.name == "postgresql" else sqlite.insert
    # Always in the same order, so that concurrent transactions cannot deadlock.
    columns = [column.name for column in table.primary_key]
    ordered = sorted(rows, key=lambda row: [row[name] for name in columns])
    statement = insert(table)
    if renew:
        values = {name: statement.excluded[name] for name in renew}
        statement = statement.on_conflict_do_update(index_elements=columns, set_=values)
    else:
        statement = statement.on_conflict_do_nothing()
    db.execute(statement, ordered)


# Errors of the slower of two processes that create the same table.
_RACE = re.compile("already exists|locked|duplicate (key|column)|UNIQUE", re.I)


def _is_read_only(path: Path) -> bool:
    """Whether a database is there that can only be read: somebody else's, or a read-only disk."""
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that needs no files beside the database, where SQLite allows that."""
    log = path.with_name(f"{path.name}-wal")
    # Nobody writes without that file. SQLite cannot make it here, unless told that nobody will.
    immutable = not log.exists() or log.stat().st_size == 0
    address = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(address, uri=True, timeout=60, check_same_thread=False)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
