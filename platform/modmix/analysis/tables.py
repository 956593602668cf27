"""The tables of a study: results per method, and all configurations."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from modmix.analysis import statistics
from modmix.analysis.best import (
    BestConfiguration,
    best_of,
    candidates,
    default_metrics,
    undefined,
    unranked_notes,
)
from modmix.analysis.comparisons import against, best_and_second, conditions_table
from modmix.analysis.conditions import Condition
from modmix.analysis.frames import STATISTICS, Snapshot, read, short
from modmix.analysis.labels import (
    higher_is_better,
    interval_text,
    metric_label,
    metric_text,
    p_text,
    parameter_name,
    plus_minus,
    split_of,
    value_text,
)
from modmix.analysis.render import Cell, Table
from modmix.base import ties
from modmix.base.errors import InputError
from modmix.ledger.ledger import Ledger

# ---------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the results: a method's best configuration in the study or in one part."""

    label: str  # "mulmix", or "mulmix (beta_curve)"
    part: str  # "" over the whole study
    best: BestConfiguration
    n_candidates: int  # complete configurations it was chosen from
    paired: statistics.Paired | None = None  # this minus the reference; None for the reference
    p_holm: float = math.nan


def results_table(
    ledger: Ledger, study: str, metrics: Sequence[str] | None = None, by: str | None = None
) -> Table:
    """The main table of a study, like Table 2 of the paper.

    One row per method: test metrics, as mean ± standard deviation over seeds, of its best
    configuration by the first objective on validation. If the best configuration within a part is a
    different one, it has a row of its own, such as "mulmix (defaults)": the tuned method (MulMix*
    in Table 2) beside the one with fixed settings (MulMix).

    Best is bold, second best italic, by test mean within each column. For the first metric, paired
    t tests over common seeds compare every row with the first one, which is best on validation,
    Holm-corrected over the rows. The paper's numbers are shown if the study file has them.

    If some configurations change the task's options, the table has only those with the task as
    given; if all do, it has one row per condition (see `conditions`).

    Args:
        metrics: test metrics to show; by default the objectives, the error, and for two classes
            the AUC.
        by: the validation metric that selects; by default the first objective.
    """
    return results_of(read(ledger, study), metrics, by)


def results_of(
    snapshot: Snapshot, metrics: Sequence[str] | None = None, by: str | None = None
) -> Table:
    """`results_table` of a snapshot."""
    shown = tuple(metrics) if metrics else default_metrics(snapshot)
    check_test_metrics(snapshot, shown)
    if snapshot.conditions.is_split:
        return replace(conditions_table(snapshot, shown, by), title=f"Results of {snapshot.name}")
    rows = result_rows(snapshot, shown[0], by)
    varied = varied_parameters(snapshot, snapshot.conditions.main)
    marks = {m: best_and_second([row.best.estimates[m].mean for row in rows], m) for m in shown}
    papers = {metric: [paper_number(snapshot, row, metric) for row in rows] for metric in shown}
    header = ["method", "n"]
    numeric = [False, True]
    columns: list[list[Cell]] = [
        [Cell(text=row.label) for row in rows],
        [Cell(text=str(row.best.n), sort=row.best.n) for row in rows],
    ]
    for metric in shown:
        header.append(metric_label(metric))
        columns.append([_mean_cell(row, metric, marks[metric][i]) for i, row in enumerate(rows)])
        if any(number is not None for number in papers[metric]):
            header.append("paper")
            columns.append([paper_cell(number) for number in papers[metric]])
    header += ["95 % CI", "gap to first (95 % CI)", "p (Holm)", "hyperparameters"]
    columns += [
        [_interval_cell(row, shown[0]) for row in rows],
        [_gap_cell(row, shown[0]) for row in rows],
        [_p_cell(row) for row in rows],
        [Cell(text=chosen_text(row.best, varied)) for row in rows],
    ]
    numeric += [True] * (len(header) - 3) + [False]
    return Table(
        title=f"Results of {snapshot.name}",
        header=tuple(header),
        cells=tuple(zip(*columns, strict=True)),
        numeric=tuple(numeric),
        frame=_results_frame(snapshot, rows, papers, by),
        notes=_results_notes(snapshot, rows, shown, by),
    )


