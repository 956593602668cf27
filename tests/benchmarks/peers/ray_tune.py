"""Ray Tune with its own MLflow callback, as its documentation shows it.

    python -m tests.benchmarks.peers.ray_tune MODELS.json --tracking http://… --seconds 60

Two trials at a time, one CPU and one thread each; data by `tune.with_parameters`; `tune.report`
once an epoch. MODELS.json holds a fixed grid (a trial is a model) or a search (a trial is a
configuration that `OptunaSearch` proposes, and its seeds are trained one after another). Prints a
line of JSON per model, then one that begins with {"rate"}: results, and the seconds from the first
training step to the last result, Ray's and Tune's start not included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# The files that Tune writes for every result by default, JSON, CSV and TensorBoard, are turned off:
# MLflow has it all.
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"

import ray
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback, setup_mlflow
from ray.tune.search.optuna import OptunaSearch

from tests.benchmarks.peers.plain import Examples, configuration_of, mean_of, read, train


def train_model(
    config: dict[str, Any], models: list[dict[str, Any]], examples: Examples, how: dict[str, Any]
) -> None:
    """A trial of the grid: one model, a result an epoch."""
    _begin(how)
    report = _reporter(config, how)
    spec = models[config["model"]]
    epochs, last = spec["training"]["epochs"], {}

    def on_epoch(epoch: int, numbers: dict[str, float]) -> None:
        last.update(numbers)
        if epoch < epochs:
            report(numbers)

    found = train(spec, examples, implementation=how["optimizer"], report=on_epoch)
    report({**last, "best": found["val/error"], "test/error": found["test/error"]})


def train_configuration(
    config: dict[str, Any], models: list[dict[str, Any]], examples: Examples, how: dict[str, Any]
) -> None:
    """A trial of the search: a configuration's seeds one after another, a result an epoch or a
    seed.
    """
    _begin(how)
    report = _reporter(config, how)
    done: list[dict[str, Any]] = []
    for spec in configuration_of(models, config):
        epochs = spec["training"]["epochs"]

        def on_epoch(epoch: int, numbers: dict[str, float], epochs: int = epochs) -> None:
            if how["each"] == "epoch" and epoch < epochs:
                report(numbers)

        done.append(train(spec, examples, implementation=how["optimizer"], report=on_epoch))
        report(mean_of(done))


def _begin(how: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    first = Path(how["folder"]) / "began"
    if not first.exists():
        first.write_text(str(time.time()))


def _reporter(config: dict[str, Any], how: dict[str, Any]) -> Any:
    """With the callback a result goes to Tune; with `setup_mlflow` also to MLflow, from here."""
    if how["logging"] == "callback":
        return tune.report
    mlflow = setup_mlflow(
        config,
        tracking_uri=how["tracking"],
        experiment_name=how["experiment"],
        create_experiment_if_not_exists=True,
    )
    steps = iter(range(1, 1_000_000))

    def report(numbers: dict[str, float]) -> None:
        mlflow.log_metrics(numbers, step=next(steps))
        tune.report(numbers)

    return report


class Clock(tune.Callback):  # type: ignore[misc]
    """Counts results once the callbacks before this one have dealt with them."""

    def __init__(self) -> None:
        self.last = 0.0
        self.results = 0

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        self.results += 1
        self.last = time.time()


class Budget(tune.Stopper):  # type: ignore[misc]
    """Ends the experiment so many seconds after the first training step."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._first, self._seconds = folder / "began", seconds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._first.exists() and time.time() > float(self._first.read_text()) + self._seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("--tracking", required=True)
    parser.add_argument("--experiment", default="ray-tune")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--optimizer", default="fused")
    parser.add_argument("--logging", choices=("callback", "setup"), default="callback")
    parser.add_argument("--each", choices=("epoch", "seed"), default="epoch")
    parser.add_argument("--reuse-actors", action="store_true")
    given = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    models, examples, space = read(given.models)
    ray.init(
        address="local",  # not what may run on this machine for others
        num_cpus=given.slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    with tempfile.TemporaryDirectory() as folder:
        _tune(given, models, examples, space, Path(folder))
    ray.shutdown()


def _tune(
    given: argparse.Namespace,
    models: list[dict[str, Any]],
    examples: Examples,
    space: dict[str, Any] | None,
    folder: Path,
) -> None:
    how = {
        "folder": str(folder),
        "each": given.each,
        "logging": given.logging,
        "optimizer": given.optimizer,
        "tracking": given.tracking,
        "experiment": given.experiment,
    }
    function = train_model if space is None else train_configuration
    settings: dict[str, Any] = {
        "max_concurrent_trials": given.slots,
        "reuse_actors": given.reuse_actors,
    }
    if space is None:
        param_space: dict[str, Any] = {"model": tune.grid_search(list(range(len(models))))}
    else:
        param_space = {
            name: tune.loguniform(low, high) if log else tune.uniform(low, high)
            for name, (low, high, log) in space.items()
        }
        settings |= {
            "search_alg": OptunaSearch(metric="val/error", mode="min", seed=0),
            "num_samples": 100,
        }
    clock = Clock()
    callbacks: list[Any] = [clock]
    if given.logging == "callback":
        logger = MLflowLoggerCallback(tracking_uri=given.tracking, experiment_name=given.experiment)
        callbacks = [logger, clock]
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(function, models=models, examples=examples, how=how),
            {"cpu": 1},
        ),
        param_space=param_space,
        tune_config=tune.TuneConfig(**settings),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            verbose=0,
            callbacks=callbacks,
            stop=Budget(folder, given.seconds),
        ),
    )
    results = tuner.fit()
    for one in results:
        if space is None and one.metrics and "train/loss" in one.metrics:
            key, numbers = models[one.config["model"]]["key"], one.metrics
            whole = "test/error" in numbers
            line = {name: numbers[name] for name in ("train/loss", "test/error") if name in numbers}
            line |= {"val/error": numbers["best"]} if whole else {}
            line["epoch"] = numbers["training_iteration"]
            print(json.dumps({"key" if whole else "partial": key, **line}))
    errors = [str(error) for error in results.errors]
    began = float((folder / "began").read_text())
    print(json.dumps({"rate": clock.results, "seconds": clock.last - began, "errors": errors}))


if __name__ == "__main__":
    main()
