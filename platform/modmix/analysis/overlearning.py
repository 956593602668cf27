"""Over-learning: errors of a method where a single modality would have been right.

As Table 4 of "Learn to Combine Modalities" (2018), which evaluates "the errors on the examples
which at least one single modality predicts correctly". Single modalities are the best
configurations of the method `base`, one per modality, chosen on validation; models are compared
seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from modmix.analysis import statistics, tables
from modmix.analysis.best import BestConfiguration, best_of, best_values, check_selection
from modmix.analysis.comparisons import best_and_second
from modmix.analysis.frames import STATISTICS, Snapshot, short
from modmix.analysis.labels import metric_label, plus_minus
from modmix.analysis.predictions import finished, no_predictions
from modmix.analysis.render import Cell, Table
from modmix.analysis.statistics import NO_ESTIMATE, Estimate
from modmix.analysis.tables import Row
from modmix.base.errors import InputError
from modmix.base.metrics import OVER_LEARNING, value_range
from modmix.ledger.ledger import Ledger

SINGLE = "base"  # the method of single modalities
ERROR = "test/error"


@dataclass(frozen=True, kw_only=True)
class OverLearning:
    """A method's best configuration, with errors in percent over its replicates.

    ``over`` is `NO_ESTIMATE` if a replicate has no stored predictions.
    """

    best: BestConfiguration
    overall: Estimate
    over: Estimate
    stored: int  # replicates with predictions


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All methods but `base`, best on validation first."""

    rows: Sequence[OverLearning]
    singles: Mapping[str, str]  # modality -> full key of its configuration
    solvable: Estimate  # test examples that a single modality predicts correctly, in percent


def analyse(ledger: Ledger, snapshot: Snapshot, by: str | None = None) -> Analysis:
    """Compare the best configuration of every method with the single modalities.

    Args:
        by: the validation metric that selects; by default the study's first objective.

    Raises:
        InputError: the study has several tasks, no predictions, no other method than `base`, or
            `base` lacks a modality or a seed.
    """
    if snapshot.tasks:
        names = ", ".join(snapshot.tasks)
        raise InputError(f"over-learning is of one task: choose one with --task ({names})")
    metric = by or snapshot.objectives[0]
    check_selection(snapshot, metric)
    bests = [best for best in best_of(snapshot, metric) if best.method != SINGLE]
    if not bests:
        raise InputError(
            f"study {snapshot.name!r} has no finished method that combines modalities on the task "
            "as given: over-learning compares one with `base`"
        )
    stored = ledger.with_predictions([replicate.key for replicate in finished(snapshot)])
    keys = {
        configuration: {
            r.seed: r.key
            for r in snapshot.replicates_of[configuration]
            if r.state == "done" and r.key in stored
        }
        for configuration in snapshot.by_key
    }
    whole = [best for best in bests if len(keys[best.configuration]) == best.n]
    if not whole:
        raise InputError(no_predictions(snapshot.name))
    seeds = sorted({seed for best in whole for seed in keys[best.configuration]})
    singles = _singles(snapshot, metric, keys, seeds)
    of_seed, solvable = _by_seed(
        ledger,
        snapshot.by_key[whole[0].configuration].fingerprint,
        {seed: [keys[key][seed] for key in singles.values()] for seed in seeds},
        {
            seed: {
                best.method: keys[best.configuration][seed]
                for best in whole
                if seed in keys[best.configuration]
            }
            for seed in seeds
        },
    )
    rows = [
        OverLearning(
            best=best,
            overall=snapshot.estimate(best.configuration, ERROR),
            over=statistics.estimate(of_seed[best.method], bounds=value_range(ERROR))
            if best.method in of_seed
            else NO_ESTIMATE,
            stored=len(keys[best.configuration]),
        )
        for best in bests
    ]
    return Analysis(
        rows=rows,
        singles=singles,
        solvable=statistics.estimate(solvable, bounds=value_range(ERROR)),
    )


def _singles(
    snapshot: Snapshot, metric: str, keys: Mapping[str, Mapping[int, str]], seeds: Sequence[int]
) -> dict[str, str]:
    """By modality, the best configuration of `base`, which must have predictions for all seeds.

    Raises:
        InputError: names the modalities and seeds that are missing.
    """
    found = best_values(snapshot, SINGLE, "modality", metric)
    details = snapshot.record.details
    missing = []
    for modality in dict.fromkeys([*(details.get("modalities") or details["inputs"]), *found]):
        if modality not in found:
            missing.append(f"{modality} (no finished configuration)")
        elif left := [seed for seed in seeds if seed not in keys[found[modality]]]:
            missing.append(f"{modality} (no predictions for seed {', '.join(map(str, left))})")
    if missing:
        raise InputError(
            "over-learning needs `base` with stored test predictions for every modality and the "
            f"seeds of the other methods; study {snapshot.name!r} lacks {'; '.join(missing)}: add "
            "`base` to a grid, or set predictions: true before the study runs"
        )
    return found


