"""The tables: rows, marks, p values, the paper's numbers, and every format."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
from scipy import stats

from analysis_ledger import Written, beta_study, open_ledger
from modmix.analysis.best import best_configurations, explain_no_best
from modmix.analysis.compare import compare_table
from modmix.analysis.frames import configurations_frame, read
from modmix.analysis.render import FORMATS, tex_escape
from modmix.analysis.tables import chosen_text, configurations_table, result_rows, results_table
from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.registry.best import write_best


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = open_ledger(tmp_path_factory.mktemp("ledger"))
    beta_study(ledger)
    return ledger


@pytest.fixture
def fresh(tmp_path):
    return open_ledger(tmp_path)


def column(table, name):
    place = table.header.index(name)
    return [row[place] for row in table.cells]


def test_one_row_per_method_and_one_per_part_with_another_best(ledger):
    table = results_table(ledger, "demo")
    labels = [cell.text for cell in column(table, "method")]
    # base, late and add occur in one part; the best mul over all is one of the β-curve's, the
    # best mulmix, too, and the part "table" fixed another β.
    assert set(labels) == {
        "mulmix", "mulmix (table)", "mul", "mul (search)", "add", "late", "base"
    }  # fmt: skip
    chosen = dict(
        zip(labels, (cell.text for cell in column(table, "hyperparameters")), strict=True)
    )
    assert chosen["mulmix (table)"] == "β = 0.5"
    assert chosen["add"] == "depth = 1"
    assert chosen["base"] == ""
    among = table.frame.set_index("label")["n_candidates"]
    # 11 of the curve and 11 of the search (one of its 12 was pruned)
    assert dict(among) == {
        "mulmix": 11, "mulmix (table)": 1, "mul": 22, "mul (search)": 11,
        "add": 5, "late": 1, "base": 1,
    }  # fmt: skip
    assert any("mulmix 11, mulmix (table) 1, mul 22" in note for note in table.notes)
    assert any(note.startswith("A row such as 'mul (search)' is a") for note in table.notes) or any(
        note.startswith("A row such as 'mulmix (table)' is a") for note in table.notes
    )


def test_best_and_second_by_test_mean(ledger):
    table = results_table(ledger, "demo")
    cells = column(table, "test error (%)")
    ordered = sorted(cells, key=lambda cell: cell.sort)
    assert [cell.mark for cell in ordered] == ["best", "second", *[""] * 5]


def test_equal_means_share_the_mark_and_higher_auc_is_better(fresh):
    study = Written(fresh, parts={"a": {}}, objective=["val/auc"])
    for method, auc in (("mul", 0.9), ("add", 0.9), ("base", 0.7)):
        configuration = study.configuration("a", method, {"x": 1.0}, seeds=[0])
        study.end(configuration, 0, {"val/auc": auc, "test/auc": auc, "test/error": 9.0})
    table = results_table(fresh, "demo")
    assert [cell.mark for cell in column(table, "test AUC")] == ["best", "best", "second"]


def test_numbers_are_those_of_the_chosen_configurations(ledger):
    frame = results_table(ledger, "demo").frame.set_index("label")
    configurations = configurations_frame(ledger, "demo").set_index("configuration")
    for label, row in frame.iterrows():
        for name in ("n", "val/error/mean", "test/error/mean", "test/auc/std"):
            assert row[name] == pytest.approx(configurations.loc[row["configuration"], name]), label


def test_p_values_are_paired_and_corrected_by_holm(ledger):
    snapshot = read(ledger, "demo")
    rows = result_rows(snapshot, "test/error")
    best = min(rows, key=lambda row: row.best.mean)  # on validation
    assert best.paired is None
    reference = list(snapshot.by_seed(best.best.configuration, "test/error").values())
    raw = {
        row.label: stats.ttest_rel(
            list(snapshot.by_seed(row.best.configuration, "test/error").values()), reference
        ).pvalue
        for row in rows
        if row is not best
    }
    ordered = sorted(raw, key=lambda label: raw[label])
    expected, largest = {}, 0.0
    for place, label in enumerate(ordered):
        largest = max(largest, min(1.0, raw[label] * (len(ordered) - place)))
        expected[label] = largest
    found = {row.label: row.p_holm for row in rows if row is not best}
    assert found == pytest.approx(expected)


def test_methods_are_tested_against_the_best_on_validation(fresh):
    study = Written(fresh, parts={"a": {}})
    errors = {  # add is best on test, mul on validation
        "add": ((7.0, 7.2, 7.1), (5.0, 5.3, 5.1)),
        "mul": ((6.0, 6.1, 6.2), (8.0, 8.2, 8.4)),
        "late": ((9.0, 9.1, 9.3), (9.0, 9.1, 9.9)),
    }
    for method, (val, test) in errors.items():
        configuration = study.configuration("a", method, {"x": 1.0}, seeds=range(3))
        for seed in range(3):
            metrics = {"val/error": val[seed], "test/error": test[seed]}
            study.end(configuration, seed, metrics)
    table = results_table(fresh, "demo")
    assert [cell.text for cell in column(table, "method")] == ["mul", "add", "late"]
    frame = table.frame.set_index("method")
    raw = {m: stats.ttest_rel(errors[m][1], errors["mul"][1]).pvalue for m in ("add", "late")}
    assert raw["add"] < raw["late"]
    assert frame.loc["add", "difference"] == pytest.approx(-9.2 / 3)
    assert frame.loc["add", "p_holm"] == pytest.approx(2 * raw["add"])
    assert frame.loc["late", "p_holm"] == pytest.approx(max(2 * raw["add"], raw["late"]))
    assert math.isnan(frame.loc["mul", "p_holm"])
    assert [row[2].mark for row in table.cells] == ["second", "best", ""]
    assert any("against mul, the best on validation, over" in note for note in table.notes)


def test_the_papers_numbers_stand_beside_ours(ledger):
    table = results_table(ledger, "demo")
    labels = [cell.text for cell in column(table, "method")]
    papers = dict(zip(labels, (cell.text for cell in column(table, "paper")), strict=True))
    assert papers["add"] == "8.3 ± 0.1"
    assert papers["mul"] == "7.8"  # without a deviation
    assert papers["mul (search)"] == "–"  # stated for the method, not for this part
    assert papers["mulmix (table)"] == "6.4 ± 0.1"  # stated for the row itself
    frame = table.frame.set_index("label")
    assert frame.loc["add", "paper/test/error/std"] == 0.1
    assert math.isnan(frame.loc["base", "paper/test/error/mean"])


def test_auc_is_shown_for_two_classes(fresh):
    study = Written(fresh, parts={"a": {}})
    record = fresh.study("demo")
    fresh.start_study("demo", spec=record.spec, text="", source="",
                      details={**record.details, "classes": 2})  # fmt: skip
    study.fill(study.configuration("a", "mul", {"beta": 0.0}), 8.0)
    assert "test AUC" in results_table(fresh, "demo").header


def test_metrics_can_be_chosen_but_only_of_test(ledger):
    header = results_table(ledger, "demo", metrics=["test/nll"]).header
    assert "test NLL (nats)" in header
    with pytest.raises(InputError, match="a results table shows test metrics"):
        results_table(ledger, "demo", metrics=["val/error"])


def test_configurations_that_are_not_ranked_are_named(fresh):
    """Pruned and failed configurations, and those with fewer seeds than the best ones."""
    study = Written(fresh, parts={"a": {}})
    for i, (seeds, state) in enumerate([
        ([0, 1, 2], "done"), ([0, 1], "done"), ([0, 1], "pruned"), ([0, 1], "pruned"),
        ([0, 1, 2], "failed"),
    ]):  # fmt: skip
        configuration = study.configuration("a", "mul", {"beta": float(i)}, seeds=seeds)
        for seed in seeds:
            # The best value is of the one with two seeds.
            study.end(
                configuration, seed, {"val/error": 9.0 - i, "test/error": 9.0 - i}, state=state
            )
    table = results_table(fresh, "demo")
    assert [cell.text for cell in column(table, "n")] == ["3"]
    assert [cell.text for cell in column(table, "test error (%)")] == ["9.00 ± 0.00"]
    said = (
        "2 configurations (mul 2) were pruned by halving and not ranked.",
        "1 configuration (mul 1) was not ranked because models have failed.",
        "1 configuration (mul 1) was trained with fewer seeds and not ranked.",
    )
    for shown in (table, configurations_table(fresh, "demo")):
        assert shown.notes[-3:] == said
    states = [cell.text for cell in column(configurations_table(fresh, "demo"), "state")]
    assert states == ["done", "done", "pruned", "pruned", "failed"]


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (["done", "pending"], "1 of 2 models are done, and every configuration needs all of its"),
        (["done", "failed"], "each has failed or pruned models: 'modmix status demo' shows why"),
        (["failed", "failed"], "each has failed or pruned models: 'modmix status demo' shows"),
        (["failed", "pruned"], "each has failed or pruned models: 'modmix status demo' shows"),
        (["pending", "pending"], "continue with 'modmix run'"),
    ],
)
def test_why_there_is_no_best_configuration(fresh, states, why):
    study = Written(fresh, parts={"a": {}})
    configuration = study.configuration("a", "mul", {"beta": 0.0}, seeds=[0, 1])
    for seed, state in enumerate(states):
        if state != "pending":
            study.end(configuration, seed, {"val/error": 1.0, "test/error": 1.0}, state=state)
    start = "study 'demo' has no complete configuration: "
    assert explain_no_best(fresh, "demo").startswith(start + why)


def test_how_a_search_trains_is_no_hyperparameter_of_the_tables(fresh):
    """A grid beside it trains without halving."""
    study = Written(fresh, parts={"a": {}})
    for beta, halving in ((0.0, None), (0.5, {"eta": 2, "min_epochs": 2})):
        configuration = study.configuration(
            "a", "mul", {"beta": beta, "halving": halving}, seeds=[0]
        )
        study.end(configuration, 0, {"val/error": 1.0 + beta, "test/error": 1.0})
    header = configurations_table(fresh, "demo").header
    assert [name for name in header if name in ("β", "halving")] == ["β"]
    assert "halving" not in results_table(fresh, "demo").render("text")


@pytest.mark.parametrize("of_study", [False, True])
def test_what_pbt_changes_is_shown_as_it_began(fresh, of_study):
    pbt = {"every": 2, "fraction": 0.25, "perturb": 1.25}
    study = Written(fresh, parts={"a": {}}, training={"pbt": pbt} if of_study else {})
    for beta in (0.25, 0.5):
        params = {"beta": beta} if of_study else {"beta": beta, "pbt": pbt}
        study.end(
            study.configuration("a", "mul", params, seeds=[0]),
            0,
            {"val/error": beta, "test/error": 1},
        )
    (best,) = best_configurations(fresh, "demo")
    varied = {"mul": ["beta"]}
    assert chosen_text(best, varied) == "β = 0.25 at the start (pbt)"
    assert write_best(fresh, Home(Path("unused")), "demo", [best]) == [None]
    assert not Path("unused").exists()


def test_nothing_finished_is_said(fresh):
    study = Written(fresh, parts={"a": {}})
    study.configuration("a", "mul", {"beta": 0.0})
    table = results_table(fresh, "demo")
    assert table.cells == ()
    for form in FORMATS:
        assert table.render(form)
    assert "No configuration has finished all its replicates yet." in table.render("text")
    assert table.render("csv").startswith("label,method,part,n,n_candidates,val")


def test_one_seed_shows_means_without_spread(fresh):
    study = Written(fresh, parts={"a": {}})
    for method, error in (("mul", 8.0), ("add", 9.0)):
        configuration = study.configuration("a", method, {"x": 1.0}, seeds=[0])
        study.end(configuration, 0, {"val/error": error, "test/error": error})
    table = results_table(fresh, "demo")
    assert [cell.text for cell in column(table, "test error (%)")] == ["8.00", "9.00"]
    assert [cell.text for cell in column(table, "p (Holm)")] == ["–", "–"]
    assert [cell.text for cell in column(table, "gap to first (95 % CI)")] == ["–", "1.00"]


# ---------------------------------------------------------------- formats


def test_csv_of_configurations_is_the_frame(ledger):
    text = configurations_table(ledger, "demo").render("csv")
    assert text == configurations_frame(ledger, "demo").to_csv(index=False, lineterminator="\n")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 41
    assert rows[0]["method"] == "base"
    assert rows[0]["n"] == "5"


def test_json_has_null_for_nan(ledger):
    value = json.loads(results_table(ledger, "demo").render("json"))
    best = value["rows"][0]
    assert best["label"] == "mulmix"
    assert best["p_holm"] is None
    assert best["n"] == 5
    assert json.loads(best["hyperparameters"])["margin"] is None


def test_text_is_aligned(ledger):
    lines = results_table(ledger, "demo").render("text").splitlines()
    _, rule, *rows = lines[:9]
    assert set(rule) == {"-", " "}
    ends = [i for i, (a, b) in enumerate(zip(rule, rule[1:] + " ", strict=True)) if a + b == "- "]
    for row in rows:
        assert len(row) <= len(rule)
        for end in ends[:-1]:  # two spaces between columns
            assert row.ljust(len(rule))[end + 1 : end + 3] == "  "
    assert "6.79" in rows[0]
    assert "*" in rows[0]


def test_markdown_marks_and_escapes(fresh):
    study = Written(fresh, parts={"a": {}})
    for method, error in (("my_method|x", 8.0), ("b*", 9.0)):
        configuration = study.configuration("a", method, {"x": 1.0}, seeds=[0])
        study.end(configuration, 0, {"val/error": error, "test/error": error})
    lines = results_table(fresh, "demo").render("md").splitlines()
    assert lines[1].startswith("| --- | ---: |")
    assert "| my\\_method\\|x |" in lines[2]
    assert "**8.00**" in lines[2]
    assert "| b\\* |" in lines[3]
    assert "*9.00*" in lines[3]


def test_tex_is_booktabs_and_escaped(ledger):
    text = results_table(ledger, "demo").render("tex")
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{6.79 $\pm$ 0.25}"):
        assert word in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1
    assert tex_escape("a_b & 5% {x} #1 $ ~ ^ \\ β") == (
        r"a\_b \& 5\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{} $\beta$"
    )


def test_an_unknown_format_is_refused(ledger):
    with pytest.raises(InputError, match="format must be one of text, md, tex, csv, json"):
        results_table(ledger, "demo").render("xlsx")


# ---------------------------------------------------------------- several studies


def test_two_studies_are_ranked_by_the_methods_that_both_have(fresh):
    errors = {"one": {"mul": 8.0, "add": 9.0, "base": 1.0}, "two": {"mul": 5.0, "add": 4.0}}
    errors["three"] = {"late": 1.0, "base": 3.0}
    for name, values in errors.items():
        study = Written(fresh, name, parts={"a": {}})
        for method, error in values.items():
            configuration = study.configuration("a", method, {"study": name}, seeds=[0])
            study.end(configuration, 0, {"val/error": error, "test/error": error})
    table = compare_table(fresh, ["one", "two"])
    last = [cell.text for cell in table.cells[-1]]
    assert last == ["mean rank", "2 studies", "1.50", "1.50", "–"]
    table = compare_table(fresh, ["two", "three"])
    assert len(table.cells) == 2
    why = "No mean ranks: no two studies have results of the same two or more methods."
    assert table.notes[-1] == why


def test_studies_stand_beside_each_other_with_mean_ranks(fresh):
    errors = {"one": {"mul": 8.0, "add": 9.0, "base": 10.0}, "two": {"mul": 5.0, "add": 4.0}}
    errors["three"] = {"mul": 1.0, "add": 3.0, "base": 2.0}
    for name, values in errors.items():
        study = Written(fresh, name, parts={"a": {}})
        for method, error in values.items():
            configuration = study.configuration("a", method, {"study": name}, seeds=[0])
            study.end(configuration, 0, {"val/error": error, "test/error": error})
    table = compare_table(fresh, ["one", "two", "three"])
    assert table.header == ("study", "metric", "mul", "add", "base")
    texts = [[cell.text for cell in row] for row in table.cells]
    assert texts[1] == ["two", "test error (%)", "5.00", "4.00", "–"]
    # Ranks over the two studies that have all three methods: mul 1, 1; add 2, 3; base 3, 2.
    assert texts[3] == ["mean rank", "2 studies", "1.00", "2.50", "2.50"]
    assert [cell.mark for cell in table.cells[1]] == ["", "", "second", "best", ""]
    assert len(table.frame) == 8
    assert "one" in table.render("md")
    with pytest.raises(InputError, match="no study 'four'"):
        compare_table(fresh, ["one", "four"])
    with pytest.raises(InputError, match="needs at least one study"):
        compare_table(fresh, [])


def test_bootstrap_intervals_are_in_the_numbers(ledger):
    frame = results_table(ledger, "demo").frame
    assert (frame["test/error/bootstrap_low"] < frame["test/error/mean"]).all()
    assert (frame["test/error/bootstrap_high"] > frame["test/error/mean"]).all()
