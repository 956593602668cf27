"""Batches for models with different seeds: each distinct seed's batch is gathered once.

A split lies on the device when it fits there; else batches are gathered on the host and sent.
Shapes: S distinct seeds, B batch, N examples of a split.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modmix.methods.model import derive_seed
from modmix.tasks.data import Array, Split

# Of the memory that is free on an accelerator, the part that data may take.
_RESIDENT_SHARE = 0.4


class Examples:
    """One split as tensors: inputs by modality and labels."""

    def __init__(self, split: Split, names: Sequence[str], device: torch.device) -> None:
        self.device = device
        self.rows = split.rows
        self.inputs = {name: _as_tensor(split.inputs[name]) for name in names}
        self.labels_N = _as_tensor(split.labels)
        if device.type != "cpu" and self._fits():
            self.inputs = {name: value.to(device) for name, value in self.inputs.items()}
            self.labels_N = self.labels_N.to(device)

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False
        size = sum(value.numel() * value.element_size() for value in self.inputs.values())
        return size < _RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]

    @property
    def place(self) -> torch.device:
        """Where the examples lie: the device, or the host when they do not fit."""
        return self.labels_N.device

    def take(self, index_SB: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs (S, B, *shape) and labels (S, B) at these rows; the index lies at ``place``."""
        flat = index_SB.flatten()

        def gather(values: Tensor) -> Tensor:
            taken = values.index_select(0, flat).view(*index_SB.shape, *values.shape[1:])
            return taken.to(self.device, non_blocking=True)

        return {name: gather(value) for name, value in self.inputs.items()}, gather(self.labels_N)

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All inputs in order, (≤ size, *shape) at a time."""
        for start in range(0, self.rows, size):
            yield {
                name: value[start : start + size].to(self.device)
                for name, value in self.inputs.items()
            }

    @property
    def targets(self) -> Tensor:
        """All labels (N,) on the device."""
        return self.labels_N.to(self.device)


class Order:
    """Which rows each seed sees in which step of an epoch; it depends on the seed alone.

    The last incomplete batch of an epoch is dropped; a split smaller than a batch is one batch.
    """

    def __init__(self, rows: int, batch_size: int, device: torch.device) -> None:
        self.rows = rows
        self.batch = min(batch_size, rows)
        self.steps = rows // self.batch
        self.device = device

    def epoch(self, seeds: Sequence[int], epoch: int) -> Tensor:
        """Row numbers (S, N) of an epoch (from 0), one permutation per seed."""
        orders = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
            # int32: half the memory where there are millions of rows
            orders.append(torch.randperm(self.rows, generator=generator, dtype=torch.int32))
        return torch.stack(orders).to(self.device)

    def step(self, order_SN: Tensor, step: int) -> Tensor:
        """Row numbers (S, B) of one step."""
        return order_SN[:, step * self.batch : (step + 1) * self.batch]


def _as_tensor(array: Array) -> Tensor:
    """A tensor on the array's own memory, which may be a read-only map and is never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(array)
