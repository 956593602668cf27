"""Configurations on different data do not compete: conditions, who wins in each, what is said of
it.
"""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from analysis_ledger import DETAILS, Written, open_ledger
from modmix.analysis.best import best_configurations, explain_no_best
from modmix.analysis.compare import compare_table
from modmix.analysis.comparisons import conditions_table
from modmix.analysis.curves import curve
from modmix.analysis.figure_data import by_condition, learning_curves, results
from modmix.analysis.figures import figure, figure_names, to_bytes
from modmix.analysis.frames import Snapshot, read, short
from modmix.analysis.report import report_html, write_all
from modmix.analysis.searches import search_history, trade_off
from modmix.analysis.summary import headline, ranks
from modmix.analysis.tables import results_table
from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.cli.main import app
from modmix.ledger.records import ConfigurationRecord, Entry, ReplicateRecord

# Test error by method and share. mul has the lowest value of all, 1.0, but only where the data is
# easy; add is better on the other three. Ranks: mul 1, 2, 2, 2; add 2, 1, 1, 1; late always 3.
ERRORS = {
    "mul": {0.0: 1.0, 0.2: 4.0, 0.4: 8.0, 0.6: 16.0},
    "add": {0.0: 2.0, 0.2: 3.0, 0.4: 7.0, 0.6: 15.0},
    "late": {0.0: 9.0, 0.2: 10.0, 0.4: 20.0, 0.6: 30.0},
}
OFF = {"mul": (-0.3, 0.1, 0.2), "add": (-0.1, 0.0, 0.1), "late": (0.4, -0.1, -0.3)}


@pytest.fixture
def fresh(tmp_path):
    return open_ledger(tmp_path)


def details(study, **more):
    """Change what the ledger knows of the study's task."""
    record = study.ledger.study(study.name)
    study.ledger.start_study(
        study.name, spec=record.spec, text="", source="", details={**DETAILS, **more}
    )


def put(study, part, method, params, error, off=(-0.1, 0.0, 0.1), **more):
    """A finished configuration with a test error per seed; validation lies one below."""
    configuration = study.configuration(part, method, params, seeds=range(len(off)))
    metrics = [
        {"test/error": error + d, "val/error": error + d - 1.0, "test/nll": error / 10, **more}
        for d in off
    ]
    history = {"epoch": [1.0, 2.0], "val/error": [50.0, error - 1.0]}
    study.record(
        [study.result(configuration, s, found, history=history) for s, found in enumerate(metrics)]
    )
    return configuration


def split_study(ledger, name="demo"):
    """Every configuration changes the task."""
    part = {
        "x": "task.share",
        "references": ["mul"],
        "shared": {"task.share": {"grid": [0.0, 0.2, 0.4, 0.6]}},
        "methods": {"mul": {}, "add": None, "late": None},
    }
    study = Written(ledger, name, parts={"a": part})
    details(study, task="weak", task_options={"share": 0.5, "weakness": "noise"})
    for method, values in ERRORS.items():
        for share, error in values.items():
            put(study, "a", method, {"task.share": share}, error, OFF[method])
    return study


def mixed_study(ledger):
    """A part with the task as given, in which add wins; then an easier and a harder task."""
    parts = {
        "main": {"methods": {"mul": {"beta": {"grid": [0, 1]}}, "add": None, "base": None}},
        "share": {
            "x": "task.share",
            "shared": {"task.share": {"grid": [0.0, 0.9]}},
            "methods": {"mul": {}, "add": None},
        },
    }
    study = Written(ledger, parts=parts)
    details(study, task_options={"share": 0.5, "seed": 0})
    put(study, "main", "base", {"depth": 0}, 9.0)  # only methods that vary the task show it
    put(study, "main", "mul", {"beta": 0.0, "task.share": 0.5}, 6.0)
    put(study, "main", "mul", {"beta": 1.0, "task.share": 0.5}, 5.0, (-0.2, 0.1, 0.1))
    put(study, "main", "add", {"depth": 0, "task.share": 0.5}, 4.0)
    for share, mul, add in ((0.0, 1.0, 2.0), (0.9, 20.0, 30.0)):
        put(study, "share", "mul", {"beta": 0.0, "task.share": share}, mul)
        put(study, "share", "add", {"depth": 0, "task.share": share}, add)
    return study


