"""The files of docs/own-code.md: run here and on a cluster, edited, and run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.patience import RAY_PATIENCE

import modmix
from modmix.analysis.best import best_configurations
from modmix.ledger.ledger import Ledger
from modmix.registry import best as best_files
from modmix.registry import final as finals

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "own-code.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files of the page; each begins with its name."""
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert [name for name, _ in blocks] == [
        "my_fusion.py", "own.yaml", "my_damped.py", "my_turns.py", "my_nets.py", "my_task.py",
        "blobs.yaml", "my_clips.py",
    ]  # fmt: skip
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def run(folder: Path, study: str, *arguments: str) -> str:
    """`modmix run` in a process of its own; what it said."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    ours = {"MODMIX_HOME": str(folder / "runs"), "MODMIX_TRACE": str(folder / "trace")}
    ours |= RAY_PATIENCE
    command = [
        sys.executable,
        "-m",
        "modmix",
        "run",
        str(folder / study),
        "--no-mlflow",
        *arguments,
    ]
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env={**inherited, **ours}, cwd=folder.parent,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout + told.stderr


def trained(folder: Path) -> set[str]:
    """Keys of the replicates that were trained since the last time."""
    trace = folder / "trace"
    lines = trace.read_text().splitlines() if trace.exists() else []
    trace.unlink(missing_ok=True)
    return {key for line in lines for key in json.loads(line)["replicates"]}


def results(folder: Path, study: str) -> dict[str, Any]:
    frame = modmix.open_study(study, folder / "runs").frame()
    return {m: list(rows["test/error/mean"]) for m, rows in frame.groupby("method")}


@pytest.mark.cluster
def test_a_method_runs_on_a_cluster_and_is_trained_again_when_it_changes(folder: Path) -> None:
    # What shows only in training, with values that zeros do not have.
    fault = (
        "        if self.training and len(target_B) != 2:\n"
        "            raise ValueError('only here')\n"
    )
    edit(
        folder / "my_fusion.py",
        "        return F.cross_entropy",
        f"{fault}        return F.cross_entropy",
    )
    run(folder, "own.yaml", "--workers", "2")
    (add,) = results(folder, "own")["add"]
    assert add > 0
    ledger = Ledger(f"sqlite:///{folder / 'runs' / 'ledger.db'}")
    reasons = [r.reason for r in ledger.replicates("own") if r.state == "failed"]
    ledger.close()
    assert len(reasons) == 4  # two widths of gate, two seeds
    assert f"{folder}/my_fusion.py:21: " in reasons[0]
    assert "raise ValueError('only here')" in reasons[0]
    trained(folder)

    edit(folder / "my_fusion.py", fault, "")
    run(folder, "own.yaml", "--local")
    first, before = trained(folder), results(folder, "own")
    assert len(first) == 4  # of gate alone
    assert before["add"] == [add]
    assert len(before["gate"]) == 2

    edit(folder / "my_fusion.py", ".relu()", ".tanh()")
    run(folder, "own.yaml", "--local")
    second, after = trained(folder), results(folder, "own")
    assert len(second) == 4
    assert not first & second
    assert after["add"] == [add]
    assert after["gate"] != before["gate"]

    edit(folder / "my_fusion.py", ".tanh()", ".relu()")
    said = run(folder, "own.yaml", "--local")
    assert trained(folder) == set()  # the results of this text are in the ledger
    assert "4 models reused from the ledger" in said
    assert results(folder, "own") == before


def test_an_encoder_and_a_task_run_here(folder: Path) -> None:
    said = run(folder, "blobs.yaml", "--local")
    assert "study blobs is finished: 6 configurations" in said
    before = trained(folder)
    assert len(before) == 2 * (2 * 2 + 2)
    edit(folder / "my_nets.py", ".relu()", ".tanh()")
    run(folder, "blobs.yaml", "--local")
    # All but base on the right input, which the encoder does not read.
    assert len(trained(folder)) == 2 * (2 * 2 + 1)
    edit(folder / "my_task.py", "default_rng(0)", "default_rng(1)")
    run(folder, "blobs.yaml", "--local")
    assert len(trained(folder)) == len(before)


LOADED = """
import json, mlflow, numpy as np, sys
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict({"left": np.ones((3, 4)), "right": -np.ones((3, 5))})
import modmix
print(json.dumps([modmix.__file__, list(answer.columns), answer["label"].tolist()]))
"""


def test_a_model_with_own_code_is_registered(folder: Path) -> None:
    """Final run, registry, and a process that has neither the files nor this checkout."""
    edit(folder / "blobs.yaml", "add: {encoder", 'gate: {class: "my_fusion.py:Gate", encoder')
    home = folder / "runs"
    study = modmix.run(folder / "blobs.yaml", runner="local", home=home, mlflow=False)
    with_ledger = Ledger(study.home.ledger_url)
    try:
        best = best_configurations(with_ledger, "blobs")
        paths = best_files.write_best(with_ledger, study.home, "blobs", best)
        (path,) = (p for p in paths if p.stem == "gate")
        assert f"class: {folder}/my_fusion.py:Gate" in path.read_text()
        final = modmix.run(path, runner="local", home=home, mlflow=False)
        uri = f"sqlite:///{home / 'mlflow.db'}"
        made = finals.register(with_ledger, study.home, final.name, uri)
    finally:
        with_ledger.close()
    assert made.name == "blobs-gate"
    for file in ("my_fusion.py", "my_nets.py", "my_task.py"):
        (folder / file).unlink()
    told = subprocess.run(
        [sys.executable, "-c", LOADED, f"models:/{made.name}@champion"],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": "", "MLFLOW_TRACKING_URI": uri},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    where, columns, labels = json.loads(told.stdout.splitlines()[-1])
    assert columns == ["class", "label", "probability.a", "probability.b", "probability.c"]
    assert len(set(labels)) == 1
    assert np.isin(labels, ["a", "b", "c"]).all()
    assert where.endswith("/code/modmix/__init__.py")  # the package travels with the model
