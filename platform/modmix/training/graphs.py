"""A training step of a group as a CUDA graph: its kernels are recorded once and started together.

Small networks leave a GPU waiting for the processor that starts its kernels; a replayed graph is
one start. Everything a step reads or writes must lie at the same addresses every time: the row
numbers of a batch are copied to where the recorded step reads them, learning rates are changed in
place, and a group that loses rows records anew.
"""

from __future__ import annotations

from collections.abc import Callable

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
        """
        self._index_SB = index_SB.clone()
        self._replay: Callable[[], object]
        if index_SB.device.type == "cpu":
            self._replay = lambda: step(self._index_SB)
            return
        stream = torch.cuda.Stream(index_SB.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(index_SB.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                step(self._index_SB)
        torch.cuda.current_stream(index_SB.device).wait_stream(stream)
        restore()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(self._index_SB)
        self._replay = graph.replay

    def run(self, index_SB: Tensor) -> None:
        """One step on these rows."""
        self._index_SB.copy_(index_SB)
        self._replay()
