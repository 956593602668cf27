"""One pack's training: events, divergence, resuming, halving, memory that does not suffice."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from modmix.base.messages import Ended, Finished, Pack, PackStarted, Progress, Replicate
from modmix.base.metrics import METRICS
from modmix.methods.model import build_model, derive_seed, model_spec, unpack_weights
from modmix.tasks.data import Split
from modmix.training import probe, trainer
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.checkpoint import CheckpointWarning
from modmix.training.group import Group
from modmix.training.record import Record
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry
from modmix.training.trainer import train_pack
from toypack import (
    Dropping,
    add_method,
    finished,
    make_data,
    make_pack,
    make_replicates,
    progress,
    same,
    train,
)

DATA = make_data(rows=(96, 60, 40), noise=2.0)


# ---------------------------------------------------------------- events


def test_what_a_pack_says() -> None:
    replicates = make_replicates("mul", [{}, {"beta": 0.3}], data=DATA, epochs=3, batch_size=16)
    pack = make_pack(replicates)
    events = list(train_pack(pack, DATA, threads=1))
    started = events[0]
    assert isinstance(started, PackStarted)
    assert (started.models, started.stacked, started.resumed_epoch) == (4, True, 0)
    assert started.device == "cpu"
    assert [type(event) for event in events[1:]] == [Progress] * 3 + [Finished] * 4
    for i, event in enumerate(progress(events)):
        assert (event.epoch, event.epochs, event.active) == (i + 1, 3, 0 if i == 2 else 4)
        assert list(event.metrics) == [r.key for r in replicates]
        for line in event.metrics.values():
            columns = {"train/loss", "train/error", *(f"val/{name}" for name in METRICS)}
            assert set(line) == columns
    ends = finished(events)
    for replicate in replicates:
        end = ends[replicate.key]
        assert (end.pack, end.state, end.epochs) == (pack.id, "done", 3)
        assert end.weights is None
        assert end.seconds > 0
        assert end.history["epoch"] == [1, 2, 3]
        assert end.history["lr"] == [1e-3] * 3
        assert {f"{s}/{name}" for s in ("val", "test") for name in METRICS} <= set(end.metrics)
        best = list(end.history["epoch"]).index(end.best_epoch)
        assert end.metrics["val/error"] == min(end.history["val/error"])
        assert end.metrics["val/nll"] == end.history["val/nll"][best]


def test_running_means_of_an_epoch_and_its_evaluations() -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 10}
    replicates = make_replicates("add", seeds=[3], data=DATA, evaluations_per_epoch=3, **settings)
    (end,) = train(replicates, DATA).values()
    assert end.history["epoch"] == pytest.approx([3 / 9, 6 / 9, 1])
    # An evaluation changes nothing: the mean of the whole epoch is that of one evaluation.
    once = make_replicates("add", seeds=[3], data=DATA, **settings)
    (other,) = train(once, DATA).values()
    assert end.history["train/loss"][-1] == pytest.approx(other.history["train/loss"][0])
    assert end.history["val/nll"][-1] == pytest.approx(other.history["val/nll"][0])


def test_more_evaluations_than_steps() -> None:
    replicates = make_replicates(
        "add", seeds=[0], data=DATA, epochs=2, batch_size=48, evaluations_per_epoch=7
    )
    (end,) = train(replicates, DATA).values()
    assert end.history["epoch"] == [0.5, 1, 1.5, 2]


def started(method: str = "add", seeds: tuple[int, ...] = (0, 1), **training: Any) -> PackStarted:
    replicates = make_replicates(method, seeds=seeds, data=DATA, epochs=1, **training)
    event = next(train_pack(make_pack(replicates), DATA, threads=1))
    assert isinstance(event, PackStarted)
    return event


def test_why_models_are_stacked_or_not() -> None:
    def why(**how: Any) -> tuple[bool, str]:
        event = started(**how)
        return event.stacked, event.why

    assert why(seeds=(0,)) == (False, "one model")
    assert why(stack="never") == (False, "stack: never")
    assert why(stack="always") == (True, "stack: always")


@pytest.mark.parametrize(
    ("seconds", "stacked", "why"),
    [
        ((0.6, 1.0), True, "one stacked model"),
        ((0.45, 1.0), True, "one stacked model"),  # 0.9 of it: not clearly faster
        ((0.25, 1.0), False, "2.0 times faster one after another"),
        ((0.25, None), True, "one stacked model"),  # out of memory: halved in training
    ],
)
def test_the_faster_way_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, float | None],  # of a model alone, of the stack
    stacked: bool,
    why: str,
) -> None:
    taken = iter(seconds)
    monkeypatch.setattr(probe.Probe, "_seconds", lambda *_: next(taken, None))
    event = started(stack="auto")
    assert (event.stacked, event.why) == (stacked, why)
    if seconds[1] is not None:
        assert event.measured == {"stacked": seconds[1], "one by one": 2 * seconds[0]}


def test_a_pack_is_cut_to_what_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    configurations = [{"beta": b / 6} for b in range(7)]
    replicates = make_replicates("mul", configurations, data=DATA, epochs=2)
    whole = train(replicates, DATA)
    cpu = torch.device("cpu")
    pack = make_pack(replicates)
    train_split = Examples(DATA, "train", list(DATA.inputs), cpu)
    asked = probe.Probe(
        builder := Builder(pack, DATA, cpu, lambda _: None),
        train_split,
        Order(train_split.rows, 64, cpu),
    )
    stage = builder.model(0).method.stages()[0]
    entry = StageEntry(stage=stage, epochs=2, from_best=False, keeps_best=True)
    (single,) = builder.started([0], entry)
    measured = asked._bytes(single)
    assert measured is not None
    per_model, _ = measured
    # The weights of a model: kept as present, best, gradient, two moments and a copy of four.
    size = single.stack.parameters_KP.numel() * 4
    assert per_model > 9 * size
    monkeypatch.setattr(probe, "available", lambda *_: int(per_model * 4.5 / 0.6))
    events = list(train_pack(make_pack(replicates), DATA))
    assert isinstance(events[0], PackStarted)
    assert "memory for 4 models at a time" in events[0].why
    cut = {e.replicate: e for e in events if isinstance(e, Finished)}
    same(cut, whole, rel=1e-4)
    monkeypatch.setattr(probe, "available", lambda *_: per_model)
    first = next(train_pack(make_pack(replicates), DATA))
    assert isinstance(first, PackStarted)
    assert (first.stacked, first.why) == (False, "memory for one model at a time")


def test_a_stack_is_cut_to_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CLEARLY", 0.0)  # stacked, whatever the clock says
    configurations = [{"beta": b / 6} for b in range(7)]
    replicates = make_replicates("mul", configurations, [0], data=DATA, epochs=2, stack="auto")
    whole = train(replicates, DATA)
    (model, *_) = [build_model(model_spec(r, DATA), 0) for r in replicates]
    size = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(probe, "_CACHED_WEIGHTS", 3 * size + 1)
    assert why(replicates) == "one stacked model"  # at least eight go together
    monkeypatch.setattr(probe, "_FEWEST", 2)
    assert why(replicates) == "3 stacked models, cache for 3 models at a time"
    same(train(replicates, DATA), whole, rel=1e-4)


def why(replicates: Sequence[Replicate]) -> str:
    event = next(train_pack(make_pack(replicates), DATA))
    assert isinstance(event, PackStarted)
    return event.why


def test_a_stack_that_is_clearly_fast_enough_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[float] = []  # of the clock, before and after each timed step

    def clock() -> float:
        readings.append(float(len(readings)))  # every step takes a second
        return readings[-1]

    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=clock))
    configurations = [{"beta": b / 2} for b in range(3)]
    replicates = make_replicates(
        "mul", configurations, [0], data=DATA, batch_size=16, epochs=1, stack="auto"
    )
    assert why(replicates) == "one stacked model"
    assert len(readings) == 2 * (5 + 1)
    readings.clear()
    monkeypatch.setattr(probe, "_CLEARLY", 4.0)  # three models of a second are not enough
    assert why(replicates) == "0.3 times faster one after another"
    assert len(readings) == 2 * (5 + 5)


def test_probing_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CLEARLY", 0.0)  # everything is timed, the plain way is taken

    def ends(stack: str) -> dict[str, Finished]:
        replicates = make_replicates("mulmix", data=DATA, epochs=2, clip_norm=1.0, stack=stack)
        return train(replicates, DATA)

    same(ends("auto"), ends("always"))


@pytest.mark.slow
def test_a_compiled_pack_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after rows have gone, and with random numbers inside the model."""
    add_method(monkeypatch, "dropping", Dropping)
    rates = (0.01, 0.02, 1e38, 1e38, 1e38)

    def events(*, compile: bool) -> list[Any]:
        configurations = [{"training": {"learning_rate": rate}} for rate in rates]
        replicates = make_replicates(
            "dropping", configurations, [0], data=DATA, epochs=3, compile=compile
        )
        return list(train_pack(make_pack(replicates), DATA))

    compiled, plain = events(compile=True), events(compile=False)
    assert {end.state for end in finished(plain).values()} == {"done", "failed"}
    same(finished(compiled), finished(plain), rel=1e-4)