def _by_seed(
    ledger: Ledger,
    fingerprint: str,
    singles: Mapping[int, Sequence[str]],
    combined: Mapping[int, Mapping[str, str]],
) -> tuple[dict[str, list[float]], list[float]]:
    """Over-learning by method, and solvable examples; a value in percent per seed.

    Memory holds the predictions of one seed.

    Args:
        singles: seed -> replicates of the single modalities.
        combined: seed -> method -> replicate.
    """
    split = ledger.test_split(fingerprint)
    assert split is not None, fingerprint  # stored before any prediction on it
    values: dict[str, list[float]] = {}
    solvable = []
    for seed, keys in singles.items():
        right_N = np.zeros(len(split.target_N), dtype=np.bool_)
        for _, found in ledger.predictions(keys):
            right_N |= found.classes_N == split.target_N
        solvable.append(100 * float(right_N.mean()))
        methods = {key: method for method, key in combined[seed].items()}
        for key, found in ledger.predictions(list(methods)):
            value = statistics.over_learning(found.classes_N, right_N, split.target_N)
            values.setdefault(methods[key], []).append(value)
    return values, solvable


# ---------------------------------------------------------------- table


def overlearning_table(ledger: Ledger, snapshot: Snapshot, by: str | None = None) -> Table:
    """One row per method: overall test error and over-learning, mean ± standard deviation.

    Raises:
        InputError: see `analyse`.
    """
    found = analyse(ledger, snapshot, by)
    header, numeric = ["method", "n"], [False, True]
    columns = [
        [Cell(text=row.best.method) for row in found.rows],
        [Cell(text=str(row.best.n), sort=row.best.n) for row in found.rows],
    ]
    papers: dict[str, list[tuple[float, float] | None]] = {}
    for metric, label, estimates in (
        (ERROR, metric_label(ERROR), [row.overall for row in found.rows]),
        (OVER_LEARNING, "over-learning (%)", [row.over for row in found.rows]),
    ):
        header.append(label)
        columns.append(_value_cells(estimates))
        papers[metric] = [_paper(snapshot, row.best, metric) for row in found.rows]
        if any(number is not None for number in papers[metric]):
            header.append("paper")
            columns.append([tables.paper_cell(number) for number in papers[metric]])
    numeric += [True] * (len(header) - 2)
    return Table(
        title=f"Over-learning of {snapshot.name}",
        header=tuple(header),
        cells=tuple(zip(*columns, strict=True)),
        numeric=tuple(numeric),
        frame=_frame(found, papers),
        notes=_notes(snapshot, found, by),
    )


def _value_cells(estimates: Sequence[Estimate]) -> list[Cell]:
    marks = best_and_second([one.mean for one in estimates], ERROR)
    return [
        Cell(text=plus_minus(one.mean, one.std, ERROR), mark=mark, sort=one.mean)
        for one, mark in zip(estimates, marks, strict=True)
    ]


def _paper(snapshot: Snapshot, best: BestConfiguration, metric: str) -> tuple[float, float] | None:
    row = Row(label=best.method, part="", best=best, n_candidates=0)
    return tables.paper_number(snapshot, row, metric)


def _frame(
    found: Analysis, papers: Mapping[str, Sequence[tuple[float, float] | None]]
) -> pd.DataFrame:
    records = []
    for i, row in enumerate(found.rows):
        record = {"method": row.best.method, "n": row.best.n, "n_predictions": row.stored}
        for metric, estimate in ((ERROR, row.overall), (OVER_LEARNING, row.over)):
            record |= {f"{metric}/{name}": getattr(estimate, name) for name in STATISTICS}
            mean, std = papers[metric][i] or (math.nan, math.nan)
            record |= {f"paper/{metric}/mean": mean, f"paper/{metric}/std": std}
        records.append(record | {"configuration": short(row.best.configuration)})
    return pd.DataFrame(records)


def _notes(snapshot: Snapshot, found: Analysis, by: str | None) -> tuple[str, ...]:
    singles = ", ".join(f"{name} {short(key)}" for name, key in found.singles.items())
    share = plus_minus(found.solvable.mean, found.solvable.std, ERROR)
    selection = metric_label(by or snapshot.objectives[0])
    notes = [
        f"Over-learning: error on the test examples that a single modality gets right ({share} %).",
        f"Single modalities: the best configuration of {SINGLE} for each, same seed ({singles}).",
        f"Configurations are selected by {selection}. Mean ± standard deviation over n seeds.",
    ]
    lacking = [
        f"{row.best.method} ({row.best.n - row.stored} of {row.best.n} models)"
        for row in found.rows
        if row.stored < row.best.n
    ]
    if lacking:
        notes.append(f"Without stored test predictions: {', '.join(lacking)}.")
    return tuple(notes)
