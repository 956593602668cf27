"""The ledger, on SQLite and a real PostgreSQL: leases, claims, results recorded once."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from tests import postgres

from modmix.base.errors import InputError, LeaseError, LeaseLostError, LedgerError
from modmix.base.messages import PackedPredictions
from modmix.base.predictions import ExamplePredictions, ExampleTargets
from modmix.ledger import studies as leases
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, Lease, NewConfiguration, ReplicateRecord, Result
from modmix.ledger.tables import METADATA, PREDICTIONS, STUDIES


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    address: str = request.getfixturevalue("server")
    postgres.empty(address)
    return address


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    yield opened
    opened.close()


def start(ledger: Ledger, name: str = "s", **more: Any) -> Lease:
    what = {"spec": {"study": name}, "text": "", "source": "", "details": {}} | more
    ledger.start_study(name, **what)
    return ledger.acquire(name)


def configuration(key: str, seeds: int = 2, **params: Any) -> NewConfiguration:
    replicates = [(f"{key}-{seed}", seed) for seed in range(seeds)]
    return NewConfiguration(key=key, method="mul", params=params, replicates=replicates)


def entry(number: int, key: str, **more: Any) -> Entry:
    return Entry(part="p", method="mul", number=number, configuration=key, **more)


def record(ledger: Ledger, key: str, study: str = "s") -> ReplicateRecord:
    (found,) = [r for r in ledger.replicates(study) if r.key == key]
    return found


def in_another_process(code: str, url: str, *arguments: str) -> subprocess.Popen[str]:
    """Run Python with a ledger open in it; what it prints is for the test."""
    before = (
        "import sys, time\n"
        "from modmix.ledger.ledger import Ledger\n"
        "from modmix.ledger.records import *\n"
        "ledger = Ledger(sys.argv[1])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", before + code, url, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


# ---------------------------------------------------------------- studies


def test_a_study_is_kept_as_it_was_written(ledger: Ledger) -> None:
    spec = {"study": "s", "parts": {"z": {"methods": {"mul": None, "add": {}}}, "a": {}}}
    details = {"modalities": {"right": [3], "left": [4]}, "ü": "€", "x": math.nan}
    before = time.time()
    start(ledger, spec=spec, text="study: s\n", source="x.yaml", details=details)
    found = ledger.study("s")
    assert json.dumps(found.spec) == json.dumps(spec)  # in the order of the file
    assert list(found.details["modalities"]) == ["right", "left"]
    assert found.details["x"] is None
    assert (found.text, found.source, found.state) == ("study: s\n", "x.yaml", "running")
    assert before <= found.created <= found.updated <= time.time()
    assert (found.wall_seconds, found.device_seconds, found.mlflow_run) == (0, 0, None)


def test_starting_again_renews_the_file_and_keeps_the_rest(ledger: Ledger) -> None:
    start(ledger, text="one")
    first = ledger.study("s")
    altered(ledger, wall_seconds=3.0, device_seconds=2.5)
    ledger.set_state("s", "stopped")
    ledger.set_study_run("s", "run")
    ledger.start_study("s", spec={"study": "s", "seeds": [1]}, text="two", source="y", details={})
    again = ledger.study("s")
    assert (again.text, again.source, again.state) == ("two", "y", "running")
    assert again.spec == {"study": "s", "seeds": [1]}
    assert (again.wall_seconds, again.device_seconds, again.mlflow_run) == (3.0, 2.5, "run")
    assert again.created == first.created


def test_studies_that_are_not_there(ledger: Ledger) -> None:
    assert not ledger.has_study("s")
    assert ledger.holder("s") is None
    with pytest.raises(
        InputError, match=r"^no study 's' in the ledger .* \(it is empty\): run its"
    ):
        ledger.study("s")
    start(ledger, "a")
    start(ledger, "b")
    assert [record.name for record in ledger.studies()] == ["a", "b"]
    with pytest.raises(InputError, match=r"\(it has a, b\)"):
        ledger.study("s")
    for number in range(20):
        start(ledger, f"other{number}")
    start(ledger, "quickstart")
    with pytest.raises(InputError, match=r"\(it has quickstart, .* and 13 more\): run its file"):
        ledger.study("quikstart")


@pytest.mark.slow
def test_two_processes_may_meet_a_new_database(url: str) -> None:
    code = "ledger.start_study('s', spec={}, text='', source='', details={}); print('well')"
    processes = [in_another_process(code, url) for _ in range(2)]
    assert [p.communicate()[0] for p in processes] == ["well\n"] * 2
    ledger = Ledger(url)
    assert ledger.has_study("s")
    ledger.close()


# ---------------------------------------------------------------- leases


def test_one_lease_at_a_time(ledger: Ledger) -> None:
    lease = start(ledger)
    assert ledger.holder("s") == (socket.gethostname(), os.getpid())
    with pytest.raises(
        LeaseError,
        match=rf"^study 's' is being run by process {os.getpid()} on .*: wait until it ends, or",
    ):
        ledger.acquire("s")
    assert ledger.heartbeat(lease)
    ledger.release(lease)
    assert ledger.holder("s") is None
    assert not ledger.heartbeat(lease)
    second = ledger.acquire("s")
    assert second.token != lease.token
    ledger.release(lease)  # of one that is over: nothing happens
    assert ledger.heartbeat(second)


def test_wall_clock_time_is_that_of_the_leases(ledger: Ledger) -> None:
    """Of a killed driver up to its last heartbeat; of a suspended one, a lease at most."""
    lease = start(ledger)
    age(ledger, 20)
    assert ledger.heartbeat(lease)
    assert ledger.study("s").wall_seconds == pytest.approx(20, abs=2)
    age(ledger, 10)
    altered(ledger, lease_token=None)  # as if it was killed
    lease = ledger.acquire("s")
    assert ledger.study("s").wall_seconds == pytest.approx(20, abs=2)
    age(ledger, 500)
    assert ledger.heartbeat(lease)
    assert ledger.study("s").wall_seconds == pytest.approx(20 + leases.LEASE_SECONDS, abs=2)
    age(ledger, 5)
    ledger.release(lease)
    assert ledger.study("s").wall_seconds == pytest.approx(25 + leases.LEASE_SECONDS, abs=2)
    ledger.release(lease)
    age(ledger, -5)  # a clock of the database that was set back
    assert ledger.study("s").wall_seconds == pytest.approx(25 + leases.LEASE_SECONDS, abs=2)


def test_a_study_of_another_name_is_free(ledger: Ledger) -> None:
    start(ledger, "a")
    start(ledger, "b")


@pytest.mark.slow
def test_of_two_drivers_at_once_one_gets_the_lease(ledger: Ledger, url: str) -> None:
    ledger.start_study("s", spec={}, text="", source="", details={})
    code = (
        "from modmix.base.errors import LeaseError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: ledger.acquire('s'); print('mine', flush=True)\n"
        "except LeaseError as error: print('theirs', flush=True)\n"
        "sys.stdin.readline()"
    )
    processes = [in_another_process(code, url) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    heard = [p.stdout.readline() for p in processes if p.stdout is not None]
    for process in processes:
        process.communicate("end\n")
    assert sorted(heard) == ["mine\n", "theirs\n"]


def test_of_many_threads_at_once_one_gets_the_lease(url: str) -> None:
    """All see a free lease at the same moment."""
    drivers = [Ledger(url) for _ in range(6)]
    drivers[0].start_study("s", spec={}, text="", source="", details={})

    def work(number: int) -> bool:
        try:
            drivers[number].acquire("s")
        except LeaseError:
            return False
        return True

    assert together(work, 6).count(True) == 1
    for driver in drivers:
        driver.close()


def test_a_killed_driver_frees_its_study_at_once(ledger: Ledger, url: str) -> None:
    ledger.start_study("s", spec={}, text="", source="", details={})
    process = in_another_process("ledger.acquire('s'); print(1, flush=True); time.sleep(60)", url)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert ledger.holder("s") == (socket.gethostname(), process.pid)
    with pytest.raises(LeaseError, match=f"by process {process.pid} "):
        ledger.acquire("s")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert ledger.holder("s") is None
    ledger.acquire("s")


def altered(ledger: Ledger, **values: Any) -> None:
    """Change a study's lease behind the ledger's back."""
    with ledger._engine.begin() as db:
        db.execute(sa.update(STUDIES).values(values))


def test_a_recycled_process_number_is_not_the_driver(ledger: Ledger) -> None:
    start(ledger)
    altered(ledger, lease_process_start=STUDIES.c.lease_process_start - 100)
    assert ledger.holder("s") is None


@pytest.mark.parametrize("place", [{"lease_space": "another boot"}, {"lease_space": None}])
def test_elsewhere_the_heartbeat_decides(ledger: Ledger, url: str, place: dict[str, Any]) -> None:
    """On another host, and in a container with this one's host name, process ids mean nothing."""
    lease = start(ledger)
    host = socket.gethostname()
    altered(ledger, lease_pid=4_000_000, **place)  # no process here has this number
    assert ledger.holder("s") == (host, 4_000_000)
    other = Ledger(url)
    with pytest.raises(LeaseError, match=f"by process 4000000 on {host}"):
        other.acquire("s")
    age(ledger, leases.LEASE_SECONDS - 5)
    with pytest.raises(LeaseError):
        other.acquire("s")
    age(ledger, 6)
    assert ledger.holder("s") is None
    other.acquire("s")
    assert not ledger.heartbeat(lease)  # the old driver learns that it lost
    other.close()


