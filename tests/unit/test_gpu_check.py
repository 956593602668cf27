"""`make gpu-check` works where there is no GPU, with torch and numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.benchmarks.gpu import Rate, markdown

ROOT = Path(__file__).parents[2]
FEW = ("base", "add", "mul", "dimml")  # on a processor, all of them take half a minute
OTHERS = "pytest ray mlflow optuna sqlalchemy pandas pydantic sklearn scipy safetensors yaml"


def run(
    folder: Path, *words: str, before: str = ""
) -> tuple[str, dict[str, list[dict[str, object]]]]:
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({OTHERS.split()}))\n"
        f"{before}\n"
        f"sys.argv = ['gpu_check', *{list(words)}, '--cpu', '--out', {str(folder)!r}]\n"
        "runpy.run_module('tests.gpu_check', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "gpu-check.json").read_text())


@pytest.mark.slow
def test_checks_on_a_processor(tmp_path: Path) -> None:
    few = f"""
from modmix.methods.table import METHODS
for name in set(METHODS) - {set(FEW)}:
    del METHODS[name]
"""
    said, told = run(tmp_path, "--only", "checks", before=few)
    assert said.startswith("No GPU is used (as asked)")
    states = {check["name"]: check["state"] for check in told["checks"]}
    assert set(states.values()) == {"ok", "not run"}
    assert [name for name, state in states.items() if state == "not run"] == [
        "compiled",
        "compiled and recorded",
        "resumed equals undisturbed",
        "nothing waits inside a step",
        "a step that cannot be recorded",
        "memory is given back",
    ]
    assert "| mul: recorded steps | ok |" in (tmp_path / "gpu-check.md").read_text()


@pytest.mark.slow
def test_rates_end_in_time(tmp_path: Path) -> None:
    said, told = run(tmp_path, "--only", "rates", "--minutes", "0.02")
    assert "no time left" in said
    assert told["rates"][0]["how"] == "one after another"


def test_table_of_rates() -> None:
    rates = [
        Rate("digits", "one after another", 4, 0.012, 2_000_000),
        Rate("digits", "2 processes", 8, 0.006, 2_000_000),
        Rate("digits", "stacked, float32", 64, 0.0003, 40_000_000),
        Rate("digits", "stacked, bf16", 64, note="not measured: no time left"),
    ]
    assert markdown(rates).splitlines()[4:] == [
        "| one after another | 4 | 12 | 0.50 | 2 |  |",
        "| 2 processes | 8 | 6 | 1.00 | 2 |  |",
        "| stacked, float32 | 64 | 0.3 | 20.00 | 40 |  |",
        "| stacked, bf16 | 64 |  |  |  | not measured: no time left |",
    ]
