"""Successive halving: which configurations continue after a rung. Pure.

The configurations of a pack reach a rung together, and the best 1/η of them continue (`survivors`).
A pack of a single configuration is instead compared with all configurations, of any pack, that
reached the rung before it (`goes_on`): asynchronous successive halving (ASHA, Li et al. 2020), in
the variant that stops configurations instead of pausing them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from modmix.base import ties


def rungs(min_epochs: int, eta: int, epochs: int) -> tuple[int, ...]:
    """Epochs after which configurations are pruned: min_epochs · ηⁱ, i = 0, 1, …, below ``epochs``.

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

    NaN (a replicate diverged) ranks last; ties keep their order.
    """
    costs = {
        configuration: _cost(value, higher_is_better) for configuration, value in values.items()
    }
    places = dict(zip(costs, ties.places(list(costs.values())), strict=True))
    ordered = sorted(costs, key=lambda configuration: places[configuration] or 0)
    return ordered[: math.ceil(len(ordered) / eta)]


def goes_on(value: float, others: Sequence[float], eta: int, *, higher_is_better: bool) -> bool:
    """Whether a value is among the best ⌊n/η⌋ of the n at a rung so far: itself and ``others``.

    The first η − 1 to arrive always continue, and so does a value tied with one that does. NaN is
    the worst value.
    """
    own = _cost(value, higher_is_better)
    n = len(others) + 1
    costs = [_cost(other, higher_is_better) for other in others]
    better = sum(ties.is_better(cost, own, higher_is_better=False) for cost in costs)
    return n < eta or better < n // eta


def share(keep: float, configurations: int) -> int:
    """How many configurations of a batch are promoted to all their seeds: ⌈keep · configurations⌉.

    For searches that first train every configuration with some of its seeds only.
    """
    return math.ceil(keep * configurations - 1e-9)  # 0.07 * 100 is 7.000000000000001


def promoted(
    values: Mapping[str, float | None], keep: float, *, higher_is_better: bool
) -> list[str]:
    """The best ``keep`` fraction of a batch of configurations by their first seeds, best first.

    Every batch is ranked on its own, so that the result does not depend on the order in which
    batches finish, the cost is known in advance, and every batch promotes its best configuration.
    (Ranked against all configurations so far, nearly all of a late batch would be promoted, because
    a sampler's proposals get better.) A configuration without a value (failed, or pruned by
    halving) counts towards the batch size but is never promoted; ties keep their order.
    """
    found = {configuration: value for configuration, value in values.items() if value is not None}
    best = survivors(found, 1, higher_is_better=higher_is_better)
    return best[: share(keep, len(values))]


def mean(values: Sequence[float]) -> float:
    """The mean over a configuration's replicates; NaN if any of them is."""
    return math.fsum(values) / len(values)


def _cost(value: float, higher_is_better: bool) -> float:
    if math.isnan(value):
        return math.inf
    return -value if higher_is_better else value
