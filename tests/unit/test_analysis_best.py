"""The best configuration: validation decides, only finished configurations count, test never
does.
"""

from __future__ import annotations

import json
import math

import pytest

from analysis_ledger import Written, open_ledger
from modmix.analysis.best import best_configurations, best_of, unranked
from modmix.analysis.comparisons import comparisons_of
from modmix.analysis.frames import read
from modmix.base.errors import InputError


@pytest.fixture
def study(tmp_path):
    return Written(open_ledger(tmp_path), parts={"a": {}, "b": {}})


def add(study, method, number, val, test, *, part="a", seeds=2, **metrics):
    """A finished configuration whose replicates lie one to each side of the given means."""
    configuration = study.configuration(part, method, {"beta": float(number)}, seeds=range(seeds))
    for seed in range(seeds):
        off = seed - (seeds - 1) / 2
        study.end(
            configuration, seed, {"val/error": val + off, "test/error": test + off, **metrics}
        )
    return configuration


def test_validation_decides_and_test_is_only_reported(study):
    chosen = add(study, "mul", 0, val=9.0, test=30.0)
    add(study, "mul", 1, val=10.0, test=1.0)
    (best,) = best_configurations(study.ledger, study.name)
    assert best.configuration == chosen
    assert best.params == {"beta": 0.0}
    assert (best.metric, best.n, best.mean) == ("val/error", 2, 9.0)
    assert best.std == pytest.approx(math.sqrt(0.5))
    assert best.ci_high == pytest.approx(9.0 + 12.7062047 * 0.5)
    assert best.estimates["test/error"].mean == 30.0
    assert best.test["test/error"]["mean"] == 30.0
    assert json.loads(json.dumps(best.test)) == best.test


def test_methods_come_best_first(study):
    add(study, "add", 0, val=12.0, test=1.0)
    add(study, "mul", 0, val=9.0, test=2.0)
    add(study, "base", 0, val=15.0, test=3.0)
    found = best_configurations(study.ledger, study.name)
    assert [best.method for best in found] == ["mul", "add", "base"]


def test_unfinished_and_failed_configurations_are_left_out(study):
    configuration = study.configuration("a", "mul", {"beta": 5.0}, seeds=[0, 1])
    study.end(configuration, 0, {"val/error": 0.0, "test/error": 0.0})  # seed 1 is still to come
    failed = study.configuration("a", "mul", {"beta": 6.0}, seeds=[0, 1])
    study.end(failed, 0, {"val/error": 0.0, "test/error": 0.0})
    study.end(failed, 1, {}, state="failed", reason="diverged")
    assert best_configurations(study.ledger, study.name) == []
    chosen = add(study, "mul", 0, val=9.0, test=9.0)
    assert [best.configuration for best in best_configurations(study.ledger, study.name)] == [
        chosen
    ]


def test_ties_go_to_the_lower_number(study):
    first = add(study, "mul", 0, val=9.0, test=9.0)
    add(study, "mul", 1, val=9.0, test=1.0)
    assert best_configurations(study.ledger, study.name)[0].configuration == first


def test_a_lucky_mean_over_fewer_seeds_does_not_win(study):
    full = add(study, "mul", 0, val=9.0, test=9.0, seeds=5)
    add(study, "mul", 1, val=8.5, test=9.0, seeds=2)
    assert best_configurations(study.ledger, study.name)[0].configuration == full


def test_what_was_found_best_stands_with_the_seeds_that_confirm_it(tmp_path):
    """A search's validation error is lowest by luck; two seeds of its own are fewer, too."""
    parts = {"search": {}, "tuned": {"best_of": "search"}, "grid": {}}
    study = Written(open_ledger(tmp_path), parts=parts)
    lucky = add(study, "mul", 0, val=3.0, test=9.0, part="search", seeds=3)
    add(study, "mul", 1, val=4.0, test=9.0, part="search", seeds=3)
    late = add(study, "late", 2, val=4.5, test=9.0, part="search", seeds=3)

    def best():
        return [one.configuration for one in best_configurations(study.ledger, study.name)]

    assert best() == [lucky, late]
    confirmed = add(study, "mul", 3, val=5.0, test=9.0, part="tuned", seeds=2)
    assert best() == [late, confirmed]
    grid = add(study, "mul", 4, val=4.0, test=9.0, part="grid", seeds=2)
    assert best() == [grid, late]
    snapshot = read(study.ledger, study.name)
    assert {one.method: one.configuration for one in best_of(snapshot, part="search")} == {
        "mul": lucky,
        "late": late,
    }
    (only,) = comparisons_of(snapshot)
    assert only.candidates["mul"].configuration == grid
    assert only.candidates["mul"].n_candidates == 3  # without the one that was trained again
    # With fewer seeds than another configuration, a confirmation supersedes nothing.
    most = add(study, "mul", 5, val=6.0, test=9.0, part="grid", seeds=3)
    assert best() == [lucky, late]
    assert most != lucky


def test_a_confirmation_with_fewer_seeds_than_its_search_is_ranked(tmp_path):
    parts = {"search": {"seeds": [7, 8, 9]}, "tuned": {"best_of": "search"}}
    study = Written(open_ledger(tmp_path), parts=parts)
    add(study, "mul", 0, val=3.0, test=9.0, part="search", seeds=3)
    add(study, "mul", 1, val=4.0, test=9.0, part="search", seeds=3)
    confirmed = add(study, "mul", 2, val=5.0, test=9.0, part="tuned", seeds=2)
    (best,) = best_configurations(study.ledger, study.name)
    assert best.configuration == confirmed
    assert unranked(study.ledger, study.name) == []


def test_undefined_values_never_win(study):
    add(study, "mul", 0, val=math.nan, test=1.0)
    chosen = add(study, "mul", 1, val=20.0, test=2.0)
    assert best_configurations(study.ledger, study.name)[0].configuration == chosen


def test_another_metric_chooses_in_its_own_direction(study):
    add(study, "mul", 0, val=9.0, test=9.0, **{"val/auc": 0.7})
    chosen = add(study, "mul", 1, val=10.0, test=9.0, **{"val/auc": 0.9})
    (best,) = best_configurations(study.ledger, study.name, by="val/auc")
    assert best.configuration == chosen
    assert best.metric == "val/auc"


@pytest.mark.parametrize("by", ["test/error", "train/error", "val/accuracy", "error"])
def test_anything_but_a_validation_metric_is_refused(study, by):
    with pytest.raises(InputError, match="configurations must be selected by a validation metric"):
        best_configurations(study.ledger, study.name, by=by)