def age(ledger: Ledger, seconds: float) -> None:
    """Let a lease's last heartbeat be that much longer ago."""
    altered(ledger, lease_heartbeat=STUDIES.c.lease_heartbeat - seconds)


def test_the_clock_of_a_driver_does_not_matter(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 5.0)  # in 1970
    lease = start(ledger)
    assert ledger.heartbeat(lease)
    monkeypatch.undo()
    altered(ledger, lease_space="far away")
    other = Ledger(url)
    with pytest.raises(LeaseError):
        other.acquire("s")
    monkeypatch.setattr(time, "time", lambda: 5e9)  # in 2128
    with pytest.raises(LeaseError):
        other.acquire("s")
    other.close()


def writes(ledger: Ledger, lease: Lease) -> dict[str, Callable[[], Any]]:
    """Every way in which a driver writes its study."""
    wanted = configuration("z")
    done = Result(replicate="a-0", state="done")
    return {
        "start_study": lambda: ledger.start_study("s", spec={}, text="", source="", details={}),
        "set_state": lambda: ledger.set_state("s", "finished"),
        "set_study_run": lambda: ledger.set_study_run("s", "run"),
        "add": lambda: ledger.add("s", [wanted], [entry(1, "z")]),
        "keep_only_entries": lambda: ledger.keep_only_entries("s", {}),
        "move_entries": lambda: ledger.move_entries("s", [entry(0, "z")]),
        "keep_only_configurations": lambda: ledger.keep_only_configurations("s", [], []),
        "tell": lambda: ledger.tell("s", entry(0, "a"), state="done", values=[1.0], told=1),
        "set_configuration_runs": lambda: ledger.set_configuration_runs("s", [("a", "r", "d")]),
        "recover": lambda: ledger.recover("s"),
        "adopt": lambda: ledger.adopt("s"),
        "reset_failures": lambda: ledger.reset_failures("s"),
        "claim": lambda: ledger.claim(lease, "pack", ["a-1"]),
        "finish": lambda: ledger.finish(lease, [done]),
        "unclaim": lambda: ledger.unclaim(lease, ["a-0"]),
        "update_pack": lambda: ledger.update_pack("s", "pack", state="done"),
    }


