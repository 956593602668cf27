"""Comparisons of methods on the same data, and ranks over several of them.

A comparison is one study, or one condition of a study. Its candidates are each method's best
configuration there, selected on validation. All are tested against the reference, the candidate
that is best on validation. The candidate with the best test mean is best partly by chance, so p
values of tests against it would be too small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from modmix.analysis import statistics
from modmix.analysis.best import best_index, best_keys, candidates, default_metrics
from modmix.analysis.conditions import PREFIX, Condition
from modmix.analysis.frames import STATISTICS, Snapshot, short
from modmix.analysis.labels import higher_is_better, metric_label, p_clause, plus_minus
from modmix.analysis.render import Cell, Table
from modmix.analysis.statistics import NO_ESTIMATE, Estimate, Paired, Ranks
from modmix.base import ties


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method's best configuration in a comparison."""

    configuration: str  # full key
    n_candidates: int  # complete configurations it was chosen from
    value: Estimate  # of the comparison's metric
    paired: Paired | None  # this minus the reference; None for the reference
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The candidates of a study or condition, on one test metric."""

    study: str
    condition: Condition | None
    metric: str
    candidates: Mapping[str, Candidate]  # by method

    @property
    def reference(self) -> str:
        """The method that the others are tested against; "" if there is none."""
        for method, one in self.candidates.items():
            if one.paired is None and math.isfinite(one.value.mean):
                return method
        return ""

    def mean(self, method: str) -> float:
        """A method's mean; NaN without a candidate."""
        return self.candidates[method].value.mean if method in self.candidates else math.nan

    def cost(self, method: str) -> float:
        """A method's mean, with the sign changed where higher is better."""
        return -self.mean(method) if higher_is_better(self.metric) else self.mean(method)


def comparisons_of(
    snapshot: Snapshot, metric: str | None = None, by: str | None = None
) -> list[Comparison]:
    """One comparison per condition of a study, in order of first appearance."""
    shown = metric or default_metrics(snapshot)[0]
    return [
        comparison(snapshot, condition, keys, shown, by)
        for condition, keys in best_keys(snapshot, by).items()
    ]


def comparison(
    snapshot: Snapshot,
    condition: Condition,
    configurations: Mapping[str, str],
    metric: str,
    by: str | None = None,
) -> Comparison:
    """Compare configurations of a condition, one per method.

    Args:
        by: the validation metric by which the reference is best; by default the first objective.
    """
    n_candidates = candidates(snapshot, condition)
    keys = list(configurations.values())
    values = [snapshot.estimate(key, metric) for key in keys]
    selection = by or snapshot.objectives[0]
    chosen = [
        snapshot.means(selection)[key] if math.isfinite(value.mean) else math.nan
        for key, value in zip(keys, values, strict=True)
    ]
    tests = against(snapshot, keys, metric, best_index(chosen, selection))
    return Comparison(
        study=snapshot.name,
        condition=condition,
        metric=metric,
        candidates={
            method: Candidate(
                configuration=configuration,
                n_candidates=n_candidates[method],
                value=value,
                paired=test,
                p_holm=p,
            )
            for (method, configuration), value, (test, p) in zip(
                configurations.items(), values, tests, strict=True
            )
        },
    )


def against(
    snapshot: Snapshot, configurations: Sequence[str], metric: str, reference: int | None
) -> list[tuple[Paired | None, float]]:
    """Paired tests of each configuration against one of them, and Holm-corrected p values.

    The reference has no test; without one there are no tests.
    """
    if reference is None:
        return [(None, math.nan)] * len(configurations)
    its = snapshot.by_seed(configurations[reference], metric)
    tests = [
        None if i == reference else statistics.paired(snapshot.by_seed(configuration, metric), its)
        for i, configuration in enumerate(configurations)
    ]
    corrected = statistics.holm([math.nan if test is None else test.t_p for test in tests])
    return list(zip(tests, corrected, strict=True))


# ---------------------------------------------------------------- ranks over comparisons


def ranks_over(comparisons: Sequence[Comparison]) -> Ranks:
    """Mean ranks over the comparisons in which all ranked methods have a result.

    Methods with results in at most half of the comparisons are not ranked, since they would exclude
    the other ones. So two studies are ranked by the methods that both have.
    """
    methods = list(dict.fromkeys(method for one in comparisons for method in one.candidates))
    taken = [one for one in comparisons if any(math.isfinite(one.mean(m)) for m in methods)]
    ranked = [
        method
        for method in methods
        if 2 * sum(math.isfinite(one.mean(method)) for one in taken) > len(taken)
    ]
    full = common(comparisons, ranked)
    return statistics.mean_ranks(
        {method: {i: one.cost(method) for i, one in enumerate(full)} for method in ranked}
    )


def common(comparisons: Sequence[Comparison], methods: Sequence[str]) -> list[Comparison]:
    """The comparisons in which all these methods have a result."""
    return [one for one in comparisons if all(math.isfinite(one.mean(m)) for m in methods)]


# ---------------------------------------------------------------- tables


def table_of(
    comparisons: Sequence[Comparison],
    names: Sequence[Sequence[str]],
    *,
    title: str,
    header: Sequence[str],
    rows: str,
    methods: Sequence[str],
    frame: pd.DataFrame,
    notes: Sequence[str],
) -> Table:
    """One row per comparison, one column per method, mean ranks in the last row.

    Args:
        names: the first cells of each row, below ``header``.
        rows: what the rows are, for notes: "conditions".
    """
    cells = [
        (*(Cell(text=label) for label in labels), *_value_cells(one, methods))
        for one, labels in zip(comparisons, names, strict=True)
    ]
    ranks = ranks_over(comparisons)
    if ranks.blocks > 1:
        first = [Cell(text="mean rank"), Cell(text=f"{ranks.blocks} {rows}")]
        if len(header) == 1:
            first = [Cell(text=f"mean rank over {ranks.blocks} {rows}")]
        cells.append((*first, *_rank_cells(ranks, methods)))
    return Table(
        title=title,
        header=(*header, *methods),
        cells=tuple(cells),
        numeric=(*[False] * len(header), *[True] * len(methods)),
        frame=frame,
        notes=(*notes, *rank_notes(ranks, len(comparisons), rows)),
    )


