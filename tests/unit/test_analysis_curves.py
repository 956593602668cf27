"""The numbers behind figures: curves, references, learning, searches, importance, fronts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis_ledger import Written, beta_study, mul_params, open_ledger, tell
from modmix.analysis.best import best_configurations
from modmix.analysis.curves import curve
from modmix.analysis.drawing import draw_curve
from modmix.analysis.figure_data import learning_curves, results
from modmix.analysis.figures import figure
from modmix.analysis.frames import configurations_frame, read, short
from modmix.analysis.searches import importance, search_history, trade_off
from modmix.analysis.style import WIDTH, method_styles, new_figure
from modmix.base.errors import InputError


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = open_ledger(tmp_path_factory.mktemp("ledger"))
    beta_study(ledger)
    return ledger


@pytest.fixture
def fresh(tmp_path):
    return open_ledger(tmp_path)


def put(study, part, method, params, error, *, seeds=(0, 1), **more):
    """A finished configuration without spread."""
    configuration = study.configuration(part, method, params, seeds=seeds)
    metrics = {"val/error": error, "test/error": error, **more}
    study.record([study.result(configuration, seed, metrics) for seed in seeds])
    return configuration


def test_a_curve_holds_the_configurations_statistics(ledger):
    found = curve(read(ledger, "demo"), "beta_curve")
    assert (found.x, found.metric, found.title) == ("beta", "test/error", "Test error over β")
    assert found.connected
    assert not found.logarithmic
    frame = configurations_frame(ledger, "demo").set_index("configuration")
    assert sorted(line.label for line in found.lines) == ["mul", "mulmix"]
    for line in found.lines:
        assert [point.x for point in line.points] == [i / 10 for i in range(11)]
        for point in line.points:
            row = frame.loc[short(point.configuration)]
            assert point.value.mean == pytest.approx(row["test/error/mean"])
            assert point.value.ci_low == pytest.approx(row["test/error/ci_low"])
            assert point.complete
        means = [point.value.mean for point in line.points]
        assert line.minimum == int(np.argmin(means))
        validation = [
            frame.loc[short(point.configuration), "val/error/mean"] for point in line.points
        ]
        assert line.chosen == int(np.argmin(validation))


def test_references_are_best_configurations_of_the_whole_study(ledger):
    found = curve(read(ledger, "demo"), "depth")
    best = {b.method: b for b in best_configurations(ledger, "demo")}
    assert [r.method for r in found.references] == ["mul", "mulmix"]
    for reference in found.references:
        assert reference.configuration == best[reference.method].configuration
        assert reference.value == best[reference.method].estimates["test/error"]


def test_configurations_that_share_an_x_become_lines_of_their_own(fresh):
    study = Written(fresh, parts={"a": {"x": "beta"}})
    for beta in (0.0, 1.0):
        for margin in (None, 0.1):
            put(study, "a", "mul", {"beta": beta, "margin": margin, "width": 8}, 9.0)
        put(study, "a", "add", {"beta": beta, "width": 8}, 9.0)
    found = curve(read(fresh, "demo"), "a")
    labels = [line.label for line in found.lines]
    assert labels == ["mul (margin δ = none)", "mul (margin δ = 0.1)", "add"]
    assert all(len(line.points) == 2 for line in found.lines)


def test_a_configuration_without_the_conditional_hyperparameter_belongs_to_every_line(fresh):
    study = Written(fresh, parts={"a": {"x": "depth"}})
    put(study, "a", "add", {"depth": 0}, 9.0)
    for width in (16, 32):
        for depth in (1, 2):
            put(study, "a", "add", {"depth": depth, "width": width}, 9.0 - depth)
    lines = curve(read(fresh, "demo"), "a").lines
    assert [line.label for line in lines] == ["add (width = 16)", "add (width = 32)"]
    assert all([point.x for point in line.points] == [0.0, 1.0, 2.0] for line in lines)


def test_words_and_lists_are_categories_in_the_order_of_asking(fresh):
    study = Written(fresh, parts={"a": {"x": "hidden"}})
    for hidden in ([64], [64, 32], None):
        put(study, "a", "add", {"hidden": hidden}, 9.0)
    found = curve(read(fresh, "demo"), "a")
    assert found.categories == ("[64]", "[64, 32]", "none")


@pytest.mark.parametrize(
    ("xs", "numbers"),
    [
        ([{"image": 0.4}, {"image": 0}, {"image": 0.1}], [0.0, 0.1, 0.4]),
        ([{"image": 0.1}, {"audio": 0.1}], None),
        ([{"image": 0.1}, {}], None),
    ],
)
def test_mappings_with_one_shared_entry_are_numbers(fresh, xs, numbers):
    """Such as the noise of one input; other mappings are categories."""
    study = Written(fresh, parts={"a": {"x": "noise"}})
    for x in xs:
        put(study, "a", "add", {"noise": x}, 9.0)
    found = curve(read(fresh, "demo"), "a")
    if numbers is None:
        assert len(found.categories) == len(xs)
        assert found.x_entry == ""
    else:
        assert [point.x for point in found.lines[0].points] == numbers
        assert found.x_entry == "image"
        (ax,) = figure(fresh, "demo", "a").axes
        assert ax.get_xlabel() == "noise for image"


@pytest.mark.parametrize("panel", [False, True])
def test_the_label_below_a_curve_is_not_cut(fresh, panel):
    study = Written(fresh, parts={"a": {"x": "task.noise"}})
    for x in (0.1, 0.2):
        put(study, "a", "add", {"task.noise": x}, 9.0)
    doc = "standard deviation of Gaussian noise on an input, in units of its standard deviation, "
    found = replace(curve(read(fresh, "demo"), "a"), x_doc=doc + "in every split")
    picture = new_figure(3.5, 3.5 if panel else WIDTH)
    ax = picture.add_subplot()
    draw_curve(ax, found, method_styles(["add"]), panel=panel)
    picture.canvas.draw()
    box = ax.xaxis.label.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= picture.bbox.width
    assert len(ax.get_xlabel().split("\n")) == 2
    assert ax.get_xlabel().startswith("noise: standard deviation of")
    assert draw_label(replace(found, x_entry="view2")) == "noise on view2"


def draw_label(found):
    ax = new_figure(3.5).add_subplot()
    draw_curve(ax, found, method_styles(["add"]))
    return ax.get_xlabel()


@pytest.mark.parametrize(
    ("xs", "expected"),
    [
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], True),
        ([16, 32, 64, 128, 256], True),
        ([0.0, 0.01, 0.1, 1.0], False),
        ([1, 2, 3, 4], False),
        ([1, 2, 100], False),
    ],
)
def test_an_axis_is_logarithmic_where_x_goes_by_factors(fresh, xs, expected):
    study = Written(fresh, parts={"a": {"x": "rate"}})
    for x in xs:
        put(study, "a", "add", {"rate": x}, 9.0)
    assert curve(read(fresh, "demo"), "a").logarithmic is expected


def test_a_search_with_an_x_is_not_connected(fresh):
    domain = {"low": 0.001, "high": 1.0, "log": True}
    part = {"x": "beta", "search": {"configurations": 3}, "methods": {"mul": {"beta": domain}}}
    study = Written(fresh, parts={"a": part})
    for i, beta in enumerate((0.9, 0.1, 0.5)):
        put(study, "a", "mul", {"beta": beta, "width": 8 + i}, 9.0)
    found = curve(read(fresh, "demo"), "a")
    assert not found.connected
    assert found.logarithmic
    assert [point.x for point in found.lines[0].points] == [0.1, 0.5, 0.9]


def test_unfinished_dots_are_shown_but_not_chosen(fresh):
    study = Written(fresh, parts={"a": {"x": "beta"}})
    put(study, "a", "mul", {"beta": 0.0}, 9.0)
    partial = study.configuration("a", "mul", {"beta": 1.0}, seeds=[0, 1])
    study.end(partial, 0, {"val/error": 1.0, "test/error": 1.0})
    study.configuration("a", "mul", {"beta": 2.0}, seeds=[0, 1])  # nothing yet: no point
    (line,) = curve(read(fresh, "demo"), "a").lines
    assert [(point.x, point.complete) for point in line.points] == [(0.0, True), (1.0, False)]
    assert line.minimum == 1
    assert line.chosen == 0


def test_higher_is_better_turns_the_minimum_round(fresh):
    study = Written(fresh, parts={"a": {"x": "beta"}}, objective=["val/auc"])
    for beta, auc in ((0.0, 0.7), (0.5, 0.9), (1.0, 0.8)):
        put(study, "a", "mul", {"beta": beta}, 9.0, **{"val/auc": auc, "test/auc": auc})
    found = curve(read(fresh, "demo"), "a")
    assert found.metric == "test/auc"
    assert found.lines[0].minimum == 1


@pytest.mark.parametrize("part", ["table", "nope"])
def test_a_part_without_x_has_no_curve(ledger, part):
    with pytest.raises(InputError, match=r"a curve needs a part .*\(beta_curve, depth\)"):
        curve(read(ledger, "demo"), part)


def test_results_have_every_seed(ledger):
    found = results(read(ledger, "demo"))
    assert found.metric == "test/error"
    for row, values in zip(found.rows, found.values, strict=True):
        assert np.mean(values) == pytest.approx(row.best.estimates["test/error"].mean)
        assert len(values) == 5


def test_learning_curves_know_where_seeds_have_stopped(ledger):
    found = learning_curves(ledger, read(ledger, "demo"))
    assert found.metric == "val/error"
    assert [line.method for line in found.lines] == ["mulmix", "mul", "add", "late", "base"]
    for line in found.lines:
        assert list(line.epochs) == list(range(1, 11))
        assert list(line.full) == [True] * 7 + [False] * 3
        assert np.all(np.diff(line.mean[:7]) < 0)


# ---------------------------------------------------------------- searches


def test_search_history_keeps_the_best_and_never_a_pruned_one(fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 5}}})
    for number, error in enumerate((9.0, 8.0, None, 1.0, 7.0)):
        params = {"beta": float(number)}
        if error is None:
            study.configuration("s", "mul", params, seeds=[0])  # still running
        elif error == 1.0:
            configuration = study.configuration("s", "mul", params, seeds=[0])
            study.end(configuration, 0, {"val/error": 1.0}, state="pruned")
            tell(study, "s", "mul", number, "pruned", 1.0)
        else:
            put(study, "s", "mul", params, error, seeds=[0])
    (trace,) = search_history(read(fresh, "demo"), "s").traces
    assert list(trace.numbers) == [0, 1, 2, 3, 4]
    assert np.array_equal(trace.values, [9.0, 8.0, np.nan, 1.0, 7.0], equal_nan=True)
    assert list(trace.best) == [9.0, 8.0, 8.0, 8.0, 7.0]
    assert list(trace.pruned) == [False, False, False, True, False]


def test_configurations_with_failed_models_are_drawn_and_never_the_best(fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 2}}})
    put(study, "s", "mul", {"beta": 0.0}, 6.0, seeds=[0, 1])
    half = study.configuration("s", "mul", {"beta": 1.0}, seeds=[0, 1])
    study.end(half, 0, {"val/error": 1.0})
    study.end(half, 1, {}, state="failed")
    (trace,) = search_history(read(fresh, "demo"), "s").traces
    assert list(trace.values) == [6.0, 1.0]
    assert list(trace.best) == [6.0, 6.0]


def test_configurations_of_few_seeds_are_drawn_and_never_chosen(fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 3}, "x": "beta"}})
    for number, (error, seeds) in enumerate([(5.0, [0]), (8.0, [0, 1]), (7.0, [0, 1]), (2.0, [0])]):
        put(study, "s", "mul", {"beta": float(number)}, error, seeds=seeds)
    (trace,) = search_history(read(fresh, "demo"), "s").traces
    assert list(trace.values) == [5.0, 8.0, 7.0, 2.0]
    assert np.array_equal(trace.best, [np.nan, 8.0, 7.0, 7.0], equal_nan=True)
    (line,) = curve(read(fresh, "demo"), "s").lines
    assert len(line.points) == 4
    assert (line.minimum, line.chosen) == (2, 2)


def test_search_history_needs_a_search(ledger):
    with pytest.raises(InputError, match=r"a search history needs a part with a search \(search\)"):
        search_history(read(ledger, "demo"), "depth")


def test_importance_finds_what_matters(fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 120}}})
    rng = np.random.default_rng(0)
    for _ in range(120):
        beta, rate, merge = rng.uniform(), rng.uniform(), ("sum", "mean")[int(rng.integers(2))]
        error = 10 + 4 * beta + (1.0 if merge == "sum" else 0.0)
        put(study, "s", "mul", {"beta": beta, "noise": rate, "merge": merge}, error, seeds=[0])
    (found,) = importance(read(fresh, "demo"))
    assert found.names == ("beta", "merge", "noise")
    share = dict(zip(found.names, found.share, strict=True))
    # Var(4β) = 16/12, Var(merge) = 1/4: 84 % and 16 %; five bins see 24/25 of the first.
    assert share["beta"] == pytest.approx(0.84 * 24 / 25, abs=0.08)
    assert share["merge"] == pytest.approx(0.16, abs=0.08)
    assert share["noise"] < 0.08
    correlation = dict(zip(found.names, found.correlation, strict=True))
    assert correlation["beta"] > 0.85
    assert math.isnan(correlation["merge"])


def test_importance_survives_missing_and_constant_values(fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 12}}})
    for i in range(12):
        params = {"beta": i / 10, "depth": i % 2} | ({"width": 8 * i} if i % 2 else {})
        put(study, "s", "mul", params, 9.0 + i, seeds=[0])
        put(study, "s", "add", {"depth": i, "width": i}, 9.0, seeds=[0])  # nothing to explain
        put(study, "s", "base", {"depth": i}, 9.0 + i, seeds=[0])  # one hyperparameter only
    (found,) = importance(read(fresh, "demo"))
    assert found.method == "mul"
    assert set(found.names) == {"beta", "depth", "width"}
    assert all(0 <= share <= 1 for share in found.share)


def test_importance_needs_ten_configurations(ledger, fresh):
    study = Written(fresh, parts={"s": {"search": {"configurations": 9}}})
    for i in range(9):
        put(study, "s", "mul", {"beta": i / 10, "width": i}, 9.0 + i, seeds=[0])
    assert importance(read(fresh, "demo")) == []


def test_the_front_equals_a_comparison_of_all_pairs(fresh):
    study = Written(fresh, parts={"a": {}}, objective=["val/auc", "val/nll"])
    rng = np.random.default_rng(1)
    values = rng.integers(0, 6, (40, 2)) / 6  # many ties
    for i, (auc, nll) in enumerate(values):
        put(study, "a", "mul", mul_params(float(i)), 9.0, seeds=[0],
            **{"val/auc": auc, "val/nll": nll})  # fmt: skip
    found = trade_off(read(fresh, "demo"))
    for i, (auc, nll) in enumerate(found.values):
        beaten = any(a >= auc and n <= nll and (a > auc or n < nll) for a, n in found.values)
        assert found.front[i] == (not beaten)
    assert len(found.values) == 40


def test_a_trade_off_needs_two_objectives(ledger):
    with pytest.raises(InputError, match="a trade-off needs two objectives"):
        trade_off(read(ledger, "demo"))


def test_numbers_come_as_frames(ledger):
    snapshot = read(ledger, "demo")
    frame = curve(snapshot, "beta_curve").frame()
    assert len(frame) == 23  # 2 lines of 11, one reference
    assert list(frame.columns[:4]) == ["line", "method", "beta", "n"]
    assert len(learning_curves(ledger, snapshot).frame()) == 50
    assert len(search_history(snapshot, "search").frame()) == 12
