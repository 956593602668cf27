"""What connecting to a cluster does to the program."""

from __future__ import annotations

import gc
import os
import signal
import sys
import weakref
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
    Cluster({"": Needs()}, workers=1).connect()
    os.kill(os.getpid(), signal.SIGTERM)
    assert terminated == [signal.SIGTERM]


def test_sigterm_while_ray_starts_is_an_interruption(terminated: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Cluster({"": Needs()}, workers=2).connect()
    os.kill(os.getpid(), signal.SIGTERM)
    assert terminated == [signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_waits_until_ray_has_started_but_not_a_second_one(
    times: int, number: int, terminated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of `ray.init` it may leave a connection that crashes the program at its end."""
    import ray

    done: list[str] = []

    def init(**_: Any) -> None:
        for _signal in range(times):
            os.kill(os.getpid(), number)
        done.append("started")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("ended"))
    before = signal.getsignal(number)
    cluster = Cluster({"": Needs()}, workers=1)
    with pytest.raises(KeyboardInterrupt):
        cluster.connect()
    assert signal.getsignal(number) is before
    cluster.close()
    assert done == (["started", "ended"] if times == 1 else ["ended"])
    assert terminated == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_that_fails_is_still_an_interruption(
    number: int, terminated: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM to all processes ends Ray's, and then `ray.init` fails."""
    import ray

    def init(**_: Any) -> None:
        os.kill(os.getpid(), number)
        raise RuntimeError("no connection")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyboardInterrupt):
        Cluster({"": Needs()}, workers=1).connect()
    assert terminated == []


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


@pytest.mark.parametrize("lost", [True, False])
def test_nothing_is_collected_that_would_ask_a_lost_cluster(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune's placement groups are in a reference cycle, and Ray waits a minute for an answer."""

    class Controller:
        def __init__(self) -> None:
            self.itself = self

    controller = Controller()
    left = weakref.ref(controller)
    monkeypatch.setattr(Cluster, "is_ending", lambda _: lost)
    try:
        assert tune_runner.TuneRunner().is_lost() == lost
        del controller
        gc.collect()
        assert (left() is not None) == lost
    finally:
        gc.unfreeze()


def test_nodes_are_those_large_enough_for_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    sizes = {"plain": {"CPU": 4.0}, "device": {"CPU": 1.0, "GPU": 1.0}, "gone": {"CPU": 9.0}}
    found = [
        {"NodeID": name, "Resources": size, "Alive": name != "gone", "NodeManagerAddress": name}
        for name, size in sizes.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    cluster = Cluster({"": Needs(cpus=2), "mul": Needs(gpus=1)}, address="x:1")
    assert list(cluster.nodes()) == list(cluster.nodes("add")) == ["plain"]
    assert list(cluster.nodes("mul")) == ["device"]
    assert cluster.node_name("device") == "device (device)"
    assert cluster.capacity() == 2


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, 0), (0.5, None)])
def test_a_cluster_of_this_machine_has_its_gpus_if_any_method_needs_one(
    gpus: float, expected: int | None, monkeypatch: pytest.MonkeyPatch, terminated: list[int]
) -> None:
    import ray

    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **how: given.update(how))
    Cluster({"": Needs(), "mul": Needs(gpus=gpus)}).connect()
    assert given["num_gpus"] == expected  # None: all that Ray finds
    assert terminated == []