def texts(table):
    return [[cell.text for cell in row] for row in table.cells]


def marks(table):
    return [[cell.mark for cell in row] for row in table.cells]


# ---------------------------------------------------------------- what a condition is


def test_conditions_come_in_order_of_asking_and_are_named_by_what_differs(fresh):
    study = Written(fresh, parts={"a": {}})
    for weakness, share in (("noise", 0.4), ("conflict", 0.4), ("noise", 0.0)):
        params = {"task.weakness": weakness, "task.share": share, "task.rows": 100, "beta": 1.0}
        study.configuration("a", "mul", params, seeds=[0])
    study.configuration(
        "a", "add", {"task.weakness": "conflict", "task.share": 0.4, "task.rows": 100}
    )
    found = read(fresh, "demo").conditions
    assert [one.label for one in found.all] == [
        "weakness = noise, share = 0.4", "weakness = conflict, share = 0.4",
        "weakness = noise, share = 0",
    ]  # fmt: skip
    assert found.varied == ("weakness", "share")
    assert [[p.method for p in found.members[one]] for one in found.all] == [
        ["mul"], ["mul", "add"], ["mul"],
    ]  # fmt: skip
    assert found.is_split
    assert found.main is None


def test_a_configuration_that_shows_the_tasks_own_value_is_on_the_task_as_given(fresh):
    mixed_study(fresh)
    found = read(fresh, "demo").conditions
    assert [one.label for one in found.all] == [
        "share = 0.5 (as given)",
        "share = 0",
        "share = 0.9",
    ]
    assert found.main is found.all[0]
    assert len(found.members[found.main]) == 4  # with base, whose configurations show no share
    assert not found.is_split


def test_one_condition_is_the_whole_whether_as_given_or_not(fresh):
    study = Written(fresh, parts={"a": {}})
    put(study, "a", "mul", {"task.share": 0.3}, 5.0)
    put(study, "a", "add", {"task.share": 0.3}, 6.0)
    snapshot = read(fresh, "demo")
    assert snapshot.conditions.main is not None
    assert [best.method for best in best_configurations(fresh, "demo")] == ["mul", "add"]
    assert headline(snapshot).startswith(
        "mul is best by validation error. Its test error is 5.00 %"
    )
    assert "conditions" not in figure_names(fresh, "demo")


def test_a_part_that_sets_the_very_values_of_the_task_is_one_condition_among_others(fresh):
    block = {"shared": {"task.share": {"grid": [0.5, 0.9]}}, "methods": {"mul": None}}
    study = Written(fresh, parts={"a": block})
    details(study, task_options={"share": 0.5})
    for share in (0.5, 0.9):
        put(study, "a", "mul", {"task.share": share}, 10 * share)
    assert read(fresh, "demo").conditions.is_split
    # Another part takes the task as it is: now the study is about that.
    other = Written(fresh, "other", parts={"a": block, "b": {"methods": {"mul": {"beta": 1}}}})
    details(other, task_options={"share": 0.5})
    put(other, "a", "mul", {"task.share": 0.9, "beta": 1.0}, 9.0)
    put(other, "b", "mul", {"task.share": 0.5, "beta": 1.0}, 5.0)
    found = read(fresh, "other").conditions
    assert found.main is found.all[1]


