"""Optuna in two processes on one storage; MLflow is logged once an epoch, in one call.

    python -m tests.benchmarks.peers.optuna_two MODELS.json --tracking http://… --seconds 60

MODELS.json holds a fixed grid (its models are enqueued, a trial is a model) or a search (a trial is
a configuration that TPE proposes, and its seeds are trained one after another). Prints a line of
JSON per model, then one that begins with {"rate"}: trials done, and the seconds from the first
training step to the last trial's end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import optuna
import torch
from optuna.storages.journal import JournalFileBackend

from tests.benchmarks.peers.plain import configuration_of, mean_of, read, train

STUDY = "peer"


def storage(folder: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))


class Objective:
    """What one trial does."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.models, self.examples, self.space = read(given.models)
        self.optimizer = given.optimizer
        self.began = 0.0

    def __call__(self, trial: optuna.Trial) -> float:
        self.began = self.began or time.time()
        values: dict[str, Any]
        if self.space is None:
            values = {"model": trial.suggest_int("model", 0, len(self.models) - 1)}
            specs = [self.models[values["model"]]]
        else:
            values = {
                name: trial.suggest_float(name, low, high, log=log)
                for name, (low, high, log) in self.space.items()
            }
            specs = configuration_of(self.models, values)
        with mlflow.start_run(run_name=f"trial {trial.number}"):
            mlflow.log_params(values)
            done = [self._train(spec, place) for place, spec in enumerate(specs)]
            mean = mean_of(done)
            mlflow.log_metrics({name: mean[name] for name in ("val/error", "test/error")})
        if self.space is None:
            print(json.dumps({"key": specs[0]["key"], **done[0]}), flush=True)
        return float(mean["val/error"])

    def _train(self, spec: Mapping[str, Any], place: int) -> dict[str, Any]:
        before = place * spec["training"]["epochs"]

        def log(epoch: int, numbers: dict[str, float]) -> None:
            mlflow.log_metrics(numbers, step=before + epoch)

        return train(spec, self.examples, implementation=self.optimizer, report=log)


def work(given: argparse.Namespace) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri(given.tracking)
    mlflow.set_experiment(given.experiment)
    objective = Objective(given)
    sampler = optuna.samplers.TPESampler(seed=given.worker, constant_liar=True)
    study = optuna.load_study(study_name=STUDY, storage=storage(given.folder), sampler=sampler)
    trials = len(objective.models) if objective.space is None else 100
    waiting = optuna.trial.TrialState.WAITING
    end = time.time() + given.seconds
    done = 0
    while time.time() < end:
        if objective.space is None and not study.get_trials(deepcopy=False, states=(waiting,)):
            break
        if objective.space is not None and len(study.get_trials(deepcopy=False)) >= trials:
            break
        study.optimize(objective, n_trials=1)
        done += 1
    print(json.dumps({"worker": done, "began": objective.began, "ended": time.time()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("--tracking", required=True)
    parser.add_argument("--experiment", default="optuna")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--optimizer", default="fused")
    parser.add_argument("--worker", type=int)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.worker is not None:
        work(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        study = optuna.create_study(study_name=STUDY, storage=storage(Path(folder)))
        models, _, space = read(given.models)
        if space is None:
            for i in range(len(models)):
                study.enqueue_trial({"model": i})
        mlflow.set_tracking_uri(given.tracking)
        mlflow.set_experiment(given.experiment)
        _run(given, folder)


def _run(given: argparse.Namespace, folder: str) -> None:
    workers = []
    for i in range(given.processes):
        words = [sys.executable, "-m", "tests.benchmarks.peers.optuna_two", *sys.argv[1:]]
        words += ["--worker", str(i), "--folder", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        workers.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment))
    trials, began, ended = 0, [], []
    for worker in workers:
        output, _ = worker.communicate()
        if worker.returncode:
            sys.exit(worker.returncode)
        for line in output.splitlines():
            if line.startswith('{"key"'):
                print(line)
            elif line.startswith('{"worker"'):
                told = json.loads(line)
                trials += told["worker"]
                began.append(told["began"])
                ended.append(told["ended"])
    print(json.dumps({"rate": trials, "seconds": max(ended) - min(began)}))


if __name__ == "__main__":
    main()
