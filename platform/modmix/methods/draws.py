"""Counter-based random numbers: pure functions of a seed and a position, without generator state.

A model must draw the same numbers whether it trains alone or stacked, resumed or uninterrupted, and
`torch.func.vmap` cannot give each model its own generator. So numbers are computed by hashing seed
and position with a 32-bit integer hash ("lowbias32", from the hash-prospector project). There is no
state to checkpoint, and a replayed CUDA graph draws new numbers because the seed is a tensor that
changes.

The trainer writes one seed per model and step into the buffer ``draw`` of every `Draws` module.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_MASK = 0xFFFFFFFF


def hashed(values: Tensor) -> Tensor:
    """Hash each integer to 32 bits, as int64 in 0..2³²−1."""
    x = values & _MASK
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def bits(seed: Tensor, position: Tensor, salt: int = 0) -> Tensor:
    """32 random bits per pair of a seed (int64, 56 bits used) and a position (int64 ≥ 0).

    Shapes broadcast. Different ``salt`` values give independent streams of one seed.
    """
    low, high = seed & _MASK, seed >> 32
    key = hashed(low + hashed(high + hashed(torch.full_like(seed, salt))))
    return hashed(hashed(position + key) + (position >> 32) + (key >> 7))


def uniform(seed: Tensor, position: Tensor, salt: int = 0) -> Tensor:
    """Uniform float32 in [0, 1), in multiples of 2⁻²⁴; arguments as for `bits`."""
    return _fraction(bits(seed, position, 3 * salt))


def normal(seed: Tensor, position: Tensor, salt: int = 0) -> Tensor:
    """Standard normal float32 by the Box-Muller transform; arguments as for `bits`."""
    first, second = (_fraction(bits(seed, position, 3 * salt + i)) for i in (1, 2))
    return (1.0 - first).log().mul(-2.0).sqrt() * (2.0 * math.pi * second).cos()


def _fraction(bits: Tensor) -> Tensor:
    return (bits >> 8).float() * 2.0**-24


class Draws(nn.Module):
    """A source of random numbers inside a model; they depend on the model's seed and step only.

    ``salt`` separates the sources of one model and is set by `own_dropout`. ``calls`` separates the
    draws of one source within a step; the trainer resets it to 0 before each step.
    """

    draw: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.salt = self.calls = 0
        self.register_buffer("draw", torch.zeros((), dtype=torch.int64), persistent=False)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) of this shape, new ones on every step and call."""
        return uniform(self.draw, self._positions(shape), self._next_salt())

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of this shape, new ones on every step and call."""
        return normal(self.draw, self._positions(shape), self._next_salt())

    def _next_salt(self) -> int:
        self.calls += 1
        return self.salt + (self.calls << 16)

    def _positions(self, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(math.prod(shape), device=self.draw.device).view(shape)


class Dropout(Draws):
    """`torch.nn.Dropout` with masks that depend on the model's seed and step only."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = self.uniform(*x.shape) >= self.p
        return x * keep / (1.0 - self.p) if self.p < 1.0 else x * 0.0


def own_dropout(model: nn.Module) -> None:
    """Replace every `torch.nn.Dropout` inside ``model`` by `Dropout`; number all `Draws`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    sources = [module for module in model.modules() if isinstance(module, Draws)]
    for salt, source in enumerate(sources):
        source.salt = salt
