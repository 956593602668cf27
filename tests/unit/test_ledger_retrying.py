"""Database errors that pass are not seen by anyone: work is repeated, and recorded once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests import postgres

from modmix.base.errors import LedgerError
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import NewConfiguration, Result
from modmix.ledger.retrying import PassingError, Retrying, may_pass
from modmix.ledger.tables import REPLICATES


class Sleeps(list[float]):
    """In place of `time.sleep`: notes the pauses, and lets the clock run."""

    now = 0.0

    def __call__(self, seconds: float) -> None:
        self.append(seconds)
        self.now += seconds


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    made = Sleeps()
    monkeypatch.setattr(time, "sleep", made)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def failing(times: int, error: Exception) -> Any:
    left = [times]

    def work() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "done"

    return work


def test_work_is_repeated_until_it_succeeds(sleeps: Sleeps) -> None:
    assert Retrying().retry(failing(7, PassingError("busy"))) == "done"
    assert len(sleeps) == 7
    assert max(sleeps) <= 5
    assert sleeps[-1] > sleeps[0]


def test_other_errors_are_raised_at_once(sleeps: Sleeps) -> None:
    with pytest.raises(LedgerError, match="full"):
        Retrying().retry(failing(1, LedgerError("full")))
    assert sleeps == []


def test_it_gives_up_and_then_tries_once(sleeps: Sleeps) -> None:
    """Whoever cleans up after a lost database does not wait again for each thing."""
    made = Retrying()
    made.retry_seconds = 60.0
    with pytest.raises(PassingError):
        made.retry(failing(10_000, PassingError("away")))
    assert 60 < sleeps.now < 70
    count = len(sleeps)
    with pytest.raises(PassingError):
        made.retry(failing(1, PassingError("away")))
    assert len(sleeps) == count
    assert made.retry(failing(0, PassingError(""))) == "done"
    assert made.retry(failing(1, PassingError("busy"))) == "done"  # it is patient again


class OfServer(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("40001", True), ("40P01", True), ("57P01", True), ("57P03", True), ("08006", True),
        (None, True), ("53300", True), ("23505", False), ("42P01", False), ("28P01", False),
        ("53100", False),
    ],
)  # fmt: skip
def test_codes_of_postgresql(state: str | None, expected: bool) -> None:
    """From its manual, appendix A."""
    assert may_pass(sa.exc.OperationalError("", None, OfServer(state))) is expected


def test_no_other_error_passes() -> None:
    assert not may_pass(sa.exc.ArgumentError("wrong"))
    assert not may_pass(sa.exc.IntegrityError("", None, OfServer(None)))


def test_a_busy_sqlite_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    held = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    held.execute("BEGIN IMMEDIATE")
    brief = sqlite3.connect(path, timeout=0)
    with pytest.raises(sqlite3.OperationalError) as caught:
        brief.execute("BEGIN IMMEDIATE")
    brief.close()
    assert may_pass(sa.exc.OperationalError("", None, caught.value))
    threading.Timer(0.3, held.rollback).start()
    ledger.start_study("s", spec={}, text="", source="", details={})
    assert ledger.has_study("s")
    held.close()
    ledger.close()


# ---------------------------------------------------------------- a real server


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    with postgres.controlled() as made:
        yield made


@pytest.mark.slow
def test_a_server_may_restart_between_and_during_writes(server: postgres.Server) -> None:
    ledger = Ledger(server.url)
    ledger.start_study("s", spec={}, text="", source="", details={})
    lease = ledger.acquire("s")
    seeds = range(40)
    replicates = [(f"a-{seed}", seed) for seed in seeds]
    wanted = NewConfiguration(key="a", method="mul", params={}, replicates=replicates)
    ledger.add("s", [wanted], [])
    done = threading.Event()

    def restarts() -> None:
        for _ in range(3):
            time.sleep(0.2)
            server.stop()
            time.sleep(0.2)
            server.start()
        done.set()

    thread = threading.Thread(target=restarts)
    thread.start()
    new: list[str] = []
    seconds = 0.0
    for seed in seeds:
        key = f"a-{seed}"
        assert ledger.claim(lease, f"pack-{seed}", [key]) == [key]
        new += ledger.finish(lease, [Result(replicate=key, state="done", seconds=1.0)])
        seconds += 1.0
        time.sleep(0.0 if done.is_set() else 0.03)
    thread.join()
    assert new == [key for key, _ in replicates]
    assert {(r.state, r.attempts >= 1) for r in ledger.replicates("s")} == {("done", True)}
    assert ledger.study("s").device_seconds == seconds
    assert ledger.heartbeat(lease)
    ledger.close()


def test_a_commit_whose_answer_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took place, and the driver does not know: the repeated work says what it would have."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.start_study("s", spec={}, text="", source="", details={})
    monkeypatch.setattr(time, "sleep", lambda _: None)
    lost: list[int] = []

    def lose_next_answer() -> None:
        lost.append(1)

    real = Ledger._transaction

    def transaction(self: Ledger, engine: sa.Engine | None = None) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def inner() -> Iterator[sa.Connection]:
            with real(self, engine) as db:
                yield db
            if lost:
                lost.pop()
                raise PassingError("server closed the connection unexpectedly")

        return inner()

    monkeypatch.setattr(Ledger, "_transaction", transaction)
    lose_next_answer()
    lease = ledger.acquire("s")
    assert ledger.heartbeat(lease)
    wanted = NewConfiguration(key="a", method="mul", params={}, replicates=[("a-0", 0), ("a-1", 1)])
    lose_next_answer()
    ledger.add("s", [wanted], [])
    lose_next_answer()
    assert ledger.claim(lease, "pack", ["a-0", "a-1"]) == ["a-0", "a-1"]
    lose_next_answer()
    ended = [
        Result(replicate="a-0", state="done", seconds=2.0),
        Result(replicate="a-1", state="failed", seconds=3.0),
    ]
    assert ledger.finish(lease, ended) == ["a-0", "a-1"]
    assert ledger.finish(lease, ended) == []
    assert ledger.study("s").device_seconds == 5.0
    assert [(r.state, r.owner) for r in ledger.replicates("s")] == [
        ("done", None),
        ("failed", None),
    ]
    with ledger._engine.begin() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(REPLICATES)).scalar() == 2
    ledger.close()
