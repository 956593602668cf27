"""What training steps of one model do, counted without doing them: on torch's device "meta".

Tensors there have shapes and no memory, so neither the size of a model nor the speed of the machine
matters. What has no formula there is split into operations that have one, torch's LSTM kernel for
example, which would otherwise count as nothing.

A step takes 10 to 50 ms to count, with hundreds of operations 200 ms, and the first one a second
more, because torch's counter imports its compiler.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from modmix.methods.base import Stage
from modmix.methods.model import Model
from modmix.tasks.data import Input
from modmix.training.stack import Stack

# How often clipping, an optimizer with two moments, and the collecting of gradients read or write
# something of the size of the parameters.
_OPTIMIZER_PASSES = 10
# Tensors saved for the backward pass per parameter tensor, where they cannot be counted.
_SAVED_PER_PARAMETER = 2


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """A training step of one model: forward pass, backward pass and update.

    Attributes:
        flops: floating-point operations of matrix products and convolutions; a multiplication
            with an addition is two.
        bytes: moved, by a rule: a tensor saved for the backward pass is written once and read
            once, and trained parameters go through the optimizer.
        operations: tensors saved for the backward pass, which grow with the operations that a
            step starts. (Fewer than that, and torch's LSTM kernel is counted as its parts.)
    """

    flops: int
    bytes: int
    operations: int


def count_stages(
    build: Callable[[], Model], inputs: Mapping[str, Input], batch: int
) -> list[tuple[Stage, StepCount]]:
    """Every stage of a method with what one of its steps does.

    A model that cannot run on "meta", because it looks into tensors or mixes devices, is counted by
    its parameters, as if it were an MLP.

    Args:
        build: makes the model; called with "meta" as the default device.
        inputs: the task's, by name.
        batch: examples in a batch.

    Raises:
        InputError: what ``build`` raises.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever trains the model sees them
        stack = Stack([build()], torch.device("meta"), stacked=False)
        stages = stack.template.method.stages()
        return [(stage, _count(stack, stage, inputs, batch)) for stage in stages]


def _count(stack: Stack, stage: Stage, inputs: Mapping[str, Input], batch: int) -> StepCount:
    trained = [
        parameter.numel()
        for name, parameter in stack.template.named_parameters()
        if not stage.frozen or not name.startswith(stage.frozen)
    ]
    updated = 4 * _OPTIMIZER_PASSES * sum(trained)
    saved = _Saved()
    counter = FlopCounterMode(display=False)
    try:
        stack.template.method.enter(stage)
        stack.freeze(stage.frozen)
        examples = {name: _zeros(one, batch) for name, one in inputs.items()}
        target_KB = torch.zeros(1, batch, dtype=torch.int64)
        with counter, saved_tensors_hooks(saved.note, lambda tensor: tensor):
            stack.loss_and_gradient(examples, target_KB)
    except Exception:  # anything that the model's own code may raise; its worker would say what
        return StepCount(
            flops=6 * batch * sum(trained),
            bytes=updated,
            operations=_SAVED_PER_PARAMETER * len(trained),
        )
    return StepCount(
        flops=counter.get_total_flops(),
        bytes=2 * saved.bytes + updated,
        operations=saved.tensors,
    )


class _Saved:
    """Tensors saved for the backward pass; one that two operations save counts twice."""

    def __init__(self) -> None:
        self.tensors = self.bytes = 0

    def note(self, tensor: Tensor) -> Tensor:
        self.tensors += 1
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def _zeros(one: Input, batch: int) -> Tensor:
    """A batch as one model sees it, (1, B, *shape)."""
    dtype = torch.int64 if one.kind == "tokens" else torch.float32
    return torch.zeros(1, batch, *one.shape, dtype=dtype)