def test_a_compiled_pack_that_becomes_smaller_stays_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the place of the compiler, something that notes the rows of every compiled step."""
    compiled: list[int] = []
    steps: list[int] = []
    original = Stack.loss_and_gradient

    def compiler(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def run(leaves: Any, buffers: Any, inputs: Any, target_KB: Tensor) -> Any:
            compiled.append(len(target_KB))
            return function(leaves, buffers, inputs, target_KB)

        return run

    def noted(self: Stack, inputs: Any, target_KB: Tensor, *index: Any) -> Any:
        steps.append(len(target_KB))
        return original(self, inputs, target_KB, *index)

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(Stack, "loss_and_gradient", noted)
    rates = (0.01, 0.02, 1e38, 1e38, 1e38)  # three diverge in the first epoch
    configurations = [{"training": {"learning_rate": rate}} for rate in rates]
    train(make_replicates("add", configurations, [0], data=DATA, epochs=3, compile=True), DATA)
    assert steps.count(2) > 1
    assert compiled.count(2) == steps.count(2)


def test_kept_weights_are_those_that_were_tested() -> None:
    replicates = make_replicates("mulmix", [{"beta": 0.5}], data=DATA, epochs=4, batch_size=16)
    for end in train(replicates, DATA, keep_weights=True).values():
        assert end.weights is not None
        model, description = unpack_weights(end.weights)
        assert description["class_names"] == list(DATA.class_names)
        inputs = {name: torch.tensor(x) for name, x in DATA.test.inputs.items()}
        wrong = model.scores(model(inputs)).argmax(-1) != torch.tensor(DATA.test.labels)
        assert 100 * wrong.double().mean().item() == pytest.approx(end.metrics["test/error"])


def test_the_monitor_decides_which_weights_are_best() -> None:
    replicates = make_replicates("add", data=DATA, epochs=6, batch_size=8, monitor="val/auc")
    for end in train(replicates, DATA).values():
        assert end.metrics["val/auc"] == max(end.history["val/auc"])


def test_bf16_is_near_float32() -> None:
    whole = train(make_replicates("mul", data=DATA, epochs=3), DATA)
    half = train(make_replicates("mul", data=DATA, epochs=3, precision="bf16"), DATA)
    for key, end in whole.items():
        mine, theirs = half[key].history["train/loss"], end.history["train/loss"]
        assert mine == pytest.approx(theirs, rel=0.02)
        assert list(mine) != list(theirs)


def test_read_only_arrays_are_not_copied_and_do_not_warn() -> None:
    frozen = {name: x.copy() for name, x in DATA.train.inputs.items()}
    for array in frozen.values():
        array.flags.writeable = False
    data = replace(DATA, train=Split(inputs=frozen, labels=DATA.train.labels))
    examples = Examples(data, "train", ["m1"], torch.device("cpu"))
    assert examples.inputs["m1"].data_ptr() == frozen["m1"].ctypes.data
    assert list(examples.inputs) == ["m1"]


# ---------------------------------------------------------------- randomness


def test_batches_depend_on_the_seed_and_the_epoch_alone() -> None:
    order = Order(50, 8, torch.device("cpu"))
    assert (order.steps, order.batch) == (6, 8)
    both = order.epoch([4, 9], 3)
    assert torch.equal(order.epoch([9], 3)[0], both[1])
    assert not torch.equal(order.epoch([9], 4)[0], both[1])
    assert sorted(both[0].tolist()) == list(range(50))
    expected = torch.Generator().manual_seed(derive_seed(9, "batches", 3))
    assert both[1].tolist() == torch.randperm(50, generator=expected).tolist()
    small = Order(5, 8, torch.device("cpu"))
    assert (small.steps, small.batch) == (1, 5)


def test_windows_are_adjacent_rows_from_places_of_the_seed_and_the_epoch() -> None:
    order = Order(50, 8, torch.device("cpu"), "windows")
    both = order.epoch([4, 9], 3)
    assert both.shape == (2, 6 * 8)
    assert torch.equal(order.epoch([9], 3)[0], both[1])
    assert not torch.equal(order.epoch([9], 4)[0], both[1])
    starts = set()
    for epoch in range(60):
        for step in range(order.steps):
            rows = order.step(order.epoch([1], epoch), step)[0].tolist()
            assert rows == list(range(rows[0], rows[0] + 8))
            starts.add(rows[0])
    assert starts == set(range(43))  # 360 draws of 43: one is missed with odds of 1 in 100
    assert Order(5, 8, torch.device("cpu"), "windows").epoch([0], 0).tolist() == [[0, 1, 2, 3, 4]]


def test_windows_train_another_model() -> None:
    shuffled = train(make_replicates("add", data=DATA, epochs=2), DATA)
    windows = train(make_replicates("add", data=DATA, epochs=2, batches="windows"), DATA)
    assert [end.state for end in windows.values()] == ["done"] * len(windows)
    losses = [
        [end.history["train/loss"][-1] for end in ends.values()] for ends in (shuffled, windows)
    ]
    assert losses[0] != losses[1]


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    replicates = make_replicates("mul", data=DATA, epochs=2)
    torch.manual_seed(1)
    first = train(replicates, DATA, keep_weights=True)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = train(replicates, DATA, keep_weights=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    same(first, second)


def test_company_does_not_change_a_model() -> None:
    configurations = [{"beta": 0.2}, {"beta": 0.9}, {"margin": 0.1}]
    replicates = make_replicates("mul", configurations, (0, 1, 2), data=DATA, epochs=3)
    together = train(replicates, DATA)
    for replicate in replicates[::4]:
        same(train([replicate], DATA), {replicate.key: together[replicate.key]}, rel=1e-4)


def test_nothing_is_read_back_inside_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of these waits for the device."""

    def forbid(name: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"Tensor.{name} inside an epoch")

        return refuse

    original = Group.train

    def guarded(self: Group, *arguments: Any) -> None:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
                patch.setattr(torch.Tensor, name, forbid(name))
            original(self, *arguments)

    monkeypatch.setattr(Group, "train", guarded)
    for method in ("late", "mul", "mulmix"):
        train(make_replicates(method, data=DATA, epochs=1, clip_norm=1.0), DATA)


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_diverging_model_spoils_no_other(optimizer: str, stack: str) -> None:
    def configurations(rate: float) -> list[dict[str, Any]]:
        rates = (0.01, rate, 0.03)
        return [{"training": {"learning_rate": r}} for r in rates]

    fields: dict[str, Any] = {
        "seeds": [0],
        "data": DATA,
        "epochs": 4,
        "optimizer": optimizer,
        "stack": stack,
        "encoder": {"name": "mlp", "hidden": [8], "batch_norm": True},
        "clip_norm": 1.0,
    }
    calm = train(make_replicates("mul", configurations(0.02), **fields), DATA, keep_weights=True)
    wild = train(make_replicates("mul", configurations(1e38), **fields), DATA, keep_weights=True)
    end = wild.pop("mul-1-0")
    assert end.state == "failed"
    assert end.reason.startswith("diverged: loss, weights or scores were not finite in epoch 1;")
    assert end.metrics == {}
    assert end.history == {}
    del calm["mul-1-0"]
    # Products of two models may be rounded otherwise than those of three.
    same(wild, calm, rel=1e-6)


