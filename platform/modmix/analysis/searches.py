"""Data of search figures: progress, importance, trade-offs between two objectives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from modmix.analysis.frames import Snapshot, short
from modmix.analysis.labels import higher_is_better
from modmix.analysis.statistics import Floats
from modmix.base import ties
from modmix.base.errors import InputError

IMPORTANCE_METHOD = (
    "share of the objective's variance between five bins of the hyperparameter "
    "(corrected ratio ε²), main effects only"
)
_BINS = 5
_MIN_CONFIGURATIONS = 10  # fewer give no meaningful importance

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# ---------------------------------------------------------------- progress


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One method's search: the objective of each configuration, and the best so far.

    NaN for configurations without a value.
    """

    method: str
    numbers: Floats
    values: Floats
    best: Floats
    pruned: Flags


@dataclass(frozen=True, kw_only=True)
class SearchHistory:
    part: str
    title: str
    metric: str
    traces: tuple[Trace, ...]

    def frame(self) -> pd.DataFrame:
        """One row per method and proposed configuration."""
        pieces = [
            pd.DataFrame(
                {
                    "method": trace.method,
                    "number": trace.numbers.astype(int),
                    f"{self.metric}/mean": trace.values,
                    "best_so_far": trace.best,
                    "pruned": trace.pruned,
                }
            )
            for trace in self.traces
        ]
        return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame()


def search_history(snapshot: Snapshot, part: str) -> SearchHistory:
    """The progress of a search: means of the first objective, in order of proposal.

    Pruned configurations have the value told to the sampler. They do not count for the best so far,
    nor do those with failed models or fewer seeds than others. A search over task options has no
    best so far.

    Raises:
        InputError: the part has no search.
    """
    spec = snapshot.parts.get(part)
    if spec is None or not spec.get("search"):
        searches = [name for name, found in snapshot.parts.items() if found.get("search")]
        raise InputError(
            f"a search history needs a part with a search ({', '.join(searches) or 'none has'}), "
            f"got {part!r}"
        )
    metric = snapshot.objectives[0]
    means = snapshot.means(metric)
    traces = []
    for method in snapshot.methods:
        mine = [e for e in snapshot.entries if e.part == part and e.method == method]
        if not mine:
            continue
        told = [e.values[0] if e.values else math.nan for e in mine]
        pruned = np.array([e.state == "pruned" for e in mine])
        values = np.array(
            [
                t if p else float(means.get(e.configuration, math.nan))
                for e, t, p in zip(mine, told, pruned, strict=True)
            ]
        )
        seeds = np.array([len(snapshot.replicates_of.get(e.configuration, ())) for e in mine])
        complete = np.array([e.configuration in snapshot.complete for e in mine])
        full = np.where(~complete | (seeds < seeds.max()), np.nan, values)
        conditions = {
            snapshot.conditions.of[e.configuration]
            for e in mine
            if e.configuration in snapshot.by_key
        }
        if len(conditions) > 1:
            full[:] = np.nan  # different data: not comparable
        running = np.fmax if higher_is_better(metric) else np.fmin
        traces.append(
            Trace(
                method=method,
                numbers=np.array([float(e.number) for e in mine]),
                values=values,
                best=running.accumulate(full),
                pruned=pruned,
            )
        )
    return SearchHistory(
        part=part,
        title=spec.get("title") or f"{snapshot.name}: {part}",
        metric=metric,
        traces=tuple(traces),
    )


