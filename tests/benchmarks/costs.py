"""The estimated cost of a training step against the measured one, on a core of this processor.

    python tests/benchmarks/costs.py

Needs torch and numpy, nothing else, and this checkout. Inputs are random and in memory; what counts
is the fastest step within some seconds, in CPU time, of one model and of eight stacked.
The constants of `modmix.execution.costs` were fitted to such a table.
"""

# ruff: noqa: E402 - the path comes before anything of modmix is imported

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT / "platform")

import torch
from torch import Tensor, nn

from modmix.base.settings import training_defaults
from modmix.encoders.char_lstm import CharLSTM
from modmix.encoders.mlp import MLP
from modmix.encoders.resnet import ResNet
from modmix.encoders.resnet18 import ResNet18
from modmix.execution.costs import step_cost
from modmix.methods.base import Stage
from modmix.methods.model import Model
from modmix.methods.table import METHODS
from modmix.tasks.data import Input
from modmix.training.counting import count_stages
from modmix.training.group import Group, Member
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry

STACKED = 8
SECONDS = 3.0  # of measuring each
LARGE = 3e9  # operations of a step that is not tried stacked

STAGE = Stage(name="train")


class Network(Model):
    """Encoders by input with a method on top; an encoder may give several modalities."""

    def __init__(self, encoders: Mapping[str, Any], method: str, classes: int, **values: Any):
        nn.Module.__init__(self)
        self.names = tuple(encoders)
        self.networks = nn.ModuleList(encoders.values())
        widths: dict[str, int] = {}
        for name, one in encoders.items():
            widths |= one.features if isinstance(one.features, dict) else {name: one.features}
        module, _, kind = METHODS[method].path.partition(":")
        given = {h.name: h.default for h in METHODS[method].hyperparameters} | values
        self.method = getattr(importlib.import_module(module), kind)(widths, classes, **given)

    def forward(self, inputs: Mapping[str, Tensor]) -> Any:
        features: dict[str, Tensor] = {}
        for name, network in zip(self.names, self.networks, strict=True):
            made = network(inputs[name])
            features |= made if isinstance(made, dict) else {name: made}
        return self.method(features)

    def parts(self) -> Mapping[str, tuple[str, ...]]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload: its inputs and batch size, and how one of its models is made."""

    name: str
    inputs: Mapping[str, Input]
    batch: int
    build: Callable[[], Model]


def mlps(
    name: str, method: str, batch: int, widths: Mapping[str, int], units: list[int], **values: Any
) -> Case:
    inputs = {key: Input(name=key, shape=(width,)) for key, width in widths.items()}

    def build() -> Model:
        encoders = {key: MLP(one.shape, hidden=units) for key, one in inputs.items()}
        return Network(encoders, method, 10, **values)

    return Case(name=name, inputs=inputs, batch=batch, build=build)


def single(name: str, method: str, batch: int, x: Input, encoder: Callable[[], Any]) -> Case:
    def build() -> Model:
        values = {"modality": "x"} if method == "base" else {}
        return Network({"x": encoder()}, method, 10, **values)

    return Case(name=name, inputs={"x": x}, batch=batch, build=build)


DIGITS = {"a": 76, "b": 64, "c": 47, "d": 6}
HIGGS = {"low": 21, "high": 7}
PAPER: dict[str, Any] = {"merge": "mean", "project": 256, "hidden": [500, 200]}
IMAGES = {size: Input(name="x", shape=(size, size, 3), kind="image") for size in (32, 64)}
TEXT = Input(name="x", shape=(40,), kind="tokens", vocabulary=100)

CASES = (
    mlps("digits, mul", "mul", 32, DIGITS, [64]),
    mlps("digits, mul, batch 256", "mul", 256, DIGITS, [64]),
    mlps("digits, mulmix", "mulmix", 32, DIGITS, [64]),
    mlps("higgs, mul", "mul", 128, HIGGS, [300] * 3),
    mlps("higgs, mulmix", "mulmix", 128, HIGGS, [300] * 3, **PAPER),
    single("resnet depth 8, taps", "mul", 64, IMAGES[32], lambda: ResNet((32, 32, 3), depth=8)),
    single("resnet18 width 16", "base", 32, IMAGES[64], lambda: ResNet18((64, 64, 3), width=16)),
    single("char_lstm 128", "base", 64, TEXT, lambda: CharLSTM((40,), vocabulary=100, units=128)),
)


def measured(case: Case, models: int) -> float:
    """Seconds of the fastest step of so many models, from inputs to updated parameters."""
    settings = training_defaults()
    stack = Stack([case.build() for _ in range(models)], torch.device("cpu"), stacked=models > 1)
    members = [Member(index=i, seed=i, training=settings) for i in range(models)]
    group = Group(members, stack)
    group.enter_stage(StageEntry(stage=STAGE, epochs=1, from_best=False, keeps_best=False))
    group.optimizer.start_epoch(0)
    inputs = {name: _random(one, models, case.batch) for name, one in case.inputs.items()}
    target_KB = torch.randint(0, 2, (models, case.batch))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.process_time()
        step = stack.loss_and_gradient(inputs, target_KB)
        group.optimizer.step(stack.parameters_KP, step.gradient_KP)
        best = min(best, time.process_time() - started)
    return best


def _random(one: Input, models: int, batch: int) -> Tensor:
    shape = (models, batch, *one.shape)
    if one.vocabulary is not None:
        return torch.randint(1, one.vocabulary, shape)
    return torch.randn(shape)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| workload | GFLOP | MB | operations | one model, ms | ratio | 8 stacked, ms | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        ((_, step),) = count_stages(case.build, case.inputs, case.batch)
        cells = [case.name, f"{step.flops / 1e9:.3f}", f"{step.bytes / 1e6:.1f}"]
        cells.append(str(step.operations))
        for models in (1, STACKED):
            if models > 1 and step.flops > LARGE:
                cells += ["", ""]
                continue
            seconds = measured(case, models)
            ratio = step_cost(step).of(models) / seconds
            cells += [f"{1000 * seconds:.2f}", f"{ratio:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
