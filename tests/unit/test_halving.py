"""Which points go on after a rung."""

from __future__ import annotations

import math

from modmix.halving import rungs, survivors


def test_rungs_are_powers_before_the_last_epoch() -> None:
    assert rungs(1, 2, 16) == (1, 2, 4, 8)
    assert rungs(5, 3, 45) == (5, 15)
    assert rungs(5, 3, 46) == (5, 15, 45)
    assert rungs(9, 3, 9) == ()


def test_the_best_by_mean_go_on() -> None:
    values = {"a": [3.0, 5.0], "b": [1.0, 9.0], "c": [2.0, 2.0], "d": [4.5, 4.5]}
    assert survivors(values, 2, higher_is_better=False) == ["c", "a"]
    assert survivors(values, 2, higher_is_better=True) == ["b", "d"]
    assert survivors(values, 3, higher_is_better=False) == ["c", "a"]  # ⌈4/3⌉
    assert survivors(values, 4, higher_is_better=False) == ["c"]
    assert survivors(values, 9, higher_is_better=False) == ["c"]


def test_a_point_with_a_diverged_replicate_is_last() -> None:
    values = {"a": [0.0, math.nan], "b": [50.0, 60.0]}
    for higher in (True, False):
        assert survivors(values, 2, higher_is_better=higher) == ["b"]


def test_equals_keep_their_order() -> None:
    values = {"b": [1.0], "a": [1.0], "c": [1.0]}
    assert survivors(values, 2, higher_is_better=False) == ["b", "a"]
