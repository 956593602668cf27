"""How studies divide a cluster between them: each one's fair share of it."""

from __future__ import annotations

from collections.abc import Sequence


def fair_share(own: float, others: Sequence[float]) -> float:
    """The fraction of a cluster that a study may use (max-min fairness).

    Nobody gets more than they have use for, and what is left is divided evenly among the rest.

    Args:
        own: the fraction that this study has use for.
        others: the same of each other study.
    """
    demands = sorted(min(demand, 1.0) for demand in (own, *others))
    left = 1.0
    for i, demand in enumerate(demands):
        even = left / (len(demands) - i)
        if demand >= even:
            return min(own, even)
        left -= demand
    return min(own, 1.0)


def allowance(useful: int, capacity: int, others: Sequence[float]) -> int:
    """How many trials a study may have in flight beside other studies; at least one.

    Args:
        useful: how many it has use for.
        capacity: how many such trials the whole cluster has room for.
        others: the demands of the other studies, as fractions of the cluster.
    """
    whole = max(1, capacity)
    return max(1, int(fair_share(useful / whole, others) * whole + 1e-6))