def columns_of(ledger: Ledger, study: str) -> dict[str, list[float]]:
    """That of replicate a-0; empty if there is none."""
    return ledger.histories(study, ["a-0"]).get("a-0", {})


def everything(ledger: Ledger) -> list[Any]:
    """All rows of all tables."""
    with ledger._engine.begin() as db:
        return [db.execute(sa.select(table)).all() for table in METADATA.sorted_tables]


def test_who_has_lost_the_lease_writes_nothing(ledger: Ledger, url: str) -> None:
    """A driver that slept for longer than its lease, and lives."""
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [entry(0, "a")])
    ledger.claim(lease, "pack", ["a-0"])
    age(ledger, leases.LEASE_SECONDS + 1)
    other = Ledger(url)
    second = other.acquire("s")
    before = everything(other)
    for name, write in writes(ledger, lease).items():
        with pytest.raises(LeaseLostError, match=r"^study 's' was taken over by another") as e:
            write()
        assert e.value.exit_code == 3
        assert everything(other) == before, name
    ledger.release(lease)  # not its own any more
    assert other.heartbeat(second)
    for write in writes(other, second).values():
        write()
    other.close()


def test_another_process_may_hold_a_lease_too(ledger: Ledger, url: str) -> None:
    """Such as the mirror of a driver, which must stop writing when that has lost its study."""
    lease = start(ledger)
    mirror = Ledger(url)
    mirror.hold(lease)
    mirror.set_study_run("s", "run")
    assert mirror.is_current(lease)
    age(ledger, leases.LEASE_SECONDS + 1)
    ledger.acquire("s")
    with pytest.raises(LeaseLostError):
        mirror.set_study_run("s", "another")
    assert ledger.study("s").mlflow_run == "run"
    assert not mirror.is_current(lease)
    mirror.close()


@pytest.mark.slow
def test_a_stopped_driver_cannot_write_when_it_goes_on(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.start_study("s", spec={}, text="", source="", details={})
    ledger.add("s", [configuration("a")], [])
    code = (
        "from modmix.base.errors import LeaseLostError\n"
        "lease = ledger.acquire('s'); ledger.claim(lease, 'pack', ['a-0'])\n"
        "print('claimed', flush=True); sys.stdin.readline()\n"
        "try: ledger.finish(lease, [Result(replicate='a-0', state='done')])\n"
        "except LeaseLostError as error: print(error)"
    )
    process = in_another_process(code, url)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    os.kill(process.pid, signal.SIGSTOP)
    age(ledger, leases.LEASE_SECONDS + 1)
    lease = ledger.acquire("s")
    assert ledger.recover("s") == 1
    assert ledger.claim(lease, "pack", ["a-0"]) == ["a-0"]
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate("go on\n")[0].startswith("study 's' was taken over")
    found = record(ledger, "a-0")
    assert (found.state, found.owner) == ("running", lease.token)


# ---------------------------------------------------------------- configurations and entries


def test_configurations_are_numbered_by_first_appearance(ledger: Ledger) -> None:
    start(ledger)
    ledger.add(
        "s",
        [configuration("b", beta=0.1), configuration("a", beta=1e-300)],
        [entry(0, "b"), entry(1, "a")],
    )
    ledger.add(
        "s", [configuration("a", beta=9.0), configuration("c")], [entry(2, "a"), entry(3, "c")]
    )
    found = ledger.configurations("s")
    assert [(p.key, p.number, dict(p.params)) for p in found] == [
        ("b", 0, {"beta": 0.1}),
        ("a", 1, {"beta": 9.0}),  # as it was shown last
        ("c", 2, {}),
    ]
    assert [(e.number, e.configuration) for e in ledger.entries("s")] == [
        (0, "b"), (1, "a"), (2, "a"), (3, "c")
    ]  # fmt: skip


def test_each_study_shows_a_configuration_in_its_way(ledger: Ledger) -> None:
    start(ledger)
    start(ledger, "other")
    ledger.add("s", [configuration("a", beta=0.5)], [])
    ledger.set_configuration_runs("s", [("a", "run", "digest")])
    ledger.add("other", [configuration("a", beta=0.5, momentum=0.9)], [])
    ledger.add("s", [configuration("a", beta=0.5, width=None), configuration("b")], [])
    first, second = ledger.configurations("s")
    assert (first.params, first.number, first.mlflow_run) == (
        {"beta": 0.5, "width": None}, 0, "run"
    )  # fmt: skip
    assert second.params == {}
    assert [c.params for c in ledger.configurations("other")] == [{"beta": 0.5, "momentum": 0.9}]


def test_what_is_new_can_be_asked_for(ledger: Ledger) -> None:
    """Who follows a study reads what has come since, not all of it again."""
    lease = start(ledger)
    ledger.add("s", [configuration("a"), configuration("b"), configuration("c")], [])
    assert [p.key for p in ledger.configurations("s", after=0)] == ["b", "c"]
    ledger.claim(lease, "pack", ["a-0", "a-1", "b-0"])
    ledger.finish(lease, [Result(replicate="a-0", state="done")])
    (first,) = [r.finished for r in ledger.replicates("s") if r.finished is not None]
    time.sleep(0.01)
    ledger.finish(lease, [Result(replicate="b-0", state="failed", reason="diverged")])
    assert [r.key for r in ledger.replicates("s", since=first)] == ["b-0"]
    assert [r.key for r in ledger.replicates("s", since=first - 1)] == ["a-0", "b-0"]
    mine = ledger.replicates("s", configurations=["c", "a"])
    assert [(r.key, r.state) for r in mine] == [
        ("a-0", "done"), ("a-1", "running"), ("c-0", "pending"), ("c-1", "pending"),
    ]  # fmt: skip
    assert ledger.replicates("s", configurations=[]) == []


def test_many_runs_are_noted_at_once(ledger: Ledger) -> None:
    start(ledger)
    start(ledger, "other")
    ledger.add("s", [configuration("a"), configuration("b"), configuration("c")], [])
    ledger.add("other", [configuration("a")], [])
    ledger.set_configuration_runs("s", [("a", "run-a", None), ("c", "run-c", "digest")])
    ledger.set_configuration_runs("s", [])
    held = {p.key: (p.mlflow_run, p.mirrored) for p in ledger.configurations("s")}
    assert held == {"a": ("run-a", None), "b": (None, None), "c": ("run-c", "digest")}
    assert [p.mlflow_run for p in ledger.configurations("other")] == [None]


def test_numbers_are_not_given_twice(ledger: Ledger) -> None:
    start(ledger)
    ledger.add("s", [configuration("a"), configuration("b"), configuration("c")], [])
    ledger.keep_only_configurations("s", ["b", "c"], ["b-0", "c-0"])
    ledger.add("s", [configuration("d")], [])
    assert [(p.key, p.number) for p in ledger.configurations("s")] == [("b", 1), ("c", 2), ("d", 3)]


def test_a_configuration_may_take_over_another_s_replicates(ledger: Ledger) -> None:
    """A changed study file shows more of the same models: new configurations, old results."""
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [])
    ledger.finish(lease, [Result(replicate="a-0", state="done")])
    wider = NewConfiguration(
        key="wider", method="mul", params={}, replicates=[("a-0", 0), ("a-1", 1)]
    )
    ledger.add("s", [wider], [])
    ledger.keep_only_configurations("s", ["wider"], ["a-0", "a-1"])
    assert [(r.key, r.configuration, r.state, r.origin) for r in ledger.replicates("s")] == [
        ("a-0", "wider", "done", "trained"),
        ("a-1", "wider", "pending", ""),
    ]


