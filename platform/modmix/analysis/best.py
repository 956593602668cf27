"""The best point of each method, chosen on validation and never on test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modmix.analysis.frames import Snapshot, read
from modmix.analysis.statistics import Estimate
from modmix.analysis.words import higher_is_better, split_of
from modmix.errors import InputError
from modmix.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class BestPoint:
    """A method's best point. ``mean`` … ``ci_high`` are of ``metric``, on validation."""

    method: str
    point: str  # full key
    number: int
    params: Mapping[str, Any]
    n: int
    mean: float
    std: float
    ci_low: float
    ci_high: float
    metric: str
    test: Mapping[str, Estimate]  # "test/error" -> its estimate over the same replicates


def best_points(ledger: Ledger, study: str, by: str | None = None) -> list[BestPoint]:
    """The best point of every method that has a finished one, best method first.

    A point counts when all its replicates are done; among those of a method only the ones with
    the most replicates are compared (a mean over two seeds is lucky more often than one over
    five). The mean over replicates decides, the lower number breaks ties, NaN never wins.

    Args:
        by: a metric on validation; the study's first objective when None.

    Raises:
        InputError: ``by`` is not on validation, or there is no such study.
    """
    return best_of(read(ledger, study), by)


def best_of(snapshot: Snapshot, by: str | None = None, part: str | None = None) -> list[BestPoint]:
    """`best_points` of what was read, within one part when it is given."""
    metric = by or snapshot.objectives[0]
    check_selection(metric)
    sign = -1.0 if higher_is_better(metric) else 1.0
    found = [
        best
        for method in snapshot.methods
        if (best := _best_of_method(snapshot, method, metric, sign, part)) is not None
    ]
    return sorted(found, key=lambda best: (sign * best.mean, best.number))


def check_selection(metric: str) -> None:
    """Refuse to choose by anything but validation.

    Raises:
        InputError: the metric is of another split.
    """
    if split_of(metric) != "val":
        raise InputError(
            f"points are chosen on validation only, so that test results stay honest; "
            f"got {metric!r}: name a metric that begins with 'val/'"
        )


def _best_of_method(
    snapshot: Snapshot, method: str, metric: str, sign: float, part: str | None
) -> BestPoint | None:
    complete = [
        point
        for point in snapshot.points
        if point.method == method
        and (part is None or part in snapshot.parts_of.get(point.key, ()))
        and snapshot.is_complete(point.key)
    ]
    most = max((len(snapshot.replicates_of[point.key]) for point in complete), default=0)
    full = [p for p in complete if len(snapshot.replicates_of[p.key]) == most]
    column = snapshot.points_table.get(f"{metric}/mean")
    means = {} if column is None else {p.key: float(column[p.key]) for p in full}
    ranked = [p for p in full if not math.isnan(means.get(p.key, math.nan))]
    if not ranked:
        return None
    best = min(ranked, key=lambda p: (sign * means[p.key], p.number))
    own = snapshot.estimate(best.key, metric)
    tests = [name for name in snapshot.metrics if split_of(name) == "test"]
    return BestPoint(
        method=method,
        point=best.key,
        number=best.number,
        params=best.params,
        n=own.n,
        mean=own.mean,
        std=own.std,
        ci_low=own.ci_low,
        ci_high=own.ci_high,
        metric=metric,
        test={name: snapshot.estimate(best.key, name) for name in tests},
    )
