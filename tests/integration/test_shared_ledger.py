"""Studies that share a ledger: the same model written differently, and two drivers at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import postgres

import modmix
from modmix.ledger.ledger import Ledger

pytestmark = pytest.mark.slow

STUDY = """\
study: NAME
task: {name: weak, inputs: 2, train_rows: 120, val_rows: 40, test_rows: 40, dim: 4}
seeds: 3
training: {epochs: 3, batch_size: 32, learning_rate: 0.003}
parts:
  curve: {x: beta, methods: {mul: {beta: {grid: [0, 0.5, 1]}}}}
  same: {methods: {mul: {beta: 0.5, learning_rate: 3e-3, encoder.hidden: [64]}}}
  search:
    search: {configurations: 4, batch: 2}
    methods:
      mul: {beta: {choices: [0, 0.5]}, learning_rate: {choices: [0.003, 0.01]}}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MODMIX_LEDGER", raising=False)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(STUDY.replace("NAME", name))
    if request.param == "sqlite":
        yield
        return
    with postgres.server() as url:
        monkeypatch.setenv("MODMIX_LEDGER", url)
        yield


def ledger(folder: Path) -> Ledger:
    return Ledger(os.environ.get("MODMIX_LEDGER") or f"sqlite:///{folder / 'runs' / 'ledger.db'}")


@pytest.mark.usefixtures("environment", "without_figures")
def test_parts_that_mean_the_same_model_all_get_its_results(tmp_path: Path) -> None:
    """A search meets configurations of other parts, spelled otherwise: none waits, none is
    missing.
    """
    study = modmix.run(tmp_path / "one.yaml", runner="local", mlflow=False)
    status = study.status()
    # β in 0, 0.5, 1 at the usual rate; the search adds at most β in 0, 0.5 at the other one.
    assert 3 <= status["configurations"]["done"] == status["configurations"]["total"] <= 5
    assert status["trained"] == 3 * status["configurations"]["total"]
    opened = ledger(tmp_path)
    configurations = {p.key: p for p in opened.configurations("one")}
    entries = opened.entries("one")
    assert {e.part: sum(f.part == e.part for f in entries) for e in entries} == {
        "curve": 3, "same": 1, "search": 4,
    }  # fmt: skip
    assert {e.state for e in entries if e.part == "search"} == {"done"}
    (same,) = [e.configuration for e in entries if e.part == "same"]
    assert same in [e.configuration for e in entries if e.part == "curve"]
    with_results = {r.configuration for r in opened.replicates("one") if r.metrics}
    assert {e.configuration for e in entries} == with_results == set(configurations)
    assert all(p.params["learning_rate"] in (0.003, 0.01) for p in configurations.values())
    opened.close()


@pytest.mark.usefixtures("environment")
def test_two_drivers_at_once_train_nothing_twice(tmp_path: Path) -> None:
    """Two studies that want the same models start in the same ledger at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "modmix", "run", f"{name}.yaml", "--local", "--no-mlflow"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    opened = ledger(tmp_path)
    found = {name: opened.replicates(name) for name in ("one", "two")}
    assert {r.state for records in found.values() for r in records} == {"done"}
    assert {r.attempts for records in found.values() for r in records} == {1}
    assert {r.key for r in found["one"]} == {r.key for r in found["two"]}
    trained = [r.key for records in found.values() for r in records if r.origin == "trained"]
    assert sorted(trained) == sorted({r.key for r in found["one"]})
    opened.close()


EDITS: dict[str, Callable[[str], str]] = {
    "as it was": lambda text: text,
    "another seed": lambda text: text.replace("seeds: 3", "seeds: 4"),
    "more configurations": lambda text: text.replace("configurations: 4", "configurations: 6"),
    "a part less, which showed more": lambda text: re.sub(r"\n  same: .*", "", text),
    "a part of another name": lambda text: text.replace("  search:\n", "  tuned:\n"),
    "a constant spelled out": lambda text: text.replace(
        "beta: {grid", "momentum: 0.9, beta: {grid"
    ),
    "other training": lambda text: text.replace("epochs: 3", "epochs: 2"),
    "another space": lambda text: text.replace("[0.003, 0.01]", "[0.003, 0.01, 0.02]"),
    "back again": lambda text: text,
}


@pytest.mark.parametrize("environment", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("environment", "without_figures")
def test_a_study_file_may_be_edited_at_any_time(tmp_path: Path) -> None:
    """Whatever has changed, all that the file asks for gets a result, and nothing else is left."""
    text = STUDY.replace("NAME", "one")
    path = tmp_path / "one.yaml"
    trained_before: set[str] = set()
    for what, edit in EDITS.items():
        path.write_text(edit(text))
        study = modmix.run(path, runner="local", mlflow=False)
        status = study.status()
        assert status["state"] == "finished", what
        assert status["configurations"]["done"] == status["configurations"]["total"] > 0, what
        opened = ledger(tmp_path)
        records = opened.replicates("one")
        assert {e.configuration for e in opened.entries("one")} == {
            r.configuration for r in records
        }, what
        assert {p.key for p in opened.configurations("one")} == {
            r.configuration for r in records
        }, what
        assert {r.attempts for r in records} == {1}, what
        now = {r.key for r in records}
        if what in ("a constant spelled out", "back again"):
            assert now <= trained_before, what
        trained_before |= now
        opened.close()
