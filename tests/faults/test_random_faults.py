"""The program that throws random faults at studies, with a few of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.nodes import ROOT
from tests.faults.random_faults.plan import SIGNALS, draw
from tests.faults.random_faults.scene import MODELS


def test_faults_are_drawn_from_the_seed() -> None:
    plans = draw(100, 7)
    assert plans == draw(100, 7)
    assert plans != draw(100, 8)
    faults = [fault for plan in plans for fault in plan.faults]
    assert Counter(fault.victim for fault in faults) == {
        "driver": 30, "worker": 18, "node": 12, "mlflow": 12, "database": 14, "mirror": 14,
    }  # fmt: skip
    assert {(fault.victim, fault.signal) for fault in faults} == {
        (victim, name) for victim, names in SIGNALS.items() for name in names
    }
    assert all(len({fault.victim for fault in plan.faults}) == 1 for plan in plans)
    (one,) = draw(3, 7, "node")
    assert [fault.victim for fault in one.faults] == ["node"] * 3


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_few_random_faults(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults.random_faults", "--json", str(file)]
    command += ["--count", "4", "--seed", "3", "--only", "driver"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=850, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert {fault["signal"] for fault in found["faults"]} == set(SIGNALS["driver"])
    total = found["counts"][-1]
    assert (total["faults"], total["left running"], total["differing"]) == (4, 0, 0)
    assert total["expected"] == total["once"] == MODELS * total["studies"]
    assert total["twice"] == 0
