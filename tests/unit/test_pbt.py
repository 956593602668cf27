"""Population-based training: who copies whom, what a copy is, and that a resumed pack agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modmix.base.errors import SpecError
from modmix.base.messages import Event, Finished, Pack, Progress
from modmix.base.space import Choices, Condition, Constant, Domain, Range, domain_to_json
from modmix.methods.model import unpack_weights
from modmix.study import files, tasks_plan
from modmix.study.domains import perturbable
from modmix.training.pbt import Explorer, copies
from modmix.training.trainer import train_pack
from toypack import finished, make_data, make_pack, make_replicates, same

DATA = make_data()
RATES = (0.02, 0.005, 0.0001, 0.00001)  # from good to bad, in three epochs
PBT = {"every": 2, "fraction": 0.5, "perturb": 1.25}
DOMAINS: dict[str, Domain] = {
    "learning_rate": Range(low=1e-6, high=1, log=True),
    "beta": Range(low=0, high=1),
}


def population(
    rates: tuple[float, ...] = RATES,
    varied: tuple[str, ...] = ("learning_rate", "beta"),
    **training: Any,
) -> Pack:
    """A configuration per rate, two seeds each."""
    given = {"epochs": 3, "batch_size": 50, "optimizer": "adam", "pbt": PBT, **training}
    replicates = make_replicates(
        "mul",
        [{"beta": 0.5, "training": {"learning_rate": rate}} for rate in rates],
        data=DATA,
        **given,
    )
    domains = {name: domain_to_json(DOMAINS[name]) for name in varied}
    return make_pack(replicates, domains=domains)


def errors_at(found: Mapping[str, Finished], epoch: int) -> dict[str, list[float]]:
    """``val/error`` after an epoch, by configuration."""
    values: dict[str, list[float]] = {}
    for key, event in found.items():
        values.setdefault(key.rpartition("-")[0], []).append(event.history["val/error"][epoch - 1])
    return values


# ---------------------------------------------------------------- decisions


def test_the_worst_copy_one_of_the_best() -> None:
    pack = population(pbt={**PBT, "fraction": 0.4})
    values = {"a": [3.0, 3.0], "b": [9.0, 9.0], "c": [1.0, 4.0], "d": [8.0, 2.0], "e": [7.0, 7.0]}
    seen = set()
    for epoch in range(20):
        found = copies(values, pack, epoch, higher_is_better=False)
        assert set(found) == {"b", "e"}  # two fifths, the means are 9 and 7
        assert set(found.values()) <= {"c", "a"}
        assert found == copies(values, pack, epoch, higher_is_better=False)
        seen |= set(found.items())
        assert set(copies(values, pack, epoch, higher_is_better=True)) == {"c", "a"}
    assert len(seen) == 4
    assert copies({"a": [1.0], "b": [2.0]}, pack, 1, higher_is_better=False) == {}


def test_copies_stay_inside_their_domains() -> None:
    domains: dict[str, Domain] = {
        "learning_rate": Range(low=1e-3, high=1e-2, log=True),
        "beta": Range(low=0, high=1, step=0.1),
        "alpha": Choices(values=(4, 1, 2)),
        "margin": Range(low=1, high=9, integer=True),
    }
    pack = population()
    pack = replace(pack, domains={name: domain_to_json(d) for name, d in domains.items()})
    explorer, seen = Explorer(pack), dict[str, set[float]]()
    for epoch in range(40):
        found = explorer.perturbed(
            {"learning_rate": 2e-3, "beta": 1.0, "alpha": 2.0, "margin": 5}, "a", epoch
        )
        for name, value in found.items():
            seen.setdefault(name, set()).add(value)
    assert seen == {
        "learning_rate": {1.6e-3, 2.5e-3},
        "beta": {0.8, 1.0},
        "alpha": {1.0, 4.0},
        "margin": {4, 6},
    }
    ends = [
        explorer.perturbed({"learning_rate": 9e-3, "alpha": 4.0}, "a", epoch) for epoch in range(9)
    ]
    assert {end["learning_rate"] for end in ends} == {1e-2, 7.2e-3}
    assert {end["alpha"] for end in ends} == {2.0, 4.0}


@pytest.mark.parametrize(
    ("domain", "value", "expected"),
    [
        (Range(low=1, high=9, integer=True), 1, {1, 2}),
        (Range(low=1, high=9, integer=True), 3, {2, 4}),  # 2.4 and 3.75, rounded
        (Range(low=0, high=9, integer=True), 0, {0, 1}),
        (Range(low=1, high=9, integer=True), 9, {7, 9}),
        (Range(low=0, high=1, step=0.1), 0.1, {0.0, 0.2}),
        (Range(low=0, high=0.35, step=0.1), 0.3, {0.2, 0.3}),
        (Range(low=1, high=8, integer=True, step=3), 4, {1, 7}),
    ],
)
def test_integers_and_steps_move_by_one_at_least(
    domain: Range, value: float, expected: set[float]
) -> None:
    pack = replace(population(), domains={"x": domain_to_json(domain)})
    explorer = Explorer(pack)
    found = {explorer.perturbed({"x": value}, "a", epoch)["x"] for epoch in range(20)}
    assert found == expected


def test_what_is_left_after_failures_is_compared_by_seeds(tmp_path: Path) -> None:
    """A pack of single replicates that are tried again: two of seed 0, two of seed 1."""
    whole = population(epochs=5)
    left = [r for r in whole.replicates if r.key in ("mul-0-0", "mul-1-0", "mul-2-1", "mul-3-1")]
    found = finished(train_pack(replace(whole, replicates=tuple(left)), DATA))
    assert {event.state for event in found.values()} == {"done"}
    assert len(found) == 4
    changed = {
        key for key, event in found.items() if len(set(event.history["pbt/learning_rate"])) > 1
    }
    assert {key[-1] for key in changed} == {"0", "1"}  # one of each seed copies the other


def test_what_may_be_perturbed() -> None:
    domains: dict[str, Domain] = {
        "learning_rate": Range(low=1e-3, high=1e-2),
        "weight_decay": Choices(values=(0.0, 1e-4)),
        "beta": Constant(value=0.5),
        "depth": Range(low=0, high=2, integer=True),  # structural
        "alpha": Choices(values=(0.0, 2.0)),
        "margin": Choices(values=(None, 1.0)),
        "momentum": Range(low=0, high=1, when=Condition(name="alpha", values=(2.0,))),
    }
    assert set(perturbable("mul", domains)) == {"learning_rate", "weight_decay", "momentum"}


# ---------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_copy_goes_on_as_the_model_it_copies_would(stack: str, optimizer: str) -> None:
    """It is trained as if it had had the other's learning rate, which then changes."""
    rates = (0.5, 0.1, 0.01, 0.001) if optimizer == "sgd" else RATES
    how: dict[str, Any] = {"stack": stack, "optimizer": optimizer, "weight_decay": 0.01}
    how |= {"rates": rates, "varied": ("learning_rate",)}
    found = finished(train_pack(population(**how), DATA))
    plain = finished(train_pack(population(pbt=None, **how), DATA))
    before = errors_at(plain, 2)
    means = {name: sum(values) for name, values in before.items()}
    ranked = sorted(means, key=lambda name: means[name])
    assert means[ranked[1]] < means[ranked[2]]
    for name in ranked[:2]:
        for seed in (0, 1):
            key = f"{name}-{seed}"
            same({key: without(found[key])}, {key: plain[key]}, rel=1e-5)
    for name in ranked[2:]:
        event = found[f"{name}-0"]
        first, second, last = event.history["pbt/learning_rate"]
        assert first == second
        (source,) = [one for one in ranked[:2] if rates[int(one[-1])] == first]
        assert last / first in (pytest.approx(1.25), pytest.approx(0.8))
        assert event.history["lr"] == [first, first, last]
        schedule = {"schedule": "step", "milestones": [2], "decay_rate": last / first}
        expected = finished(
            train_pack(population(pbt=None, **{**how, "rates": (first,)}, **schedule), DATA)
        )
        for seed in (0, 1):
            own, theirs = found[f"{name}-{seed}"], expected[f"mul-0-{seed}"]
            assert own.metrics == pytest.approx(theirs.metrics, rel=1e-3)
            for column in ("val/nll", "train/loss"):
                assert own.history[column] == pytest.approx(theirs.history[column], rel=1e-4)
            assert source