def test_an_option_that_makes_no_difference_is_not_named(fresh):
    # Where nothing is weak, the kind of weakness is idle: both parts ask for the same
    # configuration.
    parts = {
        weakness: {
            "shared": {"task.weakness": weakness, "task.share": {"grid": [0.0, 0.4]}},
            "methods": {"mul": None},
        }
        for weakness in ("noise", "missing")
    }
    study = Written(fresh, parts=parts)
    details(study, task_options={"weakness": "noise", "share": 0.9})
    for weakness in parts:
        params = {"task.weakness": "noise", "task.share": 0.0}
        study.configuration(weakness, "mul", params, seeds=[0], options={"share": 0.0})
        study.configuration(
            weakness, "mul", {"task.weakness": weakness, "task.share": 0.4}, seeds=[0]
        )
    found = read(fresh, "demo").conditions
    assert [one.label for one in found.all] == [
        "share = 0 (any weakness)", "weakness = noise, share = 0.4",
        "weakness = missing, share = 0.4",
    ]  # fmt: skip
    assert found.all[0].options == {"share": 0.0}
    assert "as in task: {weakness: noise, share: 0.4}" in explain_no_best(fresh, "demo")


def test_a_configuration_that_a_part_asks_for_without_touching_the_task_is_as_given(fresh):
    # The task has share 0, so a part that varies the weakness meets the task as given, too.
    parts = {
        "main": {"methods": {"mul": None, "base": None}},
        "noise": {"shared": {"task.weakness": "noise"}, "methods": {"mul": None}},
        "missing": {
            "shared": {"task.weakness": "missing", "task.share": {"grid": [0.0, 0.4]}},
            "methods": {"mul": None},
        },
    }
    study = Written(fresh, parts=parts)
    details(study, task_options={"weakness": "noise", "share": 0.0})
    for part in parts:  # the ledger keeps what the last part showed
        study.configuration(
            part, "mul", {"task.weakness": "missing", "task.share": 0.0}, seeds=[0],
            options={"share": 0.0}, fingerprint=DETAILS["fingerprint"],
        )  # fmt: skip
    study.configuration(
        "missing", "mul", {"task.weakness": "missing", "task.share": 0.4}, seeds=[0]
    )
    study.configuration("main", "base", {"depth": 0}, seeds=[0])
    found = read(fresh, "demo").conditions
    assert [one.label for one in found.all] == [
        "weakness = noise, share = 0 (as given)", "weakness = missing, share = 0.4",
    ]  # fmt: skip
    assert found.main is found.all[0]
    assert [p.method for p in found.members[found.main]] == ["mul", "base"]


def test_a_study_without_configurations_has_no_conditions(fresh):
    Written(fresh, parts={"a": {}})
    found = read(fresh, "demo").conditions
    assert (found.all, found.main, found.is_split) == ((), None, False)
    assert "has no complete configuration: continue with" in explain_no_best(fresh, "demo")


# ---------------------------------------------------------------- every configuration changes the
# task


def test_easy_data_makes_no_winner(fresh):
    split_study(fresh)
    assert best_configurations(fresh, "demo") == []
    assert explain_no_best(fresh, "demo") == (
        "study 'demo' has no best configuration, because all of them change the task's options "
        "(share) and results on different data cannot be compared: fix them in the "
        "study file, as "
        "in task: {share: 0}"
    )
    # Friedman: 12 · 4 / (3 · 4) · Σ (mean rank − 2)² = 4 · (0.25² + 0.75² + 1²) = 6.5 with two
    # degrees of freedom, p = exp(−3.25) = 0.0388. Wins beyond chance: see the tests below.
    assert headline(read(fresh, "demo")) == (
        "Every configuration changes the task's options, so methods are compared within each of 4 "
        "conditions. add has the lowest test error in 3 of the 4 (mul in 1); in 3 of them it is "
        "also best on validation and differs significantly from every other method (paired t "
        "tests, Holm-corrected, 5 % level). It also has the best mean rank, 1.25, followed by mul "
        "with 1.75 (Friedman test: p = 0.039)."
    )


