"""Budgets: divided evenly over searches, whatever a model costs, over all runs of a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fakecluster import Outcome, result_of, simulate
from modmix import api
from modmix.base.home import Home
from modmix.base.messages import Finished, Replicate
from modmix.execution.run import StudyRun
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, NewConfiguration, Result
from modmix.search.limits import seconds_for
from modmix.search.searches import Searches
from modmix.study.spec import BudgetSpec

STUDY = """
study: small
task: {name: weak, inputs: 2, train_rows: 40, val_rows: 20, test_rows: 20, dim: 4}
seeds: 1
training: {epochs: 2, batch_size: 20, stack: never}
budget: {BUDGET}
parts:
  search:
    search: {SEARCH}
    shared: {learning_rate: {low: 0.0001, high: 1, log: true}}
    methods: {mul: , add: }
"""
RANDOM = "configurations: 200, sampler: random, batch: 2"


def value(replicate: Replicate) -> float:
    return float(replicate.training["learning_rate"])


def seconds(replicate: Replicate) -> float:
    return 240.0 if replicate.method == "add" else 60.0


def run(folder: Path, budget: str, search: str = RANDOM, *, slots: int = 4, more: str = "",
        stop_after: int | None = None) -> Outcome:  # fmt: skip
    text = STUDY.replace("BUDGET", budget).replace("SEARCH", search) + more
    return simulate(text, folder, value, slots=slots, seconds=seconds, stop_after=stop_after)


def count(entries: list[Entry]) -> dict[str, int]:
    methods = [entry.method for entry in entries if entry.part == "search"]
    return {method: methods.count(method) for method in ("mul", "add")}


@pytest.mark.parametrize(
    ("budget", "wall", "expected"),
    [
        ({}, 1e9, float("inf")),
        ({"device_hours": 2}, 1e9, 7200.0),
        ({"wall_minutes": 10}, 599.0, 4 * 600.0),
        ({"wall_minutes": 10}, 600.0, 0.0),
        ({"wall_minutes": 10, "device_hours": 0.5}, 0.0, 1800.0),
    ],
)
def test_the_share_of_a_search(budget: dict[str, float], wall: float, expected: float) -> None:
    made = BudgetSpec.model_validate(budget)
    for searches in (1, 3):
        found = seconds_for(made, searches=searches, slots=4, wall=wall)
        assert found == pytest.approx(expected / searches)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["device_hours: 2", "wall_minutes: 30"])  # on four workers
def test_methods_get_equal_time(tmp_path: Path, budget: str) -> None:
    """An hour each: 60 models of a minute, 15 of four, and what was in flight at the end."""
    found = count(run(tmp_path, budget).entries)
    assert 60 <= found["mul"] <= 60 + 4
    assert 15 <= found["add"] <= 15 + 4


@pytest.mark.slow
def test_a_budget_is_that_of_all_runs_and_not_of_grids(tmp_path: Path) -> None:
    more = "  grid: {methods: {mul: {beta: {grid: [0, 0.2, 0.4, 0.6, 0.8, 1]}}, add: {}}}\n"
    for _ in range(3):
        run(tmp_path, "device_hours: 2", more=more, stop_after=20)
    entries = run(tmp_path, "device_hours: 2", more=more).entries
    found = count(entries)
    assert 60 <= found["mul"] <= 60 + 4
    assert 15 <= found["add"] <= 15 + 4
    assert len(entries) == found["mul"] + found["add"] + 7
    # Run again, nothing more is proposed.
    assert count(run(tmp_path, "device_hours: 2", more=more).entries) == found


@pytest.mark.slow
def test_a_search_that_ends_leaves_its_time(tmp_path: Path) -> None:
    found = count(run(tmp_path, "device_hours: 2", RANDOM.replace("200", "20")).entries)
    assert found["mul"] == 20
    assert 15 <= found["add"] <= 15 + 4


def test_an_exhausted_grid_sampler_is_finished(tmp_path: Path) -> None:
    """From the beginning it is known that three of 20 configurations will be proposed."""
    grid = "configurations: 20, sampler: grid, batch: 2"
    more = "  tuned: {best_of: search, methods: {mul: , add: }}\n"
    text = "{choices: [0.1, 0.2, 0.3]}"
    study = STUDY.replace("{low: 0.0001, high: 1, log: true}", text).replace("BUDGET", "")
    study = study.replace("SEARCH", grid).replace("search:\n", "search:\n    seeds: [7]\n", 1)
    for stop in (1, None):
        found = simulate(study + more, tmp_path, value, slots=1, seconds=seconds, stop_after=stop)
        assert found.status.configurations["total"] == 3 + 3 + 2
    assert count(found.entries) == {"mul": 3, "add": 3}
    best = [entry for entry in found.entries if entry.part == "tuned"]
    assert [entry.proposal["learning_rate"] for entry in best] == [0.1, 0.1]
    again = simulate(study + more, tmp_path, value, slots=1, seconds=seconds)
    assert again.values == []
    assert again.status.configurations["total"] == 8


def test_the_best_is_confirmed_when_time_runs_out_after_the_last_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is in flight, and the search has ended since anybody looked."""
    study = STUDY.replace("BUDGET", "").replace("SEARCH", "configurations: 2, batch: 1")
    study = study.replace("methods: {mul: , add: }", "methods: {mul: }")
    study = study.replace("search:\n", "search:\n    seeds: [7]\n", 1)
    study += "  tuned: {best_of: search, methods: {mul: }}\n"
    results: list[str] = []
    looks: list[str] = []  # since the last result

    def result(event: Finished, _: Replicate) -> Finished:
        looks.clear()
        results.append(event.replicate)
        return event

    def is_over(_: Searches, name: str) -> bool:
        looks.append(name)
        return len(results) >= 2 and len(looks) > 1  # not yet when the result is recorded

    ask = Searches.ask
    monkeypatch.setattr(Searches, "ask", lambda self: [] if len(results) > 1 else ask(self))
    monkeypatch.setattr(Searches, "wants_more", lambda _: len(results) < 2)
    monkeypatch.setattr(Searches, "is_over", is_over)
    found = simulate(study, tmp_path, value, slots=1, seconds=seconds, change=result)
    assert [e.method for e in found.entries if e.part == "tuned"] == ["mul"]


