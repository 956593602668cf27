"""Comparisons: several rows in each of which methods met on the same data, and ranks over the rows.

A comparison is a study, or one condition of a study. Its candidates are each method's best
configuration there, chosen on validation; they are tested against each other within it only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from modmix.analysis import statistics
from modmix.analysis.best import best_keys, best_place, candidates, default_metrics
from modmix.analysis.conditions import PREFIX, Condition
from modmix.analysis.frames import STATISTICS, Snapshot, short
from modmix.analysis.labels import higher_is_better, metric_label, p_clause, plus_minus
from modmix.analysis.render import Cell, Table
from modmix.analysis.statistics import NOTHING, Estimate, Paired, Ranks
from modmix.base import ties


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method's best configuration in a comparison, with its value on the comparison's metric."""

    configuration: str  # full key
    n_candidates: int  # complete configurations it was chosen from
    value: Estimate
    paired: Paired | None  # this minus the best of the comparison; None for the best
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row: who took part, and what each reached on a test metric."""

    study: str
    condition: Condition | None
    metric: str
    candidates: Mapping[str, Candidate]  # by method

    def mean(self, method: str) -> float:
        """NaN for a method that took no part."""
        return self.candidates[method].value.mean if method in self.candidates else math.nan

    def cost(self, method: str) -> float:
        """The mean turned so that lower is better."""
        return -self.mean(method) if higher_is_better(self.metric) else self.mean(method)


def contests_of(
    snapshot: Snapshot, metric: str | None = None, by: str | None = None
) -> list[Comparison]:
    """One comparison per condition of a study, in order of first appearance."""
    shown = metric or default_metrics(snapshot)[0]
    return [
        comparison(snapshot, condition, keys, shown)
        for condition, keys in best_keys(snapshot, by).items()
    ]


def comparison(
    snapshot: Snapshot, condition: Condition, configurations: Mapping[str, str], metric: str
) -> Comparison:
    """The comparison of some configurations of a condition, one per method."""
    n_candidates = candidates(snapshot, condition)
    values = [snapshot.estimate(configuration, metric) for configuration in configurations.values()]
    tests = against_best(snapshot, list(configurations.values()), metric, values)
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


def against_best(
    snapshot: Snapshot, configurations: Sequence[str], metric: str, values: Sequence[Estimate]
) -> list[tuple[Paired | None, float]]:
    """Each configuration minus the best one, seed by seed, and p values corrected over all of them.

    The best one (the first of equals) has no test; where no configuration has a mean nobody has
    one.
    """
    best = best_place([value.mean for value in values], metric)
    if best is None:
        return [(None, math.nan)] * len(configurations)
    reference = snapshot.by_seed(configurations[best], metric)
    tests = [
        None if i == best else statistics.paired(snapshot.by_seed(configuration, metric), reference)
        for i, configuration in enumerate(configurations)
    ]
    corrected = statistics.holm([math.nan if test is None else test.t_p for test in tests])
    return list(zip(tests, corrected, strict=True))


# ---------------------------------------------------------------- ranks over comparisons


def ranks_over(comparisons: Sequence[Comparison]) -> Ranks:
    """Mean ranks over the comparisons in which all ranked methods have a result.

    Ranked are the methods with a result in at least half of the comparisons, so that one that took
    part once does not take all other comparisons from the rest.
    """
    methods = list(dict.fromkeys(method for one in comparisons for method in one.candidates))
    taken = [one for one in comparisons if any(math.isfinite(one.mean(m)) for m in methods)]
    ranked = [
        method
        for method in methods
        if 2 * sum(math.isfinite(one.mean(method)) for one in taken) >= len(taken)
    ]
    full = common(comparisons, ranked)
    return statistics.mean_ranks(
        {method: {i: one.cost(method) for i, one in enumerate(full)} for method in ranked}
    )


def common(comparisons: Sequence[Comparison], methods: Sequence[str]) -> list[Comparison]:
    """The comparisons in which all these methods have a result."""
    return [one for one in comparisons if all(math.isfinite(one.mean(m)) for m in methods)]


# ---------------------------------------------------------------- the table


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
    """One row per comparison, one column per method, and the mean ranks in the last row.

    Args:
        names: the first cells of each row; ``header`` names their columns.
        rows: what a row is, for sentences: "conditions".
    """
    cells = [
        (*(Cell(text=word) for word in words), *_value_cells(one, methods))
        for one, words in zip(comparisons, names, strict=True)
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
    """What stands under mean ranks: over which rows they are, and Friedman's test."""
    if ranks.blocks < 2:
        return []
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
    return [f"{note}; Friedman's test that all methods are alike: {p_clause(ranks.friedman_p)}."]


def _value_cells(one: Comparison, methods: Sequence[str]) -> list[Cell]:
    values = [one.candidates[m].value if m in one.candidates else NOTHING for m in methods]
    marks = marks_of([value.mean for value in values], one.metric)
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


def marks_of(means: Sequence[float], metric: str) -> list[str]:
    """ "best" and "second" among means; equal ones share a mark, a single one gets none."""
    return _marks(ties.places(means, higher_is_better=higher_is_better(metric)))


def _marks(places: Sequence[int | None]) -> list[str]:
    is_alone = sum(place is not None for place in places) < 2
    names = {} if is_alone else {0: "best", 1: "second"}
    return ["" if place is None else names.get(place, "") for place in places]


def records_of(one: Comparison) -> list[dict[str, Any]]:
    """A comparison for machines, one record per method; ``difference`` is to the best."""
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


# ---------------------------------------------------------------- the conditions of one study


def conditions_table(
    snapshot: Snapshot, metrics: Sequence[str] | None = None, by: str | None = None
) -> Table:
    """One row per condition of a study: who wins on which data.

    Read are the values of the first metric; CSV and JSON have all of them, and the paired tests.
    """
    shown = tuple(metrics) if metrics else default_metrics(snapshot)
    comparisons = {metric: contests_of(snapshot, metric, by) for metric in shown}
    first = comparisons[shown[0]]
    names = [[one.condition.label if one.condition else ""] for one in first]
    label = metric_label(shown[0])
    note = (
        f"{label[:1].upper()}{label[1:]}, mean ± standard deviation over seeds, of the "
        "configuration that "
        "validation chose in that condition. Only values in one row are of the same data."
    )
    return table_of(
        first,
        names,
        title=f"{snapshot.name}: the conditions",
        header=("condition",),
        rows="conditions",
        methods=snapshot.methods,
        frame=_conditions_frame(snapshot, [one for every in comparisons.values() for one in every]),
        notes=[note, *_choice_notes(first)],
    )


def _choice_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Where methods had unequal choice: who may choose among more has better luck, too."""
    texts = []
    for one in comparisons:
        counts = {method: found.n_candidates for method, found in one.candidates.items()}
        if len(set(counts.values())) > 1 and one.condition:
            words = ", ".join(f"{method} {count}" for method, count in counts.items())
            texts.append(f"{one.condition.label} ({words})")
    if not texts:
        return []
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return [
        f"Methods chose among unequal numbers of configurations in {'; '.join(texts[:3])}{more}."
    ]


def _conditions_frame(snapshot: Snapshot, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    options = list(dict.fromkeys(n for c in snapshot.conditions.all for n in c.options))
    columns = ["condition", *(f"{PREFIX}{name}" for name in options), "metric", "method", "n"]
    columns.append("n_candidates")
    columns += [*STATISTICS, "difference", "p_paired_t", "p_holm", "configuration"]
    return pd.DataFrame(
        [record for one in comparisons for record in records_of(one)], columns=columns
    )
