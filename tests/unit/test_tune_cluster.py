"""What connecting to a cluster does to the program."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from modmix.base.errors import InputError
from modmix.execution import tune_runner
from modmix.execution.tune_cluster import Cluster, Needs


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A program that notes SIGTERM, and a Ray that sets its own handler, as the real one does."""
    import ray

    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))

    def init(**how: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        if how["num_cpus"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("modmix.execution.tune_cluster._is_alone", False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    yield noted
    signal.signal(signal.SIGTERM, before)


def test_the_handler_of_sigterm_stays(terminated: list[int]) -> None:
    Cluster(Needs(), workers=1).connect()
    os.kill(os.getpid(), signal.SIGTERM)
    assert terminated == [signal.SIGTERM]


def test_sigterm_while_ray_starts_is_an_interruption(terminated: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Cluster(Needs(), workers=2).connect()
    os.kill(os.getpid(), signal.SIGTERM)
    assert terminated == [signal.SIGTERM]


def test_nothing_imports_ray_before_its_settings_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads when it is imported that a cluster of one listens on the loopback address only."""
    found: list[str | None] = []
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    monkeypatch.setattr("modmix.execution.tune_cluster._is_alone", False)
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)  # and what is set here is undone
    monkeypatch.setattr(tune_runner, "_load_ahead", lambda: found.append(os.environ.get(name)))
    monkeypatch.setattr(Cluster, "connect", lambda _: None)
    monkeypatch.setattr(Cluster, "has_node_for", lambda *_: True)
    tune_runner.TuneRunner(workers=1).start()
    assert found == ["0"]


def test_a_wrong_address_is_said_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(tune_runner, "_load_ahead", lambda: loaded.append("Tune"))
    with pytest.raises(InputError, match="must be host:port"):
        tune_runner.TuneRunner(address="ray://somewhere").start()
    assert loaded == []
