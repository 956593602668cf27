"""Comparison of metric values up to rounding error, used wherever means are compared.

Highlights in tables, ranks, the best configuration, halving and statistics all use it, so methods
with equally many errors tie everywhere. Values tie if they differ by at most 1e-9 relative to the
larger one, or 1e-12: far above the rounding error of a float64 sum, and far below one error in ten
million examples over ten seeds. In a sorted list, neighbours that tie share a rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RELATIVE = 1e-9
ABSOLUTE = 1e-12


def mean(values: Sequence[float]) -> float:
    """The mean, from an exact sum, so it does not depend on the order of the values.

    NaN if there are no values or one of them is NaN.
    """
    if not values:
        return math.nan
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values)
    return math.fsum(values) / len(values)


def is_tie(first: float, second: float) -> bool:
    """Whether two numbers are equal up to rounding error; NaN ties with nothing."""
    return math.isclose(first, second, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def is_better(first: float, second: float, *, higher_is_better: bool) -> bool:
    """Whether the first is better by more than rounding error; any number is better than NaN."""
    if math.isnan(first) or math.isnan(second):
        return math.isnan(second) and not math.isnan(first)
    is_above = first > second if higher_is_better else first < second
    return is_above and not is_tie(first, second)


def places(values: Sequence[float], *, higher_is_better: bool = False) -> list[int | None]:
    """Dense ranks: 0 is best, ties share a rank, NaN has None.

    Example:
        >>> places([0.3, 0.1 + 0.2, 7.0, 0.1])
        [1, 1, 2, 0]
    """
    found: list[int | None] = [None] * len(values)
    order = [i for i, value in enumerate(values) if not math.isnan(value)]
    order.sort(key=lambda i: values[i], reverse=higher_is_better)
    place = 0
    for before, i in zip([None, *order], order, strict=False):
        if before is not None and not is_tie(values[before], values[i]):
            place += 1
        found[i] = place
    return found


def best(values: Sequence[float], *, higher_is_better: bool = False) -> int | None:
    """The index of the best value, the first one among ties; None if all are NaN."""
    found = places(values, higher_is_better=higher_is_better)
    return found.index(0) if 0 in found else None
