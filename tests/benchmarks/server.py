"""An MLflow server on the loopback address, shared by all competitors."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.harness import PYTHON, BenchmarkError, end_tree, environment


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real `mlflow server` on SQLite while the block runs; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    words = [PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "2"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    # Without the seven processes that evaluate agents: they would take time from everybody.
    quiet = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true")
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env=quiet, cwd=folder, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, folder / "server.log")
        yield address
    finally:
        end_tree(process)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise BenchmarkError(f"the MLflow server did not start:\n{log.read_text()[-2000:]}")
