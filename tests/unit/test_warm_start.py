"""Searches that start from another study: what is taken over, and that it is proposed first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakecluster import simulate
from modmix import api
from modmix.base.errors import SpecError
from modmix.base.home import Home
from modmix.base.messages import Replicate
from modmix.base.space import Choices, Condition, Constant, Domain, Range
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, Entry
from modmix.search import warm_start
from modmix.search.proposer import Proposer
from modmix.study.spec import SAMPLERS

# ---------------------------------------------------------------- what is inside


@pytest.mark.parametrize(
    ("domain", "value", "is_inside"),
    [
        (Range(low=0, high=1), 1.0, True),
        (Range(low=0, high=1), 1.01, False),
        (Range(low=0, high=1), None, False),
        (Range(low=0, high=1), True, False),
        (Range(low=0, high=1, step=0.3), 0.6, True),
        (Range(low=0, high=1, step=0.3), 1.0, False),
        (Range(low=2, high=8, integer=True), 3, True),
        (Range(low=2, high=8, integer=True, step=2), 3, False),
        (Choices(values=([64], None)), None, True),
        (Choices(values=([64], None)), [32], False),
        (Choices(values=(True, False)), 1, False),
    ],
)
def test_values_inside_a_domain(domain: Domain, value: Any, is_inside: bool) -> None:
    one = record(x=value)
    assert warm_start.inside({"x": domain}, one) == ({"x": value} if is_inside else {})


def record(**params: Any) -> ConfigurationRecord:
    return ConfigurationRecord(
        key="", number=0, method="add", params=params, mlflow_run=None, mirrored=None
    )


def test_only_what_the_search_varies_is_taken_over() -> None:
    domains: dict[str, Domain] = {
        "merge": Constant(value="sum"),
        "beta": Range(low=0, high=1, when=Condition(name="merge", values=("concat",))),
        "rate": Range(low=0.01, high=0.1, log=True),
        "width": Range(low=16, high=64, integer=True),
    }
    one = record(merge="concat", beta=5.0, rate=0.05, other=3)
    assert warm_start.inside(domains, one) == {"rate": 0.05}
    domains["merge"] = Constant(value="concat")  # now beta matters
    assert warm_start.inside(domains, one) == {}


# ---------------------------------------------------------------- the sampler

SPACE: dict[str, Domain] = {
    "merge": Choices(values=("sum", "concat")),
    "beta": Range(low=0, high=1, step=0.25, when=Condition(name="merge", values=("sum",))),
    "width": Choices(values=(16, 32)),
}
STARTS = [{"merge": "concat", "width": 32}, {"merge": "sum", "beta": 0.5}, {"width": 16}]


def made(sampler: str, starts: Any = STARTS) -> Proposer:
    return Proposer(SPACE, sampler=sampler, seed=0, label="", directions=(False,), starts=starts)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_values_are_proposed_first(sampler: str) -> None:
    proposer = made(sampler)
    found = [*proposer.ask(2), *proposer.ask(2)]
    for start, proposal in zip(STARTS, found, strict=False):
        assert start.items() <= proposal.values.items()
        assert set(proposal.values) == {
            "merge", "width", *(["beta"] if proposal.values["merge"] == "sum" else [])
        }  # fmt: skip
    if sampler == "grid":
        rest = [*found, *proposer.ask(20)]
        assert len(rest) == len({repr(p.values) for p in rest}) == 2 * (5 + 1)


def asked(proposer: Proposer, batches: list[int]) -> list[Entry]:
    """The ledger's entries of these batches, all told."""
    entries = []
    for batch in batches:
        for p in proposer.ask(batch):
            value = float(p.number)
            told = proposer.tell(p.number, [value])
            entries.append(
                Entry(
                    part="",
                    method="",
                    number=p.number,
                    configuration="",
                    batch=p.batch,
                    proposal=p.values,
                    state="done",
                    values=(value,),
                    told=told,
                )
            )
    return entries


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "gp"])
@pytest.mark.parametrize("batches", [[1], [2], [1, 3]])
def test_a_rebuilt_sampler_goes_on_as_the_old_one(sampler: str, batches: list[int]) -> None:
    one, again = made(sampler), made(sampler)
    again.rebuild(asked(one, batches))
    assert again.ask(3) == one.ask(3)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "gp"])
