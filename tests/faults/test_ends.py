"""How processes end: with what they wrote, with the right code, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
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
        process.stdin.write(task.to_json() + '\n{"end": "fini')
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
    ["2>&1 | head -c 1", "| true", "> /dev/full 2>&1", ">&- 2>&-"],
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


LONG = """\
study: long
task: {name: digits, train_rows: 400}
training: {epochs: 5000, batch_size: 16}
resources: {max_models: 2}
seeds: 2
parts: {one: {methods: {mul: {beta: {grid: [0, 0.5, 1]}}}}}
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_again_and_again_gets_ahead(tmp_path: Path) -> None:
    """Its first checkpoint comes long before the 30 seconds between later ones."""
    (tmp_path / "long.yaml").write_text(LONG)
    reached = []
    for run in range(3):
        trace = tmp_path / f"trace-{run}"
        process = subprocess.Popen(
            [sys.executable, "-m", "modmix", "run", "long.yaml", "--no-mlflow", "--local"],
            cwd=tmp_path,
            env={**os.environ, "MODMIX_HOME": str(tmp_path / "runs"), "MODMIX_TRACE": str(trace)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        before = written(tmp_path)
        while written(tmp_path) == before and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None
        process.kill()
        process.wait()
        reached.append(json.loads(trace.read_text().splitlines()[0])["epoch"])
    assert 1 == reached[0] < reached[1] < reached[2]


def written(folder: Path) -> list[int]:
    """When checkpoints were written last."""
    files = (folder / "runs" / "checkpoints").glob("*/*.safetensors")
    return sorted(file.stat().st_mtime_ns for file in files)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(("name", "times"), [("SIGINT", 1), ("SIGINT", 3), ("SIGTERM", 1)])
def test_signals_end_it_with_a_sentence_however_often(
    name: str, times: int, tmp_path: Path
) -> None:
    """The group of processes gets it, as from a terminal, from Slurm or from `timeout`."""
    (tmp_path / "long.yaml").write_text(LONG)
    trace = tmp_path / "trace"
    process = subprocess.Popen(
        [sys.executable, "-m", "modmix", "run", "long.yaml", "--no-mlflow", "--workers", "2"],
        cwd=tmp_path,
        env={**os.environ, "MODMIX_HOME": str(tmp_path / "runs"), "MODMIX_TRACE": str(trace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not trace.exists() and process.poll() is None:
        time.sleep(0.1)
    for _ in range(times):
        os.killpg(process.pid, signal.Signals[name])
        time.sleep(0.3)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - begun < 45  # Ray alone would wait for a lost cluster for 60
    assert process.returncode == 3, output
    assert "Traceback" not in output
    assert "same command" in output or "resumes" in output
    checkpoints = list((tmp_path / "runs" / "checkpoints").glob("*"))
    # The first Ctrl-C leaves workers the time to write them; SIGTERM kills the workers, too.
    assert checkpoints or times > 1 or name == "SIGTERM"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_a_study_with_ray_and_mlflow_ends_and_leaves_no_process(tmp_path: Path) -> None:
    """Threads of Ray, of MLflow and of the mirror are there when the processes end."""
    (tmp_path / "small.yaml").write_text(STUDY)
    home = str(tmp_path / "runs")
    environment = {**os.environ, "MODMIX_HOME": home, "MODMIX_DATA": str(tmp_path / "data")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(
        [sys.executable, "-m", "modmix", "run", "small.yaml", "--workers", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "not up to date" not in done.stderr
    left = [p for p in psutil.process_iter() if of_home(p, home)]
    assert psutil.wait_procs(left, timeout=30)[1] == []


def of_home(process: psutil.Process, home: str) -> bool:
    try:
        return process.environ().get("MODMIX_HOME") == home
    except psutil.Error:
        return False
