"""Studies in a ledger without any training, and the MLflow they are mirrored to."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, NewConfiguration, Result
from modmix.tracking.mirror import Mirror
from modmix.tracking.writer import Writer

STUDY = "curves"
METRICS = ("error", "auc", "nll", "ece", "f1")


class Bench:
    """A ledger with one study, and the MLflow it is mirrored to."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self.home = Home(folder)
        self.home.make()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.configurations: list[NewConfiguration] = []

    def start(self, configurations: int = 3, seeds: int = 2, study: str = STUDY) -> Bench:
        spec = {
            "study": study,
            "description": "Three curves",
            "objective": ["val/error"],
            "parts": {
                "curve": {"x": "beta", "methods": {"mul": {"beta": {"grid": [0, 1]}}}},
                "depth": {"methods": {"add": {"depth": {"grid": [0, 1]}, "merge": "sum"}}},
            },
        }
        details = {"task": "digits", "fingerprint": "f" * 32, "git": "abc", "modmix": "0.1"}
        self.ledger.start_study(
            study, spec=spec, text=f"study: {study}\n", source="x.yaml", details=details
        )
        self.study = study
        self.lease = self.ledger.acquire(study)
        self.extend(configurations, seeds)
        return self

    def extend(self, configurations: int, seeds: int) -> None:
        self.configurations, entries = [], []
        for i in range(configurations):
            method, name = ("mul", "beta") if i % 2 == 0 else ("add", "depth")
            self.configurations.append(
                NewConfiguration(
                    key=f"configuration-{i:03}",
                    method=method,
                    params={name: i / 4 if i % 2 == 0 else i, "hidden": [64, 32], "margin": None},
                    replicates=[(f"configuration-{i:03}-{seed}", seed) for seed in range(seeds)],
                )
            )
            part = "curve" if method == "mul" else "depth"
            entries.append(
                Entry(part=part, method=method, number=i, configuration=f"configuration-{i:03}")
            )
        known = {(e.part, e.method, e.number) for e in self.ledger.entries(self.study)}
        fresh = [e for e in entries if (e.part, e.method, e.number) not in known]
        self.ledger.add(self.study, self.configurations, fresh)

    def finish(self, keys: Sequence[str] | None = None, **more: Any) -> list[Result]:
        keys = keys or [
            key for configuration in self.configurations for key, _ in configuration.replicates
        ]
        results = [result(key, **more) for key in keys]
        self.ledger.finish(self.lease, results)
        return results

    def release(self, state: str = "finished") -> None:
        self.ledger.set_state(self.study, state)
        self.ledger.release(self.lease)

    def writer(self) -> Writer:
        return Writer(self.ledger, self.study, self.uri, self.home)

    def mirror(self, **pace: float) -> Mirror:
        return Mirror(self.url, self.study, self.uri, self.home, pace={"niceness": 0, **pace})

    def runs(self, name: str | None = None) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(name or self.study)
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], max_results=1000))

    def children(self, name: str | None = None) -> dict[str, Any]:
        """The one run of each configuration."""
        runs = [r for r in self.runs(name) if "modmix.configuration" in r.data.tags]
        found = {r.data.tags["modmix.configuration"]: r for r in runs}
        assert len(found) == len(runs), "two runs of one configuration"
        return found

    def study_run(self, name: str | None = None) -> Any:
        (run,) = [r for r in self.runs(name) if r.data.tags.get("modmix.kind") == "study"]
        return run

    def check_whole(self, name: str | None = None) -> None:
        """One finished run per configuration, below the study's; nothing else, nothing running."""
        children, parent = self.children(name), self.study_run(name)
        assert set(children) == {p.key for p in self.configurations}
        assert {r.info.status for r in children.values()} == {"FINISHED"}
        assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} == {
            parent.info.run_id
        }
        assert parent.info.status == "FINISHED"
        assert len(self.runs(name)) == len(children) + 1
        for configuration in self.ledger.configurations(self.study):
            assert configuration.mlflow_run == children[configuration.key].info.run_id
            assert configuration.mirrored == children[configuration.key].data.tags["modmix.digest"]

    def rows(self, run: Any, key: str) -> list[tuple[int, float]]:
        from mlflow import MlflowClient

        history = MlflowClient(self.uri).get_metric_history(run.info.run_id, key)
        return [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)]

    def artifact(self, run: Any, name: str) -> str:
        from mlflow import MlflowClient

        folder = self.home.path / f"downloads-{run.info.run_id}"
        folder.mkdir(exist_ok=True)
        client = MlflowClient(self.uri)
        return Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_text()


def result(
    key: str, *, epochs: int = 4, state: str = "done", reason: str = "", **metrics: float
) -> Result:
    rng = np.random.default_rng(list(key.encode()))
    names = ["train/loss", "train/error", *(f"val/{m}" for m in METRICS), "lr"]
    history = {"epoch": [e + 1.0 for e in range(epochs)]}
    history |= {name: rng.uniform(0, 9, epochs).tolist() for name in names}
    values = {f"{s}/{m}": float(rng.uniform(0, 9)) for s in ("val", "test") for m in METRICS}
    values |= {"train/loss": float(rng.uniform())}
    return Result(
        replicate=key,
        state=state,
        reason=reason,
        epochs=epochs,
        best_epoch=2.0,
        metrics={} if state == "failed" else values | metrics,
        history=history,
        seconds=0.5,
    )


def copy_database(source: Path, target: Path) -> None:
    """Copy a database together with what its write-ahead log still holds."""
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real `mlflow server` on the loopback address, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "server-artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **quiet}, start_new_session=True
            )
        for _ in range(900):
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None