def test_all_diverge() -> None:
    replicates = make_replicates("add", data=DATA, epochs=5, learning_rate=1e38)
    events = list(train_pack(make_pack(replicates), DATA))
    assert {end.state for end in finished(events).values()} == {"failed"}
    assert len(progress(events)) == 1


# ---------------------------------------------------------------- resuming


def busy(method: str = "mul", **fields: Any) -> tuple[Replicate, ...]:
    """A pack in which much happens: stops, compaction, a divergence, pruning, two evaluations."""
    rates = (0.1, 0.01, 0.003, 1e38)
    return make_replicates(
        method,
        [{"training": {"learning_rate": r}} for r in rates],
        data=DATA,
        epochs=6,
        batch_size=32,
        evaluations_per_epoch=2,
        patience=4,
        halving={"eta": 2.0, "min_epochs": 2.0},
        encoder={"name": "mlp", "hidden": [8], "batch_norm": True},
        **fields,
    )


def stop_after(pack: Pack, evaluations: int) -> Iterator[Any]:
    """Events up to an evaluation; then the generator is closed, as a killed worker's is."""
    events = train_pack(pack, DATA)
    for event in events:
        yield event
        if isinstance(event, Progress):
            evaluations -= 1
            if evaluations == 0:
                events.close()
                return


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stack"), [("sgd", "always"), ("adam", "never")])
def test_resuming_after_any_evaluation_changes_nothing(
    optimizer: str, stack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    seeds = (0, 1) if stack == "always" else (0,)
    # The learning rate falls at step 1 of the second epoch and at step 5 of the third.
    steps: dict[str, Any] = {"schedule": "step", "decay_rate": 0.5, "milestones": [1.2, 2.8]}
    replicates = busy(optimizer=optimizer, stack=stack, seeds=seeds, **steps)
    undisturbed = list(train_pack(make_pack(replicates, keep_weights=True), DATA))
    expected = finished(undisturbed)
    assert {end.state for end in expected.values()} == {"done", "failed", "pruned"}
    count = len(progress(undisturbed))
    for evaluations in range(1, count):
        folder = tmp_path / str(evaluations)
        pack = make_pack(replicates, keep_weights=True, checkpoint=str(folder))
        list(stop_after(pack, evaluations))
        events = list(train_pack(pack, DATA))
        assert isinstance(events[0], PackStarted)
        assert events[0].resumed_epoch == evaluations // 2
        assert len(progress(events)) == count - evaluations
        same(finished(events), expected)


def test_stopped_after_every_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    replicates = busy()
    expected = train(replicates, DATA, keep_weights=True)
    pack = make_pack(replicates, keep_weights=True, checkpoint=str(tmp_path / "c"))
    starts = 0
    over = False
    while not over:
        starts += 1
        events: list[Any] = []
        running = train_pack(pack, DATA)
        for event in running:
            events.append(event)
            if isinstance(event, Progress):
                over = event.active == 0
                if not over:
                    break
        running.close()
    assert starts > 5
    same(finished(events), expected)


@pytest.mark.parametrize("taken", [1, 3])
def test_stopped_between_the_last_evaluation_and_the_results(taken: int, tmp_path: Path) -> None:
    """Whatever was told before, all results are in the checkpoint, and nothing is trained again."""
    replicates = make_replicates("mul", [{"beta": b} for b in (0, 1)], data=DATA, epochs=2)
    expected = train(replicates, DATA, keep_weights=True)
    pack = make_pack(replicates, keep_weights=True, checkpoint=str(tmp_path / "c"))
    running = train_pack(pack, DATA)
    for event in running:
        if isinstance(event, Progress) and event.active == 0:
            break
    first = [next(running) for _ in range(taken - 1)]
    assert all(isinstance(event, Finished) for event in first)
    running.close()
    events = list(train_pack(pack, DATA))
    assert progress(events) == []
    same(finished(events), expected)


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_members_with_a_result_are_not_trained_again(
    with_checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    replicates = make_replicates(
        "mul", [{"beta": b} for b in (0.0, 0.5, 1.0)], data=DATA, epochs=8, patience=2
    )
    expected = train(replicates, DATA)
    folder = str(tmp_path / "c")
    if with_checkpoint:  # an older one, in which all of them were still in training
        list(stop_after(make_pack(replicates, checkpoint=folder), 2))
    known = {r.key for r in replicates[1:4]}
    ended = {key: Ended(state="done", best=expected[key].metrics["val/error"]) for key in known}
    pack = make_pack(replicates, ended=ended, checkpoint=folder if with_checkpoint else None)
    events = list(train_pack(pack, DATA))
    assert progress(events)[0].metrics.keys() == expected.keys() - known
    again = finished(events)
    assert again.keys() == expected.keys() - known
    for key, end in again.items():
        assert end.metrics == pytest.approx(expected[key].metrics, rel=1e-5)
        assert end.history["val/nll"] == pytest.approx(expected[key].history["val/nll"], rel=1e-5)


def test_a_pack_whose_members_all_have_results_trains_nothing() -> None:
    replicates = busy()
    ended = {r.key: Ended(state="failed", best=None) for r in replicates}
    pack = Pack.from_json(make_pack(replicates, ended=ended).to_json())
    assert [type(event) for event in train_pack(pack, DATA)] == [PackStarted]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """A pack with a checkpoint of three evaluations."""
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    pack = make_pack(busy(), checkpoint=str(tmp_path / "c"))
    list(stop_after(pack, 3))
    return pack


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Finished]:
    """The results of that pack."""
    return train(busy(), DATA)


def checkpoint_file(pack: Pack) -> Path:
    assert pack.checkpoint is not None
    (file,) = Path(pack.checkpoint).iterdir()
    return file


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    match how:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "empty":
            file.write_bytes(b"")
        case "garbage":
            file.write_bytes(b"\xff" * 500)
        case "other numerics":
            assert content.count(b'\\"numerics\\": 2') == 1
            file.write_bytes(content.replace(b'\\"numerics\\": 2', b'\\"numerics\\": 0'))
        case "other shapes":
            assert content.count(b'"0/loss"') == 1
            file.write_bytes(content.replace(b'"0/loss"', b'"0/lost"'))


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "other numerics", "other shapes"])
def test_a_damaged_checkpoint_is_not_used(
    interrupted: Pack, how: str, undisturbed: dict[str, Finished]
) -> None:
    damage(checkpoint_file(interrupted), how)
    with pytest.warns(CheckpointWarning, match="the checkpoint cannot be used .*starts over"):
        events = list(train_pack(interrupted, DATA))
    assert isinstance(events[0], PackStarted)
    assert events[0].resumed_epoch == 0
    same(finished(events), undisturbed)


