"""A results folder that is moved, copied or read-only, or whose path has odd characters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.tracking.mirror import sync
from modmix.tracking.store import local_folder

STUDY = """\
study: m
task: {name: arrays, path: t.npz}
seeds: 2
training: {epochs: 2}
parts: {g: {methods: {mul: {beta: {grid: [0, 1]}}}}}
"""
LOAD = """
import mlflow, numpy
model = mlflow.pyfunc.load_model("models:/m-mul@champion")
answer = model.predict({"a": numpy.zeros((2, 4)), "b": numpy.zeros((2, 3))})
assert len(answer) == 2, answer
"""

REGISTER = """
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.registry.final import register
home = Home.from_environment()
register(Ledger(home.ledger_url), home, "m-mul-final", home.tracking_uri)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rng, labels = np.random.default_rng(0), np.arange(120) % 3
    a = (rng.normal(size=(120, 4)) + labels[:, None]).astype(np.float32)
    b = (rng.normal(size=(120, 3)) - labels[:, None]).astype(np.float32)
    np.savez(tmp_path / "t.npz", a=a, b=b, labels=labels)
    (tmp_path / "m.yaml").write_text(STUDY)
    return tmp_path


def modmix(place: Path, home: Path, *arguments: str, python: tuple[str, ...] = ()) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODMIX_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, *(python or ("-m", "modmix")), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env={**kept, "MODMIX_HOME": str(home), "MODMIX_DATA": str(place / "data")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(place: Path, home: Path, file: Path) -> None:
    """Without the mirror, which gives way to all other processes: `sync` does the same."""
    modmix(place, home, "run", str(file), "--local", "--quiet", "--no-mlflow")


def run_all(place: Path, home: Path) -> None:
    """The study, and the model of its best configuration, as `modmix final` makes it."""
    train(place, home, place / "m.yaml")
    modmix(place, home, "best", "m")
    train(place, home, home / "m" / "best" / "mul.yaml")
    modmix(place, home, "sync", "m")
    register(place, home)


def register(place: Path, home: Path) -> None:
    modmix(place, home, python=("-W", "ignore", "-c", REGISTER))


def check_mlflow(home: Path, runs: int, *, has_model: bool = True) -> None:
    """Every run of the study has its files, below the folder, and the model can be loaded."""
    uri = Home(home).tracking_uri
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("m")
    assert local_folder(experiment.artifact_location) == home / "artifacts" / "m"
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == runs
    for run in found:
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files & {"replicates.json", "report.html"}
    if has_model:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}  # of a process: it is global
        subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], check=True, env=environment)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_files_and_models_are_below_a_folder_of_any_name_and_follow_it(place: Path) -> None:
    old, new = place / "a?b ü #x 100% y", place / "new"
    run_all(place, old)
    check_mlflow(old, 3)
    assert {p.name for p in place.iterdir()} == {old.name, "data", "m.yaml", "t.npz"}
    old.rename(new)
    assert "is up to date; 2 runs written" in modmix(place, new, "sync", "m")
    register(place, new)
    check_mlflow(new, 3)
    assert not old.exists()
    client = MlflowClient(Home(new).tracking_uri)
    assert len([e for e in client.search_experiments() if e.name.startswith("m-moved-")]) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_copy_writes_nothing_into_the_original(place: Path) -> None:
    train(place, place / "one", place / "m.yaml")
    modmix(place, place / "one", "sync", "m")
    shutil.copytree(place / "one", place / "two")
    before = sorted((place / "one").rglob("*"))
    ledger, home = Ledger(Home(place / "two").ledger_url), Home(place / "two")
    sync(ledger, "m", home.tracking_uri, home)
    ledger.close()
    check_mlflow(place / "two", 3, has_model=False)
    assert sorted((place / "one").rglob("*")) == before


def test_where_artifacts_are(tmp_path: Path) -> None:
    assert local_folder((tmp_path / "a b").as_uri()) == tmp_path / "a b"
    assert local_folder(str(tmp_path)) == tmp_path
    assert local_folder("s3://bucket/m") is None
    assert local_folder("mlflow-artifacts:/1") is None
    assert local_folder("file://elsewhere/m") is None


@pytest.mark.slow
def test_best_prints_what_it_cannot_write(place: Path) -> None:
    home = place / "runs"
    train(place, home, place / "m.yaml")
    (home / "m" / "best").touch()  # in the way, for every user
    said = modmix(place, home, "best", "m")
    assert "mul: val/error" in said
    assert "no files for 'modmix final' were written: " in said
    assert "  modmix final " not in said
    assert '"file": null' in modmix(place, home, "best", "m", "--json")
