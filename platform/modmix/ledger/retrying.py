"""Database errors that pass: a restarted server, a deadlock, a busy SQLite file.

Every public method of the ledger is one transaction, so it can be repeated as a whole. A connection
lost during a commit leaves open whether it took place: methods for which that matters know whether
they are repeated.
"""

from __future__ import annotations

import functools
import random
import sqlite3
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from modmix.base.errors import LedgerError

RETRY_SECONDS = 300.0  # longer than a restart or a failover of a database server takes
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0  # seconds

# SQLSTATE codes of PostgreSQL: connection errors, serialization failure, deadlock, shutdown and
# start of the server, too many connections.
_PASSING = ("08", "40001", "40P01", "57P01", "57P02", "57P03", "57P05", "53300")

T = TypeVar("T")
P = ParamSpec("P")


class PassingError(LedgerError):
    """A database error that may be gone when the transaction is repeated."""


def may_pass(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether a transaction that failed with this error is worth repeating."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if error.connection_invalidated:
        return True
    state = getattr(cause, "sqlstate", None)
    if state is None:  # without a code: the server did not answer
        return isinstance(error, sa.exc.OperationalError)
    return str(state).startswith(_PASSING)


class Retrying:
    """Repeats work for a bounded time; once that was in vain, tries only once until a success."""

    def __init__(self) -> None:
        self.retry_seconds = RETRY_SECONDS
        self._in_vain = False
        self._random = random.Random()

    def retry(self, work: Callable[[], T]) -> T:
        """Do some work again until it raises no `PassingError`.

        Raises:
            LedgerError: other errors at once, a `PassingError` after ``retry_seconds``.
        """
        begun, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                found = work()
            except PassingError:
                if self._in_vain or time.monotonic() - begun > self.retry_seconds:
                    self._in_vain = True
                    raise
                # Of different lengths, so that two drivers do not meet again.
                time.sleep(pause * self._random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._in_vain = False
                return found


R = TypeVar("R", bound=Retrying)


def retried(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Decorator: repeat a method that is one transaction when a database error may pass."""

    @functools.wraps(method)
    def call(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.retry(lambda: method(self, *args, **kwargs))

    return call
