"""A group's training step as a CUDA graph: captured once, then replayed with one launch.

Small networks leave a GPU idle while the CPU launches its kernels; replaying a graph is a single
launch. A replay reads and writes the addresses seen at capture. So the row numbers of a batch are
copied into a static tensor, learning rates are updated in place, and a group that loses rows
captures its step again.

All graphs of a device share one memory pool for intermediates. This is safe because groups step one
after another, and everything that outlives a step is allocated outside the pool.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor

_WARM_UP = 3  # warm-up steps before capture, in which libraries allocate their workspaces


class StepGraph:
    """``step(index_SB)`` captured as a CUDA graph; `run` replays it with other row numbers."""

    def __init__(
        self, step: Callable[[Tensor], None], index_SB: Tensor, restore: Callable[[], None]
    ) -> None:
        """Capture the step; ``restore`` undoes the changes made by the warm-up steps.

        On a CPU, used in tests only, a replay just runs the step.

        Raises:
            RuntimeError: the step cannot be captured, e.g. because it waits for the device.
        """
        self._index_SB = index_SB.clone()
        self._replay: Callable[[], object] = lambda: step(self._index_SB)
        if index_SB.device.type != "cpu":
            self._recording = _Recording(self._replay, index_SB.device, restore)
            self._replay = self._recording.graph.replay

    def run(self, index_SB: Tensor) -> None:
        """Replay the step on these rows."""
        self._index_SB.copy_(index_SB)
        self._replay()


class _Recording:
    """Warms up a step and captures it as a CUDA graph, on a side stream."""

    def __init__(
        self, step: Callable[[], object], device: torch.device, restore: Callable[[], None]
    ) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()
        stream, present = _side_stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(present)
        # Restores the current stream if capture fails, which `torch.cuda.graph` does not.
        try:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    step()
                with _nothing_read_back():
                    step()
                restore()
                pool = next((one.graph.pool() for one in _alive if one.device == device), None)
                with torch.cuda.graph(self.graph, pool=pool, stream=stream):
                    step()
        finally:  # also after a failure: the caller then undoes what the steps have written
            present.wait_stream(stream)
        _alive.add(self)


# Graphs whose memory pool a new one shares; a pool is freed with its last graph.
_alive: WeakSet[_Recording] = WeakSet()


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures: cuBLAS keeps a workspace for every stream it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _nothing_read_back() -> Iterator[None]:
    """Raise on operations that synchronise with the device, before a capture would fail on them:
    a failed capture is harder to recover from.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # torch warns that it cannot detect every synchronisation
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
