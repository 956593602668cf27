"""Searches that spend less: halving in packs and across them, staged replicates."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import modmix
from modmix import api
from modmix.base.errors import GivenUp, Interrupted
from modmix.base.home import Home
from modmix.execution.failures import MAX_FAILURES
from modmix.execution.run import StudyRun
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, ReplicateRecord

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures")]

FILE = """
study: NAME
task: {name: weak, inputs: 2, train_rows: 120, val_rows: 60, test_rows: 40, dim: 4}
seeds: 2
training: {epochs: 6, batch_size: 32}
parts:
  search:
    search: {SEARCH}
    shared: {halving: {eta: 2, min_epochs: 2}}
    methods:
      mul: {learning_rate: {low: 0.0001, high: 0.1, log: true}}
"""


def run(folder: Path, search: str, text: str = FILE, **how: Any) -> modmix.Study:
    folder.mkdir(exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(text.replace("NAME", "small").replace("SEARCH", search))
    return modmix.run(path, runner="local", home=folder / "runs", mlflow=False, **how)


def known(study: modmix.Study) -> tuple[list[Entry], dict[str, list[ReplicateRecord]]]:
    """The entries of the search by number, and the replicates by configuration."""
    ledger = Ledger(study.home.ledger_url)
    replicates: dict[str, list[ReplicateRecord]] = {}
    for replicate in ledger.replicates(study.name):
        replicates.setdefault(replicate.configuration, []).append(replicate)
    entries = [e for e in ledger.entries(study.name) if e.part == "search"]
    ledger.close()
    return entries, replicates


def test_pruned_configurations_are_told_with_their_last_values(tmp_path: Path) -> None:
    study = run(tmp_path, "configurations: 8, batch: 4")
    entries, replicates = known(study)
    histories = Ledger(study.home.ledger_url).histories(
        study.name, [r.key for m in replicates.values() for r in m]
    )
    for batch in (0, 5):  # four told in between
        mine = [e for e in entries if e.batch == batch]
        # Rungs at 2 and 4 epochs: two of four go on, then one.
        assert sorted((e.state, e.step) for e in mine) == [
            ("done", None), ("pruned", 2), ("pruned", 2), ("pruned", 4)
        ]  # fmt: skip
        at_rung = {
            e.configuration: fmean(
                min(histories[r.key]["val/error"][:2]) for r in replicates[e.configuration]
            )
            for e in mine
        }
        kept = {e.configuration for e in mine if e.step != 2}
        assert max(at_rung[p] for p in kept) <= min(
            value for p, value in at_rung.items() if p not in kept
        )
    for entry in entries:
        assert entry.values is not None
        last = [histories[r.key]["val/error"][-1] for r in replicates[entry.configuration]]
        if entry.state == "pruned":
            assert entry.values == (pytest.approx(fmean(last)),)
            assert {r.epochs for r in replicates[entry.configuration]} == {entry.step}
    counts = study.status()["configurations"]
    assert (counts["done"], counts["pruned"]) == (2, 6)
    (best,) = study.best()
    assert best.configuration in {e.configuration for e in entries if e.state == "done"}
    frame = study.frame()
    assert set(frame["state"]) == {"done", "pruned"}
    assert all(math.isnan(v) for v in frame.query("state == 'pruned'")["val/error/mean"])


def test_a_search_with_pruned_configurations_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    """The sampler is rebuilt with what it was told of pruned configurations."""
    whole, _ = known(run(tmp_path / "a", "configurations: 16, batch: 4, parallel: 1"))
    run(tmp_path / "b", "configurations: 12, batch: 4, parallel: 1")
    extended, _ = known(run(tmp_path / "b", "configurations: 16, batch: 4, parallel: 1"))
    assert [e.proposal for e in extended] == [e.proposal for e in whole]
    assert [(e.state, e.values, e.step) for e in extended] == [
        (e.state, e.values, e.step) for e in whole
    ]


def test_packs_of_one_configuration_race_with_each_other(tmp_path: Path) -> None:
    """Whoever is not among the best half of what was at a rung before stops there."""
    study = run(tmp_path, "configurations: 10, batch: 1, parallel: 1")
    entries, replicates = known(study)
    keys = [r.key for mine in replicates.values() for r in mine]
    histories = Ledger(study.home.ledger_url).histories(study.name, keys)
    there: dict[int, list[float]] = {2: [], 4: []}
    for entry in entries:  # one after another: the order of arrival
        mine = [histories[r.key]["val/error"] for r in replicates[entry.configuration]]
        expected = None
        for rung, before in there.items():
            value = fmean(history[rung - 1] for history in mine)
            better = sum(other < value for other in before)
            before.append(value)
            if len(before) > 1 and better >= len(before) // 2:
                expected = rung
                break
        assert (entry.state, entry.step) == ("pruned" if expected else "done", expected)
        reasons = {r.reason for r in replicates[entry.configuration]}
        if expected:
            n = len(there[expected])
            assert reasons == {
                (
                    f"not among the best {n // 2} of the {n} configurations so far after epoch "
                    f"{expected}"
                )
            }
    states = [e.state for e in entries]
    assert states[0] == "done"
    assert states.count("pruned") >= 3


def test_a_race_goes_on_after_a_restart(tmp_path: Path) -> None:
    whole, _ = known(run(tmp_path / "a", "configurations: 10, batch: 1, parallel: 1"))
    run(tmp_path / "b", "configurations: 6, batch: 1, parallel: 1")
    extended, _ = known(run(tmp_path / "b", "configurations: 10, batch: 1, parallel: 1"))
    assert [(e.proposal, e.state, e.values, e.step) for e in extended] == [
        (e.proposal, e.state, e.values, e.step) for e in whole
    ]


def test_pruned_configurations_get_no_further_seeds(tmp_path: Path) -> None:
    """Seeds that are added later go to the configurations that were not pruned."""
    run(tmp_path, "configurations: 8, batch: 4")
    study = run(tmp_path, "configurations: 8, batch: 4", FILE.replace("seeds: 2", "seeds: 3"))
    entries, replicates = known(study)
    assert len(entries) == 8
    for entry in entries:
        mine = replicates[entry.configuration]
        assert {r.state for r in mine} == {entry.state}  # nobody is pruned by the third seeds
        assert len(mine) == (3 if entry.state == "done" else 2)
    counts = study.status()["replicates"]
    assert (counts["total"], counts["done"], counts["pruned"]) == (2 * 3 + 6 * 2, 6, 12)


# ---------------------------------------------------------------- staged seeds

STAGED = FILE.replace("seeds: 2", "replicates: {start: 2, full: 4, keep: 0.5}").replace(
    "    shared: {halving: {eta: 2, min_epochs: 2}}\n", ""
)


def asked(study: modmix.Study) -> list[tuple[Any, ...]]:
    """What the sampler proposed and was told, and with how many seeds."""
    entries, replicates = known(study)
    return [(e.proposal, e.state, e.values, len(replicates[e.configuration])) for e in entries]


def test_the_better_half_of_each_batch_gets_all_seeds(tmp_path: Path) -> None:
    totals: list[int] = []
    study = run(
        tmp_path, "configurations: 7, batch: 4, parallel: 1", STAGED,
        changed=lambda work: totals.append(work.status().replicates["total"]),
    )  # fmt: skip
    entries, replicates = known(study)
    assert {e.state for e in entries} == {"done"}
    batches = sorted({e.batch for e in entries})
    assert len(batches) == 2
    for batch, expected in zip(batches, (2, 2), strict=True):  # the best 2 of 4, and of 3
        mine = [e for e in entries if e.batch == batch]
        first = {
            e.configuration: fmean(
                r.metrics["val/error"] for r in replicates[e.configuration] if r.seed < 2
            )
            for e in mine
        }
        best = sorted(first, key=lambda p: first[p])[:expected]
        for entry in mine:
            results = replicates[entry.configuration]
            assert [r.seed for r in results] == (
                [0, 1, 2, 3] if entry.configuration in best else [0, 1]
            )
            assert entry.values == (pytest.approx(fmean(r.metrics["val/error"] for r in results)),)
    # What displays count on was known from the beginning: 7 configurations of 2, and 4
    # configurations of 2 more.
    assert set(totals) == {22}
    (best,) = study.best()
    assert best.n == 4
    full = [e for e in entries if len(replicates[e.configuration]) == 4]
    assert best.mean == pytest.approx(min(e.values[0] for e in full if e.values))
    assert sorted(study.frame()["n"]) == [2, 2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize("halving", [False, True])
def test_a_staged_search_may_be_stopped_anywhere(tmp_path: Path, halving: bool) -> None:
    """Stopped after every pack and continued, it asks, promotes and tells as one undisturbed."""
    text, search = STAGED, "configurations: 8, batch: 4, parallel: 1"
    if halving:
        text = text.replace("batch_size: 32", "batch_size: 32, halving: {eta: 2, min_epochs: 4}")
    undisturbed = asked(run(tmp_path / "a", search, text))
    stops = 0
    for _ in range(20):
        ended: list[int] = []

        def stop(work: Any, ended: list[int] = ended) -> None:
            counts = work.status().replicates
            ended.append(counts["done"] + counts["pruned"])
            if ended[-1] > ended[0]:
                work.stop()

        try:
            study = run(tmp_path / "b", search, text, changed=stop)
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert asked(study) == undisturbed
    if halving:  # of each four, two are pruned; of these two, two are promoted (the best 2 of 4)
        assert [len(known(study)[1][e.configuration]) for e in known(study)[0]].count(4) == 4
        assert {state for _, state, _, _ in undisturbed} == {"done", "pruned"}


def test_staging_may_begin_and_end_at_any_time(tmp_path: Path) -> None:
    search = "configurations: 4, batch: 4, parallel: 1"
    study = run(tmp_path, search, STAGED)
    assert sorted(n for *_, n in asked(study)) == [2, 2, 4, 4]
    trained = study.status()["trained"]
    more = run(tmp_path, search, STAGED.replace("keep: 0.5", "keep: 0.7"))
    assert sorted(n for *_, n in asked(more)) == [2, 4, 4, 4]
    assert more.status()["trained"] == trained + 2
    whole = run(
        tmp_path, search, STAGED.replace("start: 2, full: 4, keep: 0.5", "start: 3, full: 4")
    )
    assert sorted(n for *_, n in asked(whole)) == [3, 4, 4, 4]
    flat = FILE.replace("seeds: 2", "seeds: 4").replace(
        "    shared: {halving: {eta: 2, min_epochs: 2}}\n", ""
    )
    assert [n for *_, n in asked(run(tmp_path, search, flat))] == [4, 4, 4, 4]
    # Staged again, nothing that is there is thrown away.
    assert [n for *_, n in asked(run(tmp_path, search, STAGED))] == [4, 4, 4, 4]


def test_grids_train_all_seeds(tmp_path: Path) -> None:
    """Also of the configurations that a search meets there."""
    text = STAGED.replace(
        "parts:\n", "parts:\n  grid: {methods: {mul: {learning_rate: {grid: [0.001, 0.01]}}}}\n"
    ).replace("{low: 0.0001, high: 0.1, log: true}", "{choices: [0.001, 0.01, 0.02, 0.03, 0.05]}")
    text = text.replace("keep: 0.5", "keep: 0.3")  # the best two of five
    study = run(tmp_path, "configurations: 5, batch: 5, sampler: grid", text)
    seeds = dict(zip(study.frame()["learning_rate"], study.frame()["n"], strict=True))
    assert (seeds[0.001], seeds[0.01]) == (4, 4)
    assert 2 in seeds.values()


# ---------------------------------------------------------------- packs that are shared

SHARED = """
study: NAME
task: {name: weak, inputs: 2, train_rows: 120, val_rows: 60, test_rows: 40, dim: 4}
seeds: 2
training: {epochs: 2, batch_size: 32}
parts:
  grid: {methods: {mul: {beta: {grid: [0, 0.5, 1]}}}}
  one:
    search: {SEARCH}
    methods: {mul: {beta: {low: 0, high: 1}}}
  two:
    search: {SEARCH}
    methods: {mul: {learning_rate: {low: 0.0001, high: 0.1, log: true}}}
