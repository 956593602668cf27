"""Stages in which patience counts from a later epoch on."""

from __future__ import annotations

from typing import Any

import pytest

from modmix.base.metrics import STAGE
from toypack import make_data, make_replicates, train

DATA = make_data(rows=(64, 32, 32))
# The epoch (from 0) from which patience counts; a cycle of ReconBoost has two turns for each of the
# three modalities.
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("dimml", {"warmup": 4, "head_epochs": 1}, 4),
    ("gblending", {"super_epoch": 4}, 4),
    ("reconboost", {"turn_epochs": 1}, 6),
]


def first_stage(method: str, params: dict[str, Any], **settings: Any) -> list[float]:
    """Epochs of the evaluations of the first stage of a model that never improves."""
    settings = {"epochs": 9, "batch_size": 16, "learning_rate": 1e-30, **settings}
    (made,) = make_replicates(method, [params], [0], data=DATA, **settings)
    (end,) = train([made], DATA).values()
    assert len(set(end.history["val/error"][: 3 * settings.get("evaluations_per_epoch", 1)])) == 1
    stages = end.history.get(STAGE, [1.0] * len(end.history["epoch"]))
    return [e for e, stage in zip(end.history["epoch"], stages, strict=True) if stage == 1]


@pytest.mark.parametrize(("method", "params", "first"), CASES)
def test_no_model_stops_before_the_method_does_what_it_is_for(
    method: str, params: dict[str, Any], first: int
) -> None:
    assert first_stage(method, params, patience=2) == [*range(1, first + 3)]
    assert first_stage(method, params, patience=6) == [*range(1, 10)]
    twice = first_stage(method, params, patience=2, evaluations_per_epoch=2)
    assert twice == [n / 2 for n in range(1, 2 * first + 3)]


@pytest.mark.parametrize(
    ("method", "params"),
    [("dimml", {"warmup": 9, "head_epochs": 1}), ("reconboost", {"turn_epochs": 2})],
)
def test_patience_counts_from_the_beginning_where_nothing_is_to_come(
    method: str, params: dict[str, Any]
) -> None:
    assert first_stage(method, params, patience=2) == [1, 2, 3]
