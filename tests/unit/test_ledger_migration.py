"""A ledger of version 4, as that version wrote it: nothing in it is lost."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from modmix.base.errors import InputError
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, NewConfiguration

OLD = Path(__file__).parents[1] / "ledger_v4.sql"
HISTORIES = {"r-done": b'{"epoch": [9.0]}', "r-pruned": b'{"epoch": [2.0]}'}


@pytest.fixture
def old(ledger_url: str) -> Iterator[sa.Engine]:
    """The database, as version 4 left it."""
    engine = sa.create_engine(ledger_url)
    with engine.begin() as db:
        for statement in OLD.read_text().split(";\n"):
            if statement.strip():
                if db.dialect.name == "postgresql":
                    statement = statement.replace("BLOB", "BYTEA")
                db.exec_driver_sql(statement)
        for key, text in HISTORIES.items():
            db.execute(
                sa.text("INSERT INTO histories VALUES (:key, :data)"),
                {"key": key, "data": zlib.compress(text)},
            )
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(old: sa.Engine, ledger_url: str) -> Iterator[Ledger]:
    opened = Ledger(ledger_url, owner="alice")
    yield opened
    opened.close()


def test_the_schema_is_that_of_a_new_ledger(ledger: Ledger, ledger_url: str) -> None:
    from modmix.ledger.tables import METADATA, SCHEMA_VERSION

    inspector = sa.inspect(ledger._engine)
    for table in METADATA.sorted_tables:
        found = {c["name"]: c for c in inspector.get_columns(table.name)}
        assert set(found) == {column.name for column in table.columns}, table.name
        for column in table.columns:
            is_key = column.name in ("name", "study") and column.primary_key
            if is_key and ledger_url.startswith("postgresql"):
                assert getattr(found[column.name]["type"], "length", None) == 201, table.name
    assert ledger._version(ledger._engine) == SCHEMA_VERSION == 5


def test_studies_keep_everything(ledger: Ledger) -> None:
    found = ledger.study("curve")
    assert (found.owner, found.name, found.key) == ("", "curve", "curve")
    assert (found.spec, found.text, found.source) == (
        {"study": "curve"}, "study: curve", "curve.yaml"
    )  # fmt: skip
    assert (found.state, found.created, found.updated) == ("finished", 10.0, 20.0)
    assert (found.wall_seconds, found.device_seconds, found.mlflow_run) == (5.0, 7.0, "run-1")
    assert [
        (c.key, c.number, c.mlflow_run, c.mirrored) for c in ledger.configurations("curve")
    ] == [("c", 4, "run-2", "digest")]
    (entry,) = ledger.entries("curve")
    told = Entry(part="p", method="mul", number=0, configuration="c", state="pruned", told=5)
    assert entry == replace(told, batch=2, proposal={"beta": 0.5}, values=(60.5,), step=2)
    (pack,) = ledger.packs("curve")
    assert (pack.state, pack.failures, pack.note) == ("interrupted", 1, {"device": "cpu"})
    assert ledger.holder("other") is None


def results(ledger: Ledger, study: str) -> list[tuple[Any, ...]]:
    return [
        (r.key, r.state, r.origin, r.epochs, r.metrics, r.reason, r.seconds, r.finished)
        for r in ledger.replicates(study)
    ]


def test_results_stay_what_each_study_had(ledger: Ledger) -> None:
    done = ("r-done", "done", 9, {"val/error": 3.5}, "", 1.25, 15.0)
    pruned = ("r-pruned", "pruned", 2, {"val/error": 60.5}, "rung", 0.5, 16.0)
    failed = ("r-failed", "failed", 0, {}, "diverged", 0.25, 17.0)
    assert results(ledger, "curve") == [
        (*done[:2], "trained", *done[2:]),
        (*pruned[:2], "trained", *pruned[2:]),
        (*failed[:2], "trained", *failed[2:]),
        ("r-open", "interrupted", "", 0, {}, "", 0.0, None),
    ]
    assert results(ledger, "other") == [
        (*done[:2], "reused", *done[2:]),
        (*pruned[:2], "reused", *pruned[2:]),
        ("r-failed", "pending", "", 0, {}, "", 0.0, None),  # which it had not taken note of
    ]
    keys = ["r-done", "r-pruned", "r-failed"]
    both = {"r-done": {"epoch": [9.0]}, "r-pruned": {"epoch": [2.0]}}
    assert ledger.histories("curve", keys) == ledger.histories("other", keys) == both


def test_an_old_study_is_read_by_all_and_belongs_to_who_runs_it(
    ledger: Ledger, ledger_url: str
) -> None:
    bob = Ledger(ledger_url, owner="bob")
    before = results(ledger, "curve")
    assert results(bob, "curve") == before
    assert bob.study("curve").name == "curve"
    lease = bob.acquire("curve")
    assert bob.study("curve").key == "bob/curve"
    assert results(bob, "curve") == before
    assert [c.number for c in bob.configurations("curve")] == [4]
    assert len(bob.entries("curve")) == len(bob.packs("curve")) == 1
    bob.set_state("curve", "running")  # fenced under its new name too
    assert bob.heartbeat(lease)
    bob.release(lease)
    # The other one may read it, and begins one of the same name.
    assert not ledger.has_study("curve")
    assert results(ledger, "bob/curve") == before
    ledger.start_study("curve", spec={}, text="", source="", details={})
    assert ledger.study("curve").key == "alice/curve"
    assert [r.name for r in ledger.studies()] == ["bob/curve", "other", "curve"]
    bob.close()


def test_what_was_pruned_is_free_for_new_studies(ledger: Ledger) -> None:
    ledger.start_study("new", spec={}, text="", source="", details={})
    lease = ledger.acquire("new")
    replicates = [("r-done", 0), ("r-pruned", 1), ("r-failed", 2)]
    ledger.add(
        "new", [NewConfiguration(key="c", method="mul", params={}, replicates=replicates)], []
    )
    assert ledger.adopt("new") == 1
    assert ledger.claim(lease, "pack", [key for key, _ in replicates]) == ["r-pruned", "r-failed"]


def test_many_processes_open_it_at_once(old: sa.Engine, ledger_url: str) -> None:
    opened: list[Any] = [None] * 4

    def work(number: int) -> None:
        try:
            opened[number] = Ledger(ledger_url)
        except BaseException as error:
            opened[number] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in opened:
        assert isinstance(one, Ledger), one
        assert len(one.replicates("curve")) == 4
        one.close()


def test_not_under_a_running_driver_of_the_old_version(old: sa.Engine, ledger_url: str) -> None:
    with old.begin() as db:
        db.execute(
            sa.text("UPDATE studies SET lease_heartbeat = :now WHERE name = 'other'"),
            {"now": time.time() - 5},
        )
    with pytest.raises(InputError, match=r"^an older modmix is running study 'other' in this"):
        Ledger(ledger_url)
    with old.begin() as db:
        assert db.execute(sa.text("SELECT version FROM ledger_version")).scalar() == 4
        db.execute(sa.text("UPDATE studies SET lease_heartbeat = 5 WHERE name = 'other'"))
    Ledger(ledger_url).close()


def test_one_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as db:
        db.executescript(OLD.read_text())
    db.close()
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(InputError, match="version 5: open it once where it can be written"):
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == before
