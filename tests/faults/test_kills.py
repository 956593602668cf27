"""Drivers, workers and servers are killed in the middle of a real study; nothing may be lost.

Afterwards the same command finishes; every replicate is in the ledger once and none was trained
again after it had finished; MLflow has one finished run per configuration and none left running;
and the numbers are those of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from tests.faults.conftest import CONFIGURATIONS, MODELS, Place
from tests.mlflow_bench import Server

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(420)]

Check = Callable[[Place], None]


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the driver alone: what it started must end by itself, or do no harm."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def check_kept(before: dict[str, float], after: dict[str, float]) -> None:
    """What had finished is still there with its first result."""
    assert before.items() <= after.items()


def check_mlflow(uri: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("fragile")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    configurations = Counter(run.data.tags.get("modmix.configuration") for run in runs)
    parents = configurations.pop(None, 0)
    assert parents == 1
    assert len(configurations) == CONFIGURATIONS
    assert set(configurations.values()) == {1}
    assert {run.info.status for run in runs} == {"FINISHED"}


KILLS = 4


def test_driver_killed_at_random_moments(place: Place, server: Server, same_as: Check) -> None:
    place.environment["MLFLOW_TRACKING_URI"] = server.uri
    chance = random.Random(20261121)
    kills = 0
    while kills < KILLS:
        before = place.finished() if (place.home.path / "ledger.db").exists() else {}
        # With a checkpoint after every evaluation, or practically none.
        place.environment["MODMIX_CHECKPOINT_SECONDS"] = chance.choice(["0", "30"])
        process = place.start("run", str(place.file), "--local")
        # Every second kill hits the start, wherever it is by then; the others come with a new
        # result or a moment after it.
        if kills % 2:
            time.sleep(chance.uniform(0.5, 3.0))
        else:
            if not place.wait_for(min(len(before) + 1, MODELS - 1), process):
                break
            time.sleep(chance.uniform(0.0, 0.2))
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
        after = place.finished() if (place.home.path / "ledger.db").exists() else {}
        check_kept(before, after)
    assert kills == KILLS, "the study ended before it was killed often enough"
    before = place.finished()
    assert len(before) < MODELS
    code, output = place.run("run", str(place.file), "--local")
    assert code == 0, output
    check_kept(before, place.finished())
    assert {r.state for r in place.replicates()} == {"done"}
    assert len(place.replicates()) == MODELS
    assert place.trained_after_its_end() == []
    same_as(place)
    check_mlflow(server.uri)


def test_driver_and_workers_killed_under_ray(place: Place, server: Server, same_as: Check) -> None:
    place.environment["MLFLOW_TRACKING_URI"] = server.uri
    process = place.start("run", str(place.file))
    assert place.wait_for(3, process)
    kill(process)
    before = place.finished()
    process = place.start("run", str(place.file))
    killed = 0
    for count in (len(before) + 1, len(before) + 10):
        assert place.wait_for(count, process)
        killed += kill_a_worker(process)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert killed >= 1, "no worker was there to be killed"
    check_kept(before, place.finished())
    assert len(place.replicates()) == MODELS
    assert place.trained_after_its_end() == []
    same_as(place)
    check_mlflow(server.uri)


def kill_a_worker(driver: subprocess.Popen[str]) -> int:
    """Kill one process that trains a pack; 0 when none is there at this moment."""
    end = time.monotonic() + 20
    while time.monotonic() < end and driver.poll() is None:
        for child in psutil.Process(driver.pid).children(recursive=True):
            try:
                name = " ".join(child.cmdline())
                if name.startswith("ray::") and ".train" in name:
                    child.kill()
                    return 1
            except psutil.Error:
                continue
        time.sleep(0.02)
    return 0


def test_mlflow_server_away_in_the_middle(place: Place, server: Server, same_as: Check) -> None:
    place.environment["MLFLOW_TRACKING_URI"] = server.uri
    process = place.start("run", str(place.file), "--local")
    assert place.wait_for(6, process)
    server.stop()
    # Training goes on without the server.
    reached = place.wait_for(len(place.finished()) + 12, process)
    assert reached or process.poll() == 0
    server.start()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    code, output = place.run("run", str(place.file), "--local")
    assert code == 0, output
    same_as(place)
    check_mlflow(server.uri)
