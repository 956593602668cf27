"""Searches that spend less: halving in packs and across them, staged replicates."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest

import modmix
from modmix.ledger import Entry, Ledger, ReplicateRecord

pytestmark = pytest.mark.slow

FILE = """
study: NAME
task: {name: weak, modalities: 2, train_rows: 120, val_rows: 60, test_rows: 40, dim: 4}
seeds: 2
training: {epochs: 6, batch_size: 32}
parts:
  search:
    search: {SEARCH}
    shared: {halving: {eta: 2, min_epochs: 2}}
    methods:
      mul: {learning_rate: {low: 0.0001, high: 0.1, log: true}}
"""


def run(folder: Path, search: str, name: str = "small", text: str = FILE) -> modmix.Study:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("NAME", name).replace("SEARCH", search))
    return modmix.run(path, runner="local", home=folder / "runs", mlflow=False)


def known(study: modmix.Study) -> tuple[list[Entry], dict[str, list[ReplicateRecord]]]:
    """The entries of the search by number, and the replicates by point."""
    ledger = Ledger(study.home.ledger_url)
    replicates: dict[str, list[ReplicateRecord]] = {}
    for replicate in ledger.replicates(study.name):
        replicates.setdefault(replicate.point, []).append(replicate)
    entries = [e for e in ledger.entries(study.name) if e.part == "search"]
    ledger.close()
    return entries, replicates


def test_pruned_points_are_told_with_their_last_values(tmp_path: Path) -> None:
    study = run(tmp_path, "points: 8, batch: 4")
    entries, replicates = known(study)
    histories = Ledger(study.home.ledger_url).histories(
        [r.key for m in replicates.values() for r in m]
    )
    for batch in (0, 5):  # four told in between
        mine = [e for e in entries if e.batch == batch]
        # Rungs at 2 and 4 epochs: two of four go on, then one.
        assert sorted((e.state, e.step) for e in mine) == [
            ("done", None), ("pruned", 2), ("pruned", 2), ("pruned", 4)
        ]  # fmt: skip
        at_rung = {
            e.point: fmean(min(histories[r.key]["val/error"][:2]) for r in replicates[e.point])
            for e in mine
        }
        kept = {e.point for e in mine if e.step != 2}
        assert max(at_rung[p] for p in kept) <= min(
            value for p, value in at_rung.items() if p not in kept
        )
    for entry in entries:
        assert entry.values is not None
        last = [histories[r.key]["val/error"][-1] for r in replicates[entry.point]]
        if entry.state == "pruned":
            assert entry.values == (pytest.approx(fmean(last)),)
            assert {r.epochs for r in replicates[entry.point]} == {entry.step}
    counts = study.status()["points"]
    assert (counts["done"], counts["pruned"]) == (2, 6)
    (best,) = study.best()
    assert best.point in {e.point for e in entries if e.state == "done"}
    frame = study.frame()
    assert set(frame["state"]) == {"done", "pruned"}
    assert all(math.isnan(v) for v in frame.query("state == 'pruned'")["val/error/mean"])


def test_a_search_with_pruned_points_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    """The sampler is rebuilt with what it was told of pruned points."""
    whole, _ = known(run(tmp_path / "a", "points: 16, batch: 4, parallel: 1"))
    run(tmp_path / "b", "points: 12, batch: 4, parallel: 1")
    extended, _ = known(run(tmp_path / "b", "points: 16, batch: 4, parallel: 1"))
    assert [e.proposal for e in extended] == [e.proposal for e in whole]
    assert [(e.state, e.values, e.step) for e in extended] == [
        (e.state, e.values, e.step) for e in whole
    ]


def test_packs_of_one_point_race_with_each_other(tmp_path: Path) -> None:
    """Whoever is not among the best half of what was at a rung before stops there."""
    study = run(tmp_path, "points: 10, batch: 1, parallel: 1")
    entries, replicates = known(study)
    keys = [r.key for mine in replicates.values() for r in mine]
    histories = Ledger(study.home.ledger_url).histories(keys)
    there: dict[int, list[float]] = {2: [], 4: []}
    for entry in entries:  # one after another: the order of arrival
        mine = [histories[r.key]["val/error"] for r in replicates[entry.point]]
        expected = None
        for rung, before in there.items():
            value = fmean(min(history[:rung]) for history in mine)
            better = sum(other < value for other in before)
            before.append(value)
            if len(before) > 1 and better >= len(before) // 2:
                expected = rung
                break
        assert (entry.state, entry.step) == ("pruned" if expected else "done", expected)
        reasons = {r.reason for r in replicates[entry.point]}
        if expected:
            n = len(there[expected])
            assert reasons == {
                f"not among the best {n // 2} of the {n} points so far after epoch {expected}"
            }
    states = [e.state for e in entries]
    assert states[0] == "done"
    assert states.count("pruned") >= 3


def test_a_race_goes_on_after_a_restart(tmp_path: Path) -> None:
    whole, _ = known(run(tmp_path / "a", "points: 10, batch: 1, parallel: 1"))
    run(tmp_path / "b", "points: 6, batch: 1, parallel: 1")
    extended, _ = known(run(tmp_path / "b", "points: 10, batch: 1, parallel: 1"))
    assert [(e.proposal, e.state, e.values, e.step) for e in extended] == [
        (e.proposal, e.state, e.values, e.step) for e in whole
    ]
