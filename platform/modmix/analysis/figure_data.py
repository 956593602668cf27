"""Data of figures of best configurations (results, conditions, learning curves).

Best configurations are selected on validation (see `best`), whatever split is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from modmix.analysis.best import best_of, default_metrics
from modmix.analysis.comparisons import Comparison, comparisons_of
from modmix.analysis.frames import Snapshot, estimate_columns, histories_of, short
from modmix.analysis.statistics import Floats
from modmix.analysis.tables import Row, gap_to, paper_number, result_rows
from modmix.ledger.ledger import Ledger

MAX_CONDITIONS = 40  # of a figure

# ---------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True)
class Results:
    """The rows of the results table on one test metric, with the value of every seed."""

    title: str
    metric: str
    rows: tuple[Row, ...]
    values: tuple[tuple[float, ...], ...]  # per row, per seed
    papers: tuple[tuple[float, float] | None, ...]

    def frame(self) -> pd.DataFrame:
        """One row per row of the figure."""
        return pd.DataFrame(
            [
                {"label": row.label}
                | estimate_columns(row.best.estimates[self.metric], self.metric)
                for row in self.rows
            ]
        )


def results(snapshot: Snapshot, metric: str | None = None) -> Results:
    """The data of the results figure."""
    shown = metric or default_metrics(snapshot)[0]
    rows = [r for r in result_rows(snapshot, shown) if math.isfinite(r.best.estimates[shown].mean)]
    return Results(
        title=f"{snapshot.name}: best configuration of each method",
        metric=shown,
        rows=tuple(rows),
        values=tuple(
            tuple(snapshot.by_seed(row.best.configuration, shown).values()) for row in rows
        ),
        papers=tuple(paper_number(snapshot, row, shown) for row in rows),
    )


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A method's mean, and how much worse it is than the condition's reference (0 for that one).

    The interval is that of the paired difference over seeds.
    """

    mean: float
    gap: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ByCondition:
    """Gaps between each method's best configuration and the best on validation, by condition."""

    title: str
    metric: str
    labels: tuple[str, ...]
    methods: tuple[str, ...]
    gaps: tuple[Mapping[str, Gap], ...]  # per label, by method
    references: tuple[str, ...]  # per label, the method that is best on validation; "" if none
    omitted: int  # number of omitted conditions

    def frame(self) -> pd.DataFrame:
        """One row per condition and method."""
        return pd.DataFrame(
            [
                {"condition": label, "method": method, f"{self.metric}/mean": found.mean}
                | {"gap": found.gap, "gap_low": found.low, "gap_high": found.high}
                for label, gaps in zip(self.labels, self.gaps, strict=True)
                for method, found in gaps.items()
            ]
        )


def by_condition(
    snapshot: Snapshot, metric: str | None = None, limit: int = MAX_CONDITIONS
) -> ByCondition:
    """The data of the conditions figure; at most ``limit`` conditions."""
    shown = metric or default_metrics(snapshot)[0]
    comparisons = comparisons_of(snapshot, shown)
    gaps = [_gaps(one, snapshot.methods) for one in comparisons[:limit]]
    return ByCondition(
        title=f"{snapshot.name}: gap to the best method on validation, by condition",
        metric=shown,
        labels=tuple(one.condition.label for one in comparisons[:limit] if one.condition),
        methods=tuple(m for m in snapshot.methods if any(m in found for found in gaps)),
        gaps=tuple(gaps),
        references=tuple(one.reference for one in comparisons[:limit]),
        omitted=max(0, len(comparisons) - limit),
    )


def _gaps(one: Comparison, methods: Sequence[str]) -> dict[str, Gap]:
    found = {}
    for method in methods:
        mean = one.mean(method)
        if not math.isfinite(mean):
            continue
        test = one.candidates[method].paired
        gap, low, high = gap_to(test, one.metric) if test else (0.0, math.nan, math.nan)
        found[method] = Gap(mean=mean, gap=gap, low=low, high=high)
    return found


# ---------------------------------------------------------------- learning curves


@dataclass(frozen=True, kw_only=True)
class Learning:
    """The learning curve of one method's best configuration, over replicates.

    ``full``: the epochs at which all replicates were still training; later means are over fewer.
    """

    method: str
    configuration: str
    epochs: Floats
    mean: Floats
    std: Floats
    n: int
    full: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class LearningCurves:
    title: str
    metric: str
    lines: tuple[Learning, ...]

    def frame(self) -> pd.DataFrame:
        """One row per method and epoch."""
        pieces = [
            pd.DataFrame(
                {
                    "method": line.method,
                    "configuration": short(line.configuration),
                    "epoch": line.epochs,
                    f"{self.metric}/mean": line.mean,
                    f"{self.metric}/std": line.std,
                    "all_replicates": line.full,
                }
            )
            for line in self.lines
        ]
        return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def learning_curves(
    ledger: Ledger, snapshot: Snapshot, metric: str | None = None
) -> LearningCurves:
    """Learning curves of every method's best configuration, by default of the first objective."""
    drawn = metric or snapshot.objectives[0]
    best = best_of(snapshot)
    frame = histories_of(ledger, snapshot, [found.configuration for found in best])
    lines = []
    for found in best:
        mine = frame[frame["configuration"] == short(found.configuration)]
        if f"{drawn}/mean" not in mine or not mine[f"{drawn}/mean"].notna().any():
            continue
        mine = mine[mine[f"{drawn}/mean"].notna()]
        counts = mine["n"].to_numpy()
        lines.append(
            Learning(
                method=found.method,
                configuration=found.configuration,
                epochs=mine["epoch"].to_numpy(dtype=np.float64),
                mean=mine[f"{drawn}/mean"].to_numpy(dtype=np.float64),
                std=mine[f"{drawn}/std"].to_numpy(dtype=np.float64),
                n=found.n,
                full=np.asarray(counts >= counts.max()),
            )
        )
    return LearningCurves(
        title=f"{snapshot.name}: training of the best configurations",
        metric=drawn,
        lines=tuple(lines),
    )
