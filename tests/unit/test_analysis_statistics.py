"""Intervals, tests and corrections against scipy, and what they do with hard input."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from modmix.analysis.statistics import (
    bootstrap_interval,
    estimate,
    holm,
    mean_ranks,
    paired,
    t_quantile,
    wilcoxon_p,
)

SAMPLES = [np.random.default_rng(seed).normal(20, 3, size) for seed, size in enumerate((2, 5, 30))]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_estimate_equals_scipys_t_interval(sample, level):
    found = estimate(list(sample), level)
    low, high = stats.t.interval(
        level, len(sample) - 1, loc=np.mean(sample), scale=stats.sem(sample)
    )
    assert found.n == len(sample)
    assert found.mean == pytest.approx(np.mean(sample))
    assert found.std == pytest.approx(np.std(sample, ddof=1))
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))


def test_hand_value():
    # mean 2, deviation 1, t quantile of two degrees of freedom 4.302653
    found = estimate([1.0, 2.0, 3.0])
    assert found.ci_high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_estimate_of_nothing_and_of_one():
    nothing, one = estimate([]), estimate([3.5])
    assert nothing.n == 0
    assert math.isnan(nothing.mean)
    assert (one.n, one.mean) == (1, 3.5)
    assert all(math.isnan(value) for value in (one.std, one.ci_low, one.ci_high))
    assert math.isnan(t_quantile(np.array([1.0]))[0])


def test_equal_values_have_no_width():
    value = 100 * 7 / 359  # not exact in binary
    found = estimate([value] * 4)
    assert (found.std, found.ci_low, found.ci_high) == (0.0, found.mean, found.mean)


def test_an_undefined_value_is_not_dropped():
    found = estimate([1.0, math.nan, 3.0])
    assert found.n == 3
    assert math.isnan(found.mean)
    assert math.isnan(found.ci_low)


def test_an_infinite_value_makes_the_mean_infinite_and_the_interval_undefined():
    found = estimate([1.0, math.inf])
    assert found.mean == math.inf
    assert math.isnan(found.ci_high)
    assert math.isnan(estimate([-math.inf, math.inf]).mean)


@pytest.mark.parametrize("sample", [SAMPLES[1], SAMPLES[2], np.exp(SAMPLES[2] / 5)])
def test_bootstrap_equals_scipys_bca(sample):
    found = bootstrap_interval(list(sample), np.random.default_rng(0), resamples=20_000)
    theirs = stats.bootstrap(
        (sample,), np.mean, method="BCa", n_resamples=20_000, random_state=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


def test_bootstrap_is_seeded_and_knows_its_limits():
    values = [1.0, 2.0, 4.0, 8.0]
    first = bootstrap_interval(values, np.random.default_rng(7))
    assert first == bootstrap_interval(values, np.random.default_rng(7))
    assert bootstrap_interval([2.0, 2.0, 2.0], np.random.default_rng(0)) == (2.0, 2.0)
    for hopeless in ([], [1.0], [1.0, math.nan]):
        assert all(map(math.isnan, bootstrap_interval(hopeless, np.random.default_rng(0))))


# ---------------------------------------------------------------- paired


def test_paired_equals_scipy():
    rng = np.random.default_rng(3)
    first, second = rng.normal(10, 1, 7), rng.normal(10.8, 1, 7)
    found = paired(dict(enumerate(first)), dict(enumerate(second)))
    theirs = stats.ttest_rel(first, second)
    interval = theirs.confidence_interval(0.95)
    assert found.n == 7
    assert found.difference == pytest.approx(np.mean(first - second))
    assert found.t_p == pytest.approx(theirs.pvalue)
    assert (found.ci_low, found.ci_high) == pytest.approx((interval.low, interval.high))
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(first - second).pvalue)


def test_only_common_seeds_count():
    found = paired({0: 1.0, 1: 2.0, 5: 100.0}, {1: 1.5, 0: 0.0, 9: -50.0})
    assert found.n == 2
    assert found.difference == pytest.approx(0.75)


def test_equal_results_are_no_difference():
    found = paired({0: 5.0, 1: 6.0}, {0: 5.0, 1: 6.0})
    assert (found.difference, found.t_p, found.wilcoxon_p) == (0.0, 1.0, 1.0)


def test_a_constant_gap_gives_no_t_test():
    # 5 examples of 359 apart on every seed: no variance to judge by, and certainly not p = 0.
    step = 100 / 359
    found = paired({s: step * (40 + s) for s in range(3)}, {s: step * (35 + s) for s in range(3)})
    assert found.difference == pytest.approx(5 * step)
    assert found.std == 0.0
    assert math.isnan(found.t_p)
    assert found.wilcoxon_p == pytest.approx(0.25)


def test_one_common_seed_or_none():
    one = paired({0: 5.0}, {0: 4.0})
    assert (one.n, one.difference) == (1, 1.0)
    assert math.isnan(one.t_p)
    assert math.isnan(one.wilcoxon_p)
    none = paired({0: 5.0}, {1: 4.0})
    assert none.n == 0
    assert math.isnan(none.difference)


@pytest.mark.parametrize("size", [3, 5, 12])
def test_wilcoxon_is_exact_for_few_pairs(size):
    gaps = np.random.default_rng(size).normal(0.5, 1, size)
    theirs = stats.wilcoxon(gaps, method="exact")
    assert wilcoxon_p(list(gaps)) == pytest.approx(theirs.pvalue)


def test_wilcoxon_for_many_pairs_is_normal():
    gaps = np.random.default_rng(0).normal(0.3, 1, 40)
    theirs = stats.wilcoxon(gaps, method="approx", correction=False)
    assert wilcoxon_p(list(gaps)) == pytest.approx(theirs.pvalue)


def test_wilcoxon_with_ties_and_zeros_counts_all_signs():
    # |d| = 1, 1, 2 have ranks 1.5, 1.5, 3; the zero is left out. All positive: 2 of 8 sign
    # patterns are as extreme. 0.1 + 0.2 ties with 0.3.
    assert wilcoxon_p([1.0, 1.0, 2.0, 0.0]) == pytest.approx(0.25)
    assert wilcoxon_p([0.1 + 0.2, 0.3, 1.0]) == pytest.approx(wilcoxon_p([0.3, 0.3, 1.0]))
    assert math.isnan(wilcoxon_p([1.0, math.nan]))


# ---------------------------------------------------------------- many


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_leaves_undefined_p_values_out_of_the_family():
    found = holm([0.02, math.nan, 0.5])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.5)


def test_ranks_equal_scipys_friedman():
    rng = np.random.default_rng(0)
    values = {name: dict(enumerate(rng.normal(mean, 1, 6))) for name, mean in
              (("a", 0.0), ("b", 0.5), ("c", 2.0))}  # fmt: skip
    found = mean_ranks(values)
    theirs = stats.friedmanchisquare(*[list(v.values()) for v in values.values()])
    matrix = pd.DataFrame(values).rank(axis=1)
    assert found.blocks == 6
    assert found.friedman_p == pytest.approx(theirs.pvalue)
    by_method = found.frame.set_index("method")
    for name in values:
        assert by_method.loc[name, "rank/mean"] == pytest.approx(matrix[name].mean())
    assert list(found.frame["rank/mean"]) == sorted(found.frame["rank/mean"])


def test_ranks_follow_the_direction_and_share_ties():
    values = {"a": {0: 0.9, 1: 0.8}, "b": {0: 0.7, 1: 0.8}}
    found = mean_ranks(values, higher_is_better=True).frame.set_index("method")
    assert found.loc["a", "rank/mean"] == 1.25
    assert found.loc["b", "rank/mean"] == 1.75
    assert found.loc["a", "wins"] == 1


def test_ranks_use_only_blocks_that_all_methods_have():
    values = {"a": {0: 1.0, 1: 2.0, 2: math.nan}, "b": {0: 2.0, 2: 1.0}}
    assert mean_ranks(values).blocks == 1
    nothing = mean_ranks({"a": {0: 1.0}, "b": {1: 1.0}})
    assert nothing.blocks == 0
    assert nothing.frame["rank/mean"].isna().all()
    assert mean_ranks({}).blocks == 0


def test_friedman_of_methods_that_always_tie_is_one():
    values = {name: {0: 1.0, 1: 1.0} for name in "abc"}
    assert mean_ranks(values).friedman_p == 1.0