def test_a_confirmation_that_another_driver_trains_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its two seeds has a result, so it is taken up; the other one is being trained."""
    text = STUDY.replace("BUDGET", "").replace("SEARCH", "configurations: 1, batch: 1")
    text = text.replace("methods: {mul: , add: }", "methods: {mul: }").replace(
        "seeds: 1", "seeds: 2"
    )
    text = text.replace("search:\n", "search:\n    seeds: [7]\n", 1)
    path = tmp_path / "small.yaml"
    path.write_text(text + "  tuned: {best_of: search, methods: {mul: }}\n")
    plan, home = api.make_plan(path), Home(tmp_path / "runs")
    home.make()
    ledger = Ledger(home.ledger_url)
    for name in ("small", "other"):
        spec = plan.spec.model_dump(mode="json")
        ledger.start_study(name, spec=spec, text="", source="", details={})
    over = False
    monkeypatch.setattr(Searches, "is_over", lambda *_: over)
    monkeypatch.setattr(Searches, "wants_more", lambda _: not over)
    work = StudyRun(plan, ledger, ledger.acquire("small"), home, slots=1)
    work.prepare()
    pack = work.next_pack()
    assert pack is not None
    work.record([result_of(pack, r, 1.0, 1.0) for r in pack.replicates])
    work.ended(pack.id)

    (entry,) = ledger.entries("small")
    one = plan.configuration("mul", entry.proposal, "tuned")
    first, second = one.replicates
    new = NewConfiguration(
        key=one.key,
        method=one.method,
        params=one.params,
        task=one.task_name,
        fingerprint=one.task.fingerprint,
        options=one.options,
        replicates=[(r.key, r.seed) for r in one.replicates],
    )
    lease = ledger.acquire("other")
    ledger.add("other", [new], [])
    assert ledger.claim(lease, "pack", [first.key, second.key]) == [first.key, second.key]
    done = result_of(pack, first, 1.0, 1.0)
    ledger.finish(
        lease,
        [
            Result(
                replicate=first.key,
                state="done",
                epochs=2,
                best_epoch=2.0,
                metrics=done.metrics,
                history=done.history,
                seconds=1.0,
            )
        ],
    )
    over = True
    assert not work.finished
    assert work.next_pack() is None  # nothing of it can be trained here
    ledger.close()


def test_a_restart_promotes_no_others_when_a_later_seed_has_failed(tmp_path: Path) -> None:
    """Only the first seed decides; the third one of the best configuration diverges."""
    study = STUDY.replace("BUDGET", "").replace("SEARCH", "configurations: 4, batch: 4")
    study = study.replace("seeds: 1", "replicates: {start: 1, full: 3, keep: 0.5}")
    study = study.replace("methods: {mul: , add: }", "methods: {mul: }")

    def fail(event: Finished, replicate: Replicate) -> Finished:
        if replicate.seed == 2:
            return replace(event, state="failed", reason="diverged", metrics={}, history={})
        return event

    first = simulate(study, tmp_path, value, slots=1, seconds=seconds, change=fail)
    assert len(first.values) == 4 + 2 * 2  # two of four were promoted
    again = simulate(study, tmp_path, value, slots=1, seconds=seconds, change=fail)
    assert again.values == []
    assert again.status.replicates["total"] == 8