def without(event: Finished) -> Finished:
    """The event without the columns that only a population has."""
    history = {n: column for n, column in event.history.items() if not n.startswith("pbt/")}
    return replace(event, history=history)


def test_hyperparameters_of_the_method_change_in_the_model() -> None:
    pack = replace(population(select="last"), keep_weights=True)
    found = finished(train_pack(pack, DATA))
    changed = 0
    for event in found.values():
        assert event.weights is not None
        model, description = unpack_weights(event.weights)
        beta = event.history["pbt/beta"]
        assert description["model"].params["beta"] == beta[-1]
        buffers = dict(model.named_buffers())
        assert float(buffers["method.beta"]) == pytest.approx(beta[-1])
        changed += beta[-1] != beta[0]
        assert not [name for name in event.metrics if name.startswith("pbt/")]
    assert changed == 4


def test_both_seeds_of_a_configuration_copy_the_same_one() -> None:
    found = finished(train_pack(population(epochs=7), DATA))
    for i in range(4):
        assert found[f"mul-{i}-0"].history["pbt/beta"] == found[f"mul-{i}-1"].history["pbt/beta"]
    assert len({str(event.history["pbt/beta"]) for event in found.values()}) > 2


def test_a_diverged_configuration_takes_no_part() -> None:
    rates = (0.02, 0.005, 0.0001, 1e30)
    found = finished(train_pack(population(rates=rates, optimizer="sgd"), DATA))
    assert found["mul-3-0"].state == "failed"
    assert {found[f"mul-{i}-0"].state for i in range(3)} == {"done"}
    copied = [
        i for i in range(3) if found[f"mul-{i}-0"].history["pbt/learning_rate"][-1] != rates[i]
    ]
    assert len(copied) == 1  # half of the three that are left, rounded down