def test_the_results_are_one_row_per_condition(fresh):
    split_study(fresh)
    table = results_table(fresh, "demo")
    assert table.header == ("condition", "mul", "add", "late")
    assert texts(table) == [
        ["share = 0", "1.00 ± 0.26", "2.00 ± 0.10", "9.00 ± 0.36"],
        ["share = 0.2", "4.00 ± 0.26", "3.00 ± 0.10", "10.00 ± 0.36"],
        ["share = 0.4", "8.00 ± 0.26", "7.00 ± 0.10", "20.00 ± 0.36"],
        ["share = 0.6", "16.00 ± 0.26", "15.00 ± 0.10", "30.00 ± 0.36"],
        ["mean rank over 4 conditions", "1.75", "1.25", "3.00"],
    ]
    assert marks(table) == [
        ["", "best", "second", ""], *[["", "second", "best", ""]] * 4,
    ]  # fmt: skip
    assert table.notes[1] == (
        "Ranks (1 is best) are averaged over the conditions; Friedman test: p = 0.039."
    )
    for form in ("text", "md", "tex", "csv", "json"):
        assert table.render(form)
    rows = json.loads(table.render("json"))["rows"]
    assert len(rows) == 12  # the error only: the ledger has no other metric of these configurations
    assert rows[0]["task.share"] == 0.0
    found = ranks(read(fresh, "demo"))
    assert list(found.frame["method"]) == ["add", "mul", "late"]
    assert list(found.frame["wins"]) == [3, 1, 0]


def test_methods_are_tested_within_a_condition(fresh):
    split_study(fresh)
    frame = results_table(fresh, "demo").frame
    mine = frame[frame["condition"] == "share = 0.4"].set_index("method")
    add = np.array(OFF["add"]) + 7
    raw = {
        method: stats.ttest_rel(np.array(OFF[method]) + error, add).pvalue
        for method, error in (("mul", 8.0), ("late", 20.0))
    }
    low, high = sorted(raw.values())
    assert mine.loc["mul", "difference"] == pytest.approx(1.0)
    assert mine.loc["mul", "p_paired_t"] == pytest.approx(raw["mul"])
    assert sorted(mine["p_holm"].dropna()) == pytest.approx([2 * low, max(2 * low, high)])
    assert math.isnan(mine.loc["add", "p_holm"])
    assert mine.loc["add", "difference"] == 0.0


def test_validation_chooses_within_each_condition(fresh):
    study = split_study(fresh)
    better = put(study, "a", "mul", {"task.share": 0.2, "beta": 2.0}, 3.5)
    frame = results_table(fresh, "demo").frame
    mine = frame[frame["method"] == "mul"].set_index("task.share")
    assert mine.loc[0.2, "configuration"] == short(better)
    assert list(mine["mean"]) == pytest.approx([1.0, 3.5, 8.0, 16.0])
    assert list(mine["n_candidates"]) == [1, 2, 1, 1]
    assert (
        "Numbers of configurations per method differ in share = 0.2 (mul 2, add 1, "
        "late 1)." in results_table(fresh, "demo").notes
    )


def test_the_reference_of_a_condition_is_the_best_on_validation(fresh):
    study = Written(fresh, parts={"a": {}})
    for share in (0.2, 0.4):  # add is best on test, mul on validation
        put(study, "a", "mul", {"task.share": share}, 4.0, off=OFF["mul"], **{"val/error": 1.0})
        put(study, "a", "add", {"task.share": share}, 3.0, off=OFF["add"], **{"val/error": 2.0})
    frame = results_table(fresh, "demo").frame.set_index(["condition", "method"])
    gaps = np.array(OFF["add"]) - np.array(OFF["mul"]) - 1.0
    p = stats.ttest_1samp(gaps, 0).pvalue
    assert p < 0.05
    found = frame.loc[("share = 0.2", "add")]
    assert found["difference"] == pytest.approx(gaps.mean())
    assert found["p_holm"] == pytest.approx(p)
    assert math.isnan(frame.loc[("share = 0.2", "mul"), "p_holm"])
    drawn = by_condition(read(fresh, "demo"))
    assert drawn.references == ("mul", "mul")
    assert drawn.gaps[0]["add"].gap == pytest.approx(gaps.mean())
    # A lead on test that validation did not foresee is no significant one.
    assert "add has the lowest test error in 2 of the 2; in 0 of them it is also best on" in (
        headline(read(fresh, "demo"))
    )