def test_entries_come_back_as_they_were(ledger: Ledger) -> None:
    start(ledger)
    proposal = {"rate": 0.1 + 0.2, "hidden": [64, 32], "merge": None, "deep": True, "n": 3}
    ledger.add(
        "s", [configuration("a"), configuration("b")], [entry(0, "a", batch=7, proposal=proposal)]
    )
    (found,) = ledger.entries("s")
    assert found == entry(0, "a", batch=7, proposal=proposal)
    assert list(found.proposal) == list(proposal)
    ledger.tell("s", found, state="done", values=[0.25, math.nan, math.inf, -math.inf], told=8)
    (told,) = ledger.entries("s")
    assert (told.state, told.told) == ("done", 8)
    assert told.values is not None
    assert told.values[0] == 0.25
    assert math.isnan(told.values[1])
    assert told.values[2:] == (math.inf, -math.inf)
    assert told.step is None
    ledger.tell("s", found, state="pruned", values=[0.5], step=6, told=9)
    (pruned,) = ledger.entries("s")
    assert (pruned.state, pruned.values, pruned.step) == ("pruned", (0.5,), 6)
    ledger.tell("s", found, state="failed", values=None, told=9)
    assert ledger.entries("s")[0].values is None


def test_the_longest_names_of_study_files_are_kept(ledger: Ledger) -> None:
    study, task, part, method = "s" * 100, "t" * 100, "p" * 59 + "@" + "t" * 40, "m" * 64
    start(ledger, study)
    new = replace(configuration("a"), method=method, task=task, fingerprint="f" * 64)
    ledger.add(study, [new], [replace(entry(0, "a"), part=part, method=method)])
    (found,), (one,) = ledger.entries(study), ledger.configurations(study)
    assert (found.part, found.method) == (part, method)
    assert (one.method, one.task, one.fingerprint) == (method, task, "f" * 64)


def test_changed_parts_are_asked_anew(ledger: Ledger) -> None:
    start(ledger)
    first = {("p", "mul"): "1", ("q", "mul"): "1", ("p", "add"): "1"}
    ledger.keep_only_entries("s", first)
    entries = [Entry(part=p, method=m, number=0, configuration="a") for p, m in first]
    ledger.add("s", [configuration("a")], entries)
    ledger.keep_only_entries("s", first)
    assert len(ledger.entries("s")) == 3
    ledger.keep_only_entries("s", {("p", "mul"): "1", ("q", "mul"): "2"})
    assert [(e.part, e.method) for e in ledger.entries("s")] == [("p", "mul")]
    start(ledger, "t")
    assert ledger.entries("t") == []


def test_many_configurations_at_once(ledger: Ledger) -> None:
    lease = start(ledger)
    configurations = [configuration(f"{i:04d}", seeds=3) for i in range(700)]
    ledger.add("s", configurations, [entry(i, p.key) for i, p in enumerate(configurations)])
    assert len(ledger.replicates("s")) == 2100
    keys = [key for p in configurations for key, _ in p.replicates]
    assert ledger.claim(lease, "k", keys) == keys
    assert len(ledger.histories("s", keys)) == 0
    ledger.unclaim(lease, keys)
    assert set(ledger.replicate_states("s").values()) == {"interrupted"}


