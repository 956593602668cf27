"""Methods by tasks: values, marks and ranks counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from analysis_ledger import DETAILS, open_ledger
from modmix.analysis import over_tasks
from modmix.analysis.best import best_configurations
from modmix.analysis.compare import compare_table
from modmix.analysis.figures import figure_names, figures_of
from modmix.analysis.frames import read
from modmix.analysis.report import report_html
from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, NewConfiguration, Result
from modmix.registry.best import write_best

# Mean test error by task and method; `late` runs on the first task only.
MEANS = {
    "easy": {"add": 2.0, "mul": 1.0, "mulmix": 3.0, "late": 9.0},
    "hard": {"add": 21.0, "mul": 20.0, "mulmix": 22.0},
    "odd": {"add": 5.0, "mul": 7.0, "mulmix": 6.0},
}
OFF = (-0.1, 0.0, 0.1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three tasks; a part `curve` over β with mul, in which β = 1 is the better by validation."""
    found = open_ledger(tmp_path)
    tasks = {task: {"task": {"name": "digits"}, "paper": {}} for task in MEANS}
    tasks["hard"]["paper"] = {"mul": {"test/error": [19.5, 0.2]}}
    methods = {"add": {}, "mulmix": {}, "late": {}}
    spec = {
        "study": "s",
        "tasks": tasks,
        "seeds": [0, 1, 2],
        "objective": ["val/error"],
        "parts": {
            "table": {"tasks": None, "methods": methods},
            "curve": {"x": "beta", "methods": {"mul": {"beta": {"grid": [0.0, 1.0]}}}},
        },
    }
    details = {**DETAILS, "tasks": {task: {"fingerprint": task} for task in MEANS}}
    found.start_study("s", spec=spec, text="study: s\n", source="s.yaml", details=details)
    lease = found.acquire("s")
    for task, means in MEANS.items():
        for method, mean in means.items():
            for i, beta in enumerate((0.0, 1.0) if method == "mul" else (None,)):
                params = {} if beta is None else {"beta": beta}
                part = "table" if beta is None else "curve"
                key = digest([task, method, beta])
                error = mean + (3.0 if beta == 0.0 else 0.0)
                results = [
                    Result(
                        replicate=digest([key, seed]),
                        state="done",
                        metrics={"test/error": error + off, "val/error": error + off + 1.0},
                    )
                    for seed, off in enumerate(OFF)
                ]
                found.add(
                    "s",
                    [
                        NewConfiguration(
                            key=key,
                            method=method,
                            params=params,
                            task=task,
                            fingerprint=task,
                            replicates=[(r.replicate, s) for s, r in enumerate(results)],
                        )
                    ],
                    [Entry(part=f"{part}@{task}", method=method, number=i, configuration=key)],
                )
                found.claim(lease, digest(["pack", key]), [r.replicate for r in results])
                found.finish(lease, results)
    return found


def test_candidates_are_counted_once_where_all_are_equal(ledger: Ledger) -> None:
    notes = over_tasks.results_table(ledger, "s").notes
    (note,) = [note for note in notes if "selected from" in note]
    assert "mul 2" in note
    assert "add 1" in note
    assert "hard: " in note
    snapshot = read(ledger, "s")
    configurations = [c for c in snapshot.configurations if c.params.get("beta") != 0.0]
    kept = {configuration.key for configuration in configurations}
    entries = [entry for entry in snapshot.entries if entry.configuration in kept]
    equal = replace(snapshot, configurations=configurations, entries=entries)
    (note,) = [n for n in over_tasks.results_of(equal).notes if "selected from" in n]
    assert note == "Number of configurations each was selected from, on every task: 1."


def test_methods_by_tasks(ledger: Ledger) -> None:
    table = over_tasks.results_table(ledger, "s")
    assert table.header == (
        "method", "easy: test error (%)", "hard: test error (%)", "hard: paper",
        "odd: test error (%)", "mean rank",
    )  # fmt: skip
    rows = {row[0].text: [(cell.text, cell.mark) for cell in row[1:]] for row in table.cells}
    # Ranks of add, mul, mulmix: 2 1 3, 2 1 3, 1 3 2.
    assert rows == {
        "add": [("2.00 ± 0.10", "second"), ("21.00 ± 0.10", "second"), ("–", ""),
                ("5.00 ± 0.10", "best"), ("1.67", "best")],
        "mul": [("1.00 ± 0.10", "best"), ("20.00 ± 0.10", "best"), ("19.5 ± 0.2", ""),
                ("7.00 ± 0.10", ""), ("1.67", "best")],
        "mulmix": [("3.00 ± 0.10", ""), ("22.00 ± 0.10", ""), ("–", ""),
                   ("6.00 ± 0.10", "second"), ("2.67", "second")],
        "late": [("9.00 ± 0.10", ""), ("–", ""), ("–", ""), ("–", ""), ("–", "")],
    }  # fmt: skip
    assert any("Not ranked, without a result on every task: late." in note for note in table.notes)