def test_ranks_leave_out_who_took_part_in_few_conditions(fresh):
    study = split_study(fresh)
    put(study, "a", "attend", {"task.share": 0.6}, 1.0)
    put(study, "a", "mul", {"task.share": 0.8}, 2.0)  # no other method is there
    table = results_table(fresh, "demo")
    *_, alone, last = texts(table)
    assert alone == ["share = 0.8", "2.00 ± 0.10", "–", "–", "–"]
    assert marks(table)[-2] == [""] * 5
    assert last == ["mean rank over 4 conditions", "1.75", "1.25", "3.00", "–"]
    assert table.notes[1].startswith(
        "Ranks (1 is best) are over the 4 of 5 conditions in which all of add, late, mul have a "
        "result; Friedman test"
    )
    found = headline(read(fresh, "demo"))
    assert "each of 5 conditions" in found
    assert "in 3 of the 4 that have results of all 3 methods (mul in 1); in 2 of them" in found


def test_who_wins_most_need_not_have_the_best_rank(fresh):
    study = Written(fresh, parts={"a": {}})
    # mul: ranks 1, 1, 3, 3, 3; add: 2, 2, 2, 2, 1; late: 3, 3, 1, 1, 2
    errors = {"mul": (1, 1, 3, 3, 3), "late": (3, 3, 1, 1, 2), "add": (2, 2, 2, 2, 1)}
    for method, values in errors.items():
        for i, value in enumerate(values):
            put(study, "a", method, {"task.seed": i}, 10.0 + value)
    found = headline(read(fresh, "demo"))
    # late and mul win twice each; late has the better rank (10 / 5 to 11 / 5)
    assert "late has the lowest test error in 2 of the 5 (mul in 2, add in 1); in 0 of" in found
    assert "add has the best mean rank, 1.80, followed by late with 2.00 (Friedman" in found


def test_conditions_are_drawn_in_place_of_the_results(fresh):
    split_study(fresh)
    assert figure_names(fresh, "demo") == ["results", "a"]  # no learning curves of no winner
    snapshot = read(fresh, "demo")
    found = by_condition(snapshot)
    assert found.labels == ("share = 0", "share = 0.2", "share = 0.4", "share = 0.6")
    assert [values["add"].gap for values in found.gaps] == pytest.approx([1, 0, 0, 0])
    # add minus mul, seed by seed, where mul is the best: 1.2, 0.9, 0.9
    add = found.gaps[0]["add"]
    half = 4.302652730 * math.sqrt(0.03 / 3)
    assert (add.mean, add.low, add.high) == pytest.approx((2.0, 1 - half, 1 + half))
    picture = figure(fresh, "demo", "results")
    (ax,) = picture.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == list(found.labels)
    best = [text.get_text() for text in ax.texts][:4]
    assert best == ["mul 1.00", "add 3.00", "add 7.00", "add 15.00"]
    drawn = {c.get_label(): list(c.lines[0].get_xdata()) for c in ax.containers}
    assert drawn["late"] == pytest.approx([8, 7, 13, 15])
    assert ax.get_xlabel() == "test error, gap to the method that is best on validation (points)"
    assert to_bytes(picture, "svg")
    assert results(snapshot).rows == ()
    assert learning_curves(fresh, snapshot).lines == ()
    few = by_condition(snapshot, limit=3)
    assert (len(few.gaps), few.omitted) == (3, 1)


