"""What packs cost: counted by hand, stage by stage, and in proportion between workloads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from modmix.base.messages import Replicate, TaskRef
from modmix.encoders.char_lstm import CharLSTM
from modmix.encoders.mlp import MLP
from modmix.encoders.resnet import ResNet
from modmix.encoders.transformer import Transformer
from modmix.execution.costs import Costs
from modmix.execution.packing import Cost, group
from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.model import Model
from modmix.tasks.data import Data, Input
from modmix.training import counting
from modmix.training.counting import StepCount, count_stages
from toypack import defaults, make_data, make_replicates

CLASSES = 4
IMAGE = Input(name="x", shape=(8, 6, 3), kind="image")
SEQUENCE = Input(name="x", shape=(5, 7), kind="sequence")
TRAIN = Stage(name="train")


class Classifier(Method):
    """A linear classifier of one modality."""

    def __init__(self, width: int, *stages: Stage) -> None:
        super().__init__({"x": width}, CLASSES)
        self.head = nn.Linear(width, CLASSES)
        self._stages = stages or (TRAIN,)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        logits_BC: Tensor = self.head(features["x"])
        return logits_BC

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)

    def stages(self) -> tuple[Stage, ...]:
        return self._stages


class Network(Model):
    """An encoder of the input x with a `Classifier` on top."""

    def __init__(self, encoder: nn.Module, width: int, *stages: Stage) -> None:
        nn.Module.__init__(self)
        self.encoder = encoder
        self.method = Classifier(width, *stages)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        features = self.encoder(inputs["x"])
        if isinstance(features, dict):
            features = torch.cat(list(features.values()), 1)
        logits_BC: Tensor = self.method({"x": features})
        return logits_BC


class Convolution(nn.Module):
    """One convolution of 3×3 to 5 channels, averaged over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, images_BHWC: Tensor) -> Tensor:
        features_BD: Tensor = self.conv(images_BHWC.permute(0, 3, 1, 2)).mean((2, 3))
        return features_BD


class Attention(nn.Module):
    """One fused self-attention of one head, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(7, 3 * 8)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.project(x_BTD).chunk(3, -1)
        return functional.scaled_dot_product_attention(q_BTD, k_BTD, v_BTD).mean(1)


class Noisy(MLP):
    """An MLP that draws from torch's global generator, as one that is not stacked may."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + torch.rand_like(inputs))


class Looks(MLP):
    """An MLP that looks into a tensor, as one that is not stacked may."""

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.sum().item() is not None
        return super().forward(inputs)


def steps(encoder: Any, width: int, x: Input, batch: int, *stages: Stage) -> list[StepCount]:
    found = count_stages(lambda: Network(encoder(), width, *stages), {"x": x}, batch)
    assert [stage for stage, _ in found] == list(stages or (TRAIN,))
    return [step for _, step in found]


# ---------------------------------------------------------------- a step


def test_operations_of_an_mlp() -> None:
    x = Input(name="x", shape=(7,))
    (step,) = steps(lambda: MLP((7,), hidden=[5]), 5, x, 6)
    # A product forward and one for the weights' gradient; another for that of what came in, which
    # the first layer does not need.
    assert step.flops == 2 * 6 * (2 * 7 * 5 + 3 * 5 * CLASSES)


def test_bytes_and_operations_of_a_classifier() -> None:
    x = Input(name="x", shape=(7,))
    (step,) = steps(nn.Identity, 7, x, 6)
    # Saved: features, log-probabilities (twice: where computed, where picked), classes (int64).
    saved = 6 * (4 * 7 + 2 * 4 * CLASSES + 8)
    # The optimizer: ten times the parameters.
    assert step.bytes == 2 * saved + 10 * 4 * (7 * CLASSES + CLASSES)
    assert step.operations == 4


def test_operations_of_a_convolution() -> None:
    (step,) = steps(Convolution, 5, IMAGE, 6)
    assert step.flops == 2 * 6 * (2 * (8 * 6) * 5 * (3 * 3 * 3) + 3 * 5 * CLASSES)


def test_operations_of_an_lstm() -> None:
    x = Input(name="x", shape=(9,), kind="tokens", vocabulary=20)

    def encoder() -> CharLSTM:
        return CharLSTM((9,), vocabulary=20, embedding=4, units=5)

    (step,) = steps(encoder, 5, x, 6)
    gates = 9 * (4 * 5) * (4 + 5)  # of all positions, from embedding and state
    # The state before the first position is zero and has no gradient.
    assert step.flops == 2 * 6 * (3 * gates - (4 * 5) * 5 + 3 * 5 * CLASSES)


def test_operations_of_fused_attention() -> None:
    (step,) = steps(Attention, 8, SEQUENCE, 6)
    # Scores and their sums: forward, and a gradient of each of two factors.
    attention = 3 * 2 * 5 * 5 * 8
    assert step.flops == 2 * 6 * (2 * 5 * 7 * 24 + attention + 3 * 8 * CLASSES)