# ---------------------------------------------------------------- replicates


def test_claim_and_finish(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [entry(0, "a")])
    assert ledger.claim(lease, "pack", ["a-0", "a-1"]) == ["a-0", "a-1"]
    running = record(ledger, "a-0")
    assert (running.state, running.owner, running.pack) == ("running", lease.token, "pack")
    assert running.attempts == 1
    assert ledger.claim(lease, "pack", ["a-0"]) == []  # it is taken
    history = {"epoch": [0.5, 1.0], "val/error": [math.nan, 3.0], "lr": [math.inf, -math.inf]}
    result = Result(
        replicate="a-0",
        state="done",
        epochs=2,
        best_epoch=0.5,
        metrics={"val/error": 3.0, "val/auc": math.nan, "val/nll": math.inf, "x": -math.inf},
        history=history,
        seconds=1.5,
    )
    assert ledger.finish(lease, [result]) == ["a-0"]
    done = record(ledger, "a-0")
    assert (done.state, done.owner, done.epochs, done.best_epoch) == ("done", None, 2, 0.5)
    assert (done.seed, done.configuration, done.seconds, done.origin) == (0, "a", 1.5, "trained")
    assert math.isnan(done.metrics["val/auc"])
    assert {k: v for k, v in done.metrics.items() if k != "val/auc"} == {
        "val/error": 3.0, "val/nll": math.inf, "x": -math.inf,
    }  # fmt: skip
    kept = columns_of(ledger, "s")
    assert list(kept) == list(history)
    assert repr(kept) == repr(history)
    assert ledger.study("s").device_seconds == 1.5


def test_a_result_is_recorded_once(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [entry(0, "a")])
    ledger.claim(lease, "pack", ["a-0"])
    first = Result(replicate="a-0", state="done", metrics={"val/error": 1.0}, seconds=1)
    ledger.finish(lease, [first, first])
    second = Result(
        replicate="a-0", state="failed", metrics={"val/error": 2.0}, seconds=8, history={"x": [1]}
    )
    assert ledger.finish(lease, [second]) == []
    found = record(ledger, "a-0")
    assert (found.state, found.metrics, found.seconds) == ("done", {"val/error": 1.0}, 1)
    assert columns_of(ledger, "s") == {}
    assert ledger.study("s").device_seconds == 1
    assert ledger.claim(lease, "pack", ["a-0", "a-1"]) == ["a-1"]


def predicted(*classes: int) -> PackedPredictions:
    found = ExamplePredictions(np.array(classes), np.full(len(classes), 0.5, dtype=np.float16))
    return PackedPredictions(rows=len(classes), data=found.to_bytes(300))


def test_predictions_come_with_a_result(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a", seeds=40)], [entry(0, "a")])
    keys = [f"a-{seed}" for seed in range(40)]
    ledger.claim(lease, "pack", keys)
    ends = [
        Result(replicate=key, state="done", predictions=predicted(i, 299))
        for i, key in enumerate(keys[:-2])
    ]
    ends += [Result(replicate=keys[-2], state="done")]
    ends += [Result(replicate=keys[-1], state="failed", predictions=predicted(1, 2))]
    ledger.finish(lease, ends)
    ledger.finish(lease, [Result(replicate="a-0", state="done", predictions=predicted(7, 7))])
    assert ledger.with_predictions(keys) == set(keys[:-2])
    found = list(ledger.predictions(list(reversed(keys))))
    assert [key for key, _ in found] == list(reversed(keys[:-2]))
    assert found[-1][1].classes_N.tolist() == [0, 299]
    assert found[0][1].p_true_N.tolist() == [0.5, 0.5]


def test_a_result_without_its_predictions_cannot_be(ledger: Ledger) -> None:
    """Both are one transaction: where one fails, the other is not there."""
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [entry(0, "a")])
    ledger.claim(lease, "pack", ["a-0"])
    with ledger._transaction() as db:  # in the way of the predictions
        db.execute(sa.insert(PREDICTIONS).values(replicate="a-0", rows=0, data=b""))
    with pytest.raises(LedgerError):
        ledger.finish(lease, [Result(replicate="a-0", state="done", predictions=predicted(1))])
    assert record(ledger, "a-0").state == "running"
    assert columns_of(ledger, "s") == {}


def test_test_splits_are_kept_once(ledger: Ledger) -> None:
    assert ledger.test_split("f") is None
    ledger.add_test_split("f", ExampleTargets(np.array([0, 299]), np.array([5, 70_000])))
    ledger.add_test_split("f", ExampleTargets(np.array([1])))
    ledger.add_test_split("g", ExampleTargets(np.array([1, 0, 0])))
    first, second = ledger.test_split("f"), ledger.test_split("g")
    assert first is not None
    assert second is not None
    assert (first.target_N.tolist(), first.numbers_N.tolist()) == ([0, 299], [5, 70_000])
    assert (second.target_N.tolist(), second.numbers_N.tolist()) == ([1, 0, 0], [0, 1, 2])