# ---------------------------------------------------------------- importance


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance of one method's hyperparameters in one part.

    ``share`` is ε² (Kelley 1935): the fraction of the objective's variance between bins of the
    hyperparameter, corrected for chance, at least 0. Main effects only; shares need not sum to 1.
    ``correlation`` is Spearman's rank correlation with the objective, NaN for categories.
    """

    part: str
    method: str
    configurations: int
    names: tuple[str, ...]
    share: tuple[float, ...]
    correlation: tuple[float, ...]


def importance(snapshot: Snapshot) -> list[Importance]:
    """Importance by part and method, of at least ten configurations and two hyperparameters.

    Parts are not mixed, since each has its own fixed settings.
    """
    found = []
    for part in snapshot.parts:
        proposed: dict[str, set[str]] = {}
        for entry in snapshot.entries:
            if entry.part == part:
                proposed.setdefault(entry.method, set()).add(entry.configuration)
        for method in snapshot.methods:
            one = _importance(snapshot, part, method, proposed.get(method, set()))
            found += [one] if one is not None else []
    return found


def _importance(
    snapshot: Snapshot, part: str, method: str, proposed: set[str]
) -> Importance | None:
    means = snapshot.means(snapshot.objectives[0])
    configurations = [
        p for p in snapshot.configurations if p.key in proposed and math.isfinite(means[p.key])
    ]
    values = np.array([means[p.key] for p in configurations])
    if len(configurations) < _MIN_CONFIGURATIONS or ties.is_tie(values.min(), values.max()):
        return None
    rows = []
    for name in sorted({name for p in configurations for name in p.params}):
        settings = [p.params.get(name) for p in configurations]
        if len({_canonical(setting) for setting in settings}) > 1:
            rows.append((name, _share(settings, values), _correlation(settings, values)))
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: -row[1])
    names, shares, correlations = zip(*rows, strict=True)
    return Importance(
        part=part,
        method=method,
        configurations=len(configurations),
        names=names,
        share=shares,
        correlation=correlations,
    )


def importance_frame(found: Sequence[Importance]) -> pd.DataFrame:
    """One row per method and hyperparameter."""
    return pd.DataFrame(
        [
            {
                "part": one.part,
                "method": one.method,
                "hyperparameter": name,
                "variance_share": share,
                "rank_correlation": correlation,
                "configurations": one.configurations,
            }
            for one in found
            for name, share, correlation in zip(one.names, one.share, one.correlation, strict=True)
        ],
        columns=[
            "part",
            "method",
            "hyperparameter",
            "variance_share",
            "rank_correlation",
            "configurations",
        ],
    )


def _is_numeric(settings: Sequence[Any]) -> bool:
    return all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in settings)


def _share(settings: Sequence[Any], values: Floats) -> float:
    bins = _bins(settings)
    k, n = len(set(bins)), len(values)
    if k < 2 or n <= k:
        return 0.0
    means = pd.Series(values).groupby(bins).transform("mean").to_numpy()
    within = float(((values - means) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    return max(0.0, 1.0 - (within / (n - k)) / (total / (n - 1)))


def _bins(settings: Sequence[Any]) -> list[int]:
    """Five bins of equal counts for numbers with many values, otherwise one bin per value.

    Configurations without the hyperparameter (conditional or null) form a bin.
    """
    given = [s for s in settings if s is not None]
    distinct = {_canonical(setting) for setting in given}
    if len(distinct) <= _BINS or not _is_numeric(given):
        indices = {value: i for i, value in enumerate(sorted(distinct))}
        return [-1 if s is None else indices[_canonical(s)] for s in settings]
    ranks = pd.Series([math.nan if s is None else float(s) for s in settings]).rank()
    bins = ((ranks - 0.5) * _BINS // len(given)).clip(upper=_BINS - 1)
    return [int(b) for b in bins.fillna(-1)]


def _correlation(settings: Sequence[Any], values: Floats) -> float:
    """Spearman's correlation over configurations with the hyperparameter."""
    kept = [i for i, s in enumerate(settings) if s is not None]
    given = [settings[i] for i in kept]
    if len(kept) < 3 or not _is_numeric(given) or len(set(given)) < 2:
        return math.nan
    chosen = pd.Series(ties.places(values[kept].tolist())).rank()
    return math.nan if chosen.nunique() < 2 else float(pd.Series(given).rank().corr(chosen))


# ---------------------------------------------------------------- two objectives


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """Complete configurations on two objectives; ``front`` marks the Pareto front."""

    title: str
    metrics: tuple[str, str]
    methods: tuple[str, ...]
    values: Floats  # (configurations, 2)
    front: Flags
    configurations: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row per complete configuration."""
        return pd.DataFrame(
            {
                "method": list(self.methods),
                f"{self.metrics[0]}/mean": self.values[:, 0],
                f"{self.metrics[1]}/mean": self.values[:, 1],
                "front": self.front,
                "configuration": [short(configuration) for configuration in self.configurations],
            }
        )


def trade_off(snapshot: Snapshot) -> TradeOff:
    """The complete configurations of a study with two objectives, and its Pareto front.

    Only those with the task as given, if others change its options.

    Raises:
        InputError: the study has one objective.
    """
    if len(snapshot.objectives) != 2:
        raise InputError(f"a trade-off needs two objectives, study {snapshot.name!r} has one")
    first, second = snapshot.objectives
    main = snapshot.conditions.main
    configurations = snapshot.conditions.members[main] if main else ()
    keys = [p.key for p in configurations if p.key in snapshot.complete]
    columns = [snapshot.means(first), snapshot.means(second)]
    values = np.array([[column[key] for column in columns] for key in keys]).reshape(-1, 2)
    good = np.isfinite(values).all(axis=1)
    keys = [key for key, is_good in zip(keys, good, strict=True) if is_good]
    values = values[good]
    signs = np.array([-1.0 if higher_is_better(m) else 1.0 for m in (first, second)])
    return TradeOff(
        title=f"{snapshot.name}: trade-off between the objectives",
        metrics=(first, second),
        methods=tuple(snapshot.by_key[key].method for key in keys),
        values=values,
        front=_front(values * signs),
        configurations=tuple(keys),
    )


def _front(costs: Floats) -> Flags:
    """Rows not dominated by another one (as good on both, better on one); keeps ties."""
    front = np.zeros(len(costs), dtype=bool)
    best = math.inf
    order = np.lexsort((costs[:, 1], costs[:, 0]))
    previous: tuple[float, float] | None = None
    for i in order:
        pair = (float(costs[i, 0]), float(costs[i, 1]))
        front[i] = pair[1] < best or pair == previous
        if pair[1] < best:
            best, previous = pair[1], pair
    return front
