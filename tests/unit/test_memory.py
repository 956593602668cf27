"""Memory that does not suffice, anywhere: the group is halved and the results stay.

Errors are raised by hand where a device would raise them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modmix.base.messages import Finished, Pack, PackStarted, Progress
from modmix.methods.base import Pass, Stage, State
from modmix.training.builder import Builder
from modmix.training.device import is_out_of_memory
from modmix.training.group import Group
from modmix.training.optimizers import Optimizer
from modmix.training.stack import Stack
from modmix.training.trainer import train_pack
from toypack import (
    Dropping,
    add_method,
    finished,
    is_stacked,
    make_data,
    make_pack,
    make_replicates,
    same,
    train,
)

DATA = make_data(widths=(6, 4), rows=(96, 60, 30))
ERRORS = (
    torch.OutOfMemoryError("simulated"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


class Busy(Dropping):
    """Two stages, dropout, and a pass before every epoch."""

    centre: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("centre", torch.zeros(classes))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return super().forward(features) - self.centre

    def stages(self) -> tuple[Stage, ...]:
        return Stage(name="first", epochs=3), Stage(name="second", begin="best")

    def passes(self, epoch: int) -> Sequence[Pass]:
        def start() -> State:
            return {"sum": torch.zeros_like(self.centre)}

        def step(state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
            return {"sum": state["sum"] + self.forward(features).mean(0)}

        def finish(state: State) -> Mapping[str, Tensor]:
            return {"centre": 0.1 * state["sum"]}

        return (Pass(start=start, step=step, finish=finish),)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "busy", Busy)
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")


def busy(**fields: Any) -> Any:
    """Seven models, of which one diverges and others stop early."""
    rates = (0.02, 0.001, 1e38, 0.01, 0.03, 0.005, 0.015)
    configurations = [{"training": {"learning_rate": rate}} for rate in rates]
    settings: dict[str, Any] = {
        "epochs": 3, "batch_size": 16, "evaluations_per_epoch": 2, "patience": 2,
        "eval_batch_size": 20, "encoder": {"name": "mlp", "hidden": [5], "batch_norm": True},
    }  # fmt: skip
    return make_replicates("busy", configurations, [0], data=DATA, **{**settings, **fields})


def rows(thing: Any) -> int:
    return thing.models if isinstance(thing, Stack) else len(thing.members)


def starve(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    too_large: Callable[..., bool],
    error: Exception = ERRORS[0],
) -> list[int]:
    """Make a method raise while the arguments are too large; returns what raised, to be filled."""
    original = getattr(kind, name)
    raised: list[int] = []

    def tight(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if too_large(self, *arguments):
            raised.append(1)
            raise error
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(kind, name, tight)
    return raised


def over(most: int) -> Callable[..., bool]:
    return lambda thing, *_: rows(thing) > most


def second_stage(most: int) -> Callable[..., bool]:
    return lambda group, entry: len(group.members) > most and entry.stage.name == "second"


def some_rows(most: int) -> Callable[..., bool]:
    return lambda group, *_: len(group.members) > most


PLACES: dict[str, tuple[type, str, Callable[..., bool]]] = {
    "building": (Stack, "__init__", lambda _, models, *__: len(models) > 2),
    "entering": (Group, "enter_stage", over(2)),
    "copying": (Group, "snapshot", over(2)),
    "a pass": (Stack, "step_pass", over(2)),
    "a pass's start": (Stack, "start_pass", over(2)),
    "starting a stage": (Group, "start_stage", over(2)),
    "entering the second stage": (Group, "enter_stage", second_stage(2)),
    "starting an epoch": (Group, "start_epoch", over(2)),
    "training": (Stack, "loss_and_gradient", over(2)),
    "updating": (Optimizer, "step", lambda o, *_: len(o.training) > 2),
    "evaluation": (Stack, "predict", over(2)),
    "metrics": (Group, "evaluate", over(2)),
    "the first best weights": (Group, "prepare_best", over(2)),
    "keeping the best weights": (Group, "keep_best", over(2)),
    "removing rows": (Group, "select", lambda _, rows: not isinstance(rows, range)),
    "removing rows of the optimizer": (
        Optimizer,
        "select",
        lambda _, rows: not isinstance(rows, range),
    ),
    "weights of stopped models": (Group, "keep_stopped", over(2)),
    "the test split": (Group, "evaluate_chosen", over(2)),
}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Finished]:
    with pytest.MonkeyPatch.context() as patch:
        add_method(patch, "busy", Busy)
        assert is_stacked(busy(), DATA)
        ends = train(busy(), DATA)
    assert {end.state for end in ends.values()} == {"done", "failed"}
    assert len({end.epochs for end in ends.values()}) > 2
    return ends


@pytest.mark.parametrize("place", PLACES)
def test_groups_are_halved_and_results_stay(
    place: str, undisturbed: dict[str, Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, name, too_large = PLACES[place]
    raised = starve(monkeypatch, kind, name, too_large, ERRORS[len(place) % 4])
    same(train(busy(), DATA), undisturbed, rel=1e-3)
    assert raised


def test_rows_of_pruned_models_stay_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ends() -> dict[str, Finished]:
        pruned = {"busy-1-0": "worse than others", "busy-4-0": "worse than others"}
        return finished(train_pack(make_pack(busy()), DATA, dropped=lambda: pruned))

    expected = ends()
    assert expected["busy-4-0"].state == "pruned"
    raised = starve(monkeypatch, Group, "select", lambda _, rows: not isinstance(rows, range))
    same(ends(), expected, rel=1e-3)
    assert raised


def test_halves_share_the_memory_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be none left for copies, since the whole is still there."""
    starve(monkeypatch, Group, "train", over(2))
    original, halved = Group.halves, []

    def memory(group: Group) -> set[int]:
        return {value.untyped_storage().data_ptr() for value in group.state().values()}

    def halves(self: Group) -> tuple[Group, Group]:
        parts = original(self)
        halved.append([len(part.members) for part in parts])
        assert memory(parts[0]) == memory(parts[1]) == memory(self)
        return parts

    monkeypatch.setattr(Group, "halves", halves)
    train(busy(epochs=1), DATA)
    assert halved == [[3, 4], [1, 2], [2, 2]]


