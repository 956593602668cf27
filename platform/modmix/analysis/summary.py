"""The report's summary: the method chosen on validation, its test result, progress, ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from modmix.analysis import statistics
from modmix.analysis.best import best_index, default_metrics, undefined
from modmix.analysis.comparisons import Comparison, common, comparisons_of, ranks_over
from modmix.analysis.frames import Snapshot
from modmix.analysis.labels import (
    higher_is_better,
    interval_text,
    metric_name,
    metric_text,
    p_clause,
    unit,
)
from modmix.analysis.tables import Row, reference_of, result_rows
from modmix.base import ties


def headline(snapshot: Snapshot, metric: str | None = None) -> str:
    """The method that is best on validation: its test mean, compared with the next method's.

    Each method is represented by its best configuration on validation. If some configurations
    change the task's options, only those with the task as given count; if all do, the summary
    counts the conditions that each method wins.
    """
    shown = metric or default_metrics(snapshot)[0]
    if snapshot.conditions.is_split:
        return _over_conditions(snapshot, shown)
    sentence = _of_main(snapshot, shown)
    if len(snapshot.conditions.all) > 1:
        return f"With the study file's task options: {sentence}"
    return sentence


def _of_main(snapshot: Snapshot, shown: str) -> str:
    rows = result_rows(snapshot, shown)
    winner = reference_of(rows, shown)
    if winner is None and rows:
        return f"No finished configuration has a {metric_name(shown)}. {progress(snapshot)}"
    if winner is None and snapshot.complete:
        return f"{undefined(snapshot)}. {progress(snapshot)}"
    if winner is None:
        return f"No configuration has finished all its replicates yet. {progress(snapshot)}"
    value = winner.best.estimates[shown]
    interval = (
        f"95 % CI {interval_text(value.ci_low, value.ci_high, shown)}, n = {value.n}"
        if value.n > 1
        else "one seed"
    )
    number = _with_unit(value.mean, shown)
    others = [row for row in rows if row.best.method != winner.best.method]
    second = reference_of(others, shown)
    if second is None:
        return f"{winner.label} reaches {number} {metric_name(shown)} ({interval})."
    first = (
        f"{winner.label} is best by {metric_name(winner.best.metric)}. Its {metric_name(shown)} is "
        f"{number} ({interval})"
    )
    return f"{first}, {_distance(second, shown)} {_on_test(rows, winner, shown)}".strip()


def _over_conditions(snapshot: Snapshot, metric: str) -> str:
    """The headline if every configuration changes the task: wins per condition, mean ranks."""
    comparisons = comparisons_of(snapshot, metric)
    found = ranks_over(comparisons)
    begin = (
        "Every configuration changes the task's options, so methods are compared within each of "
        f"{len(comparisons)} conditions."
    )
    if found.blocks == 0 or len(found.frame) < 2:
        return f"{begin} No condition has results of several methods yet. {progress(snapshot)}"
    full = common(comparisons, list(found.frame["method"]))
    wins = Counter(dict(zip(found.frame["method"], found.frame["wins"].tolist(), strict=True)))
    (most, count), *rest = wins.most_common()  # ties: the better mean rank
    others = ", ".join(f"{method} in {n}" for method, n in rest if n)
    which = f" that have results of all {len(wins)} methods" if len(full) < len(comparisons) else ""
    word = "highest" if higher_is_better(metric) else "lowest"
    clear = sum(_is_clear(one, most) for one in full)
    return (
        f"{begin} {most} has the {word} {metric_name(metric)} in {count} of the {len(full)}{which}"
        f"{f' ({others})' if others else ''}; in {clear} of them it is also best on validation and "
        "differs significantly from every other method (paired t tests, Holm-corrected, 5 % "
        "level). "
        f"{_best_rank(found, most)}."
    )


def _is_clear(one: Comparison, method: str) -> bool:
    """Whether a method is best on test and validation, and differs significantly from others."""
    rest = {name: found for name, found in one.candidates.items() if name != method}
    is_best = all(one.cost(method) < one.cost(name) for name in rest)
    is_clear = all(found.p_holm < 0.05 for found in rest.values())
    return is_best and one.reference == method and is_clear


def _best_rank(found: statistics.Ranks, most: str) -> str:
    methods, means = found.frame["method"].tolist(), found.frame["rank/mean"].tolist()
    friedman = (
        "" if math.isnan(found.friedman_p) else f" (Friedman test: {p_clause(found.friedman_p)})"
    )
    if means[0] == means[1]:
        tied = " and ".join(m for m, mean in zip(methods, means, strict=True) if mean == means[0])
        return f"{tied} share the best mean rank, {means[0]:.2f}{friedman}"
    who = "It also" if methods[0] == most else methods[0]
    return (
        f"{who} has the best mean rank, {means[0]:.2f}, followed by {methods[1]} with "
        f"{means[1]:.2f}{friedman}"
    )


def _distance(second: Row, metric: str) -> str:
    """The end of the headline's first half: the distance to the next method, and its test."""
    assert second.paired is not None
    test = second.paired
    if test.n == 0:
        return (
            f"and that of {second.label}, the next method, is "
            f"{_with_unit(second.best.estimates[metric].mean, metric)}; the two have no seed in "
            "common for a paired test."
        )
    if ties.is_tie(test.difference, 0.0):
        return f"equal to that of {second.label}."
    gap, low, high = test.difference, test.ci_low, test.ci_high
    word = "lower"
    if gap < 0:
        gap, low, high, word = -gap, -high, -low, "higher"
    measure = " points" if unit(metric) == "%" else ""
    apart = f"{metric_text(gap, metric)}{measure} {word} than that of {second.label}, the next"
    if test.n == 1:
        return f"{apart} method. One common seed does not allow a test."
    interval = f"95 % CI {interval_text(low, high, metric)}"
    if math.isnan(second.p_holm):
        return (
            f"{apart} method ({interval} over {test.n} common seeds; the t test is undefined here)."
        )
    verdict = "significant" if second.p_holm < 0.05 else "not significant"
    return (
        f"{apart} method ({interval}; paired t test over {test.n} common seeds, Holm-corrected "
        f"{p_clause(second.p_holm)}, {verdict} at the 5 % level)."
    )