def test_the_best_weights_are_those_of_the_lineage() -> None:
    """With ``select: best`` a copy's best evaluation is the best of its history."""
    found = finished(train_pack(population(epochs=5, select="best"), DATA))
    for event in found.values():
        errors = event.history["val/error"]
        assert event.metrics["val/error"] == min(errors)
        assert event.best_epoch == 1 + errors.index(min(errors))


def stopping(pack: Pack, folder: Path) -> dict[str, Finished]:
    """Train a pack, stopped and resumed after every evaluation."""
    found: dict[str, Finished] = {}
    for _ in range(20):
        events: Iterator[Event] = train_pack(replace(pack, checkpoint=str(folder)), DATA)
        for event in events:
            if isinstance(event, Finished):
                found[event.replicate] = event
            if isinstance(event, Progress) and event.epoch < event.epochs:
                events.close()  # type: ignore[attr-defined]
                break
        if len(found) == len(pack.replicates):
            return found
    raise AssertionError("it does not end")


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("how", [{}, {"evaluations_per_epoch": 2, "select": "best"}])
def test_a_resumed_pack_gives_the_same(tmp_path: Path, stack: str, how: dict[str, Any]) -> None:
    pack = population(epochs=5, stack=stack, schedule="exponential", **how)
    expected = finished(train_pack(pack, DATA))
    same(stopping(pack, tmp_path / "checkpoint"), expected)


@pytest.mark.slow
def test_stages_and_batch_statistics(tmp_path: Path) -> None:
    """A method of two stages, encoders with batch norm: stacked, alone and resumed agree."""
    encoder = {"name": "mlp", "hidden": [8], "batch_norm": True}
    replicates = make_replicates(
        "mla",
        [{"training": {"learning_rate": rate}} for rate in RATES],
        data=DATA,
        encoder=encoder,
        epochs=4,
        batch_size=50,
        pbt=PBT,
    )
    domains = {"learning_rate": domain_to_json(DOMAINS["learning_rate"])}
    pack = make_pack(replicates, domains=domains)
    expected = finished(train_pack(pack, DATA))
    same(stopping(pack, tmp_path / "checkpoint"), expected)
    copied = [
        event for event in expected.values() if len(set(event.history["pbt/learning_rate"])) > 1
    ]
    assert len(copied) >= 4


# ---------------------------------------------------------------- refused

