"""Intervals, paired tests, corrections and ranks; plain numbers in and out.

Edge cases, for all functions:

    n = 0 or 1       standard deviation, interval and p value are NaN
    constant values  standard deviation 0, interval of width 0
    no differences   p = 1
    constant nonzero differences   the t test has no variance: p is NaN, not the limit 0
    NaN              makes the result NaN; values are never dropped silently

Intervals are two-sided at ``level`` (0.95). Standard deviations divide by n - 1.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from modmix.base import ties

Floats = NDArray[np.float64]

LEVEL = 0.95
_EXACT = 14  # most pairs for which the signed-rank test enumerates all 2^n signs


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over ``n`` replicates, its standard deviation and the t interval of the mean."""

    n: int
    mean: float
    std: float
    ci_low: float
    ci_high: float


NO_ESTIMATE = Estimate(n=0, mean=math.nan, std=math.nan, ci_low=math.nan, ci_high=math.nan)


def t_quantile(n: Floats, level: float = LEVEL) -> Floats:
    """The two-sided t quantile for samples of sizes ``n``; NaN below two."""
    freedom = np.where(n > 1, n - 1, np.nan)
    return np.asarray(special.stdtrit(freedom, (1 + level) / 2), dtype=np.float64)


def _is_flat(values: Floats) -> bool:
    """Whether values are equal up to rounding."""
    return ties.is_tie(float(values.min()), float(values.max()))


