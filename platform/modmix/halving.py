"""Successive halving inside a pack: which points go on after a rung. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def rungs(min_epochs: int, eta: int, epochs: int) -> tuple[int, ...]:
    """Epochs after which points are dropped: min_epochs, ·η, ·η², … before the last epoch.

    Example:
        >>> rungs(2, 3, 20)
        (2, 6, 18)
    """
    assert min_epochs >= 1, min_epochs
    assert eta >= 2, eta
    found = []
    epoch = min_epochs
    while epoch < epochs:
        found.append(epoch)
        epoch *= eta
    return tuple(found)


def survivors(
    values: Mapping[str, Sequence[float]], eta: int, *, higher_is_better: bool
) -> list[str]:
    """The best ⌈n/η⌉ points by the mean of their replicates' values, best first.

    A point with a NaN (a replicate that diverged) comes after all others; equals keep their
    order.
    """
    sign = -1.0 if higher_is_better else 1.0

    def rank(point: str) -> float:
        mean = sign * math.fsum(values[point]) / len(values[point])
        return math.inf if math.isnan(mean) else mean

    ordered = sorted(values, key=rank)
    return ordered[: math.ceil(len(ordered) / eta)]
