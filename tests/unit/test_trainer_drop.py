"""Models that someone else decides to drop from a pack in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modmix.base.messages import Ended, Finished, Progress
from modmix.training.trainer import train_pack
from toypack import finished, make_data, make_pack, make_replicates, train

DATA = make_data(rows=(96, 60, 60))
CONFIGURATIONS = [{"training": {"learning_rate": rate}} for rate in (0.001, 0.005, 0.02)]


def replicates(**training: Any) -> Any:
    return make_replicates("add", CONFIGURATIONS, data=DATA, epochs=5, batch_size=32, **training)


def test_a_dropped_model_ends_before_the_next_part_and_no_other_changes() -> None:
    whole = train(replicates(), DATA)
    told: dict[str, str] = {}
    ends: dict[str, Finished] = {}
    trained: list[tuple[int, set[str]]] = []
    for event in train_pack(make_pack(replicates()), DATA, dropped=lambda: told):
        if isinstance(event, Finished):
            ends[event.replicate] = event
        if isinstance(event, Progress):
            trained.append((event.epoch, set(event.metrics)))
            if event.epoch == 2:
                told.update({f"add-{i}-{seed}": "enough" for i in (0, 1) for seed in (0, 1)})
    everyone, kept = set(whole), {"add-2-0", "add-2-1"}
    assert trained == [(1, everyone), (2, everyone), (3, kept), (4, kept), (5, kept)]
    assert {key: (e.state, e.reason, e.epochs) for key, e in ends.items()} == {
        key: ("done", "", 5) if key in kept else ("pruned", "enough", 2) for key in everyone
    }
    for key, end in ends.items():
        expected = whole[key].history["val/nll"][: end.epochs]
        assert list(end.history["val/nll"]) == pytest.approx(expected, rel=1e-5)
        assert any(name.startswith("test/") for name in end.metrics) == (key in kept)


def test_who_was_never_evaluated_is_not_dropped_yet() -> None:
    """It would end without a single value; the verdict stands, and holds one evaluation later."""
    told = dict.fromkeys((r.key for r in replicates()), "enough")
    ends = finished(train_pack(make_pack(replicates()), DATA, dropped=lambda: told))
    assert {e.epochs for e in ends.values()} == {1}
    assert {e.state for e in ends.values()} == {"pruned"}


@pytest.mark.parametrize("how", ["dropped", "known"])
def test_most_of_a_resumed_pack_is_gone(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint holds all models; most are not wanted any more before the next epoch."""
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    whole = train(replicates(), DATA)
    gone = {key for key in whole if not key.startswith("add-2")}
    folder = str(tmp_path / "c")
    training = train_pack(make_pack(replicates(), checkpoint=folder), DATA)
    for event in training:
        if isinstance(event, Progress) and event.epoch == 3:
            break
    training.close()
    ended = {key: Ended(state="pruned", best=None) for key in gone} if how == "known" else {}
    told = dict.fromkeys(gone, "enough") if how == "dropped" else {}
    pack = make_pack(replicates(), checkpoint=folder, ended=ended)
    ends = finished(train_pack(pack, DATA, dropped=lambda: told))
    assert set(ends) == set(whole) - set(ended)
    for key in set(whole) - gone:
        assert ends[key].state == "done"
        assert list(ends[key].history["val/nll"]) == pytest.approx(
            whole[key].history["val/nll"], rel=1e-5
        )


def test_rungs_are_told_with_each_configurations_value() -> None:
    """The mean over seeds of the best error so far; a single configuration is dropped by nobody
    here.
    """
    halving = {"eta": 2.0, "min_epochs": 1.0}
    one = make_replicates(
        "add", CONFIGURATIONS[:1], data=DATA, epochs=5, batch_size=32, halving=halving
    )
    events = list(train_pack(make_pack(one), DATA))
    told = {e.epoch: (e.rung, dict(e.at_rung)) for e in events if isinstance(e, Progress)}
    ends = finished(events)
    assert {e.state for e in ends.values()} == {"done"}
    for epoch, (rung, values) in told.items():
        best = [min(end.history["val/error"][:epoch]) for end in ends.values()]
        is_rung = epoch in (1, 2, 4)
        assert rung == (epoch if is_rung else 0)
        assert values == ({"add-0": pytest.approx(sum(best) / 2)} if is_rung else {})


def test_a_pack_that_completes_configurations_drops_nobody() -> None:
    halving = {"eta": 2.0, "min_epochs": 1.0}
    events = list(train_pack(make_pack(replicates(halving=halving), halving=False), DATA))
    assert {e.state for e in finished(events).values()} == {"done"}
    assert not any(e.at_rung for e in events if isinstance(e, Progress))


def test_a_verdict_that_comes_late_counts_from_the_rung() -> None:
    """The worker hears of it two evaluations after the rung; it ends with the rung's values."""
    halving = {"eta": 3.0, "min_epochs": 2.0}
    one = make_replicates(
        "add", CONFIGURATIONS[:1], data=DATA, epochs=5, batch_size=32, halving=halving
    )
    whole = train(one, DATA)
    told: dict[str, str] = {}
    events = []
    for event in train_pack(make_pack(one), DATA, dropped=lambda: told):
        events.append(event)
        if isinstance(event, Progress) and event.epoch == 4:
            told.update({r.key: "behind" for r in one})
    for key, end in finished(events).items():
        assert (end.state, end.reason, end.epochs) == ("pruned", "behind", 2)
        assert len(end.history["val/error"]) == 4
        for name in ("val/error", "val/nll", "train/loss"):
            assert end.metrics[name] == pytest.approx(whole[key].history[name][1], rel=1e-5)
