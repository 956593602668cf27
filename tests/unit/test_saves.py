"""When checkpoints are due, on an invented clock."""

from __future__ import annotations

import pytest

from modmix.training.saving import Saves


def times(most: float, ends: dict[float, int], *, until: float, step: float = 0.5) -> list[float]:
    """When checkpoints are written at evaluations every ``step`` seconds; writing takes no time."""
    saves, written, now, ended = Saves(0.0, most), [], 0.0, 0
    while now < until:
        now += step
        ended = ends.get(now, ended)
        if saves.due(now, ended):
            saves.done(now, ended)
            written.append(now)
    return written


def test_the_first_is_early_and_the_others_ever_rarer() -> None:
    assert times(30, {}, until=125) == [2, 6, 14, 30, 60, 90, 120]


def test_one_is_due_soon_after_a_model_has_ended() -> None:
    assert times(30, {31.0: 1, 31.5: 3, 33.0: 4}, until=80) == [2, 6, 14, 30, 32, 34, 64]


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_they_are_never_rarer_than_asked(most: float) -> None:
    step = max(most, 0.5)
    assert times(most, {}, until=5, step=step) == [step * (i + 1) for i in range(int(5 / step))]


def test_slow_writing_costs_at_most_a_tenth() -> None:
    saves = Saves(0.0, 30.0)
    assert saves.due(2.0, 0)
    saves.done(3.0, 0)  # it took a second
    assert not saves.due(12.9, 1)
    assert saves.due(13.0, 1)
