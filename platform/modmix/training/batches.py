"""Batches for models with different seeds; a batch is gathered once per distinct seed.

A split is kept on the device if it fits. Otherwise background threads gather batches on the host,
a few steps ahead, and they are copied over. Inputs are transferred in their stored dtype (uint8
images, token ids); augmentation, conversion to float and normalisation run on the device.

Shapes: S distinct seeds, B batch, N examples of a split.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modmix.methods.model import derive_seed
from modmix.tasks.data import Array, Augmentation, Data, Input
from modmix.training.augment import add_noise, augment
from modmix.training.device import available, forced

# Largest fraction of the available accelerator memory that a split kept on the device may take.
_RESIDENT_SHARE = 0.4
# Number of batches prefetched, and of threads that gather them.
_AHEAD, _THREADS = 4, 2


class Batch(NamedTuple):
    """One step's raw inputs (S, B, *shape), labels (S, B) and row numbers (S, B)."""

    inputs: dict[str, Tensor]
    labels_SB: Tensor
    index_SB: Tensor


class Examples:
    """One split as tensors: the inputs that the models read, and the labels.

    Args:
        data: the task's data.
        split: train, val or test.
        names: inputs to load.
        device: where the models are trained.
        share: fraction of the device's memory that this process may use.
    """

    def __init__(
        self, data: Data, split: str, names: Sequence[str], device: torch.device, share: float = 1.0
    ) -> None:
        self.device = device
        source = data.splits[split]
        self.rows = source.rows
        self.inputs = {name: _as_tensor(source.inputs[name]) for name in names}
        self.labels_N = _as_tensor(source.labels)
        self.streamed = forced() if device.type == "cpu" else not self._fits(share)
        if not self.streamed:
            self.inputs = {name: value.to(device) for name, value in self.inputs.items()}
            self.labels_N = self.labels_N.to(device)
        self._prepare = {
            name: _Preparation(data.inputs[name], data.augmentation.get(name), i, device)
            for i, name in enumerate(names)
        }
        # For noise in evaluation, which is the same for all models.
        self._draw = torch.tensor(derive_seed(0, "noise", split), device=device)
        self._targets_N: Tensor | None = None

    def _fits(self, share: float) -> bool:
        size = sum(value.numel() * value.element_size() for value in self.inputs.values())
        return size < _RESIDENT_SHARE * available(self.device, share)

    @property
    def place(self) -> torch.device:
        """Where the examples are stored: the device, or the host if they do not fit."""
        return self.labels_N.device

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield the batch of each tensor of row numbers (S, B), on the device."""
        if not self.streamed:
            yield from map(self.take, rows)
            return
        with ThreadPoolExecutor(_THREADS, "modmix-batches", self._enter_device) as pool:
            waiting: deque[Future[Batch]] = deque()
            left = deque(rows)
            while waiting or left:
                while left and len(waiting) < _AHEAD:
                    waiting.append(pool.submit(self.take, left.popleft()))
                batch = waiting.popleft().result()
                inputs = {name: self._send(value) for name, value in batch.inputs.items()}
                yield Batch(inputs, self._send(batch.labels_SB), self._send(batch.index_SB))

    def take(self, index_SB: Tensor) -> Batch:
        """Gather the batch of row numbers (S, B), on the device where the examples are stored."""
        flat = index_SB.flatten()
        pinned = self.streamed and self.device.type == "cuda"

        def gather(values: Tensor) -> Tensor:
            if not pinned:
                return values.index_select(0, flat).view(*index_SB.shape, *values.shape[1:])
            shape = *index_SB.shape, *values.shape[1:]
            found = torch.empty(shape, dtype=values.dtype, pin_memory=True)
            torch.index_select(values, 0, flat, out=found.view(-1, *values.shape[1:]))
            return found

        inputs = {name: gather(value) for name, value in self.inputs.items()}
        return Batch(inputs, gather(self.labels_N), index_SB.pin_memory() if pinned else index_SB)

    def _enter_device(self) -> None:
        """Thread initializer: pinned memory belongs to the thread's current CUDA device."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _send(self, value: Tensor) -> Tensor:
        # Asynchronous from pinned memory; torch's caching host allocator reuses a block only after
        # the copy has finished.
        return value.to(self.device, non_blocking=True)

    def prepare(
        self, raw: Mapping[str, Tensor], index_SB: Tensor, draw_S: Tensor
    ) -> dict[str, Tensor]:
        """The inputs of a training batch as the models see them: augmented, then normalised.

        ``draw_S`` is the augmentation seed of this epoch for each distinct model seed; an example's
        augmentation depends on it and on the row number only.
        """
        return {
            name: self._prepare[name](value, index_SB, draw_S, training=True)
            for name, value in raw.items()
        }

    def chunks(self, size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield inputs (≤ size, *shape) and labels of the whole split in order, as in evaluation:
        not cropped or flipped, with the same noise every time.
        """
        for start in range(0, self.rows, size):
            index_B = torch.arange(start, min(start + size, self.rows), device=self.device)
            inputs = {
                name: self._prepare[name](
                    value[start : start + size].to(self.device), index_B, self._draw
                )
                for name, value in self.inputs.items()
            }
            yield inputs, self.targets[start : start + size]

    @property
    def targets(self) -> Tensor:
        """All labels (N,) on the device."""
        if self._targets_N is None:
            self._targets_N = self.labels_N.to(self.device)
        return self._targets_N


class _Preparation:
    """Preprocess one stored input on the device: augment, convert to float32, normalise, add noise.

    Token ids are only converted to int64. Frames of a sequence that are all zero before the noise
    stay zero: they are padding, which encoders recognise by that.
    """

    def __init__(
        self, source: Input, augmentation: Augmentation | None, salt: int, device: torch.device
    ) -> None:
        self._tokens, self._sequence = source.kind == "tokens", source.kind == "sequence"
        self._augmentation, self._salt = augmentation or Augmentation(), salt
        self._size = None if source.stored is None else (source.shape[-3], source.shape[-2])
        # Float inputs were standardised when the data was prepared.
        raw = not np.issubdtype(np.dtype(source.dtype), np.floating)
        mean, scale = (source.mean, source.scale) if raw else (None, None)
        self._mean = None if mean is None else torch.tensor(mean, device=device)
        self._scale = None if scale is None else torch.tensor(scale, device=device)

    def __call__(
        self, values: Tensor, index: Tensor, draw: Tensor, *, training: bool = False
    ) -> Tensor:
        """Values (S, B, *shape) with row numbers (S, B) and seeds (S,), or without axis S."""
        if self._tokens:
            return values.long()
        settings = self._augmentation
        if self._size is not None and not (training and (settings.shift or settings.crop)):
            values = _central(values, *self._size)
        if training and settings.moves:
            values = augment(values, settings, index, draw, self._salt, self._size)
        values = values.float()
        if self._mean is not None:
            values = values - self._mean
        if self._scale is not None:
            values = values / self._scale
        if settings.noise:
            noisy = add_noise(values, settings.noise, index, draw, self._salt)
            if self._sequence:
                noisy = noisy.masked_fill((values == 0).all(-1, keepdim=True), 0.0)
            values = noisy
        return values


def _central(images: Tensor, height: int, width: int) -> Tensor:
    """The centre crop (height, width) of images (…, H, W, C)."""
    top, left = (images.shape[-3] - height) // 2, (images.shape[-2] - width) // 2
    return images[..., top : top + height, left : left + width, :]


class Order:
    """The order of rows in each epoch, a function of seed and epoch only.

    Batches are pieces of a permutation of all rows, or with ``kind="windows"`` adjacent rows from
    random places, as in the code of "Learn to Combine Modalities" for HIGGS: windows may overlap,
    and an epoch need not see every row. The last incomplete batch of an epoch is dropped; a split
    smaller than the batch size is one batch.
    """

    def __init__(
        self, rows: int, batch_size: int, device: torch.device, kind: str = "shuffled"
    ) -> None:
        self.rows, self.kind = rows, kind
        self.batch = min(batch_size, rows)
        self.steps = rows // self.batch
        self.device = device

    def epoch(self, seeds: Sequence[int], epoch: int) -> Tensor:
        """Row numbers (S, N) of an epoch (from 0), batch after batch, for each seed."""
        orders = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
            # int32 halves the memory, which matters with millions of rows
            if self.kind == "windows":
                most = self.rows - self.batch + 1
                first_T = torch.randint(most, (self.steps,), generator=generator, dtype=torch.int32)
                rows_TB = first_T[:, None] + torch.arange(self.batch, dtype=torch.int32)
                orders.append(rows_TB.flatten())
            else:
                orders.append(torch.randperm(self.rows, generator=generator, dtype=torch.int32))
        return torch.stack(orders).to(self.device)

    def step(self, order_SN: Tensor, step: int) -> Tensor:
        """Row numbers (S, B) of one step."""
        return order_SN[:, step * self.batch : (step + 1) * self.batch]


def _as_tensor(array: Array) -> Tensor:
    """A tensor sharing the array's memory, which may be a read-only memmap; never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(array)
