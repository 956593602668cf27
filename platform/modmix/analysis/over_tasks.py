"""Results of a study of several tasks: methods by tasks, with mean ranks over the tasks.

Within a task everything is as in a study of that task alone (`Snapshot.of_task`): the best
configurations, chosen on validation, and their tests. Across tasks only ranks are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from modmix.analysis import statistics, summary, tables
from modmix.analysis.best import default_metrics
from modmix.analysis.comparisons import best_and_second, rank_notes
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.labels import higher_is_better, metric_label, p_clause, plus_minus
from modmix.analysis.render import Cell, Table
from modmix.analysis.tables import Row, check_test_metrics, paper_number, result_rows
from modmix.base.errors import InputError
from modmix.ledger.ledger import Ledger

DIRECTIONS = ("methods", "tasks")
_NOTHING = Cell(text="–")


@dataclass(frozen=True, kw_only=True)
class OverTasks:
    """The rows of every task's results by their labels, such as "mulmix" and "mulmix (half)"."""

    snapshots: Mapping[str, Snapshot]  # by task
    metrics: Mapping[str, tuple[str, ...]]  # by task; the first one is ranked
    rows: Mapping[str, Mapping[str, Row]]  # by task and label

    @property
    def tasks(self) -> list[str]:
        return list(self.snapshots)

    @cached_property
    def labels(self) -> list[str]:
        """All labels: by mean rank, then those without one as in the study file."""
        means = self.mean_ranks
        # Sums of ranks are exact, means of equal sums may differ by rounding.
        return sorted(self._declared, key=lambda label: round(means.get(label, math.inf), 9))

    @cached_property
    def mean_ranks(self) -> dict[str, float]:
        """Mean rank by label; empty with fewer than two tasks."""
        frame = self.ranks.frame
        if self.ranks.blocks < 2:
            return {}
        return dict(zip(frame["method"], frame["rank/mean"].tolist(), strict=True))

    @cached_property
    def _declared(self) -> list[str]:
        """All labels: in the study file's order of methods, then of parts."""
        rows = {label: row for of_task in self.rows.values() for label, row in of_task.items()}
        methods = list(dict.fromkeys(m for one in self.snapshots.values() for m in one.methods))
        return sorted(rows, key=lambda label: (methods.index(rows[label].best.method), label))

    @cached_property
    def ranks(self) -> statistics.Ranks:
        """Of the labels that all tasks have a result of, by the first metric of each task."""
        return statistics.mean_ranks(
            {
                label: {task: self._cost(task, label) for task in self.tasks}
                for label in self._declared
                if all(math.isfinite(self._cost(task, label)) for task in self.tasks)
            }
        )

    def _cost(self, task: str, label: str) -> float:
        """A mean, with the sign changed where higher is better; NaN without a result."""
        row, metric = self.rows[task].get(label), self.metrics[task][0]
        if row is None:
            return math.nan
        mean = row.best.estimates[metric].mean
        return -mean if higher_is_better(metric) else mean


def over_tasks(
    snapshot: Snapshot, metrics: Sequence[str] | None = None, by: str | None = None
) -> OverTasks:
    """The results of a study of several tasks.

    Args:
        metrics: test metrics, for all tasks; by default the objectives, the error, and for two
            classes the AUC.
        by: the validation metric that selects; by default the first objective.

    Raises:
        InputError: one of the metrics is not recorded on test in every task.
    """
    snapshots = {task: snapshot.of_task(task) for task in snapshot.tasks}
    shown = {
        task: tuple(metrics) if metrics else default_metrics(one) for task, one in snapshots.items()
    }
    for task, one in snapshots.items():
        check_test_metrics(one, shown[task])
    rows = {
        task: {row.label: row for row in result_rows(one, shown[task][0], by)}
        for task, one in snapshots.items()
    }
    return OverTasks(snapshots=snapshots, metrics=shown, rows=rows)


def headline(snapshot: Snapshot, metric: str | None = None) -> str:
    """The summary of a study: of one task see `summary.headline`, of several the best rank."""
    if not snapshot.tasks:
        return summary.headline(snapshot, metric)
    found = over_tasks(snapshot, None if metric is None else [metric])
    ranks = found.ranks
    if ranks.blocks < 2 or len(ranks.frame) < 2:
        return f"{len(found.tasks)} tasks. {summary.progress(snapshot)}"
    labels, means = ranks.frame["method"].tolist(), ranks.frame["rank/mean"].tolist()
    wins = dict(zip(labels, ranks.frame["wins"].tolist(), strict=True))
    first = [label for label, mean in zip(labels, means, strict=True) if mean == means[0]]
    who = " and ".join(first)
    verb = "share" if len(first) > 1 else "has"
    best = ", ".join(f"{label} {n}" for label, n in wins.items() if n)
    friedman = (
        "" if math.isnan(ranks.friedman_p) else f" (Friedman test: {p_clause(ranks.friedman_p)})"
    )
    return (
        f"Over {ranks.blocks} tasks, {who} {verb} the best mean rank, {means[0]:.2f} of "
        f"{len(labels)}{friedman}. Tasks won: {best or 'none, all are ties'}."
    )


def results_table(
    ledger: Ledger,
    study: str,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    *,
    rows: str = "methods",
) -> Table:
    """The main table of any study: of one task as `tables.results_table`, of several as below."""
    return results_of(read(ledger, study), metrics, by, rows=rows)