def _on_test(rows: Sequence[Row], winner: Row, metric: str) -> str:
    """A note if another row has the best test mean."""
    best = best_index([row.best.estimates[metric].mean for row in rows], metric)
    if best is None or ties.is_tie(
        rows[best].best.estimates[metric].mean, winner.best.estimates[metric].mean
    ):
        return ""
    word = "highest" if higher_is_better(metric) else "lowest"
    number = _with_unit(rows[best].best.estimates[metric].mean, metric)
    return f"{rows[best].label} has the {word} {metric_name(metric)}: {number}."


def _with_unit(value: float, metric: str) -> str:
    shown = unit(metric)
    return f"{metric_text(value, metric)} {shown}" if shown else metric_text(value, metric)


def progress(snapshot: Snapshot) -> str:
    """ "12 of 20 replicates are done (3 running, 1 failed, 4 pending)."""
    counts = Counter(replicate.state for replicate in snapshot.replicates)
    done, total = counts.pop("done", 0), len(snapshot.replicates)
    order = ("running", "interrupted", "pending", "pruned", "failed")
    rest = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
    return f"{done} of {total} replicates are done{f' ({rest})' if rest else ''}."


def is_finished(snapshot: Snapshot) -> bool:
    """Whether the study has finished and every replicate has ended."""
    waiting = any(r.state in ("pending", "running", "interrupted") for r in snapshot.replicates)
    return snapshot.record.state == "finished" and not waiting


def ranks(snapshot: Snapshot, metric: str | None = None) -> statistics.Ranks:
    """Mean ranks of the methods' best configurations over their common seeds.

    Over the conditions instead, if every configuration changes the task.
    """
    shown = metric or default_metrics(snapshot)[0]
    if snapshot.conditions.is_split:
        return ranks_over(comparisons_of(snapshot, shown))
    rows = result_rows(snapshot, shown)
    # With labels, every row has a part, and stands for itself.
    whole = [row for row in rows if not row.part] or rows
    return statistics.mean_ranks(
        {row.label: snapshot.by_seed(row.best.configuration, shown) for row in whole},
        higher_is_better=higher_is_better(shown),
    )
