"""A trial: what it reports of a pack's training, and when. Without Ray's processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fakework import pack as make_pack

from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress
from modmix.execution import tune_trial
from modmix.execution.local import Reply, Verdict
from modmix.execution.tune_cluster import Needs
from modmix.execution.tune_store import TrialStore
from modmix.execution.tune_trial import PackTrial, trial_class


class Store:
    """What the driver has put."""

    def __init__(self, *packs: Pack) -> None:
        self.packs = {pack.id: pack for pack in packs}
        self.entered: list[str] = []
        self.told = Reply()

    def enter(self, pack: str) -> None:
        self.entered.append(pack)

    def fetch(self, pack: str) -> Pack:
        return self.packs[pack]

    def reply(self, pack: str) -> Reply:
        return self.told


class Training:
    """Stands for `local.train`: five evaluations, a rung at the second; then one result."""

    def __init__(self) -> None:
        self.at: Callable[[int], None] = lambda epoch: None
        self.how: dict[str, Any] = {}
        self.heard: list[Verdict] = []
        self.closed = False

    def __call__(
        self, pack: Pack, *, dropped: Callable[[], Verdict], **how: Any
    ) -> Generator[Event, None, None]:
        self.how = how
        self.at(0)
        return self._events(pack, dropped)

    def _events(self, pack: Pack, dropped: Callable[[], Verdict]) -> Generator[Event, None, None]:
        key = pack.replicates[0].key
        try:
            yield PackStarted(pack=pack.id, models=1, device="cpu", stacked=False, why="")
            for epoch in range(1, 6):
                self.at(epoch)
                self.heard.append(dropped())
                yield Progress(
                    pack=pack.id,
                    epoch=epoch,
                    epochs=5,
                    active=int(epoch < 5),
                    metrics={key: {"val/error": 10.0 - epoch}},
                    rung=2 if epoch == 2 else 0,
                    at_rung={"c": 1.0} if epoch == 2 else {},
                )
            yield Finished(pack=pack.id, replicate=key, state="done")
        except GeneratorExit:
            self.closed = True
            raise


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    made = Training()
    monkeypatch.setattr(tune_trial, "train", made)
    return made


def trial(store: Store, pack: Pack) -> PackTrial:
    needs = {"": Needs(), "mul": Needs(cpus=2.5, gpus=0.5)}
    of_study = trial_class("study", cast(TrialStore, store), needs)
    made = of_study.__new__(of_study)  # its constructor is Tune's
    made.setup({"pack": pack.id, "method": pack.method})
    return made


def epochs(result: dict[str, Any]) -> list[Any]:
    return [getattr(e, "epoch", type(e).__name__) for e in result.get("events", ())]


def test_it_reports_at_rungs_and_ends_and_its_end_apart(training: Training) -> None:
    pack = make_pack(0)
    store = Store(pack)
    one = trial(store, pack)
    assert store.entered == [pack.id]
    first = one.step()
    assert epochs(first) == ["PackStarted", 1, 2]
    assert (first["epoch"], first["epochs"], first["val/error"], first["done"]) == (
        2,
        5,
        8.0,
        False,
    )
    store.told = Reply(drop={"k": "worse"})
    second = one.step()
    assert epochs(second) == [3, 4, 5, "Finished"]
    assert (second["finished"], second["done"]) == (1, False)
    last = one.step()
    assert epochs(last) == []
    assert last["done"]
    assert training.heard == [{}, {}, *[{"k": "worse"}] * 3]  # from the rung on
    assert training.how == {"gpus": 0.5, "threads": 2}


def test_it_reports_now_and_then(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_trial, "REPORT_SECONDS", -1.0)
    pack = make_pack(0)
    one = trial(Store(pack), pack)
    assert [epochs(one.step()) for _ in range(6)] == [
        ["PackStarted"], [1], [2], [3], [4], [5, "Finished"]
    ]  # fmt: skip


def test_it_is_reused(training: Training) -> None:
    packs = make_pack(0), make_pack(1)
    one = trial(Store(*packs), packs[0])
    for _ in range(3):
        last = one.step()
    assert last["done"]
    assert one.reset_config({"pack": packs[1].id, "method": "other"})
    assert epochs(one.step()) == ["PackStarted", 1, 2]
    assert training.how == {"gpus": 0, "threads": 1}


@pytest.mark.parametrize("begun", [False, True])
def test_told_to_stop_it_closes_its_training(training: Training, begun: bool) -> None:
    pack = make_pack(0)
    store = Store(pack)
    one = trial(store, pack)
    if begun:
        one.step()
    store.told = Reply(stop=True)
    last = one.step()
    assert last["done"]
    assert epochs(last) == []
    assert training.closed == begun


def test_stopped_by_tune_it_closes_its_training(training: Training) -> None:
    pack = make_pack(0)
    one = trial(Store(pack), pack)
    one.cleanup()
    one.step()
    one.cleanup()
    assert training.closed


def test_without_its_driver_it_closes_its_training(training: Training) -> None:
    pack = make_pack(0)
    store = Store(pack)
    one = trial(store, pack)
    one.step()

    def gone(_: str) -> Reply:
        raise ConnectionError("the driver's actor is dead")

    store.reply = gone  # type: ignore[method-assign]
    with pytest.raises(ConnectionError, match="dead"):
        one.step()
    assert training.closed


@pytest.mark.parametrize(
    ("epoch", "error", "told"),
    [
        (4, ValueError("no such shape"), (False, False)),
        (4, OSError("input/output error"), (True, False)),
        (0, OSError("no data here"), (True, True)),
    ],
)
def test_a_failure_is_told_and_then_raised(
    training: Training, epoch: int, error: Exception, told: tuple[bool, bool]
) -> None:
    def fail(now: int) -> None:
        if now == epoch:
            raise error

    training.at = fail
    pack = make_pack(0)
    one = trial(Store(pack), pack)
    result = one.step()
    if epoch:
        result = one.step()
        assert epochs(result) == [3]  # what it had trained is not lost
    assert (result["of_machine"], result["unfit"]) == told
    assert str(error) in result["failure"]
    with pytest.raises(type(error), match=str(error)):
        one.step()


@pytest.fixture(autouse=True)
def rays_handler() -> Iterator[list[int]]:
    """Signals that the handler has got which was there before; it ends the process in Ray."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