def test_a_curve_over_the_task_has_no_best_place(fresh):
    split_study(fresh)
    found = curve(read(fresh, "demo"), "a")
    assert [(line.label, line.minimum, line.chosen) for line in found.lines] == [
        ("mul", None, None), ("add", None, None), ("late", None, None),
    ]  # fmt: skip
    assert found.references == ()  # mul has no best configuration for all of these data
    assert (found.conditions, found.x_doc) == (
        4, "probability that an input is weak in an example",
    )  # fmt: skip
    picture = figure(fresh, "demo", "a")
    (ax,) = picture.axes
    assert ax.get_xlabel() == "share: probability that an input is weak in an example"
    assert "ring" not in " ".join(text.get_text() for text in ax.texts)
    html = report_html(fresh, "demo")
    assert "Selected on validation" not in html
    assert "No reference lines: the configurations are on different data." in html


def test_several_weaknesses_in_one_part_are_lines_of_their_own(fresh):
    study = Written(fresh, parts={"a": {"x": "task.share"}})
    for weakness in ("noise", "missing"):
        for share in (0.0, 0.5):
            params = {"task.weakness": weakness, "task.share": share}
            put(study, "a", "mul", params, 9 + 9 * share)
    labels = [line.label for line in curve(read(fresh, "demo"), "a").lines]
    assert labels == ["mul (task weakness = noise)", "mul (task weakness = missing)"]


def test_references_are_of_the_curves_own_condition(fresh):
    part = {"x": "depth", "references": ["mul"]}
    study = Written(fresh, parts={"depth": part, "b": {}})
    for depth in (0, 1):
        put(study, "depth", "add", {"depth": depth, "task.share": 0.4}, 8.0 + depth)
    put(study, "b", "mul", {"task.share": 0.0}, 1.0)  # easier data
    same = put(study, "b", "mul", {"task.share": 0.4}, 6.0)
    found = curve(read(fresh, "demo"), "depth")
    assert [reference.configuration for reference in found.references] == [same]
    (line,) = found.lines
    assert (line.minimum, line.chosen) == (0, 0)


def test_files_of_a_study_without_a_winner(tmp_path, fresh):
    split_study(fresh)
    outputs = write_all(fresh, Home(tmp_path / "home"), "demo", errors="std")
    assert {p.name for p in outputs.figures} == {
        f"{n}.{f}" for n in ("a", "results") for f in ("png", "svg", "pdf")
    }
    names = {f"{n}.{f}" for n in ("results", "configurations") for f in ("csv", "md", "tex")}
    assert {p.name for p in outputs.tables} == names | {"ranks.csv", "a.csv"}
    html = outputs.report.read_text()
    assert "add has the lowest test error in 3 of the 4" in html
    assert "4: share = 0, 0.2, 0.4, 0.6" in html
    assert "modmix best demo" not in html
    assert "f" * 32 not in html  # nobody met the data of the task as given
    with pytest.raises(InputError, match="error bars must be 'ci' or 'std', got 'sem'"):
        write_all(fresh, Home(tmp_path / "home"), "demo", errors="sem")


def test_nothing_finished_yet_in_a_study_that_varies_its_task(tmp_path, fresh):
    study = Written(fresh, parts={"a": {"x": "task.share"}})
    for share in (0.0, 0.5):
        study.configuration("a", "mul", {"task.share": share})
    snapshot = read(fresh, "demo")
    assert "No condition has results of several methods yet. 0 of 10 replicates" in headline(
        snapshot
    )
    assert texts(conditions_table(snapshot)) == [["share = 0", "–"], ["share = 0.5", "–"]]
    assert write_all(fresh, Home(tmp_path / "home"), "demo").report.exists()


# ---------------------------------------------------------------- some configurations change the
# task


