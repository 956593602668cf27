"""Successive halving: which configurations go on after a rung. Pure.

Inside a pack all configurations reach a rung together, and the best part of them goes on
(`survivors`). A pack of one configuration has nothing to compare with: its value is compared with
those of the configurations that were at the rung before it, in whatever packs (`goes_on`):
asynchronous successive halving, ASHA, in the variant that stops configurations instead of pausing
them (Li et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from modmix.base import ties


def rungs(min_epochs: int, eta: int, epochs: int) -> tuple[int, ...]:
    """Epochs after which configurations are dropped: min_epochs, ·η, ·η², … before the last epoch.

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


def survivors(values: Mapping[str, float], eta: int, *, higher_is_better: bool) -> list[str]:
    """The best ⌈n/η⌉ configurations, best first.

    A configuration whose value is NaN (a replicate diverged) comes after all others; equals keep
    their order.
    """
    costs = {
        configuration: _cost(value, higher_is_better) for configuration, value in values.items()
    }
    places = dict(zip(costs, ties.places(list(costs.values())), strict=True))
    ordered = sorted(costs, key=lambda configuration: places[configuration] or 0)
    return ordered[: math.ceil(len(ordered) / eta)]


def goes_on(value: float, others: Sequence[float], eta: int, *, higher_is_better: bool) -> bool:
    """Whether a value is among the best ⌊n/η⌋ of itself and the others at a rung so far.

    The first η − 1 to arrive go on, and so do equals of one that does. NaN is the worst value.
    """
    own = _cost(value, higher_is_better)
    n = len(others) + 1
    costs = [_cost(other, higher_is_better) for other in others]
    better = sum(ties.is_better(cost, own, higher_is_better=False) for cost in costs)
    return n < eta or better < n // eta


def share(keep: float, configurations: int) -> int:
    """How many of a batch's configurations get all their seeds where they are staged: ⌈keep ·
    configurations⌉.
    """
    return math.ceil(keep * configurations - 1e-9)  # 0.1 of 30 is 3, not 4


def promoted(
    values: Mapping[str, float | None], keep: float, *, higher_is_better: bool
) -> list[str]:
    """The better ``keep`` share of a batch of configurations by their first seeds, best first.

    Each batch by itself, whatever others have shown: so it does not depend on which batch ends
    first, its cost is known before, and the best configuration of every batch is among them.
    (Against all configurations so far, nearly every configuration of a late batch would pass,
    because a sampler's later configurations are better than its first ones.) A configuration
    without a value (it failed, or halving has pruned it) counts in the share and is never promoted;
    equals are taken in their order.
    """
    found = {configuration: value for configuration, value in values.items() if value is not None}
    best = survivors(found, 1, higher_is_better=higher_is_better)
    return best[: share(keep, len(values))]


def mean(values: Sequence[float]) -> float:
    """The mean over a configuration's replicates; NaN when one of them is."""
    return math.fsum(values) / len(values)


def _cost(value: float, higher_is_better: bool) -> float:
    if math.isnan(value):
        return math.inf
    return -value if higher_is_better else value
