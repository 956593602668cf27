"""Figures show the numbers they were given, look the same twice, and leave matplotlib alone."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis_ledger import Written, beta_study, mul_params, open_ledger, tell
from modmix.analysis.curves import curve
from modmix.analysis.drawing import draw_curve, draw_learning, draw_results, draw_search
from modmix.analysis.figure_data import learning_curves, results
from modmix.analysis.figures import figure, figure_names, figures_of, to_bytes
from modmix.analysis.frames import read
from modmix.analysis.searches import search_history
from modmix.analysis.style import MARKERS, PALETTE, method_styles
from modmix.base.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = open_ledger(tmp_path_factory.mktemp("ledger"))
    beta_study(ledger)
    return ledger


@pytest.fixture
def fresh(tmp_path):
    return open_ledger(tmp_path)


@pytest.fixture
def ax():
    return Figure().add_subplot()


def test_a_study_has_a_figure_for_everything_it_asked(ledger):
    assert figure_names(ledger, "demo") == [
        "results", "beta_curve", "depth", "learning", "search_search", "importance",
    ]  # fmt: skip


def test_error_bars_are_the_intervals(ledger, ax):
    snapshot = read(ledger, "demo")
    found = curve(snapshot, "beta_curve")
    draw_curve(ax, found, method_styles(snapshot.methods))
    containers = {c.get_label().split(",")[0]: c for c in ax.containers}
    for line in found.lines:
        _, _, (bars,) = containers[line.label].lines
        for point, segment in zip(line.points, bars.get_segments(), strict=True):
            assert list(segment[:, 1]) == pytest.approx([point.value.ci_low, point.value.ci_high])
            assert segment[0, 0] == pytest.approx(point.x, abs=0.02)
    assert ax.get_xlabel() == "β"
    assert ax.get_ylabel() == "test error (%)"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["mulmix, n = 5", "mul, n = 5", "add (best), n = 5"]


def test_error_bars_can_be_deviations(ledger, ax):
    snapshot = read(ledger, "demo")
    found = curve(snapshot, "depth")
    draw_curve(ax, found, method_styles(snapshot.methods), errors="std")
    _, _, (bars,) = ax.containers[0].lines
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * found.lines[0].points[0].value.std)
    with pytest.raises(InputError, match="error bars must be 'ci' or 'std', got 'sem'"):
        draw_curve(ax, found, method_styles(snapshot.methods), errors="sem")


def test_the_ring_is_where_validation_is_best(tmp_path, ax):
    """Not at the best test mean."""
    study = Written(open_ledger(tmp_path), parts={"a": {"x": "beta"}})
    for beta, val, test in ((0.0, 3.0, 9.0), (0.5, 2.0, 8.0), (1.0, 4.0, 1.0)):
        key = study.configuration("a", "mul", {"beta": beta}, seeds=[0])
        study.end(key, 0, {"val/error": val, "test/error": test})
    snapshot = read(study.ledger, "demo")
    draw_curve(ax, curve(snapshot, "a"), method_styles(snapshot.methods))
    (ring,) = [line for line in ax.lines if line.get_markersize() == 10]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.5, 8.0)


def test_the_ring_is_on_its_line_and_references_at_their_means(ledger, ax):
    snapshot = read(ledger, "demo")
    found = curve(snapshot, "depth")
    draw_curve(ax, found, method_styles(snapshot.methods))
    (ring,) = [line for line in ax.lines if line.get_markersize() == 10]
    (line,) = found.lines
    assert ring.get_ydata()[0] == line.points[line.chosen].value.mean
    drawn = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
    for reference in found.references:
        label = f"{reference.method} (best), n = 5"
        assert drawn[label] == reference.value.mean


def test_results_show_means_seeds_and_the_papers_numbers(ledger, ax):
    snapshot = read(ledger, "demo")
    found = results(snapshot)
    draw_results(ax, found, method_styles(snapshot.methods))
    assert ax.get_yticklabels()[0].get_text() == "mulmix, n = 5"
    stars = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "*"]
    assert sorted(stars) == [6.2, 6.4, 7.8, 8.3]
    points = [line for line in ax.lines if line.get_markersize() == 2.6]
    assert [tuple(line.get_xdata()) for line in points] == list(found.values)


def test_learning_is_solid_while_all_seeds_train(ledger, ax):
    snapshot = read(ledger, "demo")
    found = learning_curves(ledger, snapshot)
    draw_learning(ax, found, method_styles(snapshot.methods))
    solid = next(line for line in ax.lines if line.get_label().startswith("mulmix"))
    assert np.isfinite(solid.get_ydata()).sum() == 7
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "validation error (%)"


def test_very_bad_configurations_do_not_flatten_a_search(fresh, ax):
    study = Written(fresh, parts={"s": {"search": {"configurations": 20}}})
    for number in range(20):
        error = 90.0 if number in (3, 7) else 10 - number / 10
        configuration = study.configuration("s", "mul", {"beta": float(number)}, seeds=[0])
        study.end(configuration, 0, {"val/error": error, "test/error": error})
        tell(study, "s", "mul", number, "done", error)
    draw_search(ax, search_history(read(fresh, "demo"), "s"), method_styles(["mul"]))
    assert ax.get_ylim()[1] < 20
    assert "2 worse not shown" in " ".join(text.get_text() for text in ax.texts)
    assert ax.get_legend().get_texts()[0].get_text() == "mul, 20 configurations, best 8.10"


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes(ledger):
    for name in ("results", "beta_curve", "search_search"):
        png, svg = (to_bytes(figure(ledger, "demo", name), form) for form in ("png", "svg"))
        assert png == to_bytes(figure(ledger, "demo", name), "png")
        assert svg == to_bytes(figure(ledger, "demo", name), "svg")
        assert png.startswith(PNG)
        assert ET.fromstring(svg).tag.endswith("svg")
        assert b"<dc:date>" not in svg


def test_drawing_changes_nothing_global(ledger):
    before = dict(mpl.rcParams)
    to_bytes(figure(ledger, "demo", "depth"), "svg")
    assert dict(mpl.rcParams) == before


def test_analysis_needs_no_heavy_imports():
    code = (
        "import sys, modmix.analysis.report\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'ray', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_unknown_figures_and_formats_are_refused(ledger):
    with pytest.raises(InputError, match=r"has the figures results, beta_curve, .*; got 'loss'"):
        figure(ledger, "demo", "loss")
    with pytest.raises(InputError, match="format must be png, svg or pdf, got 'gif'"):
        to_bytes(Figure(), "gif")


def test_titles_are_text_not_formulas_and_any_script_will_do(fresh):
    title = "costs $5_000$ & <b>more</b> 多模态"
    study = Written(fresh, parts={"a": {"x": "beta", "title": title}})
    study.fill(study.configuration("a", "mul", mul_params(0.5)), 9.0)
    picture = figure(fresh, "demo", "a")
    assert picture.axes[0].get_title(loc="left") == title
    assert to_bytes(picture, "png").startswith(PNG)


def test_nothing_finished_is_drawn_as_that(fresh):
    parts = {"a": {"x": "beta", "references": ["add"]}, "s": {"search": {"configurations": 3}}}
    study = Written(fresh, parts=parts, objective=["val/error", "val/nll"])
    study.configuration("a", "mul", mul_params(0.5))
    drawn = figures_of(fresh, read(fresh, "demo"))
    assert list(drawn) == ["results", "a", "learning", "search_s", "trade_off"]
    for found in drawn.values():
        picture = found.draw()
        assert "nothing finished yet" in [text.get_text() for text in picture.axes[0].texts]
        assert len(found.numbers()) == 0


def test_one_seed_is_drawn_without_bars(fresh):
    study = Written(fresh, parts={"a": {"x": "beta"}}, seeds=[0])
    for beta in (0.0, 1.0):
        study.fill(study.configuration("a", "mul", mul_params(beta), seeds=[0]), 9.0, seeds=[0])
    picture = figure(fresh, "demo", "a")
    assert to_bytes(picture, "png").startswith(PNG)
    assert "one seed: no error bars" in " ".join(text.get_text() for text in picture.axes[0].texts)


def test_a_part_named_like_another_output_gets_another_name(fresh):
    Written(fresh, parts={"results": {"x": "beta"}, "b": {"x": "beta"}})
    assert set(figure_names(fresh, "demo")) == {"results", "curve_results", "b", "learning"}


def test_twenty_methods_look_different():
    found = method_styles([f"m{i}" for i in range(20)])
    assert len(set(found.values())) == 20
    assert len(set(PALETTE)) == len(PALETTE) == len(set(MARKERS))


def test_many_lines_leave_room_for_the_axes(fresh):
    study = Written(fresh, parts={"a": {"x": "beta"}})
    for method in range(14):
        for beta in (0.0, 1.0):
            configuration = study.configuration(
                "a", f"method_{method}", {"beta": beta, "m": method}, seeds=[0]
            )
            study.end(configuration, 0, {"val/error": 9.0 + method, "test/error": 9.0 + method})
    picture = figure(fresh, "demo", "a")
    to_bytes(picture, "png")  # lays it out
    (ax,) = picture.axes
    box = ax.get_window_extent().transformed(picture.dpi_scale_trans.inverted())
    legend = ax.get_legend().get_window_extent().transformed(picture.dpi_scale_trans.inverted())
    label = ax.xaxis.label.get_window_extent().transformed(picture.dpi_scale_trans.inverted())
    assert box.height > 1.8
    assert legend.y0 >= 0
    assert legend.y1 <= label.y0 + 0.02  # under the axis' label
    assert legend.x1 <= picture.get_figwidth()


def test_only_as_many_lines_as_can_be_read_are_drawn(fresh):
    study = Written(fresh, parts={"a": {"x": "beta"}})
    for variant in range(45):
        configuration = study.configuration("a", "mul", {"beta": 0.0, "m": variant}, seeds=[0])
        study.end(configuration, 0, {"val/error": 9.0, "test/error": 9.0})
    found = figures_of(fresh, read(fresh, "demo"))["a"]
    (ax,) = found.draw().axes
    assert len(ax.get_legend().get_texts()) == 40
    assert "5 more lines in the table" in " ".join(text.get_text() for text in ax.texts)
    assert len(found.numbers()) == 45
