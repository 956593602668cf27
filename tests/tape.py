"""What a CUDA graph does with a training step, done on a processor.

A step is recorded as the list of operations that torch ran, backward pass included, with the
tensors they read and wrote. Replaying runs the same operations on the same memory: no Python of
the step is run again, so that whatever was a Python number while recording (a learning rate, a step
count, a seed) stays what it was, as in a graph. `make_fx` does not serve: it runs what does not
depend on its arguments while it records, which is most of what an optimizer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a graph cannot hold: results on the host, and tensors made of Python numbers, which would
# have to be sent to the device.
REFUSED = ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::is_nonzero")


class Tape(TorchDispatchMode):
    """The operations that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in REFUSED:
            raise RuntimeError(f"{name} cannot be part of a recorded step")
        result = func(*args, **kwargs)
        memory = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        fresh = [
            x.detach() if x.untyped_storage().data_ptr() not in memory else None
            for x in _tensors(result)
        ]
        if func._schema.is_mutable or any(x is not None for x in fresh):  # else it made views
            self._calls.append(lambda: _again(func, args, kwargs, fresh))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for call in self._calls:
            call()


def _again(func: Any, args: Any, kwargs: Any, fresh: list[Tensor | None]) -> None:
    result = func(*args, **kwargs)
    for old, new in zip(fresh, _tensors(result), strict=True):
        if old is not None:
            old.copy_(new)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(values) if isinstance(x, Tensor))


class TapedStep:
    """In the place of `modmix.training.graphs.StepGraph`."""

    recorded = 0
    replayed = 0

    def __init__(
        self, step: Callable[[Tensor], None], index_SB: Tensor, restore: Callable[[], None]
    ) -> None:
        type(self).recorded += 1
        self._index_SB = index_SB.clone()
        step(self._index_SB)  # as the steps for warming up: it changes the state
        restore()
        self._tape = Tape()
        with self._tape:
            step(self._index_SB)

    def run(self, index_SB: Tensor) -> None:
        type(self).replayed += 1
        self._index_SB.copy_(index_SB)
        self._tape.replay()
