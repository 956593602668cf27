"""Methods with equally many errors tie in every table, figure and sentence; a single replicate has
no standard deviation.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from analysis_ledger import Written, open_ledger
from modmix.analysis.best import best_configurations, explain_no_best
from modmix.analysis.compare import compare_table
from modmix.analysis.figures import figure
from modmix.analysis.frames import read
from modmix.analysis.render import FORMATS
from modmix.analysis.report import write_all
from modmix.analysis.statistics import mean_ranks, paired
from modmix.analysis.summary import headline, ranks
from modmix.analysis.tables import configurations_table, results_table
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.registry.best import write_best

ROWS = 19
# Equally many errors over all seeds, but their percentages have different sums in float64.
FIRST, SECOND = (4, 9, 8, 4, 1), (11, 10, 3, 0, 2)


def percent(wrong: int) -> float:
    return 100 * wrong / ROWS


def written(ledger: Ledger, counts: dict[str, tuple[int, ...]], name: str = "demo") -> Written:
    study = Written(ledger, name, parts={"a": {"methods": dict.fromkeys(counts)}})
    for method, wrong in counts.items():
        key = study.configuration("a", method, {"beta": len(name) / 8}, seeds=range(len(wrong)))
        for seed, count in enumerate(wrong):
            study.end(key, seed, {"val/error": percent(count), "test/error": percent(count)})
    return study


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return open_ledger(tmp_path)


def test_the_numbers_here_would_differ_by_rounding() -> None:
    means = [math.fsum(map(percent, counts)) / 5 for counts in (FIRST, SECOND)]
    assert means[0] > means[1]
    assert sum(FIRST) == sum(SECOND)


@pytest.mark.parametrize("order", [("mul", "mulmix"), ("mulmix", "mul")])
def test_equal_counts_are_equal_everywhere(
    ledger: Ledger, tmp_path: Path, order: tuple[str, str]
) -> None:
    written(ledger, dict(zip(order, (FIRST, SECOND), strict=True)))
    best = best_configurations(ledger, "demo")
    assert [b.method for b in best] == list(order)  # the first of ties
    assert best[0].mean == pytest.approx(best[1].mean, rel=1e-15)
    table = results_table(ledger, "demo")
    place = table.header.index("test error (%)")
    assert [row[place].mark for row in table.cells] == ["best", "best"]
    assert table.frame["p_paired_t"].tolist()[1] == pytest.approx(1.0)
    assert headline(read(ledger, "demo")).endswith(f"equal to that of {order[1]}.")
    write_all(ledger, Home(tmp_path / "home"), "demo")
    plt.close(figure(ledger, "demo", "results"))


def test_ranks_of_equals_are_shared(ledger: Ledger) -> None:
    study = Written(ledger, parts={"a": {"methods": {"mul": None, "add": None}}})
    for method, noise in (("mul", 0.0), ("add", 4e-15)):
        key = study.configuration("a", method, {}, seeds=range(3))
        for seed in range(3):
            value = percent(4 + seed) + noise
            study.end(key, seed, {"val/error": value, "test/error": value})
    found = ranks(read(ledger, "demo"))
    assert found.frame["rank/mean"].tolist() == [1.5, 1.5]
    assert found.frame["wins"].tolist() == [0, 0]


def test_a_comparison_of_studies_marks_and_ranks_equals_alike(ledger: Ledger) -> None:
    for name, counts in (("one", (FIRST, SECOND)), ("two", (SECOND, FIRST))):
        written(ledger, dict(zip(("mul", "add"), counts, strict=True)), name)
    table = compare_table(ledger, ["one", "two"])
    assert [[c.mark for c in row[2:]] for row in table.cells] == [["best", "best"]] * 3
    assert [c.text for c in table.cells[2][2:]] == ["1.50", "1.50"]


def test_statistics_see_no_difference_where_there_is_only_rounding() -> None:
    first = {seed: percent(seed + 1) for seed in range(6)}
    second = {seed: value * (1 + 2e-16) for seed, value in first.items()}
    found = paired(first, second)
    assert (found.difference, found.std, found.t_p, found.wilcoxon_p) == (0, 0, 1, 1)
    ranked = mean_ranks({"a": {0: 0.3, 1: 2.0}, "b": {0: 0.1 + 0.2, 1: 1.0}})
    assert dict(zip(ranked.frame["method"], ranked.frame["rank/mean"], strict=True)) == {
        "a": 1.75,
        "b": 1.25,
    }


def test_one_replicate_has_a_mean_and_no_deviation(ledger: Ledger, tmp_path: Path) -> None:
    written(ledger, {"mul": (3,), "add": (5,)})
    for table in (results_table(ledger, "demo"), configurations_table(ledger, "demo")):
        for form in FORMATS:
            rendered = table.render(form)
            assert "nan" not in rendered.lower(), form
            assert "15.79 ±" not in rendered, form
    home = Home(tmp_path / "home")
    written_files = write_all(ledger, home, "demo")
    assert " nan" not in written_files.report.read_text()
    for path in write_best(ledger, home, "demo", best_configurations(ledger, "demo")):
        head = path.read_text().partition("\nstudy:")[0]
        assert "val/error 15.79 or" in head or "val/error 26.32 or" in head
        assert "nan" not in head
        assert "± " not in head
        assert "(one seed)" in head


def test_one_error_in_a_million_examples_is_a_difference() -> None:
    errors = {"a": {0: 100 * 250_000 / 1_000_000}, "b": {0: 100 * 250_001 / 1_000_000}}
    assert mean_ranks(errors).frame["rank/mean"].tolist() == [1.0, 2.0]


def test_an_objective_without_any_value_is_called_so(ledger: Ledger) -> None:
    study = Written(ledger, parts={"a": {"methods": {"mul": None}}}, objective=["val/auc"])
    key = study.configuration("a", "mul", {}, seeds=range(2))
    for seed in range(2):
        study.end(key, seed, {"val/error": 1.0, "test/error": 1.0, "val/auc": math.nan})
    words = (
        "val/auc is undefined (NaN) in every complete configuration, so that none is best: "
        "choose another objective"
    )
    assert explain_no_best(ledger, "demo") == f"study 'demo': {words}"
    assert results_table(ledger, "demo").notes == (f"{words}.",)
    assert headline(read(ledger, "demo")).startswith(f"{words}. 2 of 2 replicates")
