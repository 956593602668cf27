"""Several studies in one table: one row per study, one column per method, as in Table 2."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from modmix.analysis.best import best_keys, default_metrics
from modmix.analysis.comparisons import Comparison, comparison, comparisons_of, records_of, table_of
from modmix.analysis.frames import STATISTICS, Snapshot, read
from modmix.analysis.labels import is_reported, metric_label, split_of
from modmix.analysis.render import Table
from modmix.base.errors import InputError
from modmix.base.metrics import METRICS
from modmix.ledger.ledger import Ledger


def compare_table(ledger: Ledger, studies: Sequence[str], metric: str | None = None) -> Table:
    """The methods' best configurations in several studies.

    Each cell is the test mean ± standard deviation of the configuration chosen on validation; best
    is bold, second best italic within a row. The last row has mean ranks over the rows in which all
    methods have a result. A study in which every configuration changes the task has a row per
    condition.

    Args:
        metric: a test metric; by default each study's first objective on test.

    Raises:
        InputError: no study is given, one is not in the ledger, or this is no test metric.
    """
    if not studies:
        raise InputError("a comparison needs at least one study, got none")
    whole = [read(ledger, study) for study in dict.fromkeys(studies)]
    known = [f"test/{name}" for name in METRICS]
    recorded = dict.fromkeys(m for study in whole for m in study.metrics)
    known += [m for m in recorded if split_of(m) == "test" and is_reported(m)]
    if metric is not None and metric not in known:
        raise InputError(
            f"the metric of a comparison must be one of {', '.join(known)}, got {metric!r}"
        )
    # A study of several tasks has a row for each of them: "study/task".
    snapshots = [
        one for study in whole for one in ([study.of_task(t) for t in study.tasks] or [study])
    ]
    comparisons = [one for snapshot in snapshots for one in _comparisons(snapshot, metric)]
    split = {snapshot.name for snapshot in snapshots if snapshot.conditions.is_split}
    columns = ["study", "condition", "metric", "method", "n", "n_candidates", *STATISTICS]
    columns += ["difference", "p_paired_t", "p_holm", "configuration"]
    return table_of(
        comparisons,
        [(_name(one, one.study in split), metric_label(one.metric)) for one in comparisons],
        title="Comparison of studies",
        header=("study", "metric"),
        rows="rows" if split else "studies",
        methods=list(dict.fromkeys(m for snapshot in snapshots for m in snapshot.methods)),
        frame=pd.DataFrame([r for one in comparisons for r in records_of(one)], columns=columns),
        notes=["Mean ± standard deviation over seeds of the configuration chosen on validation."],
    )


def _comparisons(snapshot: Snapshot, metric: str | None) -> list[Comparison]:
    """A study's comparison, or one per condition if every configuration changes the task."""
    shown = metric or default_metrics(snapshot)[0]
    if snapshot.conditions.is_split:
        return comparisons_of(snapshot, shown)
    main = snapshot.conditions.main
    if main is None:
        return [Comparison(study=snapshot.name, condition=None, metric=shown, candidates={})]
    return [comparison(snapshot, main, best_keys(snapshot)[main], shown)]


def _name(one: Comparison, is_split: bool) -> str:
    return f"{one.study}: {one.condition.label}" if is_split and one.condition else one.study
