"""How studies divide a cluster between them. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def fair_share(own: float, others: Sequence[float]) -> float:
    """The fraction of a cluster that a study may use (max-min fairness).

    Nobody gets more than they have use for, and what is left is divided evenly among the rest.

    Args:
        own: the fraction that this study has use for.
        others: the same of each other study.
    """
    demands = sorted([min(own, 1.0), *(min(other, 1.0) for other in others)])
    left = 1.0
    for i, demand in enumerate(demands):
        even = left / (len(demands) - i)
        if demand >= even:
            return min(own, even)
        left -= demand
    return min(own, 1.0)