def test_rows_are_ordered_by_mean_rank(ledger: Ledger) -> None:
    snapshot = read(ledger, "s")
    found = over_tasks.over_tasks(snapshot)
    easy_and_hard = ("easy", "hard")
    # Without odd: mul before add before mulmix in both; late has a result in one of them.
    two = replace(
        found,
        snapshots={task: found.snapshots[task] for task in easy_and_hard},
        rows={task: found.rows[task] for task in easy_and_hard},
    )
    assert two.labels == ["mul", "add", "mulmix", "late"]
    notes = over_tasks.results_of(snapshot).notes
    assert "Methods are ordered by mean rank." in notes
    one = over_tasks.results_of(snapshot.of_task("easy")).notes
    assert one[0] == "Configurations are selected, and methods ordered, by validation error (%)."


def test_a_row_per_task(ledger: Ledger) -> None:
    table = over_tasks.results_table(ledger, "s", rows="tasks")
    assert table.header == ("task", "add", "mul", "mulmix", "late")
    assert [row[0].text for row in table.cells] == [
        "easy: test error (%)", "hard: test error (%)", "hard: paper", "odd: test error (%)",
        "mean rank",
    ]  # fmt: skip
    with pytest.raises(InputError, match="rows must be methods or tasks, got 'x'"):
        over_tasks.results_table(ledger, "s", rows="x")


def test_summary(ledger: Ledger) -> None:
    # Friedman: 12 · 3 · Σ (mean rank − 2)² / (3 · 4) = 3 · (1/9 + 1/9 + 4/9) = 2; χ², 2 degrees.
    p = math.exp(-2 / 2)
    assert over_tasks.headline(read(ledger, "s")) == (
        "Over 3 tasks, add and mul share the best mean rank, 1.67 of 3 "
        f"(Friedman test: p = {p:.3f}). Tasks won: add 1, mul 2."
    )


def test_each_task_is_a_study_of_its_own(ledger: Ledger) -> None:
    hard = read(ledger, "s").of_task("hard")
    assert hard.name == "s/hard"
    assert hard.methods == ["add", "mul", "mulmix"]
    assert {entry.part for entry in hard.entries} == {"table", "curve"}
    assert len(hard.replicates) == 4 * 3
    with pytest.raises(InputError, match="study 's' has easy, hard, odd; got 'x'"):
        read(ledger, "s").of_task("x")


def test_best_of_each_task(ledger: Ledger) -> None:
    found = [(best.task, best.method, best.mean) for best in best_configurations(ledger, "s")]
    assert found[:2] == [("easy", "mul", pytest.approx(2.0)), ("easy", "add", pytest.approx(3.0))]
    assert len(found) == 4 + 3 + 3


def test_files_for_final_runs_name_the_task(ledger: Ledger, tmp_path: Path) -> None:
    """So that a model of one task never takes the name of another task's."""
    paths = write_best(ledger, Home(tmp_path / "home"), "s", best_configurations(ledger, "s"))
    assert [path.name for path in paths[4:7]] == [
        "hard.mul.yaml",
        "hard.add.yaml",
        "hard.mulmix.yaml",
    ]
    found = yaml.safe_load(paths[4].read_text())
    assert found["study"] == "s-hard-mul-final"
    assert (found["final"]["of"], found["final"]["task"]) == ("s", "hard")
    assert found["paper"] == {"mul": {"test/error": [19.5, 0.2]}}
    assert "tasks" not in found


def test_compare_has_a_row_per_task(ledger: Ledger) -> None:
    rows = [row[0].text for row in compare_table(ledger, ["s"]).cells]
    assert rows == ["s/easy", "s/hard", "s/odd", "mean rank"]


def test_panels(ledger: Ledger) -> None:
    names = figure_names(ledger, "s")
    assert names[:2] == ["results", "curve"]
    found = figures_of(ledger, read(ledger, "s"))
    numbers = found["curve"].numbers()
    assert list(numbers["task"].unique()) == ["easy", "hard", "odd"]
    drawn = found["curve"].draw()
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["easy", "hard", "odd"]
    assert len(drawn.legends) == 1
    assert all(ax.get_legend() is None for ax in drawn.axes)


def test_report_has_a_section_per_task(ledger: Ledger) -> None:
    page = report_html(ledger, "s")
    for task in MEANS:
        assert f"<h2>Task {task}</h2>" in page