def test_another_packs_checkpoint_is_not_used(interrupted: Pack) -> None:
    other = replace(interrupted, id="another")
    with pytest.warns(CheckpointWarning, match="belongs to another pack"):
        assert finished(train_pack(other, DATA)).keys() == {r.key for r in other.replicates}


def test_a_checkpoint_is_replaced_whole(interrupted: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing that fails half way leaves the one before, and no litter."""
    file = checkpoint_file(interrupted)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        list(train_pack(interrupted, DATA))
    assert checkpoint_file(interrupted).read_bytes() == before


def test_a_worker_that_was_overtaken_keeps_the_checkpoint_that_is_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Finished]
) -> None:
    """Of two workers with the same pack, the first one stops last."""
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    pack = make_pack(busy(), checkpoint=str(tmp_path / "c"))
    overtaken = train_pack(pack, DATA)
    seen = 0
    while seen < 3:
        seen += isinstance(next(overtaken), Progress)
    list(stop_after(pack, 2))  # resumes where the first one is
    further = checkpoint_file(pack).read_bytes()
    overtaken.close()
    assert checkpoint_file(pack).read_bytes() == further
    events = list(train_pack(pack, DATA))
    assert isinstance(events[0], PackStarted)
    assert events[0].resumed_epoch == 2
    same(finished(events), undisturbed)


def test_a_checkpoint_that_cannot_be_restored_is_replaced(interrupted: Pack) -> None:
    """Even by one that is less far."""
    damage(checkpoint_file(interrupted), "other shapes")
    with pytest.warns(CheckpointWarning, match="the checkpoint cannot be used"):
        list(stop_after(interrupted, 1))
    events = list(train_pack(interrupted, DATA))
    assert isinstance(events[0], PackStarted)
    assert events[0].resumed_epoch == 0
    assert (
        len(progress(events))
        == len(progress(train_pack(replace(interrupted, checkpoint=None), DATA))) - 1
    )


def test_checkpoints_are_as_rare_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODMIX_CHECKPOINT_SECONDS", raising=False)
    pack = make_pack(busy(), checkpoint=str(tmp_path / "c"))
    events = train_pack(pack, DATA)
    seen = 0
    while seen < 3:
        seen += isinstance(next(events), Progress)
    assert not (tmp_path / "c").exists()
    events.close()  # whoever is asked to stop leaves one behind
    assert (tmp_path / "c").exists()


def test_a_checkpoint_holds_no_pickle(interrupted: Pack) -> None:
    content = checkpoint_file(interrupted).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    state = json.loads(header["__metadata__"]["state"])
    assert state["position"] == {"stage": 0, "epoch": 1, "part": 1}


# ---------------------------------------------------------------- groups


def test_groups_become_smaller_and_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = Stack.loss_and_gradient

    def spy(self: Stack, *arguments: Any) -> Any:
        sizes.append(self.models)
        return original(self, *arguments)

    rates = (0.3, 0.2, 0.1, 0.03, 0.001)
    configurations = [{"training": {"learning_rate": r}} for r in rates]
    replicates = make_replicates(
        "mul", configurations, data=DATA, epochs=12, batch_size=16, patience=2
    )
    monkeypatch.setattr(Stack, "loss_and_gradient", spy)
    smaller = train(replicates, DATA)
    assert max(sizes) == 10
    assert min(sizes) < 5
    monkeypatch.setattr(trainer, "_COMPACT_BELOW", 0.0)
    same(smaller, train(replicates, DATA), rel=1e-5)


def test_losers_of_a_rung_are_pruned() -> None:
    rates = (1e-5, 0.01, 1e-6, 0.02)
    configurations = [{"training": {"learning_rate": r}} for r in rates]
    fields: dict[str, Any] = {"data": DATA, "epochs": 8, "batch_size": 16}
    halving = {"eta": 2.0, "min_epochs": 2.0}
    ends = train(make_replicates("add", configurations, halving=halving, **fields), DATA)
    whole = train(make_replicates("add", configurations, **fields), DATA)
    assert [ends[f"add-{i}-0"].state for i in (0, 2)] == ["pruned"] * 2
    by_epochs = sorted((ends[f"add-{i}-0"].epochs, ends[f"add-{i}-0"].state) for i in range(4))
    assert by_epochs == [(2, "pruned"), (2, "pruned"), (4, "pruned"), (8, "done")]
    assert ends["add-0-1"].reason == "not among the best 2 of 4 configurations after epoch 2"
    for key, end in ends.items():
        for name, column in end.history.items():
            assert list(column) == pytest.approx(whole[key].history[name][: end.epochs], rel=1e-4)
        if end.state == "pruned":
            assert end.metrics["val/error"] == end.history["val/error"][-1]
            assert not any(name.startswith("test/") for name in end.metrics)


@pytest.mark.parametrize("stack", ["always", "never"])
def test_a_model_that_diverges_before_the_first_rung(stack: str) -> None:
    """Its configuration is the last one there, and its other seed's as well."""
    rates = (0.01, 1e38, 0.02, 0.005)
    configurations = [{"training": {"learning_rate": r}} for r in rates]
    halving = {"eta": 2.0, "min_epochs": 1.0}
    made = make_replicates(
        "add", configurations, data=DATA, epochs=5, batch_size=16, halving=halving, stack=stack
    )
    events = list(train_pack(make_pack(made), DATA))
    ends = finished(events)
    assert {ends[f"add-1-{seed}"].state for seed in (0, 1)} == {"failed"}
    assert ends["add-1-0"].history == {}
    first = progress(events)[0]
    assert first.rung == 1
    assert math.isnan(first.at_rung["add-1"])
    # ⌈4/2⌉ go on after the first epoch, so that one of the three others is dropped there; the one
    # that failed is not counted again.
    assert [sorted(event.at_rung) for event in progress(events)[1:4:2]] == [
        sorted({k[:5] for k, end in ends.items() if end.epochs >= epoch}) for epoch in (2, 4)
    ]
    by_epochs = sorted((end.epochs, end.state) for end in ends.values())
    assert by_epochs[2:] == [(1, "pruned")] * 2 + [(2, "pruned")] * 2 + [(5, "done")] * 2


def test_losers_of_a_rung_cost_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 configurations of 2 seeds, after each rung: the best 3, 2 and 1 in every step that
    follows.
    """
    sizes: list[int] = []
    original = Stack.loss_and_gradient

    def spy(self: Stack, *arguments: Any) -> Any:
        sizes.append(self.models)
        return original(self, *arguments)

    monkeypatch.setattr(Stack, "loss_and_gradient", spy)
    configurations = [{"training": {"learning_rate": r}} for r in (1e-5, 0.01, 1e-6, 0.02, 0.005)]
    halving = {"eta": 2.0, "min_epochs": 1.0}
    train(
        make_replicates("add", configurations, halving=halving, data=DATA, epochs=5, batch_size=32),
        DATA,
    )
    steps = 96 // 32
    assert sizes.pop(0) == 1  # the probe of memory
    assert sizes[:2] == [10] * 2  # and whether the models can be stacked
    assert sizes[2:] == [10] * steps + [6] * steps + [4] * 2 * steps + [2] * steps


# ---------------------------------------------------------------- where little is installed


@pytest.mark.slow
def test_the_training_core_needs_torch_and_numpy_alone() -> None:
    code = """
import sys
blocked = {"ray", "mlflow", "optuna", "sqlalchemy", "pydantic", "pandas", "sklearn", "pyarrow"}
blocked |= {"scipy", "matplotlib", "filelock", "safetensors", "typer", "rich", "yaml"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import modmix.training.trainer, modmix.tasks.table
from toypack import make_data, make_replicates, train
data = make_data()
ends = train(make_replicates("mulmix", data=data, epochs=1), data)
assert all(end.state == "done" for end in ends.values())
"""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent / "platform")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tables_need_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
import modmix.methods.table, modmix.encoders.table, modmix.base.metrics, modmix.training.halving
modmix.base.metrics.higher_is_better("val/auc")
"""
    path = str(Path(__file__).parents[2] / "platform")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_time_is_charged_to_the_models_that_are_trained() -> None:
    """Those that wait for the next stage cost nothing; the group's time is charged whole."""
    records = [Record(), Record(stopped=True), Record(training=False), Record()]
    run: Any = SimpleNamespace(records=records)
    group: Any = SimpleNamespace(members=[SimpleNamespace(index=i) for i in range(4)])
    trainer._Run._charge(run, group, 6.0)
    assert [record.seconds for record in records] == [3.0, 0.0, 0.0, 3.0]


def test_the_memory_of_a_model_has_its_predictions() -> None:
    """Scores and log-probabilities of a whole split, in chunks and joined, in float32."""
    found = []
    for rows in (40, 1040):
        data = make_data(rows=(64, rows, 30))
        replicates = make_replicates("mul", [{}], data=data, epochs=1)
        cpu = torch.device("cpu")
        examples = Examples(data, "train", list(data.inputs), cpu)
        builder = Builder(make_pack(replicates), data, cpu, lambda _: None)
        stage = builder.model(0).method.stages()[0]
        entry = StageEntry(stage=stage, epochs=1, from_best=False, keeps_best=True)
        (single,) = builder.started([0], entry)
        asked = probe.Probe(builder, examples, Order(64, 32, cpu))
        measured = asked._bytes(single)
        assert measured is not None
        found.append(measured[0])
    classes = len(data.class_names)
    assert found[1] - found[0] == 4 * 1000 * classes * 4
