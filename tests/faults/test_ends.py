"""How processes end: with what they wrote, with the right code, and never left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    try:
        assert process.stdin is not None
        process.stdin.write(task.to_json() + '\n{"live": {"k": [1.0, 2')
        process.stdin.close()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
