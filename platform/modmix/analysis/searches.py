"""The numbers behind the figures of searches: progress, importance, two objectives."""

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
_FEWEST = 10  # configurations below which an importance says nothing

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# ---------------------------------------------------------------- progress


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One method's search: each configuration's objective, and the best so far. NaN: no value
    yet.
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
    """What a search found, in order of asking: means of the first objective over replicates.

    A pruned configuration shows the value the sampler was told; it never becomes the best so far,
    and neither does one with fewer seeds than others of its search. A search that changes the
    task's options has no best so far.

    Raises:
        InputError: the part is no search.
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
        full = np.where(pruned | (seeds < seeds.max()), np.nan, values)
        met = {
            snapshot.conditions.of[e.configuration]
            for e in mine
            if e.configuration in snapshot.by_key
        }
        if len(met) > 1:
            full[:] = np.nan  # configurations on different data have no best
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
    """One method's hyperparameters in one part, by how much of the objective they explain.

    ``share`` is ε² (Kelley 1935): the variance between bins as a share of all, corrected for what
    bins of noise would show, not below 0. Main effects only; shares need not add up to 1.
    ``correlation`` is Spearman's rank correlation with the objective, NaN for words.
    """

    part: str
    method: str
    configurations: int
    names: tuple[str, ...]
    share: tuple[float, ...]
    correlation: tuple[float, ...]


def importance(snapshot: Snapshot) -> list[Importance]:
    """Importance per part and method, where it means something.

    That is, where at least ten configurations are finished and two hyperparameters vary. (What a
    single one does, its curve shows better.) Configurations of different parts are not mixed: each
    part has its own fixed settings.
    """
    found = []
    for part in snapshot.parts:
        asked: dict[str, set[str]] = {}
        for entry in snapshot.entries:
            if entry.part == part:
                asked.setdefault(entry.method, set()).add(entry.configuration)
        for method in snapshot.methods:
            one = _importance(snapshot, part, method, asked.get(method, set()))
            found += [one] if one is not None else []
    return found


def _importance(snapshot: Snapshot, part: str, method: str, asked: set[str]) -> Importance | None:
    means = snapshot.means(snapshot.objectives[0])
    configurations = [
        p for p in snapshot.configurations if p.key in asked and math.isfinite(means[p.key])
    ]
    values = np.array([means[p.key] for p in configurations])
    if len(configurations) < _FEWEST or ties.is_tie(values.min(), values.max()):
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
    """Five bins of equal counts for numbers of many values, one bin per value otherwise.

    Configurations that do not have the hyperparameter (it is conditional, or null) form a bin.
    """
    given = [s for s in settings if s is not None]
    words = {_canonical(setting) for setting in given}
    if len(words) <= _BINS or not _is_numeric(given):
        places = {word: i for i, word in enumerate(sorted(words))}
        return [-1 if s is None else places[_canonical(s)] for s in settings]
    ranks = pd.Series([math.nan if s is None else float(s) for s in settings]).rank()
    bins = ((ranks - 0.5) * _BINS // len(given)).clip(upper=_BINS - 1)
    return [int(b) for b in bins.fillna(-1)]


def _correlation(settings: Sequence[Any], values: Floats) -> float:
    """Spearman's correlation over the configurations that have the hyperparameter."""
    kept = [i for i, s in enumerate(settings) if s is not None]
    given = [settings[i] for i in kept]
    if len(kept) < 3 or not _is_numeric(given) or len(set(given)) < 2:
        return math.nan
    chosen = pd.Series(ties.places(values[kept].tolist())).rank()
    return math.nan if chosen.nunique() < 2 else float(pd.Series(given).rank().corr(chosen))


# ---------------------------------------------------------------- two objectives


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """All complete configurations on two objectives; ``front``: no other is as good on both."""

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
    """The configurations of a study with two objectives, and which form the Pareto front.

    Of a study that changes its task only the configurations with the task as given.

    Raises:
        InputError: the study has one objective.
    """
    if len(snapshot.objectives) != 2:
        raise InputError(f"a trade-off needs two objectives, study {snapshot.name!r} has one")
    first, second = snapshot.objectives
    whole = snapshot.conditions.whole
    configurations = snapshot.conditions.members[whole] if whole else ()
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
    """Which rows no other row beats (as good on both, better on one); equal rows all stay."""
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