def test_what_is_let_go_is_free_again(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a", 3)], [])
    ledger.claim(lease, "pack", ["a-0", "a-1", "a-2"])
    ledger.finish(lease, [Result(replicate="a-2", state="done")])
    ledger.unclaim(start(ledger, "other"), ["a-0"])  # not theirs to give
    assert record(ledger, "a-0").state == "running"
    ledger.unclaim(lease, ["a-0", "a-1", "a-2"])
    assert [r.state for r in ledger.replicates("s")] == ["interrupted", "interrupted", "done"]
    assert ledger.claim(lease, "other", ["a-2", "a-1", "a-0"]) == ["a-1", "a-0"]
    assert record(ledger, "a-0").attempts == 2


def test_a_dead_driver_s_replicates_are_interrupted(ledger: Ledger, url: str) -> None:
    ledger.start_study("s", spec={}, text="", source="", details={})
    ledger.add("s", [configuration("a")], [])
    code = (
        "lease = ledger.acquire('s'); ledger.claim(lease, 'pack', ['a-0', 'a-1'])\n"
        "ledger.finish(lease, [Result(replicate='a-1', state='done')])\n"
        "print(1, flush=True); time.sleep(60)"
    )
    process = in_another_process(code, url)
    assert process.stdout is not None
    process.stdout.readline()
    assert ledger.recover("s") == 0  # it lives
    assert record(ledger, "a-0").state == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert ledger.recover("s") == 1
    assert [(r.state, r.owner) for r in ledger.replicates("s")] == [
        ("interrupted", None), ("done", None)
    ]  # fmt: skip
    (pack,) = ledger.packs("s")
    assert (pack.id, pack.state, pack.replicates) == ("pack", "interrupted", ("a-0", "a-1"))
    assert ledger.recover("s") == 0


def test_recovering_leaves_what_is_one_s_own(ledger: Ledger) -> None:
    """A driver that was suspended looks for others' interruptions before its next heartbeat."""
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [])
    ledger.claim(lease, "pack", ["a-0"])
    age(ledger, leases.LEASE_SECONDS + 1)
    assert ledger.recover("s", packs=False) == 0
    assert record(ledger, "a-0").state == "running"


def test_recovering_leaves_other_studies_alone(ledger: Ledger) -> None:
    lease = start(ledger, "living")
    ledger.add("living", [configuration("a"), configuration("b")], [])
    ledger.claim(lease, "pack", ["a-0", "b-0"])
    start(ledger, "s")
    ledger.add("s", [configuration("a")], [])  # wants what the other one trains
    assert ledger.recover("s") == 0
    ledger.release(lease)
    assert ledger.recover("s") == 1
    assert record(ledger, "b-0", "living").state == "running"  # until someone asks for it
    assert ledger.recover("living") == 1


def test_studies_find_each_other_s_results(ledger: Ledger) -> None:
    lease = start(ledger, "one")
    ledger.add("one", [configuration("a", beta=1)], [])
    ledger.claim(lease, "pack", ["a-0", "a-1"])
    ledger.finish(lease, [Result(replicate="a-0", state="done", metrics={"val/error": 1.0})])
    start(ledger, "two")
    same = NewConfiguration(
        key="other", method="mul", params={}, replicates=[("a-0", 0), ("a-1", 1)]
    )
    ledger.add("two", [same], [])
    assert ledger.adopt("two") == 1
    assert ledger.adopt("two") == 0
    found = record(ledger, "a-0", "two")
    assert (found.origin, found.configuration, found.metrics) == (
        "reused",
        "other",
        {"val/error": 1.0},
    )
    assert record(ledger, "a-0", "one").origin == "trained"
    assert record(ledger, "a-1", "two").origin == ""
    assert ledger.study("two").device_seconds == 0


