"""Connections and transactions, fenced by leases."""

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
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from modmix.base.errors import InputError, LeaseLostError, LedgerError
from modmix.base.home import sqlite_path
from modmix.base.owner import current_owner, owner_and_name
from modmix.ledger.migration import MIGRATED, migrate
from modmix.ledger.records import Lease
from modmix.ledger.retrying import PassingError, Retrying, may_pass
from modmix.ledger.tables import METADATA, SCHEMA_VERSION, STUDIES, VERSION

# Seconds since 1970 by the clock of the database.
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS double precision)",
}


class Database(Retrying):
    """A database with the ledger's tables. Safe to share between threads of one process.

    A study is named ``owner/name``; a plain name means one's own study, or one without owner.

    Args:
        url: an SQLAlchemy URL: ``sqlite:////path/ledger.db`` or ``postgresql+psycopg://…``.
        owner: of the studies that may be written; default: `current_owner`.

    Raises:
        InputError: the database cannot be opened, or has an unsupported kind or version.
    """

    def __init__(self, url: str, *, owner: str | None = None) -> None:
        super().__init__()
        self.owner = current_owner() if owner is None else owner
        self._own: dict[str, str] = {}  # plain name -> key, of own studies that exist
        self._held: dict[str, str] = {}  # key -> token, of the leases of this object
        try:
            self.url = sa.make_url(url)
        except (sa.exc.SQLAlchemyError, ValueError):
            # The text is not shown: what cannot be parsed may contain a password anywhere.
            raise InputError(
                "MODMIX_LEDGER is not a database URL: write postgresql+psycopg://user@host/name "
                "(a password's special characters as %XX), or unset it"
            ) from None
        try:
            self._engine = self._open(url)
            self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
            raise InputError(
                f"the ledger {self.redacted_url} cannot be opened "
                f"({_first_line(error)}): check the path or the database, or set MODMIX_LEDGER "
                "or MODMIX_HOME to another one"
            ) from error

    def _open(self, url: str) -> sa.Engine:
        path = sqlite_path(url)
        if path is not None and _is_read_only(path):
            # A connection for every transaction: each decides anew whether somebody writes.
            engine = sa.create_engine(
                self.url, creator=lambda: _open_read_only(path), poolclass=sa.pool.NullPool
            )
            if (found := self._version(engine)) != SCHEMA_VERSION:
                raise self._wrong_version(found)
            return engine
        if self.url.get_backend_name() == "sqlite":
            arguments = {"timeout": 60, "check_same_thread": False}
            engine = sa.create_engine(self.url, connect_args=arguments)
            sa.event.listen(engine, "connect", _configure_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = sa.create_engine(self.url, pool_pre_ping=True, connect_args=_SERVER)
        self._create_tables(engine)
        return engine

    @property
    def redacted_url(self) -> str:
        """The URL without its password, or the path of an SQLite file; for messages."""
        if self.url.get_backend_name() == "sqlite":
            return str(self.url.database)
        return self.url.set(query={}).render_as_string(hide_password=True)

    def _create_tables(self, engine: sa.Engine) -> None:
        # Of two processes that create the tables at once, the slower one fails and tries again.
        for attempt in range(20):
            try:
                if sa.inspect(engine).has_table(VERSION.name):
                    if self._version(engine) in MIGRATED:
                        migrate(engine.execution_options(begin="BEGIN IMMEDIATE"))
                    if (found := self._version(engine)) not in (None, SCHEMA_VERSION):
                        raise self._wrong_version(found)
                METADATA.create_all(engine)
                if self._version(engine) is None:
                    with engine.begin() as db:
                        db.execute(sa.insert(VERSION).values(version=SCHEMA_VERSION))
                return
            except (
                sa.exc.OperationalError,
                sa.exc.ProgrammingError,
                sa.exc.IntegrityError,
            ) as error:
                if attempt == 19 or not _RACE.search(str(error.orig)):
                    raise
                time.sleep(0.1)

    @staticmethod
    def _version(engine: sa.Engine) -> int | None:
        with engine.begin() as db:
            return db.execute(sa.select(sa.func.max(VERSION.c.version))).scalar()

    def _wrong_version(self, found: int | None) -> InputError:
        remedy = (
            "open it once where it can be written, to migrate it"
            if found in MIGRATED
            else "use the modmix that wrote it, or set MODMIX_HOME to a new folder"
        )
        return InputError(
            f"the ledger {self.redacted_url} has version {found}, this modmix supports version "
            f"{SCHEMA_VERSION}: {remedy}"
        )

    def close(self) -> None:
        self._engine.dispose()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def _transaction(self, engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
        """A transaction that only reads; see `_writing` for others.

        Raises:
            PassingError: it may succeed when repeated.
            LedgerError: any other error of the database.
        """
        try:
            with (engine or self._engine).begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            kind = PassingError if may_pass(error) else LedgerError
            raise kind(
                f"the ledger {self.redacted_url} could not be used ({_first_line(error)}): "
                "fix this and run the same command again; recorded results are kept"
            ) from error

    @contextmanager
    def _reading(self, study: str) -> Iterator[tuple[sa.Connection, str]]:
        """A transaction that reads a study; gives the study's key too."""
        with self._transaction() as db:
            yield db, self._key(db, study)

    @contextmanager
    def _writing(self, study: str | Lease) -> Iterator[tuple[sa.Connection, str]]:
        """A transaction that writes a study; gives the study's key too.

        With a lease, or once this object has acquired one, it is fenced: the study's row is locked,
        and must still have the lease's token.

        Raises:
            LeaseLostError: another driver has taken the lease.
            InputError: the study belongs to somebody else.
        """
        name = study.study if isinstance(study, Lease) else study
        with self._transaction(self._writer) as db:
            key = self._key(db, name)
            self._check_own(key)
            token = study.token if isinstance(study, Lease) else self._held.get(key)
            if token is not None and _locked_token(db, key) != token:
                raise LeaseLostError(
                    f"study {name!r} was taken over by another driver because this one sent no "
                    "heartbeat for a minute: let the other one finish"
                )
            yield db, key

    def check_own(self, study: str) -> None:
        """Refuse a study that cannot be written, before anything else is done for it.

        Raises:
            InputError: it belongs to somebody else.
        """
        with self._reading(study) as (_, key):
            self._check_own(key)

    def _check_own(self, key: str) -> None:
        owner, name = owner_and_name(key)
        if owner not in ("", self.owner):
            raise InputError(
                f"study {key!r} can be read, and only {owner} can change it: copy its file to run "
                f"it as {self.owner}/{name}, or set MODMIX_OWNER if you are {owner}"
            )

    def _key(self, db: sa.Connection, study: str) -> str:
        """The key of a study: as it is with an owner, else one's own, else one without owner."""
        if "/" in study:
            return study
        if study in self._own:
            return self._own[study]
        own = f"{self.owner}/{study}"
        found = set(
            db.execute(sa.select(STUDIES.c.name).where(STUDIES.c.name.in_([own, study]))).scalars()
        )
        if own in found:
            self._own[study] = own
        return study if found == {study} else own

    def _shown(self, key: str) -> str:
        """A study's name for this owner: without the owner where it is one's own."""
        owner, name = owner_and_name(key)
        return name if owner in ("", self.owner) else key


def now(db: sa.Connection) -> sa.ColumnElement[float]:
    """The time of the database in seconds since 1970."""
    return sa.literal_column(_NOW[db.dialect.name], sa.Float)


def _locked_token(db: sa.Connection, key: str) -> str | None:
    """The token of a study's lease, which cannot change before the end of the transaction."""
    query = sa.select(STUDIES.c.lease_token).where(STUDIES.c.name == key).with_for_update()
    return db.execute(query).scalar()


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
    connection.isolation_level = None  # transactions begin in `_begin_sqlite`
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """Begin a transaction; one that writes takes the lock first, so that its reads stay valid."""
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


# Arguments of libpq: notice within minutes that a server or the network is gone (in milliseconds).
_SERVER = {
    "connect_timeout": 15,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
