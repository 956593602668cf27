"""Branches that only a GPU takes, taken on a processor: they change no result."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gpucases
from modmix.base.messages import Finished, PackStarted, Replicate
from modmix.methods.table import METHODS
from modmix.tasks.data import Data
from modmix.training import graphs
from modmix.training import group as group_module
from modmix.training.batches import Examples
from modmix.training.device import arithmetic, forced, is_out_of_memory, own_generators
from modmix.training.graphs import StepGraph
from modmix.training.optimizers import Optimizer
from modmix.training.stack import Stack
from modmix.training.trainer import train_pack
from plainloop import train_plainly
from tape import Tape, TapedStep
from toypack import finished, make_pack, make_replicates, progress, train

# Streamed by threads, or recorded and replayed: a recorded step needs the data on the device.
WAYS = {"streamed": "never", "recorded": "always"}


@pytest.fixture(autouse=True)
def encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpucases.ENCODERS, "noisy", gpucases.ENTRIES["noisy"])


@pytest.fixture
def gpu_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    monkeypatch.setattr(group_module, "StepGraph", TapedStep)
    monkeypatch.setattr(TapedStep, "recorded", 0)
    monkeypatch.setattr(TapedStep, "replayed", 0)


def plainly(
    monkeypatch: pytest.MonkeyPatch, replicates: tuple[Replicate, ...], data: Data
) -> Mapping[str, Finished]:
    """Trained as on a processor."""
    with monkeypatch.context() as patch:
        patch.delenv("MODMIX_FORCE_GPU_PATHS", raising=False)
        assert not forced()
        return train(replicates, data, keep_weights=True)


def assert_near(found: Mapping[str, Finished], expected: Mapping[str, Finished]) -> None:
    assert gpucases.differences(found, expected) <= 1e-5
    for key, other in expected.items():
        assert found[key].best_epoch == other.best_epoch
        assert found[key].reason == other.reason
        if other.weights is not None:
            assert gpucases.distance(found[key], other) <= 1e-5


def test_what_a_recording_keeps_and_refuses() -> None:
    total, values, rate = torch.zeros(2), torch.ones(2), [0.5]
    tape = Tape()
    with tape:
        total += rate[0] * values.exp().log()
    values.fill_(4.0)
    rate[0] = 100.0  # a Python number: the recording does not see it
    tape.replay()
    assert total.tolist() == pytest.approx([2.5, 2.5])
    for read in (lambda: values.sum().item(), lambda: total.add_(torch.tensor([1.0, 2.0]))):
        with pytest.raises(RuntimeError, match="cannot be part of a recorded step"), Tape():
            read()


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_paths")
def test_the_branches_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    broadcast: list[int] = []
    take, step = Examples.take, Optimizer._step_broadcast

    def note_thread(self: Examples, *arguments: Any) -> Any:
        names.add(threading.current_thread().name.partition("_")[0])
        return take(self, *arguments)

    def note_rows(self: Optimizer, *arguments: Any) -> None:
        broadcast.append(len(arguments[0]))
        step(self, *arguments)

    monkeypatch.setattr(Examples, "take", note_thread)
    monkeypatch.setattr(Optimizer, "_step_broadcast", note_rows)
    train(gpucases.every_setting("add", "sgd", cuda_graphs="never"), gpucases.VECTORS)
    assert names == {"modmix-batches"}
    assert broadcast.count(4) >= 50
    assert TapedStep.recorded == 0
    names.clear()
    broadcast.clear()
    train(gpucases.every_setting("add", "sgd", cuda_graphs="always"), gpucases.VECTORS)
    assert TapedStep.recorded == 2  # to see whether the step can be captured, and for training
    assert TapedStep.replayed == 52
    assert broadcast.count(4) < 10  # while probing and recording alone


# Every method with one of the recipes, and some with all, in turn streamed and recorded.
CASES = [
    (method, recipe, list(WAYS)[(i + k) % 2])
    for i, method in enumerate(METHODS)
    for k, recipe in enumerate(gpucases.RECIPES)
    if i % len(gpucases.RECIPES) == k or method in ("late", "mul", "mulmix")
]


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize(("method", "recipe", "way"), CASES)
def test_methods(method: str, recipe: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = gpucases.every_setting(method, recipe, cuda_graphs=WAYS[way])
    found = train(replicates, gpucases.VECTORS, keep_weights=True)
    assert_near(found, plainly(monkeypatch, replicates, gpucases.VECTORS))


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("way", WAYS)
def test_plain_loop(way: str) -> None:
    replicates = gpucases.every_setting("mul", "adam", cuda_graphs=WAYS[way])
    found = train(replicates, gpucases.VECTORS, keep_weights=True)
    for replicate in replicates:
        plain = train_plainly(replicate, gpucases.VECTORS)
        history = found[replicate.key].history
        assert history["train/loss"] == pytest.approx(plain.history["train/loss"], rel=1e-5)
        assert history["lr"] == plain.history["lr"]


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("encoder", gpucases.TOKEN_ENCODERS)
def test_tokens(encoder: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = gpucases.on_tokens(gpucases.TOKEN_ENCODERS[encoder], cuda_graphs=WAYS[way])
    found = train(replicates, gpucases.texts(), keep_weights=True)
    assert_near(found, plainly(monkeypatch, replicates, gpucases.texts()))


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("way", WAYS)
def test_convolutions(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gpucases.images(rows=(24, 12, 12), side=8)
    replicates = gpucases.on_images(cuda_graphs=WAYS[way])
    found = train(replicates, data)
    # Convolutions round differently by the layout of their batches, and batch norm enlarges that.
    assert gpucases.differences(found, plainly(monkeypatch, replicates, data)) < 1e-4


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("way", WAYS)
def test_augmentation_dropout_halving_and_compaction(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicates = gpucases.many_ends(cuda_graphs=WAYS[way])
    found = train(replicates, gpucases.images(), keep_weights=True)
    assert {end.state for end in found.values()} == {"done", "pruned"}
    assert_near(found, plainly(monkeypatch, replicates, gpucases.images()))
    if way == "recorded":
        assert TapedStep.recorded >= 3  # once more for every smaller group


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize(
    ("way", "stack"),
    [
        ("streamed", "always"),
        ("recorded", "always"),
        ("run again", "always"),
        pytest.param("streamed", "never", marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_undisturbed(
    way: str, stack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    if way == "run again":  # what the switch alone does on a processor
        monkeypatch.setattr(group_module, "StepGraph", StepGraph)
    data = gpucases.images()
    graphs = "never" if way == "streamed" else "always"
    replicates = gpucases.many_ends(cuda_graphs=graphs, stack=stack, epochs=3)
    undisturbed = list(train_pack(make_pack(replicates, keep_weights=True), data))
    expected = gpucases.retimed(finished(undisturbed))
    for evaluations in (1, 2, 4, len(progress(undisturbed)) - 1):
        pack = make_pack(replicates, keep_weights=True, checkpoint=str(tmp_path / str(evaluations)))
        events = train_pack(pack, data)
        left = evaluations
        for event in events:
            left -= len(progress([event]))
            if left == 0:
                break
        events.close()
        assert gpucases.retimed(finished(train_pack(pack, data))) == expected


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("way", WAYS)
def test_too_little_memory_halves_the_group(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gpucases.images()
    replicates = gpucases.many_ends(cuda_graphs=WAYS[way], epochs=2)
    expected = plainly(monkeypatch, replicates, data)
    original, sizes = Stack.loss_and_gradient, []

    def tight(self: Stack, *arguments: Any) -> Any:
        sizes.append(self.models)
        if self.models > 2 and len(sizes) > 4:
            raise torch.OutOfMemoryError("simulated")
        return original(self, *arguments)

    monkeypatch.setattr(Stack, "loss_and_gradient", tight)
    assert_near(train(replicates, data, keep_weights=True), expected)
    assert max(sizes) == 8
    assert sizes[-1] <= 2


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("stack", ["always", "auto", "never"])
def test_steps_that_cannot_be_captured_run_without_graphs(
    stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicates = gpucases.many_ends(stack=stack, cuda_graphs="always", halving=None, epochs=1)
    expected = plainly(monkeypatch, replicates, gpucases.images())

    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing. More advice.")

    monkeypatch.setattr(group_module, "StepGraph", refuse)
    events = list(train_pack(make_pack(replicates, keep_weights=True), gpucases.images()))
    assert_near(finished(events), expected)
    assert isinstance(events[0], PackStarted)
    reason = "operation not permitted when stream is capturing"
    assert events[0].why.endswith(f"; steps cannot be captured as CUDA graphs: {reason}")


@pytest.mark.usefixtures("gpu_paths")
def test_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = gpucases.many_ends(stack="never", halving=None, epochs=2)
    found = train(replicates, gpucases.images(), keep_weights=True)
    assert_near(found, plainly(monkeypatch, replicates, gpucases.images()))


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize("way", WAYS)
def test_bf16(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replicates = gpucases.every_setting("mul", "sgd", precision="bf16", cuda_graphs=WAYS[way])
    found = train(replicates, gpucases.VECTORS, keep_weights=True)
    exact = gpucases.every_setting("mul", "sgd", cuda_graphs=WAYS[way])
    expected = train(exact, gpucases.VECTORS, keep_weights=True)
    assert 1e-6 < gpucases.differences(found, expected) < 0.05


@pytest.mark.usefixtures("gpu_paths")
@pytest.mark.parametrize(("precision", "switch"), [("tf32", "tf32"), ("float32", "ieee")])
def test_switches_of_short_factors(precision: str, switch: str) -> None:
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    with arithmetic(precision, "cpu"):
        assert [place.fp32_precision for place in places] == [switch] * 3
    assert [place.fp32_precision for place in places] == before


class Recorder:
    """In the place of `torch.cuda`, as far as a recording uses it; notes what happens."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened
        self.mode = 0

    def __getattr__(self, name: str) -> Any:
        @contextmanager
        def noted(*_: Any, **__: Any) -> Iterator[None]:
            self.happened.append(f"into {name}")
            yield
            self.happened.append(f"out of {name}")

        if name in ("device", "stream", "graph"):
            return noted
        stream = SimpleNamespace(wait_stream=lambda _: self.happened.append("wait"))
        graph = SimpleNamespace(replay=lambda: self.happened.append("replay"))
        return {"Stream": lambda _: stream, "CUDAGraph": lambda: graph}.get(name, lambda _: stream)

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.happened.append(f"waiting: {mode}")