def results_of(
    snapshot: Snapshot,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    *,
    rows: str = "methods",
) -> Table:
    """Methods by tasks, like Table 2 of "Learn to Combine Modalities".

    A cell is the test metric of the method's best configuration on that task, mean ± standard
    deviation over seeds; best and second best of a task are marked. The last column (or row) is
    the mean rank over tasks. The paper's numbers are shown where the study file has them.

    Args:
        rows: "methods" (a row per method) or "tasks" (a row per task and metric).

    Raises:
        InputError: another ``rows``.
    """
    if rows not in DIRECTIONS:
        raise InputError(f"rows must be {' or '.join(DIRECTIONS)}, got {rows!r}")
    if not snapshot.tasks:
        return tables.results_of(snapshot, metrics, by)
    found = over_tasks(snapshot, metrics, by)
    header, columns = ["method"], [[Cell(text=label) for label in found.labels]]
    for task in found.tasks:
        for metric in found.metrics[task]:
            header.append(f"{task}: {metric_label(metric)}")
            columns.append(_values(found, task, metric))
            if any(_paper(found, task, metric, label) is not None for label in found.labels):
                header.append(f"{task}: paper")
                columns.append(
                    [
                        tables.paper_cell(_paper(found, task, metric, label))
                        for label in found.labels
                    ]
                )
    header.append("mean rank")
    columns.append(_ranks(found))
    cells = tuple(zip(*columns, strict=True))
    if rows == "tasks":
        header, cells = _transposed(header, cells)
    return Table(
        title=f"Results of {snapshot.name}",
        header=tuple(header),
        cells=cells,
        numeric=(False, *[True] * (len(header) - 1)),
        frame=_frame(found),
        notes=_notes(snapshot, found),
    )


def _transposed(
    header: Sequence[str], cells: Sequence[Sequence[Cell]]
) -> tuple[list[str], tuple[tuple[Cell, ...], ...]]:
    columns = list(zip(*cells, strict=True))
    labels = [cell.text for cell in columns[0]]
    rows = zip(header[1:], columns[1:], strict=True)
    return ["task", *labels], tuple((Cell(text=name), *column) for name, column in rows)


def _values(found: OverTasks, task: str, metric: str) -> list[Cell]:
    rows = [found.rows[task].get(label) for label in found.labels]
    means = [math.nan if row is None else row.best.estimates[metric].mean for row in rows]
    marks = best_and_second(means, metric)
    cells = []
    for row, mark in zip(rows, marks, strict=True):
        if row is None:
            cells.append(_NOTHING)
            continue
        value = row.best.estimates[metric]
        cells.append(
            Cell(text=plus_minus(value.mean, value.std, metric), mark=mark, sort=value.mean)
        )
    return cells


def _paper(found: OverTasks, task: str, metric: str, label: str) -> tuple[float, float] | None:
    row = found.rows[task].get(label)
    return None if row is None else paper_number(found.snapshots[task], row, metric)


def _ranks(found: OverTasks) -> list[Cell]:
    means = [found.mean_ranks.get(label, math.nan) for label in found.labels]
    marks = best_and_second(means, "test/error")  # lower is better, as of errors
    return [
        _NOTHING if math.isnan(mean) else Cell(text=f"{mean:.2f}", mark=mark, sort=mean)
        for mean, mark in zip(means, marks, strict=True)
    ]


def _frame(found: OverTasks) -> pd.DataFrame:
    """One row per task and label, as in the results of the task, and the mean rank."""
    mean = dict(
        zip(found.ranks.frame["method"], found.ranks.frame["rank/mean"].tolist(), strict=True)
    )
    records: list[dict[str, Any]] = []
    for task, rows in found.rows.items():
        for label, row in rows.items():
            papers = {m: _paper(found, task, m, label) for m in found.metrics[task]}
            records.append(
                {"task": task}
                | tables.record_of(row, {m: p for m, p in papers.items() if p is not None})
                | {"rank/mean": mean.get(label, math.nan)}
            )
    return pd.DataFrame(records)


def _notes(snapshot: Snapshot, found: OverTasks) -> tuple[str, ...]:
    by = snapshot.objectives[0]
    first = (
        f"Test metrics of each method's best configuration on each task by {by}: mean ± standard "
        "deviation over seeds."
    )
    notes = [
        first,
        *(["Methods are ordered by mean rank."] if found.mean_ranks else []),
        *rank_notes(found.ranks, len(found.tasks), "tasks"),
    ]
    counts = {row.n_candidates for rows in found.rows.values() for row in rows.values()}
    if len(counts) == 1:
        notes.append(
            f"Number of configurations each was selected from, on every task: {counts.pop()}."
        )
    else:
        by_task = {
            task: ", ".join(f"{label} {row.n_candidates}" for label, row in rows.items())
            for task, rows in found.rows.items()
        }
        chosen = "; ".join(f"{task}: {text}" for task, text in by_task.items())
        notes.append(f"Number of configurations each was selected from: {chosen}.")
    unranked = [label for label in found.labels if label not in set(found.ranks.frame["method"])]
    if unranked and len(found.tasks) > 1:
        notes.append(f"Not ranked, without a result on every task: {', '.join(unranked)}.")
    return tuple(notes)