def test_failures_can_be_forgotten(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a", 3)], [])
    ledger.finish(
        lease,
        [
            Result(replicate="a-0", state="failed", reason="why", history={"epoch": [1.0]}),
            Result(replicate="a-1", state="pruned", reason="rung"),
            Result(replicate="a-2", state="done"),
        ],
    )
    assert ledger.reset_failures("s") == 1
    found = record(ledger, "a-0")
    assert (found.state, found.reason, found.origin) == ("pending", "", "")
    assert columns_of(ledger, "s") == {}
    assert ledger.replicate_states("s") == {"a-0": "pending", "a-1": "pruned", "a-2": "done"}
    assert ledger.reset_failures("s") == 0


# ---------------------------------------------------------------- what studies share


def two_studies(ledger: Ledger) -> tuple[Lease, Lease]:
    """Both want the same three replicates; the first has pruned one, and one has failed in it."""
    first, second = start(ledger, "one"), start(ledger, "two")
    for study in ("one", "two"):
        ledger.add(study, [configuration("a", 3)], [])
    assert ledger.claim(first, "pack", ["a-0", "a-1", "a-2"]) == ["a-0", "a-1", "a-2"]
    history = {"epoch": [1.0], "val/error": [50.0]}
    ended = [
        Result(replicate="a-0", state="pruned", epochs=1, reason="rung", history=history,
               metrics={"val/error": 50.0}),
        Result(replicate="a-1", state="failed", reason="diverged"),
        Result(replicate="a-2", state="done", epochs=9),
    ]  # fmt: skip
    assert ledger.finish(first, ended) == ["a-0", "a-1", "a-2"]
    return first, second


def test_only_trained_replicates_are_adopted(ledger: Ledger) -> None:
    two_studies(ledger)
    assert ledger.adopt("two") == 1
    assert ledger.replicate_states("two") == {"a-0": "pending", "a-1": "pending", "a-2": "done"}
    assert [r.origin for r in ledger.replicates("two")] == ["", "", "reused"]
    assert [r.origin for r in ledger.replicates("one")] == ["trained"] * 3
    assert columns_of(ledger, "two") == {}
    assert columns_of(ledger, "one") == {"epoch": [1.0], "val/error": [50.0]}


def test_a_race_is_not_reversed_by_another_study(ledger: Ledger) -> None:
    """What one study has pruned or seen fail, another trains; the first keeps its verdict."""
    first, second = two_studies(ledger)
    before = ledger.replicates("one")
    assert ledger.claim(second, "other", ["a-0", "a-1", "a-2"]) == ["a-0", "a-1"]
    assert record(ledger, "a-0", "two").state == "running"
    assert [r.state for r in ledger.replicates("one")] == ["pruned", "failed", "done"]
    assert ledger.claim(first, "pack", ["a-0", "a-1"]) == []  # it has its outcomes
    ended = [
        Result(replicate=f"a-{i}", state="done", epochs=9, metrics={"val/error": float(i)},
               history={"epoch": [9.0], "val/error": [float(i)]})
        for i in range(2)
    ]  # fmt: skip
    assert ledger.finish(second, ended) == ["a-0", "a-1"]
    assert ledger.adopt("one") == 0
    assert [(r.state, r.epochs, r.metrics, r.reason, r.finished) for r in before] == [
        (r.state, r.epochs, r.metrics, r.reason, r.finished) for r in ledger.replicates("one")
    ]
    assert columns_of(ledger, "one")["epoch"] == [1.0]
    assert ledger.adopt("two") == 1
    assert [(r.state, r.origin) for r in ledger.replicates("two")] == [
        ("done", "trained"), ("done", "trained"), ("done", "reused"),
    ]  # fmt: skip
    assert columns_of(ledger, "two")["epoch"] == [9.0]


def test_a_verdict_does_not_touch_who_trains_the_same_replicate(ledger: Ledger) -> None:
    first, second = start(ledger, "one"), start(ledger, "two")
    for study in ("one", "two"):
        ledger.add(study, [configuration("a")], [])
    ledger.claim(second, "pack", ["a-0"])
    ledger.finish(first, [Result(replicate="a-0", state="pruned")])  # claimed before, and late
    found = record(ledger, "a-0", "two")
    assert (found.state, found.owner) == ("running", second.token)
    assert record(ledger, "a-0", "one").state == "pruned"


def test_failures_of_other_studies_are_not_forgotten(ledger: Ledger) -> None:
    _, second = two_studies(ledger)
    ledger.claim(second, "pack", ["a-1"])
    ledger.finish(second, [Result(replicate="a-1", state="failed", reason="theirs")])
    assert ledger.reset_failures("one") == 1
    assert record(ledger, "a-1", "one").state == "pending"
    found = record(ledger, "a-1", "two")
    assert (found.state, found.reason) == ("failed", "theirs")


def test_a_retried_failure_may_have_been_trained_elsewhere(ledger: Ledger) -> None:
    _, second = two_studies(ledger)
    ledger.claim(second, "pack", ["a-1"])
    ledger.finish(second, [Result(replicate="a-1", state="done")])
    assert record(ledger, "a-1", "one").state == "failed"
    ledger.reset_failures("one")
    assert ledger.adopt("one") == 1
    found = record(ledger, "a-1", "one")
    assert (found.state, found.origin) == ("done", "reused")


def test_outcomes_come_back_with_their_configuration(ledger: Ledger) -> None:
    """A study file is changed and changed back."""
    two_studies(ledger)
    ledger.keep_only_configurations("one", [], [])
    assert ledger.replicates("one") == []
    ledger.add("one", [configuration("a", 3)], [])
    assert ledger.adopt("one") == 3
    assert [r.state for r in ledger.replicates("one")] == ["pruned", "failed", "done"]


def test_what_is_new_includes_outcomes(ledger: Ledger) -> None:
    two_studies(ledger)
    assert [r.key for r in ledger.replicates("one", since=0.0)] == ["a-0", "a-1", "a-2"]
    assert [r.key for r in ledger.replicates("two", since=0.0)] == ["a-2"]


def test_the_environment_is_recorded(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a")], [])
    where = {
        "device": "NVIDIA H100",
        "host": "node7",
        "torch": "2.9",
        "cuda": "12.8",
        "modmix": "2",
    }
    ledger.finish(
        lease,
        [
            Result(replicate="a-0", state="done", environment=where),
            Result(replicate="a-1", state="failed", environment={"device": "cpu"}),
        ],
    )
    assert record(ledger, "a-0").environment == where
    assert record(ledger, "a-1").environment == {"device": "cpu"}


def test_entries_move_to_other_keys_of_their_configurations(ledger: Ledger) -> None:
    start(ledger)
    start(ledger, "other")
    for study in ("s", "other"):
        ledger.add(study, [configuration("a"), configuration("b")], [entry(0, "a"), entry(1, "b")])
    ledger.tell("s", entry(0, "a"), state="done", values=[0.5], told=3)
    ledger.move_entries("s", [entry(0, "z")])
    ledger.move_entries("s", [])
    found = ledger.entries("s")
    assert [(e.configuration, e.state, e.told) for e in found] == [
        ("z", "done", 3), ("b", "pending", None)
    ]  # fmt: skip
    assert [e.configuration for e in ledger.entries("other")] == ["a", "b"]


def test_packs(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a"), configuration("b")], [])
    ledger.claim(lease, "one", ["a-0"])
    ledger.claim(lease, "two", ["b-0", "b-1"])
    ledger.update_pack("s", "two", note={"device": "gpu", "why": "ü"}, failures=1)
    ledger.update_pack("s", "two", state="done", note={"device": "cpu"}, failures=2)
    one, two = ledger.packs("s")
    assert (one.id, one.state, one.note, one.failures) == ("one", "running", {}, 0)
    assert (two.state, two.note, two.failures) == ("done", {"device": "cpu", "why": "ü"}, 2)
    ledger.unclaim(lease, ["b-0"])
    ledger.claim(lease, "two", ["b-0", "b-1"])
    again = {p.id: p for p in ledger.packs("s")}
    assert (again["two"].state, again["two"].note, again["two"].failures) == (
        "running", {"device": "cpu", "why": "ü"}, 2
    )  # fmt: skip
    assert len(again) == 2


def test_failures_of_packs_are_reset_in_one_study(ledger: Ledger) -> None:
    for study in ("s", "t"):
        lease = start(ledger, study)
        ledger.add(study, [configuration(study)], [])
        ledger.claim(lease, "one", [f"{study}-0"])
        ledger.update_pack(study, "one", note={"failure": "died"}, failures=6)
    assert ledger.reset_failures("s") == 0
    assert [p.failures for p in ledger.packs("s")] == [0]
    assert [p.failures for p in ledger.packs("t")] == [6]


# ---------------------------------------------------------------- at the same time


def together(work: Callable[[int], Any], workers: int) -> list[Any]:
    """Run the same work in threads that begin together; raise what any of them raised."""
    found: list[Any] = [None] * workers
    ready = threading.Barrier(workers)

    def run(number: int) -> None:
        try:
            ready.wait()
            found[number] = work(number)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def test_a_replicate_has_one_owner(ledger: Ledger, url: str) -> None:
    """Two studies that want the same models, in two ledgers' connections, at the same moment."""
    drivers = [Ledger(url) for _ in range(2)]
    held = [start(drivers[i], f"s{i}") for i in range(2)]
    configurations = [configuration(f"{i:02d}", seeds=1) for i in range(30)]
    keys = [key for p in configurations for key, _ in p.replicates]

    def work(number: int) -> list[str]:
        order = configurations if number else configurations[::-1]
        drivers[number].add(f"s{number}", order, [])
        mine: list[str] = []
        for key in keys:
            mine += drivers[number].claim(held[number], f"{number}{key}", [key])
        return mine

    claimed = together(work, 2)
    assert sorted(claimed[0] + claimed[1]) == keys
    for number in range(2):
        owners = {r.key: r.owner for r in ledger.replicates(f"s{number}")}
        assert [k for k in keys if owners[k] == held[number].token] == sorted(claimed[number])
        drivers[number].close()


def test_a_result_that_comes_twice_at_once_is_recorded_once(ledger: Ledger, url: str) -> None:
    drivers = [Ledger(url) for _ in range(2)]
    lease = start(ledger)
    ledger.add("s", [configuration("a", 20)], [])
    results = [Result(replicate=f"a-{seed}", state="done", seconds=1) for seed in range(20)]

    def work(number: int) -> list[str]:
        return [key for r in results for key in drivers[number].finish(lease, [r])]

    new = together(work, 2)
    assert sorted(new[0] + new[1]) == sorted(r.replicate for r in results)
    assert ledger.study("s").device_seconds == 20
    for driver in drivers:
        driver.close()


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    lease = start(ledger)
    ledger.add("s", [configuration("a", 20)], [])

    def work(number: int) -> None:
        for seed in range(number, 20, 4):
            ledger.claim(lease, f"p{seed}", [f"a-{seed}"])
            ledger.heartbeat(lease)
            ledger.finish(lease, [Result(replicate=f"a-{seed}", state="done", seconds=1)])

    together(work, 4)
    assert set(ledger.replicate_states("s").values()) == {"done"}
    assert ledger.study("s").device_seconds == 20


# ---------------------------------------------------------------- databases that cannot be used


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite:////no/such/folder/ledger.db", "unable to open database file"),
        ("mysql://host/db", "No module named 'MySQLdb'"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", "connection"),
    ],
)
def test_what_cannot_be_opened(url: str, why: str) -> None:
    with pytest.raises(InputError, match=r"^the ledger .* cannot be opened \(.*\): check the") as e:
        Ledger(url)
    assert why in str(e.value)
    assert "\n" not in str(e.value)
    assert "secret" not in str(e.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database at all" * 300)
    with pytest.raises(InputError, match=r"cannot be opened \(file is not a database\)"):
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == b"not a database at all" * 300


@pytest.mark.parametrize("version", [3, 99])
def test_another_version_is_refused(ledger: Ledger, url: str, version: int) -> None:
    """And left as it is: no table is added to it."""
    with ledger._engine.begin() as db:
        db.execute(sa.text("DROP TABLE entries"))
        db.execute(sa.text(f"UPDATE ledger_version SET version = {version}"))
    expected = rf"has version {version}, this modmix supports version \d+: use the modmix that"
    with pytest.raises(InputError, match=expected):
        Ledger(url)
    assert not sa.inspect(ledger._engine).has_table("entries")


def test_damage_in_the_middle_is_a_ledger_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    start(ledger)
    ledger.close()
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE studies")
    database.close()
    with pytest.raises(
        LedgerError, match=r"could not be used \(no such table: studies\): fix"
    ) as e:
        ledger.study("s")
    assert e.value.exit_code == 3
    ledger.close()


@pytest.mark.parametrize("url", ["nonsense", "postgresql+psycopg://me:hunter2@db:port/x"])
def test_what_is_no_url_is_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match=r"^MODMIX_LEDGER is not a database URL: write ") as e:
        Ledger(url)
    assert "hunter2" not in str(e.value)


def test_a_password_in_the_query_is_not_shown() -> None:
    with pytest.raises(InputError) as e:
        Ledger("postgresql+psycopg://me@127.0.0.1:1/db?password=hunter2")
    assert "hunter2" not in str(e.value)
    assert "127.0.0.1:1/db" in str(e.value)


def test_a_ledger_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    start(ledger)
    before = ledger.studies()
    ledger.close()
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    read = Ledger(f"sqlite:///{path}")
    assert read.studies() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.db"]
    with pytest.raises(LedgerError, match="attempt to write a readonly database"):
        read.set_state("s", "failed")
    read.close()