def test_counting_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    steps(lambda: Noisy((7,), hidden=[5]), 5, Input(name="x", shape=(7,)), 6)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_model_is_not_run() -> None:
    x = Input(name="x", shape=(7,))

    def is_small(width: int) -> bool:
        return counting._is_small(lambda: Network(MLP((7,), hidden=[width]), width), {"x": x}, 600)

    assert is_small(5)
    assert not is_small(30_000)  # 6 · 600 · 360,000 operations


class TorchsOwn(FlopCounterMode):
    """Torch's counter, as `counting` uses its own."""

    def __init__(self) -> None:
        super().__init__(display=False)

    @property
    def flops(self) -> int:
        return int(self.get_total_flops())


@pytest.mark.parametrize(
    ("encoder", "width", "x"),
    [
        (lambda: ResNet((8, 6, 3), depth=8), 64, IMAGE),
        (lambda: Transformer((5, 7), width=8, heads=2), 8, SEQUENCE),
        (
            lambda: CharLSTM((9,), vocabulary=20, embedding=4, units=5),
            5,
            Input(name="x", shape=(9,), kind="tokens", vocabulary=20),
        ),
    ],
)
def test_operations_are_those_that_torchs_counter_finds(
    encoder: Any, width: int, x: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = steps(encoder, width, x, 6)
    monkeypatch.setattr(counting, "_Flops", TorchsOwn)
    assert steps(encoder, width, x, 6) == ours
    assert ours[0].flops > 2 * 6 * 1000


@pytest.mark.slow
def test_counting_does_not_load_torchs_compiler() -> None:
    """It takes a second and a half whenever a study starts."""
    code = (
        "import sys; from modmix.encoders.mlp import MLP; from modmix.training.counting import *; "
        "from test_costs import Network; from modmix.tasks.data import Input; "
        "x = Input(name='x', shape=(7,)); "
        "[(_, step)] = count_stages(lambda: Network(MLP((7,), hidden=[5]), 5), {'x': x}, 6); "
        "print(step.flops, 'torch._dynamo' in sys.modules)"
    )
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parent), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(2 * 6 * (2 * 7 * 5 + 3 * 5 * CLASSES)), "False"]


def test_what_is_frozen_is_only_run_forward() -> None:
    x = Input(name="x", shape=(7,))
    both = (TRAIN, Stage(name="top", frozen=("encoder.",)))
    whole, top = steps(lambda: MLP((7,), hidden=[5]), 5, x, 6, *both)
    assert whole.flops == 2 * 6 * (2 * 7 * 5 + 3 * 5 * CLASSES)
    assert top.flops == 2 * 6 * (7 * 5 + 2 * 5 * CLASSES)
    assert top.bytes < whole.bytes
    assert top.operations < whole.operations


def test_a_model_that_looks_into_tensors_is_counted_by_its_parameters() -> None:
    x = Input(name="x", shape=(20_000,))
    parameters = 20_000 * 5 + 5 + 5 * CLASSES + CLASSES
    (step,) = steps(lambda: Looks((20_000,), hidden=[5]), 5, x, 6)
    assert step == StepCount(flops=6 * 6 * parameters, bytes=10 * 4 * parameters, operations=8)


# ---------------------------------------------------------------- packs


def costs(data: Data, gpus: int = 0) -> Costs:
    plan: Any = SimpleNamespace(data_for=lambda task: data, gpus_of=lambda method: gpus)
    return Costs(plan, {"toy": TaskRef(name="toy", options={}, fingerprint="toy")})


def first(data: Data, method: str = "late", **training: Any) -> Replicate:
    params = {k: training.pop(k) for k in defaults(method) if k in training}
    settings = {"stack": "auto", "batch_size": 8, "eval_batch_size": 10, **training}
    return make_replicates(method, [params], seeds=[0], data=data, **settings)[0]


SMALL = make_data(rows=(35, 24, 11))  # 4 steps of 8 an epoch; 3 chunks of 10 in val, 2 in test
COUNTED: Sequence[tuple[Stage, StepCount]] = (
    (Stage(name="a", epochs=3), StepCount(flops=10**9, bytes=10**7, operations=100)),
    (Stage(name="b"), StepCount(flops=10**8, bytes=10**6, operations=50)),
)