def test_what_has_been_proposed_does_not_come_again(sampler: str) -> None:
    """The other study has a better configuration now, so the order has changed."""
    better: dict[str, Any] = {"merge": "sum", "beta": 1.0, "width": 16}
    again = made(sampler, [better, *STARTS])
    entries = asked(made(sampler), [2])
    again.rebuild(entries)
    third, fourth = again.ask(2)
    if sampler == "grid":
        assert third.values == better
        assert repr(fourth.values) not in {repr(entry.proposal) for entry in entries}
    else:  # the third of the new list has been proposed; the fourth has not
        assert STARTS[2].items() <= fourth.values.items()


# ---------------------------------------------------------------- in a study

STUDY = """
study: NAME
task: {name: weak, inputs: 2, train_rows: 40, val_rows: 20, test_rows: 20, dim: 4}
seeds: 2
training: {epochs: EPOCHS, batch_size: 20}
parts:
  search:
    search: {configurations: 6, batch: 3, startup: 3, seed: 4, sampler: SAMPLER}
    methods: {mul: {beta: {low: 0, high: 1}, learning_rate: {low: 0.001, high: 1, log: true}}}
"""
START = "sampler: tpe, start_from: pilot"


def study(name: str, epochs: int, sampler: str) -> str:
    text = STUDY.replace("NAME", name).replace("EPOCHS", str(epochs))
    return text.replace("sampler: SAMPLER", sampler)


def value(replicate: Replicate) -> float:
    return float(abs(replicate.params["beta"] - 0.5) + replicate.seed / 100)


def best_of(entries: list[Entry], count: int) -> list[Any]:
    ordered = sorted(entries, key=lambda entry: entry.values or ())
    return [entry.proposal for entry in ordered[:count]]


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [2, 3])
def test_the_best_configurations_of_another_study_come_first(tmp_path: Path, epochs: int) -> None:
    pilot = simulate(study("pilot", 2, "sampler: random"), tmp_path, value, slots=1)
    new = simulate(study("new", epochs, START), tmp_path, value, slots=1)
    assert [entry.proposal for entry in new.entries[:3]] == best_of(pilot.entries, 3)
    # Trained again with other settings; the very same models are taken from the ledger.
    assert len(new.values) == 2 * (3 if epochs == 2 else 6)
    assert new.status.configurations["done"] == 6
    again = simulate(study("new", epochs, START), tmp_path, value, slots=1)
    assert again.values == []
    assert again.entries == new.entries


@pytest.mark.slow
def test_values_outside_this_search_are_left_there(tmp_path: Path) -> None:
    pilot = simulate(study("pilot", 2, "sampler: random"), tmp_path, value, slots=1)
    narrow = study("new", 2, START).replace("high: 1}, learning", "high: 0.4}, learning")
    new = simulate(narrow, tmp_path, value, slots=1)
    inside = [entry for entry in pilot.entries if entry.proposal["beta"] <= 0.4]
    assert 0 < len(inside) < 6
    first = [entry.proposal for entry in new.entries[: min(3, len(inside))]]
    assert first == best_of(inside, 3)


# ---------------------------------------------------------------- refused


def refuse(tmp_path: Path, text: str) -> str:
    path = tmp_path / "new.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        api.run(path, runner="local", home=tmp_path / "runs", mlflow=False)
    return str(caught.value)


@pytest.mark.slow
def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = refuse(tmp_path, study("new", 2, START))
    assert "line 8: parts.search.search.start_from: no study 'pilot'" in message
    simulate(study("other", 2, "sampler: random"), tmp_path, value, slots=1)
    message = refuse(tmp_path, study("new", 2, START))
    assert "no study 'pilot' in the ledger" in message
    assert "it has other" in message
    assert "must be another study" in refuse(tmp_path, study("pilot", 2, START))
    wrong = study("new", 2, START.replace("pilot", "a/b/c"))
    assert "must be a study, NAME or OWNER/NAME, got 'a/b/c'" in refuse(tmp_path, wrong)


@pytest.mark.slow
def test_a_study_with_nothing_for_a_method_is_refused(tmp_path: Path) -> None:
    simulate(study("pilot", 2, "sampler: random"), tmp_path, value, slots=1)
    more = study("new", 2, START).replace(
        "methods: {", "methods: {late: {patience: {choices: [1, 2]}}, "
    )
    assert "has no finished configuration of late with values in the domains" in refuse(
        tmp_path, more
    )
    ledger = Ledger(Home(tmp_path / "runs").ledger_url)
    assert [record.name for record in ledger.studies()] == ["pilot"]  # nothing was started
    ledger.close()
