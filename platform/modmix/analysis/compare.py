"""Several studies beside each other: one row per study, one column per method, as in Table 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from modmix.analysis.best import best_of
from modmix.analysis.formats import Cell, Table
from modmix.analysis.frames import Snapshot, read, short
from modmix.analysis.statistics import NOTHING, Estimate, mean_ranks
from modmix.analysis.tables import default_metrics, marks_of
from modmix.analysis.words import higher_is_better, metric_label, p_clause, plus_minus
from modmix.errors import InputError
from modmix.ledger import Ledger


def compare_table(ledger: Ledger, studies: Sequence[str], metric: str | None = None) -> Table:
    """The methods' best points in several studies.

    Each cell is the test mean ± standard deviation of the point that validation chose; best bold
    and second italic within a row. The last row holds each method's mean rank over the studies in
    which all methods have a result.

    Args:
        metric: a test metric; each study's first objective on test when None.

    Raises:
        InputError: no study is named, or one is not in the ledger.
    """
    if not studies:
        raise InputError("a comparison needs the name of at least one study, got none")
    snapshots = [read(ledger, study) for study in dict.fromkeys(studies)]
    shown = [metric or default_metrics(snapshot)[0] for snapshot in snapshots]
    methods = list(dict.fromkeys(m for snapshot in snapshots for m in snapshot.methods))
    found = [_by_method(one, name) for one, name in zip(snapshots, shown, strict=True)]
    rows = []
    for snapshot, name, values in zip(snapshots, shown, found, strict=True):
        estimates = [values.get(method, ("", NOTHING))[1] for method in methods]
        marks = marks_of([estimate.mean for estimate in estimates], name)
        row = [Cell(text=snapshot.name), Cell(text=metric_label(name))]
        row += [_cell(e, name, mark) for e, mark in zip(estimates, marks, strict=True)]
        rows.append(tuple(row))
    notes = ["Mean ± standard deviation over seeds of the point that validation chose."]
    ranks = mean_ranks(
        {
            method: {
                one.name: _cost(values[method][1].mean, name) if method in values else math.nan
                for one, name, values in zip(snapshots, shown, found, strict=True)
            }
            for method in methods
        }
    )
    if ranks.blocks > 1:
        means = dict(zip(ranks.frame["method"], ranks.frame["rank/mean"], strict=True))
        cells = [Cell(text=f"{means[method]:.2f}", sort=means[method]) for method in methods]
        rows.append((Cell(text="mean rank"), Cell(text=f"{ranks.blocks} studies"), *cells))
        if not math.isnan(ranks.friedman_p):
            notes.append(
                f"Friedman's test that all methods are alike: {p_clause(ranks.friedman_p)}."
            )
    return Table(
        title="Comparison of studies",
        header=("study", "metric", *methods),
        cells=tuple(rows),
        numeric=(False, False, *[True] * len(methods)),
        frame=_frame(snapshots, shown, found),
        notes=tuple(notes),
    )


def _by_method(snapshot: Snapshot, metric: str) -> dict[str, tuple[str, Estimate]]:
    """Per method its best point and that point's result on a test metric."""
    return {
        best.method: (best.point, best.estimates[metric])
        for best in best_of(snapshot)
        if metric in best.estimates
    }


def _cost(mean: float, metric: str) -> float:
    return -mean if higher_is_better(metric) else mean


def _cell(found: Estimate, metric: str, mark: str) -> Cell:
    return Cell(text=plus_minus(found.mean, found.std, metric), mark=mark, sort=found.mean)


def _frame(
    snapshots: Sequence[Snapshot],
    metrics: Sequence[str],
    found: Sequence[dict[str, tuple[str, Estimate]]],
) -> pd.DataFrame:
    columns = ["study", "metric", "method", "n", "mean", "std", "ci_low", "ci_high", "point"]
    return pd.DataFrame(
        [
            {
                "study": snapshot.name,
                "metric": metric,
                "method": method,
                "n": estimate.n,
                "mean": estimate.mean,
                "std": estimate.std,
                "ci_low": estimate.ci_low,
                "ci_high": estimate.ci_high,
                "point": short(point),
            }
            for snapshot, metric, values in zip(snapshots, metrics, found, strict=True)
            for method, (point, estimate) in values.items()
        ],
        columns=columns,
    )
