"""The best point of each method, chosen on validation and never on test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modmix.analysis.frames import Snapshot, read
from modmix.analysis.statistics import Estimate
from modmix.analysis.words import higher_is_better, is_metric, split_of
from modmix.errors import InputError
from modmix.ledger import Ledger, PointRecord
from modmix.metrics import METRICS


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
    estimates: Mapping[str, Estimate]  # "test/error" -> over the same replicates

    @property
    def test(self) -> dict[str, dict[str, float]]:
        """As ``estimates``, in plain values: "test/error" -> {"n": 5, "mean": 3.1, …}."""
        return {name: asdict(found) for name, found in self.estimates.items()}


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
    complete: dict[str, list[PointRecord]] = {}
    for point in snapshot.points:
        if point.key in snapshot.complete and (
            part is None or part in snapshot.parts_of.get(point.key, ())
        ):
            complete.setdefault(point.method, []).append(point)
    means = snapshot.means(metric)
    found = [_best_of(snapshot, points, metric, sign, means) for points in complete.values()]
    kept = [best for best in found if best is not None]
    return sorted(kept, key=lambda best: (sign * best.mean, best.number))


def check_selection(metric: str) -> None:
    """Refuse to choose by anything but validation.

    Raises:
        InputError: the metric is unknown or of another split.
    """
    if split_of(metric) != "val" or not is_metric(metric):
        raise InputError(
            "points are chosen by a metric on validation, so that test results stay honest "
            f"({', '.join(f'val/{name}' for name in METRICS)}), got {metric!r}"
        )


def _best_of(
    snapshot: Snapshot,
    complete: Sequence[PointRecord],
    metric: str,
    sign: float,
    means: Mapping[str, float],
) -> BestPoint | None:
    most = max(len(snapshot.replicates_of[point.key]) for point in complete)
    full = [p for p in complete if len(snapshot.replicates_of[p.key]) == most]
    ranked = [p for p in full if not math.isnan(means[p.key])]
    if not ranked:
        return None
    best = min(ranked, key=lambda p: (sign * means[p.key], p.number))
    own = snapshot.estimate(best.key, metric)
    tests = [name for name in snapshot.metrics if split_of(name) == "test"]
    return BestPoint(
        method=best.method,
        point=best.key,
        number=best.number,
        params=best.params,
        n=own.n,
        mean=own.mean,
        std=own.std,
        ci_low=own.ci_low,
        ci_high=own.ci_high,
        metric=metric,
        estimates={name: snapshot.estimate(best.key, name) for name in tests},
    )