STUDY = """
study: small
task: {name: weak, inputs: 2, train_rows: 40, val_rows: 20, test_rows: 20, dim: 4}
seeds: 2
training: {epochs: 6, batch_size: 20}
parts:
  search:
    search: {configurations: 8, batch: 8, sampler: random}
    shared: {pbt: {every: 2, fraction: 0.25}}
    methods: {mul: {learning_rate: {low: 0.001, high: 1, log: true}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sampler: random", "sampler: tpe", "cannot learn from hyperparameters that pbt changes"),
        ("every: 2", "every: 6", "every must be below epochs (6), got 6"),
        ("every: 2", "every: 0.5", "every must be a whole number of at least 1"),
        ("0.25}", "0.6}", "fraction must be above 0 and at most 0.5, got 0.6"),
        ("0.25}", "0.25, perturb: 1}", "perturb must be a factor above 1, got 1"),
        ("every: 2, ", "", "must be {every: EPOCHS, fraction: 0.25, perturb: 1.25}"),
        ("batch: 8", "batch: 3", "0.25 of a population of 3 configurations is none"),
        ("shared: {", "shared: {halving: {eta: 2, min_epochs: 2}, ", "cannot be used with halving"),
        ("training: {", "training: {patience: 2, ", "cannot be used with patience"),
        ("seeds: 2", "replicates: {start: 1, full: 2}", "leave it or replicates out"),
        ("learning_rate: {low: 0.001, high: 1, log: true}", "depth: {low: 0, high: 2}", "nothing"),
        ("parts:\n", "resources: {max_models: 6}\nparts:\n", "a population of 3 configurations"),
        ("parts:\n", "parts:\n  best: {best_of: search, methods: {mul: }}\n", "because of pbt"),
    ],
)
def test_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in STUDY
    source = files.parse(STUDY.replace(old, new), name="x.yaml", folder=tmp_path)
    with pytest.raises(SpecError) as caught:
        tasks_plan.make(source)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def key_of_one(text: str, folder: Path) -> str:
    """The key of a replicate of the learning rate 0.01, which every population may have."""
    plan = tasks_plan.make(files.parse(text, name="x.yaml", folder=folder))
    part = "another" if "another" in text else "search"
    configuration = plan.configuration("mul", {"learning_rate": 0.01, "pbt": PBT}, part)
    return configuration.replicates[0].key


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sampler: random", "sampler: random, seed: 1"),
        ("sampler: random", "sampler: qmc"),
        ("configurations: 8", "configurations: 12"),  # the last population has 4 of 8
        ("sampler: random", "sampler: random, start_from: other"),
        ("batch: 8", "batch: 4"),
        ("high: 1", "high: 0.5"),
        ("seeds: 2", "seeds: 3"),
        ("parts:\n", "resources: {max_models: 8}\nparts:\n"),
        ("  search:\n", "  another:\n"),
    ],
)
def test_results_of_another_population_are_not_reused(old: str, new: str, tmp_path: Path) -> None:
    changed = STUDY.replace(old, new, 1)
    assert changed != STUDY
    assert key_of_one(changed, tmp_path) != key_of_one(STUDY, tmp_path)


def test_startup_counts_only_where_it_limits_what_comes_first(tmp_path: Path) -> None:
    for more, alike in (("", True), (", start_from: other", False)):
        text = STUDY.replace("sampler: random", f"sampler: random{more}")
        other = text.replace("sampler: random", "sampler: random, startup: 3")
        assert (key_of_one(text, tmp_path) == key_of_one(other, tmp_path)) is alike


def test_whole_populations_more_do_not_change_a_population(tmp_path: Path) -> None:
    more = STUDY.replace("configurations: 8", "configurations: 16")
    assert key_of_one(more, tmp_path) == key_of_one(STUDY, tmp_path)


def test_other_parts_do_not_change_a_population(tmp_path: Path) -> None:
    more = STUDY + "  grid: {methods: {mul: {beta: {grid: [0, 1]}}}}\n"
    assert key_of_one(more, tmp_path) == key_of_one(STUDY, tmp_path)


def test_refused_in_a_grid(tmp_path: Path) -> None:
    text = STUDY.replace("    search: {configurations: 8, batch: 8, sampler: random}\n", "")
    text = text.replace("{low: 0.001, high: 1, log: true}", "{grid: [0.1, 0.2]}")
    with pytest.raises(
        SpecError, match=r"line 8: parts\.search\.shared\.pbt: changes hyperparameters"
    ):
        tasks_plan.make(files.parse(text, name="x.yaml", folder=tmp_path))
