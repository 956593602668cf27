"""Which configurations go on after a rung, in a pack and across packs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from modmix.base.messages import Finished, Pack, Progress, Replicate, TaskRef
from modmix.ledger.records import Entry
from modmix.search.run_state import RunState
from modmix.search.rungs import Rungs
from modmix.study.configurations import Configuration
from modmix.training.halving import goes_on, mean, promoted, rungs, share, survivors

NAN = math.nan


def test_rungs_are_powers_before_the_last_epoch() -> None:
    assert rungs(1, 2, 16) == (1, 2, 4, 8)
    assert rungs(5, 3, 45) == (5, 15)
    assert rungs(5, 3, 46) == (5, 15, 45)
    assert rungs(9, 3, 9) == ()


def test_the_best_go_on() -> None:
    values = {"a": 4.0, "b": 5.0, "c": 2.0, "d": 4.5}
    assert survivors(values, 2, higher_is_better=False) == ["c", "a"]
    assert survivors(values, 2, higher_is_better=True) == ["b", "d"]
    assert survivors(values, 3, higher_is_better=False) == ["c", "a"]  # ⌈4/3⌉
    assert survivors(values, 4, higher_is_better=False) == ["c"]
    assert survivors(values, 9, higher_is_better=False) == ["c"]


def test_a_configuration_with_a_diverged_replicate_is_last() -> None:
    values = {"a": mean([0.0, NAN]), "b": mean([50.0, 60.0])}
    assert values["b"] == 55.0
    for higher in (True, False):
        assert survivors(values, 2, higher_is_better=higher) == ["b"]


def test_equals_keep_their_order() -> None:
    values = {"b": 1.0, "a": 1.0, "c": 1.0}
    assert survivors(values, 2, higher_is_better=False) == ["b", "a"]


# ---------------------------------------------------------------- staged seeds


@pytest.mark.parametrize(
    ("keep", "configurations", "expected"),
    [(0.5, 4, 2), (0.5, 5, 3), (0.1, 30, 3), (0.1, 31, 4), (0.34, 3, 2), (0.01, 5, 1)],
)
def test_how_many_get_all_their_seeds(keep: float, configurations: int, expected: int) -> None:
    assert share(keep, configurations) == expected


def test_the_better_configurations_of_a_batch_are_promoted() -> None:
    values: dict[str, float | None] = {"a": 3.0, "b": None, "c": 1.0, "d": 2.0, "e": 3.0}
    assert promoted(values, 0.5, higher_is_better=False) == ["c", "d", "a"]  # ⌈0.5 · 5⌉
    assert promoted(values, 0.4, higher_is_better=True) == ["a", "e"]
    assert promoted({"a": None, "b": None, "c": 9.0}, 0.9, higher_is_better=False) == ["c"]
    assert promoted({}, 0.5, higher_is_better=False) == []


def test_run_state_with_further_seeds() -> None:
    state = RunState(["val/error"], higher_is_better=False, fingerprints={"d"})
    whole = configuration("a", seeds=3)
    state.add([replace(whole, replicates=whole.replicates[:2])])

    def end(key: str, error: float) -> None:
        metrics = {"val/error": error}
        event = Finished(pack="i", replicate=key, state="done", metrics=metrics, epochs=9)
        state.record_result(key, event)

    end("a-0", 4.0)
    assert state.awaits_first_seeds("a", 2)
    end("a-1", 6.0)
    assert not state.awaits_first_seeds("a", 2)
    assert state.mean_of_first("a", 2) == 5.0
    assert (state.is_incomplete("a"), state.state_of("a")) == (False, "done")
    assert state.best["mul"][0] == 5.0
    state.add([whole])
    assert (state.is_incomplete("a"), state.state_of("a")) == (True, "running")
    assert [r.seed for r in state.replicates_of("a")] == [0, 1, 2]
    end("a-2", 8.0)
    assert state.means("a") == (6.0,)
    assert state.mean_of_first("a", 2) == 5.0
    assert state.best["mul"][0] == 6.0  # over three seeds, although 5 was lower

    state.add([replace(configuration("b", seeds=2))])
    end("b-0", 1.0)
    end("b-1", 1.0)
    assert state.best["mul"][0] == 6.0  # b is better, over two seeds


def test_pruned_configurations_get_no_further_seeds() -> None:
    state = RunState(["val/error"], higher_is_better=False, fingerprints={"d"})
    state.add([configuration("a", seeds=4), configuration("b", seeds=2)])
    for key, error, epochs in (("a-0", 40.0, 2), ("a-1", 50.0, 4)):
        metrics = {"val/error": error}
        event = Finished(pack="i", replicate=key, state="pruned", metrics=metrics, epochs=epochs)
        state.record_result(key, event)
    state.states["a-2"] = "interrupted"  # it has begun: its pack has a checkpoint
    assert state.drop_unneeded()
    assert [r.key for r in state.replicates_of("a")] == ["a-0", "a-1", "a-2"]
    assert set(state.replicates) == set(state.states) == {"a-0", "a-1", "a-2", "b-0", "b-1"}
    assert state.is_incomplete("a")
    assert not state.drop_unneeded()
    assert (state.means("a"), state.pruned_at("a")) == ((45.0,), 4)
    assert state.mean_of_first("a", 2) is None
    assert state.best == {}


# ---------------------------------------------------------------- across packs


@pytest.mark.parametrize(
    ("value", "others", "eta", "expected"),
    [
        (9.0, [], 2, True),  # the first
        (9.0, [1.0], 3, True),  # fewer than η so far
        (9.0, [1.0], 2, False),  # the best 1 of 2
        (1.0, [9.0], 2, True),
        (5.0, [5.0, 5.0], 3, True),  # equals of the best 1 of 3
        (5.0, [4.0, 6.0], 3, False),
        (5.0, [4.0, 6.0, 7.0], 2, True),  # the best 2 of 4
        (5.0, [4.0, 4.5, 7.0], 2, False),
        (5.0, [4.0, 6.0, 7.0, 8.0], 3, False),  # the best 1 of 5, not 2
        (NAN, [4.0], 2, False),
        (NAN, [NAN], 2, True),
        (9.0, [NAN, NAN], 3, True),
    ],
)
def test_who_goes_on(value: float, others: list[float], eta: int, expected: bool) -> None:
    for _ in range(3):
        random.Random(len(others)).shuffle(others)
        assert goes_on(value, others, eta, higher_is_better=False) is expected
        mirrored = [-other for other in others]
        assert goes_on(-value, mirrored, eta, higher_is_better=True) is expected


TRAINING: Mapping[str, Any] = {
    "monitor": "val/error",
    "halving": {"eta": 2.0, "min_epochs": 2.0},
    "select": "best",
    "patience": None,
}


def configuration(
    name: str,
    seeds: int = 1,
    data: str = "d",
    monitor: str = "val/error",
    select: str | None = "best",
) -> Configuration:
    return Configuration(
        key=name,
        method="mul",
        params={},
        task=TaskRef(name="t", options={}, fingerprint=data),
        replicates=tuple(
            Replicate(
                key=f"{name}-{seed}", configuration=name, seed=seed, method="mul", params={},
                training={**TRAINING, "monitor": monitor, "select": select}, encoders={},
                structure="s",
            )
            for seed in range(seeds)
        ),
    )  # fmt: skip


class Races:
    """Configurations of a study as a driver sees them; every pack holds one configuration unless
    told.
    """

    def __init__(self, *configurations: Configuration, part: str = "p") -> None:
        self.state = RunState(["val/error"], higher_is_better=False, fingerprints={"d"})
        self.histories: dict[str, dict[str, list[float]]] = {}
        self.asked: list[str] = []
        self.rungs = Rungs(self.state, self._read)
        self.add(*configurations, part=part)

    def _read(self, keys: Sequence[str]) -> dict[str, dict[str, list[float]]]:
        self.asked += keys
        return {key: self.histories[key] for key in keys if key in self.histories}

    def add(self, *configurations: Configuration, part: str = "p") -> None:
        self.state.add(configurations)
        self.rungs.enter(
            Entry(part=part, method=p.method, number=i, configuration=p.key)
            for i, p in enumerate(configurations)
        )

    def at(self, values: Mapping[str, float], rung: int = 2) -> str | None:
        members = [r for name in values for r in self.state.replicates_of(name)]
        task = self.state.configurations[next(iter(values))].configuration.task
        pack = Pack(id="i", study="s", task=task, replicates=tuple(members))
        event = Progress(
            pack="i", epoch=rung, epochs=9, active=1, metrics={}, rung=rung, at_rung=values
        )
        return self.rungs.judge(pack, event)

    def end(self, key: str, state: str, errors: Sequence[float]) -> None:
        epochs = [float(i + 1) for i in range(len(errors))]
        self.histories[key] = {"epoch": epochs, "val/error": list(errors)}
        self.state.record_result(key, Finished(pack="i", replicate=key, state=state))


def test_configurations_race_in_order_of_arrival() -> None:
    races = Races(*(configuration(name) for name in "abcdef"))
    assert races.at({"a": 5.0}) is None
    assert (
        races.at({"b": 6.0}) == "not among the best 1 of the 2 configurations so far after epoch 2"
    )
    assert races.at({"c": 5.0}) is None  # 1 of 3, level with the best
    assert races.at({"d": 5.5}) is not None  # the best 2 of 4 are a and c
    assert races.at({"e": 1.0}) is None
    assert races.at({"a": 9.0}, rung=4) is None  # the first at that rung
    assert races.asked == []
    # Told again (its worker died), a configuration is not its own rival.
    assert races.at({"e": 1.0}) is None


def test_other_parts_methods_and_data_are_other_races() -> None:
    races = Races(configuration("a"), configuration("x", data="other"))
    races.add(configuration("b"), replace(configuration("c"), method="add"), part="q")
    for name in "axbc":
        assert races.at({name: 5.0 + ord(name)}) is None
    # A configuration of two parts goes on while one of them lets it.
    races.add(configuration("d"), part="p")
    races.add(configuration("d"), part="q")
    value = (5.0 + ord("a") + 5.0 + ord("b")) / 2  # behind a, ahead of b
    assert races.at({"d": value}) is None
    races.add(configuration("e"), part="p")
    assert races.at({"e": value}) is not None


def test_a_pack_of_several_configurations_is_no_race_but_its_values_count() -> None:
    races = Races(*(configuration(name, seeds=2) for name in "abc"))
    assert races.at({"a": 1.0, "b": 9.0}) is None
    assert (
        races.at({"c": 5.0}) == "not among the best 1 of the 3 configurations so far after epoch 2"
    )


def test_only_the_stage_at_the_rung_counts() -> None:
    """As for those in training, whose best evaluation begins anew in every stage."""
    races = Races(*(configuration(name) for name in "abc"))
    races.end("a-0", "done", [5.0, 4.0, 9.0, 8.0, 1.0])
    races.histories["a-0"]["stage"] = [1.0, 1.0, 2.0, 2.0, 2.0]
    assert races.at({"b": 7.0}, rung=4) is None  # ahead of a, whose value is 8
    races.state.configurations.pop("b")
    assert races.rungs._value("a-0", races.histories["a-0"], 4) == 8.0
    assert races.rungs._value("a-0", races.histories["a-0"], 2) == 4.0


def test_what_ended_before_is_read_from_the_ledger() -> None:
    races = Races(
        *(configuration(name, seeds=2) for name in "abcdefg"), configuration("z", seeds=2)
    )
    for seed in (0, 1):
        races.end(f"a-{seed}", "done", [8.0, 7.0 + seed, 0.0])  # its best up to the rung: 7, 8
        races.end(f"b-{seed}", "pruned", [8.0, 9.0])
        races.end(f"c-{seed}", "pruned", [1.0])  # never came to this rung
        races.end(f"d-{seed}", "failed", [1.0, 1.0])
    races.end("e-0", "done", [1.0])  # stopped early, with its best
    races.end("e-1", "done", [2.0])
    races.end("f-0", "done", [1.0, 1.0])  # its other replicate is still training
    # There: a 7.5, b 8, d 1, e 1.5. Of five values with its own, the best two go on.
    assert races.at({"g": 1.5}) is None
    assert (
        races.at({"g": 1.6}) == "not among the best 2 of the 5 configurations so far after epoch 2"
    )
    assert sorted(set(races.asked)) == sorted(f"{n}-{s}" for n in "abcde" for s in (0, 1))
    assert len(races.asked) == 10  # once
    races.end("f-1", "done", [1.0, NAN])
    assert races.at({"g": 1.4}) is None  # behind d and f, ahead of e
    assert (
        races.at({"g": 1.6}) == "not among the best 3 of the 6 configurations so far after epoch 2"
    )
    assert races.at({"z": 1.0}) is None


def test_epochs_of_all_stages_count() -> None:
    races = Races(configuration("a"), configuration("b"), configuration("c"))
    races.end("a-0", "done", [9.0, 8.0, 7.0, 6.0, 5.0, 1.0])  # three epochs a stage
    assert races.at({"b": 4.9}, rung=5) is None
    assert races.at({"c": 5.1}, rung=5) is not None
    assert races.at({"c": 8.1}, rung=2) is not None


@pytest.mark.parametrize("select", ["last", None])  # None without patience: the last epoch counts
def test_the_last_value_up_to_a_rung_counts_where_the_last_epoch_does(select: str | None) -> None:
    races = Races(*(configuration(name, select=select) for name in "abc"))
    races.end("a-0", "done", [1.0, 6.0, 0.0])
    assert races.at({"b": 5.9}) is None
    assert races.at({"c": 6.1}) is not None


def test_a_stage_without_rungs_is_no_race() -> None:
    races = Races(configuration("a"), configuration("b"))
    races.end("a-0", "done", [1.0, 1.0])
    assert races.at({"b": 9.0}) is not None
    pack = Pack(
        id="i",
        study="s",
        task=TaskRef(name="t", options={}, fingerprint="d"),
        replicates=tuple(races.state.replicates_of("b")),
    )
    event = Progress(pack="i", epoch=2, epochs=9, active=1, metrics={"b-0": {"val/error": 9.0}})
    assert races.rungs.judge(pack, event) is None


def test_higher_may_be_better() -> None:
    races = Races(*(configuration(name, monitor="val/auc") for name in "ab"))
    assert races.at({"a": 0.8}) is None
    assert races.at({"b": 0.7}) is not None
    assert races.at({"b": 0.9}) is None