def test_sigterm_leaves_a_checkpoint(training: Training, rays_handler: list[int]) -> None:
    def terminate(epoch: int) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    training.at = terminate
    pack = make_pack(0)
    with pytest.raises(SystemExit):
        trial(Store(pack), pack).step()
    assert len(training.heard) == 2  # the evaluation was completed
    assert training.closed
    assert rays_handler == []


def test_sigterm_ends_a_worker_without_training_at_once(
    training: Training, rays_handler: list[int]
) -> None:
    pack = make_pack(0)
    trial(Store(pack), pack)
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    assert rays_handler == [signal.SIGTERM]


def test_a_checkpoint_folder_that_cannot_be_written_is_a_preflight_failure(
    training: Training, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    pack = replace(make_pack(0), checkpoint=str(tmp_path / "file" / "checkpoints" / "pack"))
    result = trial(Store(pack), pack).step()
    assert (result["of_machine"], result["unfit"]) == (True, True)
    assert "NotADirectoryError" in result["failure"]


def test_workers_name_themselves_and_their_study() -> None:
    needs = {"": Needs(cpus=2), "late": Needs(cpus=1, gpus=0.5)}
    made = trial_class("alice/digits", TrialStore("name"), needs)
    assert (made.__name__, made.__qualname__) == ("PackTrial", "PackTrial")
    assert repr(made.__new__(made)) == "PackTrial(alice/digits)"
    assert made.default_resource_request({"method": "mul"}).bundles == [{"CPU": 2.0}]
    assert made.default_resource_request({"method": "late"}).bundles == [{"CPU": 1.0, "GPU": 0.5}]


def test_a_worker_logs_what_it_trains(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = make_pack(0)
    trial(Store(pack), pack).step()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"training {pack.method} " in line
    assert line.endswith(f"; 1 models, pack {pack.id[:8]}")