def check_test_metrics(snapshot: Snapshot, metrics: Sequence[str]) -> None:
    """Check that metrics are on test and recorded.

    Raises:
        InputError: one is not.
    """
    for metric in metrics:
        if metric not in snapshot.metrics or split_of(metric) != "test":
            known = ", ".join(m for m in snapshot.metrics if split_of(m) == "test")
            raise InputError(f"a results table shows test metrics ({known}), got {metric!r}")


def result_rows(snapshot: Snapshot, metric: str, by: str | None = None) -> list[Row]:
    """Rows of the results, sorted by validation, each compared with the first on ``metric``."""
    main = snapshot.conditions.main
    if main is None:
        return []
    if any(spec.get("label") for spec in snapshot.parts.values()):
        return _compared(snapshot, _labelled_rows(snapshot, main, by), metric)
    rows: list[Row] = []
    by_part = {part: best_of(snapshot, by, part) for part in snapshot.parts}
    n_candidates = {part: candidates(snapshot, main, part) for part in (None, *snapshot.parts)}
    for best in best_of(snapshot, by):
        method = best.method
        rows.append(Row(label=method, part="", best=best, n_candidates=n_candidates[None][method]))
        seen = {best.configuration}
        for part, others in by_part.items():
            for other in others:
                if other.method == method and other.configuration not in seen:
                    seen.add(other.configuration)
                    label, count = f"{method} ({part})", n_candidates[part][method]
                    rows.append(Row(label=label, part=part, best=other, n_candidates=count))
    return _compared(snapshot, rows, metric)


def _labelled_rows(snapshot: Snapshot, main: Condition, by: str | None) -> list[Row]:
    """A row per method of the parts with a ``label``, best on validation first."""
    labels = unique_labels(snapshot.parts)
    rows = [
        Row(
            # Results may be of a method that the file no longer has.
            label=labels.get((part, best.method), best.method),
            part=part,
            best=best,
            # A source that is being extended may have none that is complete.
            n_candidates=candidates(snapshot, main, spec.get("best_of") or part).get(
                best.method, 0
            ),
        )
        for part, spec in snapshot.parts.items()
        if spec.get("label")
        for best in best_of(snapshot, by, part)
    ]
    metric = by or snapshot.objectives[0]
    places = ties.places([r.best.mean for r in rows], higher_is_better=higher_is_better(metric))
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: places[i] or 0)]