def rank_notes(ranks: Ranks, comparisons: int, rows: str) -> list[str]:
    """Notes on mean ranks: the rows they cover, and Friedman's test."""
    if ranks.blocks < 2:
        why = f"No mean ranks: no two {rows} have results of the same two or more methods."
        return [why] if comparisons > 1 else []
    if ranks.blocks < comparisons:
        ranked = ", ".join(sorted(ranks.frame["method"]))
        note = (
            f"Ranks (1 is best) are over the {ranks.blocks} of {comparisons} {rows} in which "
            f"all of {ranked} have a result"
        )
    else:
        note = f"Ranks (1 is best) are averaged over the {rows}"
    if math.isnan(ranks.friedman_p):
        return [f"{note}."]
    return [f"{note}; Friedman test: {p_clause(ranks.friedman_p)}."]


def _value_cells(one: Comparison, methods: Sequence[str]) -> list[Cell]:
    values = [one.candidates[m].value if m in one.candidates else NO_ESTIMATE for m in methods]
    marks = best_and_second([value.mean for value in values], one.metric)
    return [
        Cell(text=plus_minus(value.mean, value.std, one.metric), mark=mark, sort=value.mean)
        for value, mark in zip(values, marks, strict=True)
    ]


def _rank_cells(ranks: Ranks, methods: Sequence[str]) -> list[Cell]:
    means = dict(zip(ranks.frame["method"], ranks.frame["rank/mean"].tolist(), strict=True))
    found = [float(means.get(method, math.nan)) for method in methods]
    return [
        Cell(text="–" if math.isnan(rank) else f"{rank:.2f}", mark=mark, sort=rank)
        for rank, mark in zip(found, _marks(ties.places(found)), strict=True)
    ]


def best_and_second(means: Sequence[float], metric: str) -> list[str]:
    """ "best" and "second" among means; ties share a mark, a single mean gets none."""
    return _marks(ties.places(means, higher_is_better=higher_is_better(metric)))


def _marks(places: Sequence[int | None]) -> list[str]:
    is_alone = sum(place is not None for place in places) < 2
    names = {} if is_alone else {0: "best", 1: "second"}
    return ["" if place is None else names.get(place, "") for place in places]


def records_of(one: Comparison) -> list[dict[str, Any]]:
    """One record per method for frames; ``difference`` is to the reference."""
    condition = one.condition
    options = condition.options if condition else {}
    return [
        {"study": one.study, "condition": condition.label if condition else ""}
        | {f"{PREFIX}{name}": value for name, value in options.items()}
        | {"metric": one.metric, "method": method, "n": found.value.n}
        | {"n_candidates": found.n_candidates}
        | {name: getattr(found.value, name) for name in STATISTICS}
        | {
            "difference": found.paired.difference if found.paired else 0.0,
            "p_paired_t": found.paired.t_p if found.paired else math.nan,
            "p_holm": found.p_holm,
            "configuration": short(found.configuration),
        }
        for method, found in one.candidates.items()
    ]


# ---------------------------------------------------------------- conditions of one study


def conditions_table(
    snapshot: Snapshot, metrics: Sequence[str] | None = None, by: str | None = None
) -> Table:
    """One row per condition of a study.

    Cells show the first metric; CSV and JSON have all metrics and the paired tests.
    """
    shown = tuple(metrics) if metrics else default_metrics(snapshot)
    comparisons = {metric: comparisons_of(snapshot, metric, by) for metric in shown}
    first = comparisons[shown[0]]
    names = [[one.condition.label if one.condition else ""] for one in first]
    label = metric_label(shown[0])
    note = (
        f"{label[:1].upper()}{label[1:]}, mean ± standard deviation over seeds, of the "
        "configuration selected on validation in that condition. Only values within a row are "
        "comparable. Paired t tests (in CSV and JSON) are against the method that is best on "
        "validation in the condition, Holm-corrected."
    )
    return table_of(
        first,
        names,
        title=f"{snapshot.name}: conditions",
        header=("condition",),
        rows="conditions",
        methods=snapshot.methods,
        frame=_conditions_frame(snapshot, [one for every in comparisons.values() for one in every]),
        notes=[note, *_unequal_choice_notes(first)],
    )


def _unequal_choice_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """A note on conditions in which methods had different numbers of candidates."""
    texts = []
    for one in comparisons:
        counts = {method: found.n_candidates for method, found in one.candidates.items()}
        if len(set(counts.values())) > 1 and one.condition:
            listing = ", ".join(f"{method} {count}" for method, count in counts.items())
            texts.append(f"{one.condition.label} ({listing})")
    if not texts:
        return []
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return [f"Numbers of configurations per method differ in {'; '.join(texts[:3])}{more}."]


def _conditions_frame(snapshot: Snapshot, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    options = list(dict.fromkeys(n for c in snapshot.conditions.all for n in c.options))
    columns = ["condition", *(f"{PREFIX}{name}" for name in options), "metric", "method", "n"]
    columns.append("n_candidates")
    columns += [*STATISTICS, "difference", "p_paired_t", "p_holm", "configuration"]
    return pd.DataFrame(
        [record for one in comparisons for record in records_of(one)], columns=columns
    )
