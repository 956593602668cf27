"""Which epoch's weights count: the last, or the best by the monitored metric."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modmix.base.messages import Finished, Progress
from modmix.base.settings import selection
from modmix.methods.model import unpack_weights
from modmix.training.group import Group
from modmix.training.trainer import train_pack
from plainloop import error_of, train_plainly
from toypack import finished, make_data, make_pack, make_replicates, train

DATA = make_data(rows=(96, 90, 60), noise=2.5)
RATES = [{"training": {"learning_rate": rate}} for rate in (0.03, 0.06, 0.1)]


def replicates(**fields: Any) -> tuple[Any, ...]:
    return make_replicates("add", RATES, data=DATA, epochs=6, batch_size=16, **fields)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a group held best weights, at every evaluation."""
    seen: list[bool] = []
    original = Group.evaluate

    def spy(self: Group, *arguments: Any) -> Any:
        found = original(self, *arguments)
        seen.append(self.best is not None)
        return found

    monkeypatch.setattr(Group, "evaluate", spy)
    return seen


def test_null_is_best_where_patience_is_set() -> None:
    assert selection({"select": None, "patience": None}) == "last"
    assert selection({"select": None, "patience": 3}) == "best"
    assert selection({"select": "last", "patience": 3}) == "last"
    assert selection({"select": "best", "patience": None}) == "best"


@pytest.mark.parametrize("select", ["last", None])
def test_the_last_epoch_counts_and_no_copy_is_kept(select: str | None, copies: list[bool]) -> None:
    made = replicates(select=select)
    ends = train(made, DATA, keep_weights=True)
    assert not any(copies)
    not_best = 0
    for replicate in made:
        end = ends[replicate.key]
        plain = train_plainly(replicate, DATA)
        assert plain.model is not None
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in plain.model.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-3)
        assert end.best_epoch == end.epochs == 6
        for name, column in end.history.items():
            if name not in ("epoch", "lr"):
                assert end.metrics[name] == column[-1]
        assert end.metrics["test/error"] == pytest.approx(error_of(plain.model, DATA.test))
        not_best += plain.best_epoch != 6
    assert not_best > 0


def test_the_best_epoch_counts(copies: list[bool]) -> None:
    made = replicates(select="best")
    ends = train(made, DATA, keep_weights=True)
    assert copies == [False, *[True] * 5]
    for replicate in made:
        end, plain = ends[replicate.key], train_plainly(replicate, DATA)
        assert end.best_epoch == plain.best_epoch
        assert end.metrics["val/error"] == pytest.approx(min(plain.history["val/error"]))
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in plain.best_state.items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-3)


def test_patience_with_the_last_weights() -> None:
    """A model stops after as many evaluations without a better one, with what it has then."""
    made = replicates(select="last", patience=2)
    ends = train(made, DATA)
    for replicate in made:
        end, plain = ends[replicate.key], train_plainly(replicate, DATA)
        assert end.epochs == end.best_epoch == len(plain.history["epoch"])
        assert end.metrics["val/error"] == pytest.approx(plain.history["val/error"][-1])
    assert len({end.epochs for end in ends.values()}) > 1


@pytest.mark.parametrize("select", ["last", "best"])
def test_rungs_compare_what_would_count(select: str) -> None:
    made = replicates(select=select, halving={"eta": 2, "min_epochs": 1}, monitor="val/nll")
    events = list(train_pack(make_pack(made), DATA))
    ends: dict[str, Finished] = finished(events)
    rungs = [event for event in events if isinstance(event, Progress) and event.rung]
    assert [event.rung for event in rungs] == [1, 2, 4]
    for event in rungs:
        for configuration, value in event.at_rung.items():
            mine = [e.history["val/nll"] for k, e in ends.items() if k.startswith(configuration)]
            each = [c[event.rung - 1] if select == "last" else min(c[: event.rung]) for c in mine]
            assert value == pytest.approx(sum(each) / 2)
    pruned = [end for end in ends.values() if end.state == "pruned"]
    assert len(pruned) == 4
    for end in pruned:
        column = list(end.history["val/nll"])
        best = column.index(min(column)) + 1
        assert end.best_epoch == (end.epochs if select == "last" else best)