def unique_labels(parts: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """The label of each row of the parts with a ``label``, by part and method.

    If several are the same, the method is added, and the part if that is not enough.
    """
    given = {
        (part, method): str(spec["label"]).replace("{method}", method)
        for part, spec in parts.items()
        if spec.get("label")
        for method in spec["methods"]
    }
    alike = Counter(given.values())
    with_method = Counter((label, method) for (_, method), label in given.items())
    found = {}
    for (part, method), label in given.items():
        if alike[label] > 1:
            more = method if with_method[label, method] == 1 else f"{method}, {part}"
            label = f"{label} ({more})"
        found[part, method] = label
    return found


def _compared(snapshot: Snapshot, rows: list[Row], metric: str) -> list[Row]:
    reference = reference_of(rows, metric)
    place = None if reference is None else rows.index(reference)
    tests = against(snapshot, [row.best.configuration for row in rows], metric, place)
    return [replace(row, paired=test, p_holm=p) for row, (test, p) in zip(rows, tests, strict=True)]


def reference_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The row that others are compared with: the first, best on validation, that has ``metric``."""
    return next((r for r in rows if math.isfinite(r.best.estimates[metric].mean)), None)


def gap_to(test: statistics.Paired, metric: str) -> tuple[float, float, float]:
    """How much worse the first is than the second, with interval; positive means worse."""
    if higher_is_better(metric):
        return -test.difference, -test.ci_high, -test.ci_low
    return test.difference, test.ci_low, test.ci_high


# Settings of how a search trains, which no search varies: grids and searches differ in them.
_OF_SEARCHES = frozenset({"halving", "pbt"})


def varied_parameters(
    snapshot: Snapshot, condition: Condition | None = None
) -> dict[str, list[str]]:
    """By method, the parameters with more than one value in the study or in a condition."""
    values: dict[str, dict[str, set[str]]] = {}
    for configuration in (
        snapshot.conditions.members[condition] if condition else snapshot.configurations
    ):
        mine = values.setdefault(configuration.method, {})
        for name, value in configuration.params.items():
            mine.setdefault(name, set()).add(json.dumps(value, sort_keys=True))
    return {
        method: [name for name, seen in mine.items() if len(seen) > 1 and name not in _OF_SEARCHES]
        for method, mine in values.items()
    }


def chosen_text(best: BestConfiguration, varied: Mapping[str, Sequence[str]]) -> str:
    """The values of varied hyperparameters: "β = 0.3, depth = 1"."""
    names = [name for name in varied.get(best.method, ()) if name in best.params]
    text = ", ".join(f"{parameter_name(n)} = {value_text(best.params[n])}" for n in names)
    return f"{text} at the start (pbt)" if text and best.by_pbt else text


def paper_number(snapshot: Snapshot, row: Row, metric: str) -> tuple[float, float] | None:
    """The paper's mean and standard deviation (NaN if not given) for a row, or None.

    The study file gives them by the row's label, "mulmix (defaults)", or by method.
    """
    papers = snapshot.record.spec.get("paper") or {}
    stated = papers.get(row.label) or (papers.get(row.best.method) if not row.part else None)
    value = (stated or {}).get(metric)
    if value is None:
        return None
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return float(numbers[0]), float(numbers[1]) if len(numbers) > 1 else math.nan


def _mean_cell(row: Row, metric: str, mark: str) -> Cell:
    found = row.best.estimates[metric]
    return Cell(text=plus_minus(found.mean, found.std, metric), mark=mark, sort=found.mean)


def paper_cell(number: tuple[float, float] | None) -> Cell:
    if number is None:
        return Cell(text="–")
    # Keeps the decimals given in the study file.
    mean, std = (f"{value:.12g}" for value in number)
    return Cell(text=mean if math.isnan(number[1]) else f"{mean} ± {std}", sort=number[0])


def _interval_cell(row: Row, metric: str) -> Cell:
    found = row.best.estimates[metric]
    return Cell(text=interval_text(found.ci_low, found.ci_high, metric), sort=found.ci_low)


def _gap_cell(row: Row, metric: str) -> Cell:
    if row.paired is None:
        return Cell(text="–")
    gap, low, high = gap_to(row.paired, metric)
    if math.isnan(row.paired.std):
        return Cell(text=metric_text(gap, metric), sort=gap)
    text = f"{metric_text(gap, metric)} ({interval_text(low, high, metric)})"
    return Cell(text=text, sort=gap)


def _p_cell(row: Row) -> Cell:
    return Cell(text=p_text(row.p_holm), sort=row.p_holm)


def _results_frame(
    snapshot: Snapshot,
    rows: Sequence[Row],
    papers: Mapping[str, Sequence[tuple[float, float] | None]],
    by: str | None,
) -> pd.DataFrame:
    first = next(iter(papers))
    records = [
        record_of(row, {m: papers[m][i] for m in papers})
        | _bootstrap(list(snapshot.by_seed(row.best.configuration, first).values()), first)
        for i, row in enumerate(rows)
    ]
    stated = [m for m, numbers in papers.items() if any(number is not None for number in numbers)]
    metrics = [by or snapshot.objectives[0], *dict.fromkeys([*papers, *_tests(rows)])]
    columns = ["label", "method", "part", "n", "n_candidates"]
    columns += [f"{metric}/{name}" for metric in metrics for name in STATISTICS]
    columns += list(_bootstrap([], first))
    columns += [f"paper/{metric}/{name}" for metric in stated for name in ("mean", "std")]
    columns += [
        "seeds_in_common", "difference", "difference_ci_low", "difference_ci_high",
        "p_paired_t", "p_holm", "p_wilcoxon", "configuration", "hyperparameters",
    ]  # fmt: skip
    return pd.DataFrame(records, columns=columns)


def _bootstrap(values: Sequence[float], metric: str) -> dict[str, float]:
    """A bootstrap interval, which does not assume a normal distribution."""
    low, high = statistics.bootstrap_interval(values, np.random.default_rng(0))
    return {f"{metric}/bootstrap_low": low, f"{metric}/bootstrap_high": high}


def _as_given(main: Condition) -> str:
    return main.label.removesuffix("(as given)").strip()


def _tests(rows: Sequence[Row]) -> list[str]:
    return [metric for row in rows for metric in row.best.estimates]


def record_of(row: Row, papers: Mapping[str, tuple[float, float] | None]) -> dict[str, Any]:
    """One row of the frame; ``difference`` is this row minus the reference."""
    best = row.best
    record: dict[str, Any] = {"label": row.label, "method": best.method, "part": row.part}
    record |= {"n": best.n, "n_candidates": row.n_candidates}
    record |= {f"{best.metric}/{name}": getattr(best, name) for name in STATISTICS}
    for metric, found in best.estimates.items():
        record |= {f"{metric}/{name}": getattr(found, name) for name in STATISTICS}
    for metric, number in papers.items():
        mean, std = number or (math.nan, math.nan)
        record |= {f"paper/{metric}/mean": mean, f"paper/{metric}/std": std}
    test = row.paired
    record["seeds_in_common"] = test.n if test else best.n
    record["difference"] = test.difference if test else 0.0
    record["difference_ci_low"] = test.ci_low if test else math.nan
    record["difference_ci_high"] = test.ci_high if test else math.nan
    record["p_paired_t"] = test.t_p if test else math.nan
    record["p_holm"] = row.p_holm
    record["p_wilcoxon"] = test.wilcoxon_p if test else math.nan
    record["configuration"] = short(best.configuration)
    record["hyperparameters"] = json.dumps(dict(best.params), sort_keys=True)
    return record


def _results_notes(
    snapshot: Snapshot, rows: Sequence[Row], shown: Sequence[str], by: str | None
) -> tuple[str, ...]:
    main, conditions = snapshot.conditions.main, snapshot.conditions.all
    if not rows:
        if snapshot.complete:
            return (f"{undefined(snapshot, by)}.",)
        return ("No configuration has finished all its replicates yet.",)
    selection = metric_label(by or snapshot.objectives[0])
    notes = [
        f"Configurations are selected, and methods ordered, by {selection}.",
        "Mean ± standard deviation over n seeds.",
    ]
    if main is not None and len(conditions) > 1:
        notes.append(
            f"Only configurations with the study file's task options ({_as_given(main)}); see the "
            f"table of conditions for the other {len(conditions) - 1}."
        )
    parted = [row for row in rows if row.part]
    confirms = any(spec.get("best_of") for spec in snapshot.parts.values())
    if parted and len(parted) < len(rows):
        notes.append(
            f"A row such as {parted[0].label!r} is a method's best configuration within a part; "
            "without a part, it is the best of all parts"
            f"{', or what a part with best_of has trained again' if confirms else ''}."
        )
    counts = ", ".join(f"{row.label} {row.n_candidates}" for row in rows)
    if any(row.n_candidates > 1 for row in rows):
        notes.append(f"Number of configurations each was selected from: {counts}.")
    reference = reference_of(rows, shown[0])
    if len(rows) > 1 and reference is not None:
        notes.append(
            f"95 % CI, gap and p value are for {metric_label(shown[0])}: paired t tests against "
            f"{reference.label}, the {'first row' if confirms else 'best on validation'}, over "
            "common seeds, Holm-corrected."
        )
        apart = [row.label for row in rows if row.paired is not None and row.paired.n == 0]
        if apart:
            notes.append(
                f"Not tested (no seed in common with {reference.label}): {', '.join(apart)}."
            )
    if any(spec.get("label") for spec in snapshot.parts.values()):
        there = {row.best.method for row in rows}
        if hidden := [one.method for one in best_of(snapshot, by) if one.method not in there]:
            notes.append(f"Methods of parts without a label are not shown: {', '.join(hidden)}.")
    return (*notes, *unranked_notes(snapshot))


# ---------------------------------------------------------------- configurations


def configurations_table(ledger: Ledger, study: str) -> Table:
    """Every configuration of the study, in order of proposal; as CSV, `configurations_frame`."""
    return configurations_of(read(ledger, study))


def configurations_of(snapshot: Snapshot, metrics: Sequence[str] | None = None) -> Table:
    """`configurations_table` of a snapshot.

    Args:
        metrics: recorded metrics to show; by default the objectives and those of the results table.

    Raises:
        InputError: one of the metrics is not recorded.
    """
    for metric in metrics or ():
        if metric not in snapshot.metrics:
            known = ", ".join(snapshot.metrics)
            raise InputError(f"a metric must be one that is recorded ({known}), got {metric!r}")
    frame = snapshot.configurations_table.reset_index(drop=True)
    varied = varied_parameters(snapshot)
    names = list(dict.fromkeys(n for mine in varied.values() for n in mine))
    metrics = list(dict.fromkeys(metrics or [*snapshot.objectives, *default_metrics(snapshot)]))
    header = ["task"] if snapshot.tasks else []
    header += ["method", *(parameter_name(n) for n in names), "n"]
    header += [*(metric_label(m) for m in metrics), "state", "parts", "configuration"]
    columns = [[Cell(text=str(v)) for v in frame[c]] for c in ("task", "method") if c in frame]
    columns += [
        [_parameter_cell(configuration.params, n) for configuration in snapshot.configurations]
        for n in names
    ]
    columns.append([Cell(text=str(n), sort=float(n)) for n in frame["n"]])
    columns += [_mean_cells(frame, metric) for metric in metrics]
    columns += [[Cell(text=str(v)) for v in frame[c]] for c in ("state", "parts", "configuration")]
    numeric = [
        *[False] * (1 + bool(snapshot.tasks)),
        *[True] * (len(names) + 1 + len(metrics)),
        False,
        False,
        False,
    ]
    return Table(
        title=f"Configurations of {snapshot.name}",
        header=tuple(header),
        cells=tuple(zip(*columns, strict=True)),
        numeric=tuple(numeric),
        frame=frame,
        notes=(
            "Mean ± standard deviation over the n finished replicates.",
            *unranked_notes(snapshot),
        ),
    )


def _mean_cells(frame: pd.DataFrame, metric: str) -> list[Cell]:
    if f"{metric}/mean" not in frame:
        return [Cell(text="–")] * len(frame)
    pairs = zip(frame[f"{metric}/mean"].tolist(), frame[f"{metric}/std"].tolist(), strict=True)
    return [Cell(text=plus_minus(mean, std, metric), sort=mean) for mean, std in pairs]


def _parameter_cell(params: Mapping[str, Any], name: str) -> Cell:
    if name not in params:
        return Cell(text="")
    value = params[name]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(text=value_text(value), sort=float(value) if is_number else None)