def estimate(
    values: Sequence[float],
    level: float = LEVEL,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean, standard deviation (n - 1) and t interval of the mean.

    Args:
        bounds: smallest and largest possible value. The interval is clipped to them, which leaves
            its coverage as it is. With two seeds, it extends nine standard deviations either way.

    Example:
        >>> estimate([1.0, 2.0, 3.0]).ci_high.__round__(4)
        4.4841
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return NO_ESTIMATE
    if not np.isfinite(x).all():
        mean = ties.mean(x.tolist())
        return Estimate(n=x.size, mean=mean, std=math.nan, ci_low=math.nan, ci_high=math.nan)
    mean = ties.mean(x.tolist())
    if x.size == 1:
        return Estimate(n=1, mean=mean, std=math.nan, ci_low=math.nan, ci_high=math.nan)
    std = 0.0 if _is_flat(x) else float(x.std(ddof=1))
    half = float(t_quantile(np.array([float(x.size)]), level)[0]) * std / math.sqrt(x.size)
    low, high = max(bounds[0], mean - half), min(bounds[1], mean + half)
    return Estimate(n=x.size, mean=mean, std=std, ci_low=low, ci_high=high)


def bootstrap_interval(
    values: Sequence[float],
    generator: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """The BCa bootstrap interval of the mean (Efron 1987).

    Too narrow for fewer than about ten values (five have only 126 different resamples), where the
    t interval is preferable.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2 or not np.isfinite(x).all():
        return math.nan, math.nan
    if _is_flat(x):
        return float(x.mean()), float(x.mean())
    picks = generator.integers(0, x.size, size=(resamples, x.size))
    means = x[picks].mean(axis=1)
    below = ((means < x.mean()).sum() + (means <= x.mean()).sum()) / (2 * resamples)
    bias = float(special.ndtri(below))
    left_out = (x.sum() - x) / (x.size - 1)  # jackknife
    gaps = left_out.mean() - left_out
    skew = float((gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5))
    tail = special.ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    shifted = special.ndtr(bias + (bias + tail) / (1 - skew * (bias + tail)))
    low, high = np.quantile(means, shifted)
    return float(low), float(high)


# ---------------------------------------------------------------- single modalities


def over_learning(
    predicted_N: NDArray[np.int64], right_N: NDArray[np.bool_], target_N: NDArray[np.int64]
) -> float:
    """The error in percent on the examples that at least one single modality predicts correctly.

    "Learn to Combine Modalities" (2018), section 6.2.5. NaN if there is no such example.

    Args:
        predicted_N: classes that the combined model predicts.
        right_N: whether at least one single-modality model predicts the example correctly.
        target_N: true classes.

    Example:
        >>> target = np.array([0, 1, 1, 0])
        >>> over_learning(np.array([0, 0, 0, 1]), np.array([True, True, False, True]), target)
        66.66666666666667
    """
    solvable = int(right_N.sum())
    if not solvable:
        return math.nan
    return 100 * int((predicted_N[right_N] != target_N[right_N]).sum()) / solvable


# ---------------------------------------------------------------- two methods, common seeds


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Paired comparison of two methods on their common seeds.

    ``difference`` is the mean of first minus second in the metric's unit (percentage points of
    error for errors), with its t interval; ``t_p`` and ``wilcoxon_p`` are two-sided.
    """

    n: int
    difference: float
    std: float
    ci_low: float
    ci_high: float
    t_p: float
    wilcoxon_p: float


def paired(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> Paired:
    """Compare two methods on their common seeds; ties (`modmix.base.ties`) have no difference."""
    seeds = sorted(set(first) & set(second))
    gaps = [
        0.0 if ties.is_tie(first[seed], second[seed]) else first[seed] - second[seed]
        for seed in seeds
    ]
    found = estimate(gaps, level)
    return Paired(
        n=found.n,
        difference=found.mean,
        std=found.std,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        t_p=_t_p(found),
        wilcoxon_p=wilcoxon_p(gaps),
    )


def _t_p(gaps: Estimate) -> float:
    if math.isnan(gaps.std):
        return math.nan
    if gaps.std == 0:
        return 1.0 if ties.is_tie(gaps.mean, 0.0) else math.nan
    t = gaps.mean / (gaps.std / math.sqrt(gaps.n))
    return float(2 * special.stdtr(gaps.n - 1, -abs(t)))


def wilcoxon_p(gaps: Sequence[float]) -> float:
    """Wilcoxon's signed-rank test, two-sided: exact up to 14 differences, normal beyond.

    Zero differences are dropped, ties share their mean rank. With five seeds p is at least 0.0625.
    """
    d = np.asarray(gaps, dtype=np.float64)
    if d.size < 2 or not np.isfinite(d).all():
        return math.nan
    d = d[[not ties.is_tie(gap, 0.0) for gap in d.tolist()]]
    if d.size == 0:
        return 1.0
    ranks = _shared_ranks(np.array(ties.places(np.abs(d).tolist())))
    rest = ranks.sum() / 2
    seen = abs(ranks[d > 0].sum() - rest)
    if d.size <= _EXACT:
        return float((np.abs(_signs(d.size) @ ranks - rest) >= seen - 1e-9).mean())
    z = seen / math.sqrt((ranks**2).sum() / 4)
    return float(2 * special.ndtr(-z))


def _shared_ranks(values: NDArray[Any]) -> Floats:
    """Ranks from 1; ties get their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], dtype=np.float64)


@functools.lru_cache(maxsize=_EXACT)
def _signs(size: int) -> Floats:
    """All ways to choose signs, (2^size, size)."""
    return np.array(list(itertools.product((0.0, 1.0), repeat=size)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for multiple tests. NaN stays NaN and is not counted.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    real = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(real, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(real) - place)))
        adjusted[i] = largest
    return adjusted


# ---------------------------------------------------------------- many methods


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks over blocks (1 is best), and the p value of Friedman's test."""

    frame: pd.DataFrame  # method, rank/mean, rank/std, wins, n; best first
    blocks: int
    friedman_p: float


def mean_ranks(
    values: Mapping[str, Mapping[Any, float]], *, higher_is_better: bool = False
) -> Ranks:
    """Rank methods within each block (a seed, a task, a study) and average the ranks.

    Args:
        values: method -> block -> value. Only blocks with finite values of all methods count. Ties
            share their mean rank; a tie for first place is not a win.
    """
    table = pd.DataFrame({m: pd.Series(dict(v), dtype=float) for m, v in values.items()})
    table = table.loc[np.isfinite(table.to_numpy(dtype=np.float64)).all(axis=1)]
    places = [
        ties.places(row, higher_is_better=higher_is_better) for row in table.to_numpy().tolist()
    ]
    ranks = pd.DataFrame(
        [_shared_ranks(np.array(row)) for row in places], columns=table.columns, dtype=float
    )
    frame = pd.DataFrame(
        {
            "method": list(table.columns),
            "rank/mean": ranks.mean().to_numpy() if len(table) else math.nan,
            "rank/std": ranks.std(ddof=1).to_numpy() if len(table) else math.nan,
            "wins": (ranks == 1).sum().to_numpy() if len(table) else 0,
            "n": len(table),
        }
    )
    frame = frame.sort_values("rank/mean", kind="stable").reset_index(drop=True)
    return Ranks(frame=frame, blocks=len(table), friedman_p=_friedman_p(ranks))


def _friedman_p(ranks: pd.DataFrame) -> float:
    n, k = ranks.shape
    if n < 2 or k < 3:
        return math.nan
    r = ranks.to_numpy(dtype=np.float64)
    spread = (n * (r.mean(axis=0) - (k + 1) / 2) ** 2).sum()
    within = ((r - (k + 1) / 2) ** 2).sum() / (n * (k - 1))
    return 1.0 if within == 0 else float(special.chdtrc(k - 1, spread / within))
