"""The runner that starts while a study is still being checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.execution import ray_runner, starting
from modmix.execution.starting import Starting
from modmix.ledger.ledger import Ledger
from modmix.study import spec
from modmix.study.spec import StudySpec

PATIENCE = 20.0
STUDY = """
study: small
task: digits
resources: {cpus: 2}
parts: {curve: {methods: {mul: {beta: {grid: [0, 1]}}}}}
"""


class Fake:
    """Stands for the runner on Ray."""

    made: list[Fake]
    gate: threading.Event
    error: Exception | None = None

    def __init__(self, **how: Any) -> None:
        self.how = how
        self.threads: list[threading.Thread] = []
        self.closed = threading.Event()
        Fake.made.append(self)

    def start(self) -> None:
        self.threads.append(threading.current_thread())
        assert Fake.gate.wait(PATIENCE)
        if Fake.error is not None:
            raise Fake.error

    def close(self) -> None:
        self.threads.append(threading.current_thread())
        self.closed.set()


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Fake.made, Fake.gate, Fake.error = [], threading.Event(), None
    monkeypatch.setattr(ray_runner, "RayRunner", Fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    Fake.gate.set()
    if starting._latest is not None:
        starting._latest.join(PATIENCE)


@pytest.fixture
def checked(tmp_path: Path) -> StudySpec:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    found, problems = spec.check(spec.read(file))
    assert found is not None, problems
    return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "runs")
    made.make()
    return made


def test_it_starts_behind_the_caller_s_back_and_is_there_when_asked_for(
    home: Home, checked: StudySpec
) -> None:
    with Starting(address="there:1", workers=3, home=home) as start:
        start.begin(checked)  # returns although the runner has not started
        start.begin(checked)
        Fake.gate.set()
        runner = start.runner(checked)
        assert [runner] == Fake.made
        assert not runner.closed.is_set()
    assert runner.closed.is_set()
    assert runner.how == {"cpus": 2, "gpus": 0, "address": "there:1", "workers": 3}
    first, last = runner.threads
    # Linux kills Ray's processes with the thread that started them.
    assert first is last is not threading.current_thread()


def test_what_goes_wrong_is_raised_when_the_runner_is_asked_for(
    home: Home, checked: StudySpec
) -> None:
    Fake.error = InputError("no such cluster")
    Fake.gate.set()
    with Starting(home=home) as start:
        start.begin(checked)
        with pytest.raises(InputError, match="no such cluster"):
            start.runner(checked)


def refused(home: Home, checked: StudySpec) -> None:
    with Starting(home=home) as start:
        start.begin(checked)
        raise InputError("the data is missing")


def test_a_study_that_is_refused_does_not_wait_for_the_cluster(
    home: Home, checked: StudySpec
) -> None:
    with pytest.raises(InputError, match="the data"):
        refused(home, checked)
    # The sentence is out while the cluster still starts; and that ends without a word.
    assert not Fake.gate.is_set()
    Fake.gate.set()
    assert starting._latest is not None
    starting._latest.join(PATIENCE)
    assert Fake.made[0].closed.is_set()


def test_the_next_one_waits_until_the_last_is_gone(home: Home, checked: StudySpec) -> None:
    with pytest.raises(InputError):
        refused(home, checked)
    with Starting(home=home) as start:
        start.begin(checked)
        assert len(Fake.made) <= 1  # the other has not even begun
        Fake.gate.set()
        start.runner(checked)
        assert Fake.made[0].closed.is_set()
        assert len(Fake.made) == 2


@pytest.mark.parametrize(
    ("change", "retry", "starts"),
    [("", False, False), ("state", False, True), ("spec", False, True), ("", True, True)],
)
def test_nothing_is_started_for_a_study_that_has_finished(
    home: Home, checked: StudySpec, change: str, retry: bool, starts: bool
) -> None:
    Fake.gate.set()
    ledger = Ledger(home.ledger_url)
    written = checked.model_dump(mode="json")
    if change == "spec":
        written["seeds"] = [0]
    ledger.start_study("small", spec=written, text="", source="", details={})
    ledger.set_state("small", "stopped" if change == "state" else "finished")
    ledger.close()
    with Starting(home=home, retry_failed=retry) as start:
        start.begin(checked)
        runner = start.runner(checked)
    assert bool(runner.threads[:-1]) == starts  # the last is its end
    assert runner.closed.is_set()


def test_without_ray_nothing_happens_in_the_background(home: Home, checked: StudySpec) -> None:
    with Starting("local", home=home) as start:
        start.begin(checked)
        assert type(start.runner(checked)).__name__ == "LocalRunner"
    assert Fake.made == []
    with pytest.raises(InputError, match="ray or local"):
        Starting("slurm", home=home)
