"""A part that trains the best configuration of another part with seeds of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import modmix

pytestmark = pytest.mark.slow

SEARCH = """
study: small
tasks:
  few: {task: {name: digits, train_rows: 100}}
  more: {task: {name: digits, train_rows: 160}}
seeds: 2
training: {epochs: 2, batch_size: 32}
parts:
  search:
    seeds: [7, 8, 9]
    search: {configurations: 3, batch: 3, parallel: 1}
    methods: {add: {learning_rate: {low: 0.0001, high: 0.1, log: true}}}
"""
TUNED = '  tuned: {label: "{method}*", best_of: search, methods: {add: null}}\n'


def run(folder: Path, text: str) -> modmix.Study:
    """Nothing of it counts as dropped because the file has changed."""
    path = folder / "small.yaml"
    path.write_text(text)
    dropped: set[int] = set()
    study = modmix.run(
        path,
        runner="local",
        home=folder / "runs",
        mlflow=False,
        changed=lambda work: dropped.add(work.dropped),
    )
    assert dropped <= {0}
    return study


def rate_of_best(study: modmix.Study, task: str) -> float:
    """The learning rate with the lowest mean validation error of three seeds, from the models."""
    models = of_task(study, task)
    searched = models[models["seed"] >= 7]
    return float(searched.groupby("learning_rate")["val/error"].mean().idxmin())


def of_task(study: modmix.Study, task: str) -> pd.DataFrame:
    keys = {c.key[:10] for c in study._ledger.configurations("small") if c.task == task}
    models = study.replicates()
    return models[models["configuration"].isin(keys)]


def test_the_best_on_validation_is_trained_with_other_seeds(tmp_path: Path) -> None:
    study = run(tmp_path, SEARCH)
    assert len(study.replicates()) == 2 * 3 * 3

    study = run(tmp_path, SEARCH + TUNED)  # a search that was there before
    assert len(study.replicates()) == 2 * (3 * 3 + 2)
    for task in ("few", "more"):
        models = of_task(study, task)
        tuned = models[models["seed"] < 7]
        assert sorted(tuned["seed"]) == [0, 1]
        assert set(tuned["learning_rate"]) == {rate_of_best(study, task)}
        # Test predictions are kept of what is reported, not of what was searched.
        kept = study._ledger.with_predictions(list(models["replicate"]))
        assert kept == set(tuned["replicate"])
    before = set(study.replicates()["replicate"])

    study = run(tmp_path, SEARCH + TUNED)  # finished: nothing is trained
    assert set(study.replicates()["replicate"]) == before
    assert study.status()["trained"] == len(before)

    # A longer search: what was the best may no longer be.
    study = run(tmp_path, (SEARCH + TUNED).replace("configurations: 3", "configurations: 6"))
    assert len(study.replicates()) == 2 * (6 * 3 + 2)
    for task in ("few", "more"):
        models = of_task(study, task)
        assert set(models[models["seed"] < 7]["learning_rate"]) == {rate_of_best(study, task)}
    results = pd.read_csv(study.folder / "tables" / "results.csv")
    assert list(results["label"]) == ["add*", "add*"]
    assert list(results["n"]) == [2, 2]
