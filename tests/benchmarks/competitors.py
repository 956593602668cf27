"""The peers as commands: what each trains, how long, how fast it was, and who was fastest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import (
    PYTHON,
    BenchmarkError,
    Run,
    Turns,
    command,
    cpu_count,
    environment,
)
from tests.benchmarks.report import Table, between, number

OURS = "modmix run"
LOOP = "bare PyTorch loop"
BEST_RAY = "Ray Tune, class trainable, reuse_actors, nothing logged"
RAY = "Ray Tune, MLflowLoggerCallback"
RAY_REUSE = "Ray Tune, MLflowLoggerCallback, reuse_actors"
RAY_SETUP = "Ray Tune, setup_mlflow in the trial, reuse_actors"
OPTUNA = "Optuna, two processes"

_RAY_OPTIONS = {
    RAY: [],
    RAY_REUSE: ["--reuse-actors"],
    RAY_SETUP: ["--reuse-actors", "--logging", "setup"],
}


def ranking(rates: Turns, what: str) -> Table:
    """All competitors from the fastest to the slowest; ``what`` they do in per minute."""
    rows = [
        [
            name,
            number(rates.median(name)),
            between(rates.values[name]),
            "" if name == OURS else number(rates.ratio(OURS, name), "x"),
        ]
        for name in sorted(rates.values, key=rates.median, reverse=True)
    ]
    return Table("", ["competitor", f"{what} per minute", "range", "modmix is faster by"], rows)


def paired(rates: Turns, name: str) -> str:
    """The range over turns of our rate over that of a competitor that took as many turns."""
    turns = zip(rates.values[OURS], rates.values[name], strict=True)
    return between([ours / theirs for ours, theirs in turns], "x")


@dataclass(frozen=True)
class Slice:
    """A slow peer at work for a stated time: what it finished per second, its start left out."""

    done: int  # results of Ray Tune, trials of Optuna
    seconds: float
    run: Run

    @property
    def per_minute(self) -> float:
        return 60 * self.done / self.seconds


class Peers:
    """All of them on the same models, data and MLflow server."""

    def __init__(self, models: Path, data: Path, tracking: str, optimizer: str = "") -> None:
        self._models, self._tracking = models, tracking
        self._env = environment(
            MODMIX_DATA=data,
            OMP_NUM_THREADS="1",
            MLFLOW_DISABLE_TELEMETRY="true",
            RAY_ADDRESS=None,
        )
        self.optimizer = optimizer or self._choose()

    def _choose(self) -> str:
        """The implementation of torch.optim that is fastest here."""
        run = self._python("loop", "--choose")
        return run.output.strip().splitlines()[-1]

    def _python(self, script: str, *words: str) -> Run:
        module = f"tests.benchmarks.peers.{script}"
        return command([PYTHON, "-m", module, str(self._models), *words], env=self._env)

    def loop(self) -> Run:
        words = ["--processes", str(cpu_count()), "--optimizer", self.optimizer]
        return self._python("loop", *words)

    def best_ray(self, *words: str) -> Run:
        """Ray Tune as fast as it goes, from start to exit."""
        given = ["--slots", str(cpu_count()), "--optimizer", self.optimizer]
        return self._python("ray_class", *given, *words)

    def slice(self, name: str, seconds: float, *words: str) -> Slice:
        """Let Ray Tune or Optuna work so long."""
        given = ["--tracking", self._tracking, "--seconds", str(seconds), *words]
        given += ["--optimizer", self.optimizer]
        if name == OPTUNA:
            run = self._python("optuna_two", *given)
        else:
            run = self._python("ray_tune", *given, *_RAY_OPTIONS[name])
        lines = [line for line in run.output.splitlines() if line.startswith('{"rate"')]
        if not lines:
            raise BenchmarkError(f"{name} gave no rate:\n{run.output[-2000:]}")
        told = json.loads(lines[-1])
        if told.get("errors"):
            raise BenchmarkError(f"{name} failed: {told['errors'][0]}")
        return Slice(told["rate"], told["seconds"], run)