def test_the_winner_is_of_the_task_as_given(fresh):
    mixed_study(fresh)
    found = best_configurations(fresh, "demo")
    assert [(best.method, best.mean) for best in found] == [
        ("add", pytest.approx(3.0)), ("mul", pytest.approx(4.0)), ("base", pytest.approx(8.0)),
    ]  # fmt: skip
    assert headline(read(fresh, "demo")).startswith(
        "With the study file's task options: add is best by validation error. Its test error is 4"
    )
    table = results_table(fresh, "demo")
    assert [row[0] for row in texts(table)] == ["add", "mul", "base"]
    chosen = table.header.index("hyperparameters")
    assert [row[chosen] for row in texts(table)] == ["", "β = 1", ""]  # the share was not chosen
    assert list(table.frame["n_candidates"]) == [1, 2, 1]
    assert (
        "Only configurations with the study file's task options (share = 0.5); see the table of "
        "conditions for the other 2." in table.notes
    )
    lines = learning_curves(fresh, read(fresh, "demo")).lines
    assert [(line.method, line.mean[-1]) for line in lines] == [
        ("add", 3.0), ("mul", 4.0), ("base", 8.0),
    ]  # fmt: skip
    assert set(ranks(read(fresh, "demo")).frame["method"]) == {"add", "mul", "base"}


def test_conditions_are_an_extra_table_and_figure(tmp_path, fresh):
    mixed_study(fresh)
    outputs = write_all(fresh, Home(tmp_path / "home"), "demo")
    assert {"conditions.csv", "conditions.md", "conditions.tex"} <= {p.name for p in outputs.tables}
    assert "conditions.png" in {p.name for p in outputs.figures}
    assert 'id="conditions"' in outputs.report.read_text()
    table = conditions_table(read(fresh, "demo"))
    assert [row[:3] for row in texts(table)[:3]] == [
        ["share = 0.5 (as given)", "9.00 ± 0.10", "5.00 ± 0.17"],
        ["share = 0", "–", "1.00 ± 0.10"],
        ["share = 0.9", "–", "20.00 ± 0.10"],
    ]
    # mul and add met three times, base once: mul ranks 2, 1, 1.
    assert texts(table)[3] == ["mean rank over 3 conditions", "–", "1.33", "1.67"]


# ---------------------------------------------------------------- searches and trade-offs


def test_a_search_over_the_task_has_no_best_so_far(fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 2}}})
    for number, share in enumerate((0.9, 0.0)):
        put(study, "s", "mul", {"task.share": share}, 10 * share + 1)
        put(study, "s", "add", {"task.share": 0.9, "depth": number}, 5.0 + number)
    mul, add = search_history(read(fresh, "demo"), "s").traces
    assert np.isnan(mul.best).all()
    assert list(add.best) == pytest.approx([4.0, 4.0])
    labels = figure(fresh, "demo", "search_s").axes[0].get_legend().get_texts()
    assert [text.get_text() for text in labels] == [
        "mul, 2 configurations",
        "add, 2 configurations, best 4.00",
    ]


def test_a_front_is_of_configurations_on_the_same_data(fresh):
    study = Written(fresh, parts={"a": {}}, objective=["val/error", "val/nll"])
    mine = put(study, "a", "mul", {"beta": 1.0}, 9.0, **{"val/nll": 2.0})
    put(study, "a", "mul", {"task.share": 0.0}, 1.0, **{"val/nll": 0.1})
    found = trade_off(read(fresh, "demo"))
    assert found.configurations == (mine,)
    assert list(found.front) == [True]


# ---------------------------------------------------------------- beside other studies


