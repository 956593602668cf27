"""Rows and reference lines of parts with a label."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis_ledger import Written, open_ledger
from modmix.analysis.curves import curve
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.summary import ranks
from modmix.analysis.tables import results_of, unique_labels

PARTS = {
    "curve": {
        "x": "beta",
        "seeds": [7, 8],
        "references": ["add", "mul", "mul*"],
        "methods": {"mul": {}},
    },
    "half": {"label": "{method}", "methods": {"mul": {"beta": 0.5}, "add": None}},
    "tuned": {"label": "{method}*", "best_of": "curve", "methods": {"mul": None}},
}


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """β = 0.2 is the best of the curve; trained again as `tuned`, it is worse than β = 0.5."""
    ledger = open_ledger(tmp_path)
    study = Written(ledger, parts=PARTS, paper={"mul*": {"test/error": 7.5}})
    for part, method, params, error in (
        ("curve", "mul", {"beta": 0.2}, 7.0),
        ("curve", "mul", {"beta": 0.5}, 8.0),
        ("half", "mul", {"beta": 0.5}, 8.0),
        ("half", "add", {}, 9.0),
        ("tuned", "mul", {"beta": 0.2, "again": 1}, 8.5),
    ):
        seeds = range(1 if part == "curve" else 2)
        key = study.configuration(part, method, {**params, "part": part == "curve"}, seeds=seeds)
        found = {"test/error": error, "val/error": error - 1}
        study.record([study.result(key, seed, found) for seed in seeds])
    return read(ledger, "demo")


def test_results_have_the_rows_of_labelled_parts_alone(snapshot: Snapshot) -> None:
    table = results_of(snapshot)
    rows = {row[0].text: row[2].text for row in table.cells}
    assert rows == {"mul": "8.00 ± 0.00", "mul*": "8.50 ± 0.00", "add": "9.00 ± 0.00"}
    assert table.header[3] == "paper"
    assert not any("fewer seeds" in note for note in table.notes)  # the curve has its own
    counts = "Number of configurations each was selected from: mul 1, mul* 2, add 1."
    assert counts in table.notes  # mul* is the best of the two of the curve
    assert [row[3].text for row in table.cells] == ["–", "7.5", "–"]


def test_references_are_these_rows(snapshot: Snapshot) -> None:
    found = [(r.label, r.method, r.value.mean) for r in curve(snapshot, "curve").references]
    assert found == [("add (half)", "add", 9.0), ("mul (half)", "mul", 8.0), ("mul*", "mul", 8.5)]


def test_ranks_are_those_of_the_labelled_rows(snapshot: Snapshot) -> None:
    found = ranks(snapshot, "test/error")
    assert list(found.frame["method"]) == ["mul", "mul*", "add"]
    assert list(found.frame["rank/mean"]) == [1.0, 2.0, 3.0]
    assert not any("A row such as" in note for note in results_of(snapshot).notes)


def test_a_source_that_is_being_extended_has_no_count(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    study = Written(ledger, parts=PARTS)
    study.configuration("curve", "mul", {"beta": 0.2}, seeds=[0, 1])  # another seed was added
    key = study.configuration("tuned", "mul", {"beta": 0.2, "again": 1}, seeds=[0, 1])
    found = {"test/error": 8.0, "val/error": 7.0}
    study.record([study.result(key, seed, found) for seed in (0, 1)])
    (row,) = results_of(read(ledger, "demo")).cells
    assert (row[0].text, row[2].text) == ("mul*", "8.00 ± 0.00")


def test_labels_that_would_be_the_same_are_told_apart() -> None:
    parts = {
        "grid": {"methods": {"mul": {}}},
        "a": {"label": "tuned", "methods": {"mul": {}, "add": None}},
        "b": {"label": "tuned", "methods": {"mul": {}}},
        "c": {"label": "{method}*", "methods": {"mul": {}, "late": {}}},
    }
    assert unique_labels(parts) == {
        ("a", "mul"): "tuned (mul, a)",
        ("a", "add"): "tuned (add)",
        ("b", "mul"): "tuned (mul, b)",
        ("c", "mul"): "mul*",
        ("c", "late"): "late*",
    }


def test_no_row_is_lost_where_labels_are_the_same(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    parts = {
        "a": {"label": "tuned", "methods": {"mul": {}, "add": None}},
        "b": {"label": "tuned", "methods": {"mul": {}}},
    }
    study = Written(ledger, parts=parts)
    for part, method, error in (("a", "mul", 7.0), ("a", "add", 8.0), ("b", "mul", 6.0)):
        key = study.configuration(part, method, {"part": part}, seeds=range(2))
        found = {"test/error": error, "val/error": error}
        study.record([study.result(key, seed, found) for seed in range(2)])
    snapshot = read(ledger, "demo")
    names = ["tuned (mul, b)", "tuned (mul, a)", "tuned (add)"]
    assert [row[0].text for row in results_of(snapshot).cells] == names
    assert ranks(snapshot).frame["method"].tolist() == names


def test_results_of_a_method_that_the_file_has_no_longer_are_shown(tmp_path: Path) -> None:
    """As after a driver was killed between writing the file and removing its entries."""
    ledger = open_ledger(tmp_path)
    study = Written(ledger, parts={"a": {"label": "{method}*", "methods": {"mul": {}}}})
    for method, error in (("mul", 7.0), ("add", 8.0)):
        key = study.configuration("a", method, {}, seeds=range(2))
        found = {"test/error": error, "val/error": error}
        study.record([study.result(key, seed, found) for seed in range(2)])
    assert [row[0].text for row in results_of(read(ledger, "demo")).cells] == ["mul*", "add"]