def test_order_of_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(torch, "cuda", Recorder(happened))
    device = torch.device("cuda:0")

    def note(what: str) -> Any:
        return lambda: happened.append(what)

    recording = graphs._Recording(note("step"), device, note("restore"))
    recording.graph.replay()
    graphs._side_stream.cache_clear()
    assert happened == [
        *("wait", "into device", "into stream", "step", "step", "step"),
        *("waiting: error", "step", "waiting: 0", "restore"),
        *("into graph", "step", "out of graph", "out of stream", "out of device", "wait"),
        "replay",
    ]


def test_streams_meet_again_after_a_failed_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is restored on the present stream, which must wait for the steps on the other."""
    happened: list[str] = []
    monkeypatch.setattr(torch, "cuda", Recorder(happened))

    def step() -> None:
        happened.append("step")
        if happened.count("step") == 4:
            raise RuntimeError("called a synchronizing operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        graphs._Recording(step, torch.device("cuda:0"), lambda: None)
    graphs._side_stream.cache_clear()
    assert happened[-3:] == ["step", "waiting: 0", "wait"]


def test_memory_errors_while_recording() -> None:
    def end_of_recording() -> None:
        try:
            raise torch.OutOfMemoryError("simulated")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError, match="previous error") as caught:
        end_of_recording()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("operation not permitted"))


def test_global_generators_are_left_as_they_were() -> None:
    before = torch.get_rng_state()
    with own_generators(torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_compiled_packs_of_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps eight programs of a function at most; a process may see more sizes of packs."""
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    data = gpucases.VECTORS
    settings = {"epochs": 1, "halving": None, "batch_size": 400}
    for models in range(2, 12):
        seeds = tuple(range(models))
        replicates = make_replicates("base", seeds=seeds, data=data, compile=True, **settings)
        ends = train(replicates, data)
        assert {end.state for end in ends.values()} == {"done"}


@pytest.mark.slow
def test_compiled_packs_that_become_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    replicates = gpucases.many_ends(compile=True, epochs=4)
    found = train(replicates, gpucases.images(), keep_weights=True)
    expected = train(
        gpucases.many_ends(compile=False, epochs=4), gpucases.images(), keep_weights=True
    )
    assert_near(found, expected)
