"""Frames of a real ledger: names, numbers, states; and speed at 10,000 configurations."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pandas as pd
import pytest

from analysis_ledger import Written, beta_study, open_ledger
from modmix.analysis.frames import (
    COLUMNS,
    Snapshot,
    configuration_state,
    configurations_frame,
    histories_frame,
    read,
    replicates_frame,
    short,
)
from modmix.analysis.statistics import estimate
from modmix.base.errors import InputError
from modmix.ledger.records import ConfigurationRecord, Entry, ReplicateRecord

STATISTICS = ["mean", "std", "ci_low", "ci_high"]


@pytest.fixture
def ledger(tmp_path):
    return open_ledger(tmp_path)


def done(error: float) -> dict[str, float]:
    return {"val/error": error, "test/error": error + 1}


def test_columns_of_configurations_in_their_order(ledger):
    study = Written(ledger, parts={"a": {}, "b": {}})
    first = study.configuration("a", "mul", {"beta": 0.3, "margin": None}, seeds=[0, 1])
    study.configuration("b", "add", {"depth": 2, "merge": "sum", "hidden": [64, 32]}, seeds=[0, 1])
    study.configuration("b", "mul", {"beta": 0.3, "margin": None}, seeds=[0, 1])
    for seed in (0, 1):
        study.end(first, seed, done(10.0 + seed))
    frame = configurations_frame(ledger, "demo")
    statistics = [f"{m}/{s}" for m in ("val/error", "test/error") for s in STATISTICS]
    assert list(frame.columns) == [
        "method", "beta", "margin", "depth", "merge", "hidden", "n", *statistics,
        "state", "parts", "configuration",
    ]  # fmt: skip
    assert list(frame["method"]) == ["mul", "add"]
    assert list(frame["n"]) == [2, 0]
    assert list(frame["parts"]) == ["a,b", "b"]
    assert list(frame["configuration"]) == [
        short(p.key) for p in read(ledger, "demo").configurations
    ]
    csv = frame.to_csv(index=False)
    # Whole numbers stay whole, lists are JSON, what a method does not have is empty.
    assert csv.splitlines()[2].startswith('add,,,2,sum,"[64, 32]",0,,,,')
    assert pd.read_csv(io.StringIO(csv))["val/error/mean"][0] == pytest.approx(10.5)


def test_statistics_equal_the_plain_ones(ledger):
    beta_study(ledger)
    snapshot = read(ledger, "demo")
    frame = snapshot.configurations_table
    for configuration in snapshot.configurations[::7]:
        for metric in ("val/error", "test/error", "test/auc", "train/loss"):
            values = [
                r.metrics[metric]
                for r in snapshot.replicates
                if r.configuration == configuration.key and r.state == "done"
            ]
            expected = estimate(values)
            for name in STATISTICS:
                found = frame.loc[configuration.key, f"{metric}/{name}"]
                assert found == pytest.approx(getattr(expected, name), nan_ok=True)


def test_one_replicate_has_a_mean_and_no_spread(ledger):
    study = Written(ledger, parts={"a": {}})
    study.end(study.configuration("a", "mul", {"beta": 0.0}, seeds=[3]), 3, done(12.0))
    row = configurations_frame(ledger, "demo").iloc[0]
    assert (row["n"], row["val/error/mean"], row["state"]) == (1, 12.0, "done")
    assert all(math.isnan(row[f"test/error/{name}"]) for name in STATISTICS[1:])


def test_equal_percentages_have_no_spread(ledger):
    study = Written(ledger, parts={"a": {}})
    configuration = study.configuration("a", "mul", {"beta": 0.0}, seeds=range(3))
    for seed in range(3):
        study.end(configuration, seed, done(100 * 7 / 359))
    row = configurations_frame(ledger, "demo").iloc[0]
    assert row["val/error/std"] == 0.0
    assert row["val/error/ci_low"] == row["val/error/mean"]


def test_failed_and_pruned_replicates_do_not_count_and_are_named(ledger):
    study = Written(ledger, parts={"a": {}})
    configuration = study.configuration("a", "mul", {"beta": 0.0}, seeds=range(4))
    study.end(configuration, 0, done(10.0))
    study.end(configuration, 1, done(12.0))
    study.end(configuration, 2, {}, state="failed", reason="diverged")
    study.end(configuration, 3, {"val/error": 50.0}, state="pruned")
    row = configurations_frame(ledger, "demo").iloc[0]
    assert row["n"] == 2
    assert row["val/error/mean"] == 11.0
    assert row["state"] == "done 2 of 4, failed 1, pruned 1"
    replicates = replicates_frame(ledger, "demo")
    assert list(replicates["state"]) == ["done", "done", "failed", "pruned"]
    assert list(replicates["seed"]) == [0, 1, 2, 3]
    assert replicates["val/error"][3] == 50.0
    assert replicates["reason"][2] == "diverged"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], "pending"),
        (["pending"] * 5, "pending"),
        (["done"] * 5, "done"),
        (["failed"] * 2, "failed"),
        (["done", "running", "pending"], "running, done 1 of 3"),
        (["done", "interrupted", "failed"], "interrupted, done 1 of 3, failed 1"),
        (["failed", "pruned"], "failed 1, pruned 1"),
    ],
)
def test_state_of_a_configuration(states, expected):
    assert configuration_state(states) == expected


def test_an_undefined_metric_stays_undefined(ledger):
    study = Written(ledger, parts={"a": {}})
    configuration = study.configuration("a", "mul", {"beta": 0.0}, seeds=[0, 1])
    study.end(configuration, 0, done(10.0) | {"val/auc": math.nan, "val/nll": math.inf})
    study.end(configuration, 1, done(11.0) | {"val/auc": 0.9, "val/nll": 1.0})
    row = configurations_frame(ledger, "demo").iloc[0]
    assert math.isnan(row["val/auc/mean"])
    assert row["val/nll/mean"] == math.inf
    assert math.isnan(row["val/nll/std"])


def test_an_empty_study_has_the_columns(ledger):
    Written(ledger, parts={"a": {}})
    frame = configurations_frame(ledger, "demo")
    assert len(frame) == 0
    assert {"method", "n", "val/error/mean", "test/error/ci_high", "state"} <= set(frame.columns)
    assert len(replicates_frame(ledger, "demo")) == 0
    assert len(histories_frame(ledger, "demo")) == 0


def test_a_hyperparameter_never_hides_a_column(ledger):
    study = Written(ledger, parts={"a": {}})
    study.configuration("a", "mul", {"n": 7, "state": "x"}, seeds=[0])
    frame = configurations_frame(ledger, "demo")
    assert frame["n"][0] == 0
    assert frame["n_"][0] == 7
    assert frame["state_"][0] == "x"


def test_all_own_columns_are_described(ledger):
    study = Written(ledger, parts={"a": {}})
    study.configuration("a", "mul", {"beta": 0.5}, seeds=[0])
    own = set(configurations_frame(ledger, "demo").columns) | set(
        replicates_frame(ledger, "demo").columns
    )
    plain = {name for name in own if "/" not in name} - {"beta"}
    assert plain <= set(COLUMNS)


def test_histories_are_means_over_the_replicates_still_training(ledger):
    study = Written(ledger, parts={"a": {}})
    configuration = study.configuration("a", "mul", {"beta": 0.0}, seeds=[0, 1])
    other = study.configuration("a", "add", {"depth": 1}, seeds=[0])
    study.end(configuration, 0, done(1.0), history={"epoch": [0.5, 1.0], "val/error": [30.0, 20.0]})
    study.end(
        configuration,
        1,
        done(1.0),
        history={"epoch": [0.5, 1.0, 1.5], "val/error": [34.0, 26.0, 9.0]},
    )
    study.end(other, 0, done(1.0), history={"epoch": [1.0], "val/error": [7.0], "extra": [1.0]})
    frame = histories_frame(ledger, "demo")
    mine = frame[frame["configuration"] == short(configuration)]
    assert list(mine["epoch"]) == [0.5, 1.0, 1.5]
    assert list(mine["n"]) == [2, 2, 1]
    assert list(mine["val/error/mean"]) == [32.0, 23.0, 9.0]
    assert mine["val/error/std"].iloc[0] == pytest.approx(np.std([30, 34], ddof=1))
    assert math.isnan(mine["val/error/std"].iloc[2])
    assert mine["extra/mean"].isna().all()
    only = histories_frame(ledger, "demo", configurations=[other])
    assert list(only["method"]) == ["add"]


def test_parts_come_in_the_order_of_the_file(ledger):
    study = Written(ledger, parts={"zeta": {}, "never": {}, "alpha": {}})
    key = study.configuration("alpha", "mul", {"beta": 1.0})
    study.configuration("zeta", "mul", {"beta": 1.0})
    assert list(read(ledger, "demo").parts) == ["zeta", "never", "alpha"]
    assert read(ledger, "demo").parts_of[key] == ["zeta", "alpha"]


def test_an_unknown_study_is_named(ledger):
    with pytest.raises(InputError, match="no study 'nope'"):
        configurations_frame(ledger, "nope")


@pytest.mark.slow
def test_ten_thousand_configurations_take_a_few_seconds(ledger):
    study = Written(ledger, parts={"search": {"search": {"configurations": 10_000}}})
    small = read(ledger, study.name)
    rng = np.random.default_rng(0)
    metrics = [f"{split}/{name}" for split in ("val", "test") for name in ("error", "auc", "nll")]
    configurations = [
        ConfigurationRecord(key=f"{i:032x}", number=i, method=("mul", "add")[i % 2],
                    params={"beta": float(i), "depth": 1}, mlflow_run=None, mirrored=None)
        for i in range(10_000)
    ]  # fmt: skip
    values = rng.normal(10, 1, (10_000, 5))
    template = ReplicateRecord(
        key="", configuration="", seed=0, state="done", owner=None, pack=None, attempts=1, epochs=1,
        best_epoch=1.0, metrics={}, reason="", seconds=1.0, finished=0.0, origin="trained",
    )  # fmt: skip
    replicates = [
        dataclasses.replace(template, key=f"{p.key}{seed}", configuration=p.key, seed=seed,
                            metrics=dict.fromkeys(metrics, float(values[p.number, seed])))
        for p in configurations for seed in range(5)
    ]  # fmt: skip
    entries = [
        Entry(part="search", method=p.method, number=p.number, configuration=p.key)
        for p in configurations
    ]
    frame = Snapshot(
        record=small.record, configurations=configurations, replicates=replicates, entries=entries
    ).configurations_table
    assert len(frame) == 10_000
    assert np.allclose(frame["val/nll/std"], values.std(axis=1, ddof=1))


@pytest.mark.parametrize(
    ("metric", "values", "interval"),
    [  # mean ± 12.7062 · half the difference of two values
        ("test/error", (1.0, 2.0), (0.0, 1.5 + 6.3531)),
        ("test/error", (97.0, 99.0), (98 - 12.7062, 100.0)),
        ("val/error", (50.0, 50.2), (50.1 - 1.27062, 50.1 + 1.27062)),
        ("test/auc", (0.95, 0.97), (0.96 - 0.127062, 1.0)),
        ("test/audio/error", (0.0, 40.0), (0.0, 100.0)),
        ("test/nll", (0.5, 1.5), (0.0, 1 + 6.3531)),
        ("train/loss", (0.5, 1.5), (1 - 6.3531, 1 + 6.3531)),
    ],
)
def test_intervals_end_where_their_metric_does(ledger, metric, values, interval):
    study = Written(ledger, "two", parts={"a": {}})
    key = study.configuration("a", "mul", {"beta": 0.5}, seeds=[0, 1])
    for seed, value in enumerate(values):
        study.end(key, seed, {"val/error": 1.0, metric: value})
    found = read(ledger, "two").estimate(key, metric)
    assert (found.ci_low, found.ci_high) == pytest.approx(interval, abs=1e-4)
    (row,) = configurations_frame(ledger, "two").to_dict("records")
    shown = (row[f"{metric}/ci_low"], row[f"{metric}/ci_high"])
    assert shown == (found.ci_low, found.ci_high)
