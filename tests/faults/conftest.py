"""A small real study, the command that runs it, and how its end is compared with another's."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ReplicateRecord
from tests.mlflow_bench import Server
from tests.patience import RAY_PATIENCE

STUDY = """
study: fragile
task: {name: digits, train_rows: 200}
seeds: 3
training: {epochs: 12, batch_size: 32, learning_rate: 0.003, patience: 8, stack: always}
resources: {max_models: 3}
parts:
  curve:
    x: beta
    methods:
      mul: {beta: {grid: [0, 0.3, 1]}}
      mulmix: {beta: {grid: [0, 1]}}
  depth:
    x: depth
    methods: {add: {depth: {grid: [0, 1]}}}
  search:
    search: {configurations: 4, batch: 2, parallel: 1, sampler: tpe}
    shared: {learning_rate: {low: 0.001, high: 0.1, log: true}}
    methods:
      late:
      mul: {beta: {low: 0, high: 1}}
"""
CONFIGURATIONS = 3 + 2 + 2 + 4 + 4
MODELS = 3 * CONFIGURATIONS


@dataclass
class Place:
    """A results folder with a study file, and ways to run, kill and read it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "fragile.yaml"

    @property
    def home(self) -> Home:
        return Home(self.folder / "runs")

    @property
    def ledger_url(self) -> str:
        return self.environment.get("MODMIX_LEDGER") or self.home.ledger_url

    def start(
        self, *arguments: str, module: str = "modmix", output: IO[str] | int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start the command in a process group of its own."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        environment = {
            **inherited,
            **RAY_PATIENCE,
            "MODMIX_HOME": str(self.home.path),
            "MODMIX_CHECKPOINT_SECONDS": "0",
            "MODMIX_TRACE": str(self.folder / "trace"),
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, timeout: float = 240) -> tuple[int, str]:
        """Run the command to its end: exit code and everything it printed."""
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def replicates(self) -> list[ReplicateRecord]:
        ledger = Ledger(self.ledger_url)
        try:
            return ledger.replicates("fragile") if ledger.has_study("fragile") else []
        finally:
            ledger.close()

    def finished(self) -> dict[str, float]:
        """When each finished replicate was recorded, by key."""
        return {r.key: r.finished for r in self.replicates() if r.finished is not None}

    def trained_after_its_end(self) -> list[tuple[str, float]]:
        """Evaluations of replicates that had a result by then: there must be none."""
        finished = self.finished()
        wrong = []
        for line in (self.folder / "trace").read_text().splitlines():
            noted = json.loads(line)
            wrong += [
                (key, noted["epoch"])
                for key in noted["replicates"]
                if noted["time"] > finished.get(key, math.inf)
            ]
        return wrong

    def results(self) -> dict[tuple[str, int], tuple[float, ...]]:
        """Everything measured, by configuration and seed, and the histories."""
        ledger = Ledger(self.ledger_url)
        records = ledger.replicates("fragile")
        histories = ledger.histories("fragile", [r.key for r in records])
        ledger.close()
        return {
            (r.configuration, r.seed): (
                *(value for _, value in sorted(r.metrics.items())),
                *(v for _, column in sorted(histories[r.key].items()) for v in column),
            )
            for r in records
        }

    def wait_for(self, count: int, process: subprocess.Popen[str], timeout: float = 120) -> bool:
        """Wait until so many replicates have ended; False when the process ended before."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if process.poll() is not None:
                return False
            if (self.home.path / "ledger.db").exists() and len(self.finished()) >= count:
                return True
            time.sleep(0.05)
        raise AssertionError(f"{count} replicates had not ended after {timeout} s")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.file.write_text(STUDY)
    return made


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same study, run once without any disturbance."""
    made = Place(tmp_path_factory.mktemp("undisturbed"))
    made.file.write_text(STUDY)
    code, output = made.run("run", str(made.file), "--local", "--no-mlflow", "--quiet")
    assert code == 0, output
    return made


@pytest.fixture
def same_as(undisturbed: Place) -> Callable[[Place], None]:
    """Check that a study ended as the undisturbed one: configurations, seeds, and every number."""

    def check(other: Place) -> None:
        expected, found = undisturbed.results(), other.results()
        assert len(expected) == MODELS
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True), key

    return check


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def server(module_server: Server) -> Iterator[Server]:
    """A real MLflow server without a study of the name that all tests use."""
    yield module_server
    if module_server.process is None:
        module_server.start()
    from mlflow import MlflowClient

    client = MlflowClient(module_server.uri)
    for experiment in client.search_experiments(filter_string="name = 'fragile'"):
        client.rename_experiment(experiment.experiment_id, f"before-{time.time_ns()}")
