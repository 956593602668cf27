"""A training step of a group as a CUDA graph: its kernels are recorded once and started together.

Small networks leave a GPU waiting for the processor that starts its kernels; a replayed graph is
one start. Everything a step reads or writes must lie at the same addresses every time: the row
numbers of a batch are copied to where the recorded step reads them, learning rates are changed in
place, and a group that loses rows records anew.

The intermediate values of a recorded step keep their memory from one replay to the next. Recordings
share it: groups take their steps one after another, and what a step leaves behind lies elsewhere.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor

_WARM_UP = 3  # steps before the recording, in which libraries set up their workspaces


class StepGraph:
    """``step(index_SB)`` recorded; `run` replays it with other row numbers."""

    def __init__(
        self, step: Callable[[Tensor], None], index_SB: Tensor, restore: Callable[[], None]
    ) -> None:
        """Record the step; ``restore`` undoes what the steps for warming up changed.

        On a processor, whose graph branch only tests take, replaying is running the step.

        Raises:
            RuntimeError: the step reads something back, which cannot be recorded.
        """
        self._index_SB = index_SB.clone()
        self._replay: Callable[[], object] = lambda: step(self._index_SB)
        if index_SB.device.type != "cpu":
            self._recording = _Recording(self._replay, index_SB.device, restore)
            self._replay = self._recording.graph.replay

    def run(self, index_SB: Tensor) -> None:
        """One step on these rows."""
        self._index_SB.copy_(index_SB)
        self._replay()


class _Recording:
    """A CUDA graph of a step."""

    def __init__(
        self, step: Callable[[], object], device: torch.device, restore: Callable[[], None]
    ) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()
        stream, present = _side_stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(present)
        # The stream also ends here where a recording fails: torch then does not leave it.
        with torch.cuda.device(device), torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                step()
            with _nothing_read_back():
                step()
            restore()
            pool = next((one.graph.pool() for one in _alive if one.device == device), None)
            with torch.cuda.graph(self.graph, pool=pool, stream=stream):
                step()
        present.wait_stream(stream)
        _alive.add(self)


# Their memory is shared, and freed with the last of them.
_alive: WeakSet[_Recording] = WeakSet()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _nothing_read_back() -> Iterator[None]:
    """Make an operation that waits for the device an error: one inside a recording is harder to
    recover from than one before it.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # torch says that it does not find all of them
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
