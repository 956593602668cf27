"""Configurations in flight: how many, and what that costs a search on a large cluster."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest

from fakecluster import Outcome, simulate
from modmix.base.messages import Replicate
from modmix.search.limits import has_room
from modmix.study.spec import SearchSpec

STUDY = """
study: small
task: {name: weak, inputs: 2, train_rows: 40, val_rows: 20, test_rows: 20, dim: 4}
seeds: 1
training: {epochs: 2, batch_size: 20, stack: never}
parts:
  search:
    search: {SEARCH}
    methods:
      mul:
        beta: {low: 0, high: 1}
        learning_rate: {low: 0.0001, high: 1, log: true}
        weight_decay: {low: 0.000001, high: 0.1, log: true}
"""


def bowl(replicate: Replicate) -> float:
    """0 at β = 0.3, learning rate 0.01, weight decay 0.0001; the last matters least."""
    training = replicate.training
    beta = replicate.params["beta"] - 0.3
    rate = math.log10(training["learning_rate"]) + 2
    decay = math.log10(training["weight_decay"]) + 4
    return float((4 * beta) ** 2 + rate**2 + (decay / 3) ** 2)


def search(folder: Path, how: str, *, slots: int, seed: int = 0) -> Outcome:
    text = STUDY.replace("SEARCH", f"configurations: 60, seed: {seed}, {how}")
    return simulate(text, folder, bowl, slots=slots, seed=seed)


# ---------------------------------------------------------------- the rule


def proposals(search: SearchSpec, slots: float) -> list[int]:
    """How many configurations are in flight before and after each batch that is told, in order."""
    proposed, pending, seen = 0, list[int](), list[int]()
    while proposed < search.configurations or pending:
        while count := min(search.batch, search.configurations - proposed):
            if not has_room(
                search,
                count=count,
                proposed=proposed,
                pending=sum(pending),
                batches=len(pending),
                slots=slots,
            ):
                break
            proposed += count
            pending.append(count)
        seen.append(sum(pending))
        pending.pop(0)
    return seen


@pytest.mark.parametrize(
    ("how", "slots", "expected"),
    [
        # 10 at first; then a fifth of 20 is 4, and a batch of 5 always may go.
        ({"configurations": 20}, 64, [10, 5, 5, 5]),
        ({"configurations": 60}, 64, [*11 * [10], 5]),
        ({"configurations": 60, "batch": 4}, 64, [*13 * [12], 8, 4]),
        ({"configurations": 30, "batch": 10, "startup": 30}, 64, [30, 20, 10]),
        ({"configurations": 20, "batch": 1, "startup": 1}, 64, [*17 * [4], 3, 2, 1]),
        ({"configurations": 20, "batch": 8}, 64, [8, 8, 4]),
        # No more than there are slots for.
        ({"configurations": 20}, 1, [5, 5, 5, 5]),
        ({"configurations": 20}, 0.5, [5, 5, 5, 5]),
        # A number of batches overrides the rule, and random search learns nothing.
        ({"configurations": 20, "parallel": 3}, 1, [15, 15, 10, 5]),
        ({"configurations": 20, "sampler": "random"}, 64, [20, 15, 10, 5]),
        ({"configurations": 20, "sampler": "random"}, 2, [10, 10, 10, 5]),
    ],
)
def test_configurations_in_flight(
    how: dict[str, object], slots: float, expected: list[int]
) -> None:
    assert proposals(SearchSpec.model_validate(how), slots) == expected


# ---------------------------------------------------------------- on a cluster of 64 slots


@pytest.mark.slow
def test_a_large_cluster_does_not_make_a_search_random(tmp_path: Path) -> None:
    """The best of 60 configurations, over sampler seeds: as good as one after another."""
    capped, alone, all_at_once = [], [], []
    for seed in range(3):
        one = search(tmp_path / f"capped{seed}", "batch: 4", slots=64, seed=seed)
        assert len(one.values) == 60
        assert max(one.in_flight) == 12
        capped.append(min(one.values))
        one = search(tmp_path / f"alone{seed}", "batch: 1, parallel: 1", slots=64, seed=seed)
        assert max(one.in_flight) == 1
        alone.append(min(one.values))
        one = search(tmp_path / f"all{seed}", "batch: 4, parallel: 64", slots=64, seed=seed)
        assert max(one.in_flight) == 60
        all_at_once.append(min(one.values))
    assert fmean(capped) < 0.5 * fmean(all_at_once)
    assert fmean(capped) < fmean(alone) + 0.1
