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
from modmix.analysis.statistics import Floats
from modmix.analysis.words import higher_is_better
from modmix.errors import InputError

IMPORTANCE_METHOD = (
    "share of the objective's variance between five bins of the hyperparameter "
    "(corrected ratio ε²), main effects only"
)
_BINS = 5
_FEWEST = 10  # points below which an importance says nothing

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# ---------------------------------------------------------------- progress


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One method's search: each point's objective, and the best so far. NaN: no value yet."""

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
        """One row per method and proposed point."""
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

    A pruned point shows the value the sampler was told; it never becomes the best so far.

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
    means = snapshot.points_table[f"{metric}/mean"].to_dict() if len(snapshot.points) else {}
    traces = []
    for method in snapshot.methods:
        mine = [e for e in snapshot.entries if e.part == part and e.method == method]
        if not mine:
            continue
        told = [e.values[0] if e.values else math.nan for e in mine]
        pruned = np.array([e.state == "pruned" for e in mine])
        values = np.array(
            [
                t if p else float(means.get(e.point, math.nan))
                for e, t, p in zip(mine, told, pruned, strict=True)
            ]
        )
        full = np.where(pruned, np.nan, values)
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
        title=f"{snapshot.name}: search of {spec.get('title') or part}",
        metric=metric,
        traces=tuple(traces),
    )


# ---------------------------------------------------------------- importance


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One method's hyperparameters by how much of the objective's variance they explain.

    ``share`` is ε² (Kelley 1935): the variance between bins as a share of all, corrected for what
    bins of noise would show, not below 0. Main effects only; shares need not add up to 1.
    ``correlation`` is Spearman's rank correlation with the objective, NaN for words.
    """

    method: str
    points: int
    names: tuple[str, ...]
    share: tuple[float, ...]
    correlation: tuple[float, ...]


def importance(snapshot: Snapshot) -> list[Importance]:
    """Importance per method, for methods with ten finished points and something that varies."""
    metric = snapshot.objectives[0]
    found = []
    for method in snapshot.methods:
        points = [p for p in snapshot.points if p.method == method]
        means = snapshot.points_table.loc[[p.key for p in points], f"{metric}/mean"].to_numpy()
        kept = [i for i in range(len(points)) if math.isfinite(means[i])]
        values = np.array([float(means[i]) for i in kept])
        if len(kept) < _FEWEST or np.ptp(values) == 0:
            continue
        names = sorted({name for i in kept for name in points[i].params})
        rows = []
        for name in names:
            settings = [points[i].params.get(name) for i in kept]
            if len({_canonical(setting) for setting in settings}) > 1:
                rows.append((name, _share(settings, values), _correlation(settings, values)))
        rows.sort(key=lambda row: -row[1])
        if rows:
            names_, shares, correlations = zip(*rows, strict=True)
            found.append(
                Importance(
                    method=method,
                    points=len(kept),
                    names=names_,
                    share=shares,
                    correlation=correlations,
                )
            )
    return found


def importance_frame(found: Sequence[Importance]) -> pd.DataFrame:
    """One row per method and hyperparameter."""
    return pd.DataFrame(
        [
            {
                "method": one.method,
                "hyperparameter": name,
                "variance_share": share,
                "rank_correlation": correlation,
                "points": one.points,
            }
            for one in found
            for name, share, correlation in zip(one.names, one.share, one.correlation, strict=True)
        ],
        columns=["method", "hyperparameter", "variance_share", "rank_correlation", "points"],
    )


def _is_numeric(settings: Sequence[Any]) -> bool:
    return all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in settings)


def _share(settings: Sequence[Any], values: Floats) -> float:
    bins = _bins(settings)
    k, n = len(set(bins)), len(values)
    if k < 2 or n <= k:
        return 0.0
    grouped = pd.Series(values).groupby(bins)
    within = float(((values - grouped.transform("mean").to_numpy()) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    return max(0.0, 1.0 - (within / (n - k)) / (total / (n - 1)))


def _bins(settings: Sequence[Any]) -> list[int]:
    """Bins of equal counts for numbers with many values, one per value otherwise."""
    words = [_canonical(setting) for setting in settings]
    if len(set(words)) <= _BINS or not _is_numeric(settings):
        places = {word: i for i, word in enumerate(dict.fromkeys(words))}
        return [places[word] for word in words]
    ranks = pd.Series([float(s) for s in settings]).rank(method="average").to_numpy()
    return [int(b) for b in np.minimum((ranks - 0.5) * _BINS // len(settings), _BINS - 1)]


def _correlation(settings: Sequence[Any], values: Floats) -> float:
    if not _is_numeric(settings):
        return math.nan
    ranks = pd.Series([float(s) for s in settings]).rank()
    return float(ranks.corr(pd.Series(values).rank()))


# ---------------------------------------------------------------- two objectives


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """All complete points on two objectives; ``front``: no other is as good on both."""

    title: str
    metrics: tuple[str, str]
    methods: tuple[str, ...]
    values: Floats  # (points, 2)
    front: Flags
    points: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row per complete point."""
        return pd.DataFrame(
            {
                "method": list(self.methods),
                f"{self.metrics[0]}/mean": self.values[:, 0],
                f"{self.metrics[1]}/mean": self.values[:, 1],
                "front": self.front,
                "point": [short(point) for point in self.points],
            }
        )


def trade_off(snapshot: Snapshot) -> TradeOff:
    """The points of a study with two objectives, and which form the Pareto front.

    Raises:
        InputError: the study has one objective.
    """
    if len(snapshot.objectives) != 2:
        raise InputError(f"a trade-off needs two objectives, study {snapshot.name!r} has one")
    first, second = snapshot.objectives
    keys = [p.key for p in snapshot.points if snapshot.is_complete(p.key)]
    table = snapshot.points_table
    columns = [table.loc[keys, f"{metric}/mean"] for metric in (first, second) if keys]
    values = np.array([c.to_numpy(dtype=np.float64) for c in columns]).T.reshape(-1, 2)
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
        points=tuple(keys),
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
