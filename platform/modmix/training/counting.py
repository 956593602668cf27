"""Count the FLOPs and bytes of one model's training step.

A step of a small model is simply run, on zeros; others are counted on torch's "meta" device, whose
tensors have shapes but no storage, so that nothing is computed. Fused operations without a FLOP
formula, which would count as 0 (torch's LSTM kernel, for example), are decomposed there into
operations that have one.

Counting a step takes 10 to 50 ms, 200 ms with hundreds of operations; the first on "meta" takes a
second and a half more, because torch then loads its compiler.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from modmix.methods.base import Stage
from modmix.methods.model import Model
from modmix.tasks.data import Input
from modmix.training.stack import Stack

# Parameter-sized reads and writes per step: gradient copy, clipping, an optimizer with two moments.
_OPTIMIZER_PASSES = 10
# A small model, whose step is run to count it: at most so many elements of an example, and FLOPs.
_SMALL_EXAMPLE, _SMALL_STEP = 10_000, 1e9
# Assumed tensors saved for backward per parameter tensor, for models that cannot be counted.
_SAVED_PER_PARAMETER = 2


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """Cost of a training step of one model: forward pass, backward pass and update.

    Attributes:
        flops: of matrix products and convolutions; a multiply-add is two.
        bytes: estimated memory traffic, as one write and one read of every tensor saved for the
            backward pass plus the optimizer's passes over the trained parameters.
        operations: number of tensors saved for the backward pass, a proxy for the number of
            operations a step launches (lower than it; a fused LSTM counts as its parts).
    """

    flops: int
    bytes: int
    operations: int


def count_stages(
    build: Callable[[], Model], inputs: Mapping[str, Input], batch: int
) -> list[tuple[Stage, StepCount]]:
    """Every stage of a method, with the cost of one of its training steps.

    A model that is not small and cannot run on "meta", because it reads tensor values or mixes
    devices, is estimated from its number of parameters, as if it were an MLP.

    Args:
        build: makes the model; called with the device as torch's default one.
        inputs: the task's inputs by name.
        batch: batch size.

    Raises:
        InputError: if ``build`` raises it.
    """
    with torch.random.fork_rng(devices=[]):  # a user's own code may draw
        device = "cpu" if _is_small(build, inputs, batch) else "meta"
        return _stages_on(device, build, inputs, batch)


def _is_small(build: Callable[[], Model], inputs: Mapping[str, Input], batch: int) -> bool:
    """Whether a step is counted by running it."""
    if sum(math.prod(one.shape) for one in inputs.values()) > _SMALL_EXAMPLE:
        return False
    model = build()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if 6 * batch * parameters > _SMALL_STEP:  # the FLOPs of an MLP; others have more
        return False
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return False
    tried = min(2, batch)
    steps = _stages_on("cpu", build, inputs, tried)
    return all(step.flops * batch <= _SMALL_STEP * tried for _, step in steps)


def _stages_on(
    device: str, build: Callable[[], Model], inputs: Mapping[str, Input], batch: int
) -> list[tuple[Stage, StepCount]]:
    with (
        torch.device(device),
        sdpa_kernel(SDPBackend.MATH),  # the CPU's fused attention has no formula
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # they appear when the model is trained
        model = build()
        with suppress(Exception):  # user code may raise anything; training will report it
            model.method.remember(batch)
        stack = Stack([model], torch.device(device), stacked=False)
        stages = stack.template.method.stages()
        return [(stage, _count(stack, stage, inputs, batch)) for stage in stages]


def count_passes(build: Callable[[], Model], epochs: int) -> dict[str, int]:
    """How often a method's passes read a split, by its name, over all epochs of all stages.

    Args:
        build: as for `count_stages`.
        epochs: of stages that do not say how many they have.
    """
    found: Counter[str] = Counter()
    with torch.device("meta"), suppress(Exception):
        method = build().method
        for stage in method.stages():
            method.enter(stage)
            for epoch in range(epochs if stage.epochs is None else stage.epochs):
                found.update(one.split for one in method.passes(epoch))
    return dict(found)


def _count(stack: Stack, stage: Stage, inputs: Mapping[str, Input], batch: int) -> StepCount:
    """The cost of a batch: of all turns, or the mean over turns if they change with the epoch."""
    with suppress(Exception):
        stack.template.method.enter(stage)
    stack.enter_stage(stage)
    counts = [_count_turn(stack, turn, inputs, batch) for turn in range(len(stack.turns))]
    share = 1 if stage.turn_every == "batch" else len(counts)
    return StepCount(
        flops=sum(count.flops for count in counts) // share,
        bytes=sum(count.bytes for count in counts) // share,
        operations=sum(count.operations for count in counts) // share,
    )


def _count_turn(stack: Stack, turn: int, inputs: Mapping[str, Input], batch: int) -> StepCount:
    parameters = dict(stack.template.named_parameters())
    trained = [parameters[name].numel() for name in stack.turns[turn].trained]
    updated = 4 * _OPTIMIZER_PASSES * sum(trained)
    saved = _Saved()
    counter = _Flops()
    try:
        stack.take_turn(turn)
        examples = {name: _zeros(one, batch) for name, one in inputs.items()}
        target_KB = torch.zeros(1, batch, dtype=torch.int64)
        index_KB = torch.arange(batch).unsqueeze(0)
        with counter, saved_tensors_hooks(saved.note, lambda tensor: tensor):
            stack.loss_and_gradient(examples, target_KB, index_KB)
    except Exception:
        return StepCount(
            flops=6 * batch * sum(trained),
            bytes=updated,
            operations=_SAVED_PER_PARAMETER * len(trained),
        )
    return StepCount(
        flops=counter.flops,
        bytes=2 * saved.bytes + updated,
        operations=saved.tensors,
    )


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the FLOPs of operations, by torch's own formulas.

    As `torch.utils.flop_counter.FlopCounterMode` does, which loads torch's compiler for that.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0


def _dispatched(
    mode: Any, function: Any, _types: Any, arguments: Any = (), options: Any = None
) -> Any:
    options = options or {}
    formula = flop_registry.get(function.overloadpacket)
    if formula is None:
        with mode:
            found = function.decompose(*arguments, **options)
        if found is not NotImplemented:
            return found
    result = function(*arguments, **options)
    if formula is not None:
        mode.flops += int(formula(*arguments, **options, out_val=result))
    return result


# Not in the class body: there, torch wraps it in a function that loads its compiler.
_Flops.__torch_dispatch__ = _dispatched  # type: ignore[method-assign]


class _Saved:
    """Counts tensors saved for the backward pass; one saved by two operations counts twice."""

    def __init__(self) -> None:
        self.tensors = self.bytes = 0

    def note(self, tensor: Tensor) -> Tensor:
        self.tensors += 1
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def _zeros(one: Input, batch: int) -> Tensor:
    """A batch of zeros as the stack of one model takes it, (1, B, *shape)."""
    dtype = torch.int64 if one.kind == "tokens" else torch.float32
    return torch.zeros(1, batch, *one.shape, dtype=dtype)
