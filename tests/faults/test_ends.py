"""How processes end: with what they wrote, with the right code, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.tracking.follow import Task


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs_are_no_failure(closed: str) -> None:
    command = f'"{sys.executable}" -m modmix --version {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout + done.stderr


def test_a_full_disk_is_a_failure_when_only_the_last_line_does_not_fit() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = f'"{sys.executable}" -m modmix --version > /dev/full'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_a_mirror_ends_with_a_driver_that_died_in_the_middle_of_a_line(tmp_path: Path) -> None:
    task = Task(
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        study="s",
        uri=f"sqlite:///{tmp_path}/mlflow.db",
        home=str(tmp_path),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "modmix.tracking.follow"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    group = Path("/proc/self/autogroup")  # of all processes of this session
    before = group.read_text() if group.exists() else ""
    try:
        assert process.stdin is not None
        process.stdin.write(task.to_json() + '\n{"live": {"k": [1.0, 2')
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert (group.read_text() if before else "") == before
    finally:
        process.kill()
        process.wait()


STUDY = """\
study: small
task: {name: weak, inputs: 2, train_rows: 30, val_rows: 10, test_rows: 10, dim: 3}
training: {epochs: 1}
seeds: 1
parts: {one: {methods: {mul: {beta: {grid: [0, 1]}}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "output",
    ["| head -c 1", "| true", "2>&1 | true", "> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"],
)
def test_no_study_is_harmed_by_where_its_output_goes(output: str, tmp_path: Path) -> None:
    if "full" in output and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "small.yaml").write_text(STUDY)
    command = f'"$0" -m modmix run small.yaml --local --no-mlflow {output}; exit ${{PIPESTATUS[0]}}'
    environment = {
        **os.environ,
        "MODMIX_HOME": str(tmp_path / "runs"),
        "MODMIX_DATA": str(tmp_path / "data"),
        "PYTHONUNBUFFERED": "1",
        # Set by build servers and notebooks.
        "PYTHONIOENCODING": "ascii",
        "PYTHONWARNINGS": "error",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "RAY_ADDRESS": "",
        "FORCE_COLOR": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert (tmp_path / "runs" / "small" / "report.html").exists()
    ledger = Ledger(Home(tmp_path / "runs").ledger_url)
    assert ledger.study("small").state == "finished"
    assert [r.state for r in ledger.replicates("small")] == ["done", "done"]
    ledger.close()
