"""Which numbers are equal up to rounding, and which of several is the best: the one rule of ties.

Whatever compares means (marks, ranks, the best configuration, halving, statistics) asks here, so
that two methods with as many errors are equal everywhere. Values count as equal when they differ
by at most 1e-9 of the larger one (or 1e-12): far above the rounding of a sum in float64, far below
one error in ten million examples over ten seeds. Lists are grouped along their order: neighbours
that are equal share a place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RELATIVE = 1e-9
ABSOLUTE = 1e-12


def mean(values: Sequence[float]) -> float:
    """The mean in float64 from an exact sum: the order of the values does not matter.

    NaN of no values, and where one of them is NaN.
    """
    if not values:
        return math.nan
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values)
    return math.fsum(values) / len(values)


def is_tie(first: float, second: float) -> bool:
    """Whether two numbers are equal up to rounding; NaN equals nothing."""
    return math.isclose(first, second, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def is_better(first: float, second: float, *, higher_is_better: bool) -> bool:
    """Whether the first is better by more than rounding; any number is better than NaN."""
    if math.isnan(first) or math.isnan(second):
        return math.isnan(second) and not math.isnan(first)
    is_above = first > second if higher_is_better else first < second
    return is_above and not is_tie(first, second)


def places(values: Sequence[float], *, higher_is_better: bool = False) -> list[int | None]:
    """Each value's place among the different ones: 0 is best, equals share theirs, NaN has none.

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
    """The index of the best value, the first of equals; None where all are NaN."""
    found = places(values, higher_is_better=higher_is_better)
    return found.index(0) if 0 in found else None