def test_a_study_without_a_winner_compares_by_its_conditions(fresh):
    split_study(fresh)
    other = Written(fresh, "other", parts={"a": {}})
    for method, error in (("mul", 3.0), ("add", 4.0), ("late", 5.0)):
        put(other, "a", method, {"beta": 9.0}, error)
    table = compare_table(fresh, ["other", "demo"])
    assert [row[:4] for row in texts(table)] == [
        ["other", "test error (%)", "3.00 ± 0.10", "4.00 ± 0.10"],
        ["demo: share = 0", "test error (%)", "1.00 ± 0.26", "2.00 ± 0.10"],
        ["demo: share = 0.2", "test error (%)", "4.00 ± 0.26", "3.00 ± 0.10"],
        ["demo: share = 0.4", "test error (%)", "8.00 ± 0.26", "7.00 ± 0.10"],
        ["demo: share = 0.6", "test error (%)", "16.00 ± 0.26", "15.00 ± 0.10"],
        ["mean rank", "5 rows", "1.60", "1.40"],
    ]
    with pytest.raises(InputError, match="the metric of a comparison must be one of"):
        compare_table(fresh, ["other"], metric="val/error")


# ---------------------------------------------------------------- the command line


def run(*words):
    return CliRunner().invoke(app, list(words))


def test_commands_for_studies_that_vary_their_task(tmp_path, fresh, monkeypatch):
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path))
    monkeypatch.delenv("MODMIX_LEDGER", raising=False)
    split_study(fresh)
    found = run("best", "demo")
    assert isinstance(found.exception, InputError)
    assert "because all of them change the task's options (share)" in str(found.exception)
    assert found.exception.exit_code == 2
    assert "mean rank over 4 conditions" in run("table", "demo", "--by", "method").stdout
    assert "demo: share = 0.2" in run("compare", "demo").stdout
    rows = json.loads(run("compare", "demo", "demo", "--format", "json").stdout)["rows"]
    assert len(rows) == 12  # a study named twice is one
    assert isinstance(run("compare", "demo", "--format", "xlsx").exception, InputError)
    assert isinstance(run("compare", "nope").exception, InputError)
    paths = run("figure", "demo", "--errors", "std").stdout.splitlines()
    assert paths[0].endswith("demo/figures/results.png")
    assert b"mean and standard deviation" in (tmp_path / "demo/figures/a.svg").read_bytes()
    assert isinstance(run("figure", "demo", "--errors", "sem").exception, InputError)


# ---------------------------------------------------------------- many


@pytest.mark.slow
@pytest.mark.parametrize("conditions", [5, 5000])
def test_ten_thousand_configurations_in_conditions_take_a_few_seconds(fresh, conditions):
    study = Written(fresh, parts={"a": {"x": "task.share"}})
    small = read(fresh, study.name)
    values = np.random.default_rng(0).normal(10, 1, (10_000, 5))
    configurations = [
        ConfigurationRecord(key=f"{i:032x}", number=i, method=("mul", "add")[i % 2],
                    params={"task.share": (i // 2) % conditions / 1e4, "beta": float(i)},
                    mlflow_run=None, mirrored=None, fingerprint=str((i // 2) % conditions),
                    options={"share": (i // 2) % conditions / 1e4})
        for i in range(10_000)
    ]  # fmt: skip
    template = ReplicateRecord(
        key="", configuration="", seed=0, state="done", owner=None, pack=None, attempts=1, epochs=1,
        best_epoch=1.0, metrics={}, reason="", seconds=1.0, finished=0.0, origin="trained",
    )  # fmt: skip
    replicates = [
        dataclasses.replace(template, key=f"{p.key}{seed}", configuration=p.key, seed=seed,
                            metrics=dict.fromkeys(("val/error", "test/error"),
                                                  float(values[p.number, seed])))
        for p in configurations for seed in range(5)
    ]  # fmt: skip
    entries = [
        Entry(part="a", method=p.method, number=p.number, configuration=p.key)
        for p in configurations
    ]
    snapshot = Snapshot(
        record=small.record, configurations=configurations, replicates=replicates, entries=entries
    )
    table = conditions_table(snapshot)
    headline(snapshot)
    assert len(table.cells) == conditions + 1
