"""Samplers: what they propose is inside the space, and a rebuilt one goes on as the old one."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from modmix.base.space import Choices, Condition, Constant, Domain, Grid, Range, active, every_value
from modmix.ledger.records import Entry
from modmix.search.proposer import Proposal, Proposer
from modmix.study.spec import SAMPLERS

SMOOTH: Mapping[str, Domain] = {
    "rate": Range(low=1e-4, high=1e-1, log=True),
    "beta": Range(low=0, high=1),
}
MIXED: Mapping[str, Domain] = {
    # The condition stands before what it reads.
    "project": Range(low=4, high=32, integer=True, when=Condition(name="merge", values=("sum",))),
    "rate": Range(low=1e-4, high=1e-1, log=True),
    "width": Range(low=16, high=64, integer=True, step=16),
    "step": Range(low=0, high=1, step=0.3),
    "merge": Choices(values=("sum", "concat")),
    "hidden": Choices(values=([64], [32, 32], None)),
    "kept": Constant(value=3),
}
FINITE: Mapping[str, Domain] = {
    "a": Choices(values=(1, 2, 3)),
    "b": Range(low=1, high=2, integer=True),
    "c": Choices(values=(0.1, 0.2), when=Condition(name="a", values=(1, 2))),
}

SPACES = {"smooth": SMOOTH, "mixed": MIXED, "finite": FINITE}
# The plan refuses the others; gp, which takes a second a proposal, has a test of its own.
TOGETHER = [
    pytest.param(sampler, domains, two, id=f"{sampler}-{name}-{'two' if two else 'one'}")
    for sampler in SAMPLERS
    for name, domains in SPACES.items()
    for two in (False, True)
    if sampler != "gp"
    and not (sampler == "grid" and name != "finite")
    and not (sampler == "cmaes" and two)
]


def proposer(
    domains: Mapping[str, Domain], sampler: str, *, seed: int = 0, two: bool = False
) -> Proposer:
    return Proposer(
        domains,
        sampler=sampler,
        seed=seed,
        label="part/mul",
        directions=(False, True) if two else (False,),
    )


def value(values: Mapping[str, Any]) -> float:
    """A number that any proposal has, better towards low rates and betas."""
    return sum(v if isinstance(v, (int, float)) else len(repr(v)) / 10 for v in values.values())


class Driver:
    """Asks and tells as a study does, and keeps what a ledger would keep."""

    def __init__(self, sampler: Proposer, *, two: bool = False) -> None:
        self.sampler = sampler
        self.two = two
        self.entries: dict[int, Entry] = {}

    def ask(self, count: int) -> list[Proposal]:
        asked = self.sampler.ask(count)
        for a in asked:
            self.entries[a.number] = Entry(
                part="part",
                method="mul",
                number=a.number,
                configuration="",
                batch=a.batch,
                proposal=a.values,
            )
        return asked

    def tell(self, number: int, *, lost: bool = False, step: int | None = None) -> None:
        entry = self.entries[number]
        values = [value(entry.proposal), number / 7][: 1 + self.two]
        told = self.sampler.tell(number, None if lost else values, step=step)
        self.entries[number] = Entry(**{
            **asdict(entry),
            "state": "failed" if lost else "done" if step is None else "pruned",
            "values": None if lost else tuple(values),
            "step": step,
            "told": told,
        })  # fmt: skip

    def recorded(self) -> list[Entry]:
        """The entries after a journey through JSON, in no particular order."""
        found = []
        for entry in self.entries.values():
            raw = json.loads(json.dumps(asdict(entry)))
            raw["values"] = None if raw["values"] is None else tuple(raw["values"])
            found.append(Entry(**raw))
        random.Random(0).shuffle(found)
        return found


# ---------------------------------------------------------------- inside the space


def inside(domain: Domain, found: Any) -> bool:
    match domain:
        case Range(low=low, high=high, integer=integer, step=None):
            return low <= found <= high and isinstance(found, int) is integer
        case Range():
            values = every_value(domain)
            assert values is not None
            return found in values  # to the last digit
        case Constant(value=only):
            return bool(found == only)
        case Choices(values=values) | Grid(values=values):
            return found in values


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("domains", [MIXED, FINITE], ids=["mixed", "finite"])
def test_proposals_are_inside(sampler: str, domains: Mapping[str, Domain]) -> None:
    if sampler == "grid":
        domains = FINITE
    driver = Driver(proposer(domains, sampler))
    asked = [a for _ in range(5) for a in tell_all(driver, driver.ask(2))]
    assert [a.number for a in asked] == list(range(len(asked)))
    for a in asked:
        assert list(a.values) == [n for n in domains if n in a.values]  # in the file's order
        assert a.values == active(domains, a.values)  # no name whose condition does not hold
        assert {n for n, d in domains.items() if d.when is None} <= set(a.values)
        for name, found in a.values.items():
            assert inside(domains[name], found), (name, found)
    if domains is MIXED:
        assert {a.values["merge"] for a in asked} == {"sum", "concat"}


def tell_all(driver: Driver, asked: Sequence[Proposal]) -> Sequence[Proposal]:
    for a in asked:
        driver.tell(a.number)
    return asked


def test_the_grid_ends_after_every_configuration_once() -> None:
    driver = Driver(proposer(FINITE, "grid"))
    asked = [a for _ in range(4) for a in tell_all(driver, driver.ask(3))]
    # By hand: a in 1, 2 has two c's each, a = 3 has none; times two values of b.
    assert len(asked) == (2 * 2 + 1) * 2
    assert len({json.dumps(a.values) for a in asked}) == 10
    assert driver.ask(5) == []
    other = [a.values for a in proposer(FINITE, "grid", seed=1).ask(10)]
    assert sorted(map(json.dumps, other)) == sorted(json.dumps(a.values) for a in asked)
    assert other != [a.values for a in asked]  # another seed, another order


def test_seeds_and_labels_differ() -> None:
    def first(seed: int, label: str) -> Any:
        made = Proposer(SMOOTH, sampler="tpe", seed=seed, label=label, directions=(False,))
        return made.ask(1)[0].values

    assert first(0, "p/mul") == first(0, "p/mul")
    assert len({str(first(s, n)) for s in (0, 1) for n in ("p/mul", "p/add", "q/mul")}) == 6


def test_tpe_learns() -> None:
    driver = Driver(proposer({"x": Range(low=0, high=1)}, "tpe"))
    asked = [a for _ in range(12) for a in tell_all(driver, driver.ask(5))]
    early, late = ([a.values["x"] for a in part] for part in (asked[:10], asked[-10:]))
    assert sum(late) / 10 < 0.5 * sum(early) / 10


def test_higher_can_be_better() -> None:
    made = Proposer(
        {"x": Range(low=0, high=1)}, sampler="tpe", seed=0, label="", directions=(True,)
    )
    driver = Driver(made)
    asked = [a for _ in range(12) for a in tell_all(driver, driver.ask(5))]
    assert sum(a.values["x"] for a in asked[-10:]) / 10 > 0.7


def test_a_configuration_is_told_once() -> None:
    made = proposer(SMOOTH, "tpe")
    made.ask(1)
    assert made.tell(0, [1.0]) == 1
    with pytest.raises(AssertionError, match="told before"):
        made.tell(0, [1.0])


# ---------------------------------------------------------------- pruned


def learn(sampler: str, tell: Any) -> list[float]:
    """Sixty proposals of x from 0 to 1, five at a time; ``tell`` says what each is worth."""
    made = proposer({"x": Range(low=0, high=1), "y": Range(low=0, high=1)}, sampler)
    found = []
    for _ in range(12):
        asked = made.ask(5)
        for a in asked:
            value, step = tell(a.values["x"])
            made.tell(a.number, value, step=step)
        found += [a.values["x"] for a in asked]
    return found


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_samplers_that_rank_learn_from_pruned_configurations(sampler: str) -> None:
    """What is finished is all alike: one that left pruned configurations out would learn
    nothing.
    """
    late = learn(sampler, lambda x: ([1.0], None) if x > 0.7 else ([x], 1))[-20:]
    assert sum(late) / 20 < 0.35


def test_tpe_learns_from_pruned_configurations() -> None:
    late = learn("tpe", lambda x: ([x], 1))[-20:]
    assert sum(late) / 20 < 0.35


def test_tpe_prefers_a_later_rung_to_an_earlier_one() -> None:
    """Nothing is ever finished; high configurations come further, and low ones have the better
    values.
    """
    late = learn("tpe", lambda x: ([x], 9 if x > 0.8 else 1))[-20:]
    assert sum(late) / 20 > 0.6


@pytest.mark.parametrize("higher", [False, True])
def test_gp_sees_pruned_configurations_no_worse_than_the_worst_finished_one(higher: bool) -> None:
    sign = -1 if higher else 1
    made = Proposer(SMOOTH, sampler="gp", seed=0, label="", directions=(higher,))
    made.ask(6)
    made.tell(0, [sign * 1.0])
    made.tell(1, [sign * 3.0])
    made.tell(2, [sign * 50.0], step=1)  # worse than the worst: counts as that
    made.tell(3, [sign * 2.0], step=4)
    made.tell(4, None)  # diverged
    states = [(trial.state.name, trial.values) for trial in made._from_configurations(9).trials]
    assert states[:5] == [("COMPLETE", [sign * v]) for v in (1.0, 3.0, 3.0, 2.0, 3.0)]
    assert states[5] == ("RUNNING", None)


def test_with_two_objectives_there_is_no_pruning() -> None:
    for sampler in ("tpe", "nsga2", "gp"):
        driver = Driver(proposer(SMOOTH, sampler, two=True), two=True)
        driver.ask(3)
        for number in range(3):
            driver.tell(number, step=2)
        driver.ask(1)


# ---------------------------------------------------------------- rebuilt


@pytest.mark.parametrize(("sampler", "domains", "two"), TOGETHER)
def test_a_rebuilt_sampler_goes_on_as_the_old_one(
    sampler: str, domains: Mapping[str, Domain], two: bool
) -> None:
    """At every ask of a long study: batches out, told late, out of order, lost and pruned."""
    driver = Driver(proposer(domains, sampler, two=two), two=two)
    chance = random.Random(1)
    out: list[list[int]] = []
    for turn in range(9):
        again = proposer(domains, sampler, two=two)
        again.rebuild(driver.recorded())
        asked = driver.ask(4)
        assert again.ask(4) == asked, f"turn {turn}"
        out.append([a.number for a in asked])
        while len(out) > turn % 3:
            for number in out.pop(chance.randrange(len(out))):
                lost, step = chance.random() < 0.2, chance.choice((None, None, 2, 6))
                driver.tell(number, lost=lost, step=None if lost else step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domains", "two"), [(SMOOTH, False), (FINITE, True)], ids=["smooth-one", "finite-two"]
)
def test_a_rebuilt_gp_goes_on_as_the_old_one(domains: Mapping[str, Domain], two: bool) -> None:
    """As above, after the random proposals that it begins with."""
    driver = Driver(proposer(domains, "gp", two=two), two=two)
    for number in [a.number for a in driver.ask(13)][:-1]:  # the last one is out
        driver.tell(number, lost=number == 3, step=2 if number in (4, 5) else None)
    again = proposer(domains, "gp", two=two)
    again.rebuild(driver.recorded())
    assert again.ask(1) == driver.ask(1)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cmaes", "grid"])
def test_a_rebuilt_sampler_is_told_as_the_old_one(sampler: str) -> None:
    """A batch that was out when the driver died is told to the rebuilt sampler."""
    old = Driver(proposer(FINITE, sampler))
    tell_all(old, old.ask(3))
    old.ask(3)
    new = Driver(proposer(FINITE, sampler))
    new.sampler.rebuild(old.recorded())
    new.entries = dict(old.entries)
    for driver in (old, new):
        for number in (5, 3, 4):
            driver.tell(number, lost=number == 3)
    assert old.entries == new.entries
    assert old.ask(3) == new.ask(3)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "qmc", "random"])
def test_foreign_proposals_are_taken_as_they_are(sampler: str) -> None:
    """What the ledger says was asked was asked, even where this library proposes otherwise."""
    entries = [
        Entry(
            part="part",
            method="mul",
            number=n,
            configuration="",
            batch=0,
            proposal={"rate": 0.001 * (n + 1), "beta": 0.1 * n},
            state="done" if n < 4 else "pending",
            values=(float(n),) if n < 4 else None,
            told=n + 1 if n < 4 else None,
        )
        for n in range(6)
    ]
    driver = Driver(proposer(SMOOTH, sampler))
    driver.sampler.rebuild(entries)
    assert [a.number for a in driver.ask(2)] == [6, 7]
    assert driver.sampler.tell(4, [0.5]) == 6  # after the events 0 to 4 and the ask, 5
    assert driver.sampler.tell(5, None) == 7


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for sampler in ("tpe", "qmc", "cmaes", "nsga2"):
        driver = Driver(proposer(MIXED, sampler))
        for _ in range(4):
            tell_all(driver, driver.ask(4))
    assert capfd.readouterr() == ("", "")