def test_all_stages_and_evaluations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "count_stages", lambda *_: list(COUNTED))
    replicate = first(SMALL, epochs=5, evaluations_per_epoch=2)
    cost = costs(SMALL).of(replicate)
    # Seconds for starting a step of each stage, and for doing it.
    start_a, work_a = 0.35e-3 + 100 * 13e-6, 6e-3 + 1e-3
    start_b, work_b = 0.35e-3 + 50 * 13e-6, 0.6e-3 + 0.1e-3
    # 8 epochs of 4 steps; 16 evaluations of 24 examples, and 11 at the end, a third of a step each.
    chunks, batches = 16 * 3 + 2, (16 * 24 + 11) / 8
    assert cost.fixed == pytest.approx(4 * (3 * start_a + 5 * start_b) + chunks * start_a / 3)
    assert cost.each == pytest.approx(4 * (3 * work_a + 5 * work_b) + batches * work_a / 3)

    alone = costs(SMALL).of(first(SMALL, epochs=5, evaluations_per_epoch=2, stack="never"))
    assert (alone.fixed, alone.each) == (0.0, pytest.approx(cost.fixed + cost.each))
    gpu = costs(SMALL, gpus=1).of(replicate)
    assert (gpu.fixed, gpu.each) == (cost.fixed, pytest.approx(cost.each / 100))


def test_passes_cost_as_evaluations_of_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """PMR reads the training split in every epoch; G-Blending that and validation in every other;
    DI-MML the former twice in all, before the epoch of its warm-up.
    """
    monkeypatch.setattr(counting, "count_stages", lambda *_: [COUNTED[1]])
    start, work = 0.35e-3 + 50 * 13e-6, 0.6e-3 + 0.1e-3
    train, val = SMALL.train.rows, SMALL.val.rows
    usual = costs(SMALL).of(first(SMALL, "mul", epochs=5))
    for method, params, reads in (
        ("pmr", {}, {train: 5}),
        ("gblending", {"super_epoch": 2}, {train: 3, val: 3}),
        ("dimml", {"warmup": 3}, {train: 2}),
        ("dimml", {"warmup": 5}, {}),
    ):
        found = costs(SMALL).of(first(SMALL, method, epochs=5, **params))
        chunks = sum(n * -(-rows // 10) for rows, n in reads.items())
        batches = sum(n * rows for rows, n in reads.items()) / 8
        assert found.fixed - usual.fixed == pytest.approx(chunks * start / 3, abs=1e-12)
        assert found.each - usual.each == pytest.approx(batches * work / 3, abs=1e-12)


def test_a_batch_of_more_rows_than_there_are_is_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = []

    def count(build: Any, inputs: Any, batch: int) -> list[tuple[Stage, StepCount]]:
        batches.append(batch)
        return list(COUNTED)

    monkeypatch.setattr(counting, "count_stages", count)
    replicate = first(SMALL, epochs=1, batch_size=100, evaluations_per_epoch=9)
    estimates = costs(SMALL)
    start = 0.35e-3 + 100 * 13e-6
    expected = 3 * start + 1e-3 + (4 * 3 + 2) * start / 3  # one step, one evaluation an epoch
    assert estimates.of(replicate).fixed == pytest.approx(expected)
    assert estimates.of(replace(replicate, seed=5)) is estimates.of(
        replicate
    )  # one count per structure
    assert batches == [35]


def test_a_learned_combination_costs_a_second_cheaper_stage() -> None:
    data = make_data(widths=(300, 300), rows=(512, 16, 16))
    one = costs(data).of(first(data, batch_size=128))
    two = costs(data).of(first(data, batch_size=128, combine="learned"))
    assert 1.05 * one.each < two.each < 1.8 * one.each
    assert two.fixed < 2 * one.fixed


def test_a_model_that_cannot_be_built_costs_next_to_nothing() -> None:
    data = make_data()
    replicate = first(data, "add")
    sizes = {m: {"name": "mlp", "hidden": [i + 1]} for i, m in enumerate(data.inputs)}
    broken = replace(
        replicate, encoders=sizes, params={**replicate.params, "merge": "sum", "project": None}
    )
    cost = costs(data).of(broken)
    assert cost.fixed == 0
    assert 0 < cost.each < 1e-3 * costs(data).of(replicate).each
    packs = group([broken], slots=2, max_models=4, cost=lambda _: cost)
    assert packs == [(broken,)]


def test_a_cost_is_never_nothing() -> None:
    with pytest.raises(AssertionError):
        Cost(fixed=1.0, each=0.0)


# ---------------------------------------------------------------- workloads


def test_orders_of_magnitude() -> None:
    """Of a network of 35 k parameters for images, one of 110 k for numbers, and an LSTM of 130 k.

    Parameters alone would rank them the other way round.
    """
    image = Input(name="x", shape=(32, 32, 3), kind="image")
    text = Input(name="x", shape=(40,), kind="tokens", vocabulary=100)
    row = Input(name="x", shape=(28,))
    (resnet,) = steps(lambda: ResNet((32, 32, 3), depth=8, taps=False), 64, image, 64)
    (lstm,) = steps(lambda: CharLSTM((40,), vocabulary=100, units=128), 128, text, 64)
    (mlp,) = steps(lambda: MLP((28,), hidden=[300, 300]), 300, row, 64)
    assert 20 < resnet.flops / mlp.flops < 200
    assert 10 < lstm.flops / mlp.flops < 100
    assert resnet.bytes > lstm.bytes > 5 * mlp.bytes
