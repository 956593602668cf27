"""The rule of ties, on percentages of counts whose sums round differently."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from modmix.base.ties import best, is_better, is_tie, mean, places


def test_the_mean_does_not_depend_on_the_order() -> None:
    values = [100 * wrong / 19 for wrong in (1, 2, 3, 5, 7)]
    exact = float(sum(map(Fraction, values)) / 5)
    found = {mean(order) for order in permutations(values)}
    assert found == {math.fsum(values) / 5}
    assert found.pop() == pytest.approx(exact, rel=1e-15)
    assert math.isnan(mean([]))
    assert math.isnan(mean([1.0, math.nan]))
    assert math.isnan(mean([math.inf, -math.inf]))
    assert mean([1.0, math.inf]) == math.inf


def test_equal_counts_are_equal_and_one_error_more_is_not() -> None:
    """All ways to make 20 errors over four seeds, and the closest mean that is another one."""
    rows = 1_000_003
    same = [(0, 0, 0, 20), (5, 5, 5, 5), (1, 2, 3, 14), (7, 6, 4, 3)]
    means = [mean([100 * wrong / rows for wrong in counts]) for counts in same]
    assert places(means) == [0, 0, 0, 0]
    one_more = mean([100 * wrong / rows for wrong in (5, 5, 5, 6)])
    assert not is_tie(means[0], one_more)
    large = [100 * wrong / 10_000_000 for wrong in (5_000_000, 5_000_001)]
    assert not is_tie(large[0], mean([large[0]] * 9 + [large[1]]))


def test_places_and_the_best() -> None:
    assert places([3.0, 0.1 + 0.2, math.nan, 0.3, math.inf]) == [1, 0, None, 0, 2]
    assert places([0.5, 0.9, 0.9 + 1e-15], higher_is_better=True) == [1, 0, 0]
    assert places([math.inf, math.inf]) == [0, 0]
    assert best([math.nan, 0.3, 0.1 + 0.2]) == 1
    assert best([0.1 + 0.2, 0.3]) == 0  # the first of equals, though the second is a bit smaller
    assert best([0.1, 0.7, 0.9], higher_is_better=True) == 2
    assert best([math.nan]) is None
    assert best([]) is None


def test_better_is_by_more_than_rounding() -> None:
    assert not is_better(0.3, 0.1 + 0.2, higher_is_better=False)
    assert is_better(0.2, 0.3, higher_is_better=False)
    assert is_better(0.3, 0.2, higher_is_better=True)
    assert is_better(5.0, math.nan, higher_is_better=False)
    assert not is_better(math.nan, 5.0, higher_is_better=True)
    assert not is_better(math.nan, math.nan, higher_is_better=True)


def test_places_are_ranks_without_gaps() -> None:
    values = np.random.default_rng(0).integers(0, 9, size=50) / 7
    expected = np.unique(values, return_inverse=True)[1]
    assert places(values.tolist()) == expected.tolist()
