"""Ray Tune as fast as it goes: a class trainable in reused workers, one result per trial.

    python -m tests.benchmarks.peers.ray_class MODELS.json [--configurations 100]

Two trials at a time, one CPU and one thread each; data by `tune.with_parameters`. Nothing is logged
and learning curves are kept nowhere: a trial reports one result when all of its training is over.
MODELS.json holds a fixed grid (a trial is a model) or a search (a trial is a configuration that
`OptunaSearch` proposes, and its seeds are trained one after another). Prints a line of JSON per
trial: {"key": …} of a model, {"configuration": …} of a search.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.peers.plain import Examples

# No files of Tune's for every result, no snapshots of the experiment while it runs, no table in the
# terminal. One trial waits beside those that run, so that a worker goes from one to the next.
os.environ |= {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import ray
from ray import tune

METRICS = ("train/loss", "val/error", "test/error")


class Trial(tune.Trainable):  # type: ignore[misc]
    """Trains a model, or a configuration's models, in its only step."""

    def setup(
        self,
        config: dict[str, Any],
        models: list[dict[str, Any]],
        examples: Examples,
        optimizer: str,
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._models, self._examples, self._optimizer = models, examples, optimizer
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over the next trial."""
        self._chosen = new_config
        return True

    def step(self) -> dict[str, Any]:
        from tests.benchmarks.peers.plain import configuration_of, mean_of, train

        if "model" in self._chosen:
            specs = [self._models[self._chosen["model"]]]
        else:
            specs = configuration_of(self._models, self._chosen)
        done = [train(spec, self._examples, implementation=self._optimizer) for spec in specs]
        return {**mean_of(done), "done": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("--configurations", type=int, default=100)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--optimizer", default="fused")
    given = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",  # not what may run on this machine for others
        num_cpus=given.slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    with tempfile.TemporaryDirectory() as folder:
        results = _fit(given, folder)
    ray.shutdown()
    sys.exit(results)


def _fit(given: argparse.Namespace, folder: str) -> str | None:
    """Run the experiment and print its results; the first error, if there is any."""
    # Imports torch, while Ray starts its workers.
    from tests.benchmarks.peers.plain import read

    models, examples, space = read(given.models)
    settings: dict[str, Any]
    if space is None:
        param_space: dict[str, Any] = {"model": tune.grid_search(list(range(len(models))))}
        settings = {}
    else:
        from ray.tune.search.optuna import OptunaSearch

        param_space = {
            name: tune.loguniform(low, high) if log else tune.uniform(low, high)
            for name, (low, high, log) in space.items()
        }
        settings = {
            "search_alg": OptunaSearch(metric="val/error", mode="min", seed=0),
            "num_samples": given.configurations,
        }
    trainable = tune.with_parameters(
        Trial, models=models, examples=examples, optimizer=given.optimizer
    )
    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space=param_space,
        tune_config=tune.TuneConfig(reuse_actors=True, **settings),
        run_config=tune.RunConfig(
            storage_path=folder,
            verbose=0,
            # Set, because Tune otherwise asks every trial of a class for a checkpoint at its end.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    for one in results:
        if one.metrics and all(name in one.metrics for name in METRICS):
            about = (
                {"key": models[one.config["model"]]["key"]}
                if space is None
                else {"configuration": one.config}
            )
            print(json.dumps({**about, **{name: one.metrics[name] for name in METRICS}}))
    return str(results.errors[0]) if results.errors else None


if __name__ == "__main__":
    main()