"""


def packs(study: modmix.Study) -> list[dict[str, int]]:
    """Models of each part in each pack, in the order they were trained."""
    ledger = Ledger(study.home.ledger_url)
    parts = {entry.configuration: entry.part for entry in ledger.entries(study.name)}
    owners = {r.key: parts[r.configuration] for r in ledger.replicates(study.name)}
    found = [dict(Counter(owners[key] for key in p.replicates)) for p in ledger.packs(study.name)]
    ledger.close()
    return found


def test_grids_and_searches_share_packs(tmp_path: Path) -> None:
    study = run(tmp_path, "configurations: 4, batch: 2", SHARED)
    # All that is wanted at first is of one structure; the second batches were asked together.
    assert packs(study) == [{"grid": 6, "one": 4, "two": 4}, {"one": 4, "two": 4}]
    assert study.status()["configurations"]["done"] == 11


def test_a_search_of_one_batch_at_a_time_stays_apart(tmp_path: Path) -> None:
    """So that it can be repeated exactly, whatever else a study holds at that moment."""
    study = run(tmp_path, "configurations: 4, batch: 2, parallel: 1", SHARED)
    found = packs(study)
    assert sorted(found, key=str) == sorted([{"grid": 6}, *2 * [{"one": 4}, {"two": 4}]], key=str)


def test_halving_compares_the_configurations_of_one_part_alone(tmp_path: Path) -> None:
    more = "  more: {methods: {mul: {beta: {grid: [0.6, 0.7, 0.8]}}}}\n"
    text = SHARED[: SHARED.index("  one:")] + more
    assert packs(run(tmp_path / "plain", "", text)) == [{"grid": 6, "more": 6}]
    text = text.replace("epochs: 2,", "epochs: 2, halving: {eta: 2, min_epochs: 1},")
    study = run(tmp_path / "halving", "", text)
    assert sorted(packs(study), key=str) == [{"grid": 6}, {"more": 6}]
    assert sorted(study.frame()["state"]) == [*4 * ["done"], *2 * ["pruned"]]  # two of each three


def test_halving_compares_the_configurations_of_one_batch_alone(tmp_path: Path) -> None:
    text = SHARED.replace("epochs: 2,", "epochs: 2, halving: {eta: 2, min_epochs: 1},")
    study = run(tmp_path, "configurations: 4, batch: 2", text)
    found = packs(study)
    assert sorted(found, key=str) == sorted([{"grid": 6}, *2 * [{"one": 4}, {"two": 4}]], key=str)
    # Of 3 configurations 2 are kept, of each batch one.
    counts = study.status()["configurations"]
    assert (counts["done"], counts["pruned"]) == (2 + 4, 1 + 4)


def test_a_search_whose_batch_is_given_up_ends(tmp_path: Path) -> None:
    """It has configurations to ask for, and none of its batches will ever be done."""
    path = tmp_path / "small.yaml"
    path.write_text(
        SHARED.replace("NAME", "small").replace(
            "SEARCH", "configurations: 6, batch: 2, parallel: 1"
        )
    )
    plan = api.make_plan(path)
    home = Home(tmp_path / "runs")
    home.make()
    ledger = Ledger(home.ledger_url)
    spec = plan.spec.model_dump(mode="json")
    ledger.start_study("small", spec=spec, text="", source="", details={})
    lease = ledger.acquire("small")
    work = StudyRun(plan, ledger, lease, home, slots=1)
    work.prepare()
    handed = 0
    while not work.finished:
        pack = work.next_pack()
        assert pack is not None, "it waits for ever"
        handed += 1
        work.ended(pack.id, "the worker process or its node died")
    assert handed == 3 * (MAX_FAILURES + 1)  # the grid, and the first batch of each search
    again = StudyRun(plan, ledger, lease, home, slots=1)
    again.prepare()
    assert again.next_pack() is None
    for driver in (work, again):
        assert driver.finished
        with pytest.raises(GivenUp, match="14 models without a result"):
            driver.check_complete()
    ledger.close()


# ---------------------------------------------------------------- population-based training

POPULATION = FILE.replace("halving: {eta: 2, min_epochs: 2}", "pbt: {every: 2}").replace(
    "mul: {learning_rate", "mul: {beta: {low: 0, high: 1}, learning_rate"
)
PBT = "configurations: 12, batch: 8, sampler: random"


def schedules(study: modmix.Study) -> dict[str, dict[str, list[float]]]:
    """By replicate, the hyperparameters at every evaluation."""
    ledger = Ledger(study.home.ledger_url)
    found = ledger.histories(study.name, [r.key for r in ledger.replicates(study.name)])
    ledger.close()
    return {
        key: {name: column for name, column in history.items() if name.startswith("pbt/")}
        for key, history in found.items()
    }


def test_a_batch_is_a_population(tmp_path: Path) -> None:
    study = run(tmp_path, PBT, POPULATION)
    assert packs(study) == [{"search": 16}, {"search": 8}]  # two seeds each
    entries, replicates = known(study)
    found = schedules(study)
    changed = 0
    for entry in entries:
        first, second = (found[r.key] for r in replicates[entry.configuration])
        assert first == second
        assert set(first) == {"pbt/beta", "pbt/learning_rate"}
        values = list(zip(*first.values(), strict=True))
        assert values[0] == values[1]
        assert values[2] == values[3]
        # The history is that of the weights: a copy has the values of what it copies.
        begun = {name.removeprefix("pbt/"): column[0] for name, column in first.items()}
        changed += begun.items() != {k: entry.proposal[k] for k in begun}.items()
        assert begun in [{k: other.proposal[k] for k in begun} for other in entries]
        assert min(first["pbt/beta"]) >= 0
        assert max(first["pbt/beta"]) <= 1
    assert 2 + 1 <= changed <= 4 + 2  # a quarter of each population, twice
    again = run(tmp_path, PBT, POPULATION)
    assert again.status()["trained"] == study.status()["trained"] == 24
    assert schedules(again) == found
    # With another seed, decisions would have been others.
    more = run(tmp_path, PBT, POPULATION.replace("seeds: 2", "seeds: 3"))
    ledger = Ledger(more.home.ledger_url)
    assert [len(pack.replicates) for pack in ledger.packs(more.name)] == [16, 8, 24, 12]
    ledger.close()
    assert more.status()["replicates"]["done"] == 36
    # What a population gave is nobody else's.
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "other.yaml"
    path.write_text(POPULATION.replace("NAME", "other").replace("SEARCH", PBT))
    other = modmix.run(path, runner="local", home=tmp_path / "runs", mlflow=False)
    assert other.status()["reused"] == 0


STEPS = POPULATION.replace("beta: {low: 0, high: 1}, ", "").replace(
    "{low: 0.0001, high: 0.1, log: true}", "{low: 0.01, high: 0.1, step: 0.01}"
)


@pytest.mark.parametrize(
    "edit", [("seed: 0", "seed: 1"), ("high: 0.1,", "high: 0.11,"), ("tions: 6", "tions: 8")]
)
def test_another_population_is_trained_whole(edit: tuple[str, str], tmp_path: Path) -> None:
    """The populations have 4 and 2 of ten configurations; after the last edit 4 and 4."""
    search = "configurations: 6, batch: 4, sampler: grid, seed: 0"
    before = run(tmp_path, search, STEPS)
    assert before.status()["trained"] == 12  # two seeds each
    if edit[0] == "tions: 6":  # entries are proposed anew
        run(tmp_path, search.replace("seed: 0", "seed: 1"), STEPS)
    ledger = Ledger(before.home.ledger_url)
    known_packs = len(ledger.packs(before.name))
    study = run(tmp_path, search.replace(*edit), STEPS.replace(*edit))
    new = [len(pack.replicates) for pack in ledger.packs(study.name)][known_packs:]
    ledger.close()
    assert new == ([8, 8] if edit[0] == "tions: 6" else [8, 4])


def test_a_population_that_was_stopped_goes_on(tmp_path: Path) -> None:
    whole = schedules(run(tmp_path / "a", PBT, POPULATION))
    stops = 0
    for _ in range(30):

        def stop(work: Any) -> None:
            at = [0 if p is None else p.epoch for p in work.status().running.values()]
            if 0 < max(at, default=0) < 6:
                work.stop()

        try:
            study = run(tmp_path / "b", PBT, POPULATION, changed=stop)
            break
        except Interrupted:
            stops += 1
    assert stops >= 4
    assert schedules(study) == whole