@pytest.mark.parametrize("place", ["training", "evaluation", "a pass", "the test split"])
def test_memory_that_is_short_once(
    place: str, undisturbed: dict[str, Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of training, by which time several things have happened."""
    kind, name, _ = PLACES[place]
    calls: list[int] = []

    def once(*_: Any) -> bool:
        calls.append(1)
        return len(calls) == (1 if place == "the test split" else 20)

    raised = starve(monkeypatch, kind, name, once)
    same(train(busy(), DATA), undisturbed, rel=1e-3)
    assert len(raised) == 1


@pytest.mark.parametrize("forced", ["0", "1"])
def test_both_halves_count_adams_steps(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bias correction of every model is that of a model that was never halved."""
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", forced)
    made = busy(patience=None)
    expected = train(made, DATA)
    counts: dict[int, list[int]] = {}
    original = Group.evaluate

    def spy(self: Group, *arguments: Any) -> Any:
        counts.setdefault(self.members[0].index, []).append(self.optimizer.steps)
        return original(self, *arguments)

    monkeypatch.setattr(Group, "evaluate", spy)
    calls: list[int] = []

    def short(stack: Stack, *_: Any) -> bool:
        calls.append(1)
        return stack.models > 3 and len(calls) > 13  # within the third part of the first stage

    raised = starve(monkeypatch, Stack, "loss_and_gradient", short)
    same(train(made, DATA), expected, rel=1e-3)
    assert raised
    # 3 steps to an evaluation, 6 evaluations a stage: every half was there at each that followed.
    assert len(counts) > 2
    stage = [3, 6, 9, 12, 15, 18]
    for steps in counts.values():
        assert steps == (stage + stage)[-len(steps) :]
        assert len(steps) > 8


# ---------------------------------------------------------------- resuming


def interrupt(pack: Pack, evaluations: int) -> None:
    events = train_pack(pack, DATA)
    while evaluations:
        evaluations -= isinstance(next(events), Progress)
    events.close()


@pytest.mark.slow
@pytest.mark.parametrize("evaluations", [1, 2, 7])
@pytest.mark.parametrize("place", ["building", "entering", "load", "starting an epoch"])
def test_a_checkpoint_is_used_where_memory_is_short(
    place: str, evaluations: int, undisturbed: dict[str, Finished], tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Warnings are errors here: the checkpoint must not be given up."""
    pack = make_pack(busy(), checkpoint=f"{tmp_path}/c")
    interrupt(pack, evaluations)
    kind, name, too_large = PLACES.get(place, (Group, "load", over(2)))
    raised = starve(monkeypatch, kind, name, too_large, ERRORS[evaluations % 4])
    events = list(train_pack(pack, DATA))
    assert raised
    assert isinstance(events[0], PackStarted)
    assert events[0].resumed_epoch == evaluations // 2
    again = finished(events)
    assert len(again) >= 6
    same(again, {key: undisturbed[key] for key in again}, rel=1e-3)
    assert again.keys() == undisturbed.keys()


# ---------------------------------------------------------------- one that never fits


def has(index: int) -> Callable[..., bool]:
    return lambda group, *_: any(member.index == index for member in group.members)


NEVER: dict[str, tuple[type, str, Callable[[int], Callable[..., bool]]]] = {
    "building": (Builder, "group", lambda index: lambda _, indices, *__: index in indices),
    "training": (Group, "train", has),
    "evaluation": (Group, "evaluate", has),
    "a pass": (Group, "run_pass", has),
    "starting a stage": (Group, "start_stage", has),
    "the test split": (Group, "evaluate_chosen", has),
}


@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("index", [0, 5])
@pytest.mark.parametrize("place", NEVER)
def test_a_model_that_never_fits_fails_alone(
    place: str, index: int, stack: str, undisturbed: dict[str, Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kind, name, too_large = NEVER[place]
    starve(monkeypatch, kind, name, too_large(index))
    events = list(train_pack(make_pack(busy(stack=stack)), DATA))
    ends = finished(events)
    end = ends.pop(f"busy-{index}-0")
    assert end.state == "failed"
    assert end.reason.startswith("out of memory on cpu: this model does not fit ")
    assert end.metrics == {}
    others = {key: other for key, other in undisturbed.items() if key != end.replicate}
    same(ends, others, rel=1e-3)


@pytest.mark.parametrize("name", ["enter_stage", "train"])
def test_the_second_stage_does_not_fit_while_it_is_tried(
    name: str, undisturbed: dict[str, Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before training: the group is in its first stage again, as it was."""
    second = [False]
    enter = Busy.enter

    def entering(self: Busy, stage: Stage) -> None:
        second[0] = stage.name == "second"
        enter(self, stage)

    monkeypatch.setattr(Busy, "enter", entering)
    if name == "train":
        raised = starve(monkeypatch, Group, name, lambda group, *_: rows(group) > 2 and second[0])
    else:
        raised = starve(monkeypatch, Group, name, second_stage(2))
    same(train(busy(), DATA), undisturbed, rel=1e-3)
    assert len(raised) > 1


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    starve(monkeypatch, Stack, "loss_and_gradient", lambda *_: True)
    events = list(train_pack(make_pack(busy()), DATA))
    assert isinstance(events[0], PackStarted)
    assert {end.state for end in finished(events).values()} == {"failed"}
    assert len(finished(events)) == 7


def test_one_that_did_not_fit_is_reported_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails where the second stage begins; the process is killed before anyone hears of it."""
    made = busy(patience=None)
    with monkeypatch.context() as patch:
        starve(patch, Group, "start_stage", has(5))
        events = train_pack(make_pack(made, checkpoint=str(tmp_path / "c")), DATA)
        evaluations = 6
        while evaluations:
            evaluations -= isinstance(next(events), Progress)
        shutil.copytree(tmp_path / "c", tmp_path / "killed")
        events.close()
    ends = finished(train_pack(make_pack(made, checkpoint=str(tmp_path / "killed")), DATA))
    assert len(ends) == 7
    assert ends["busy-5-0"].state == "failed"
    assert "does not fit" in ends["busy-5-0"].reason


def test_rows_that_ended_are_not_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The diverged model stays in its group for a while; that it would not fit is no news."""
    starve(monkeypatch, Group, "train", lambda group, *_: has(2)(group) and group.best is not None)
    ends = train(busy(), DATA)
    assert ends["busy-2-0"].reason.startswith("diverged")


def test_long_evaluations_are_cut(
    undisturbed: dict[str, Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Stack.predict

    def tight(self: Stack, inputs: Any, **keywords: Any) -> Any:
        if len(inputs["m0"]) > 7:
            raise ERRORS[2]
        sizes.append(len(inputs["m0"]))
        return original(self, inputs, **keywords)

    monkeypatch.setattr(Stack, "predict", tight)
    same(train(busy(), DATA), undisturbed, rel=1e-3)
    assert max(sizes) == 5  # 20, 10, 5


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(is_out_of_memory(error) for error in ERRORS)
    error = RuntimeError("shapes cannot be multiplied")
    assert not is_out_of_memory(error)
    for name in ("loss_and_gradient", "predict"):
        with monkeypatch.context() as patch:
            starve(patch, Stack, name, lambda *_: True, error)
            with pytest.raises(RuntimeError, match="shapes"):
                train(busy(epochs=1), DATA)
