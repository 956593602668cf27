"""A study on a cluster, started by `ray start` with tokens: a node dies or joins; a driver dies."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from modmix.ledger.ledger import Ledger
from tests.faults.conftest import MODELS, Place

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(420)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Cluster:
    """Nodes on this machine, one processor each, as separate process groups.

    ``settings``: further environment variables of the nodes.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    port: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }

    @property
    def ray_folder(self) -> Path:
        """Not below the test's own folder: sockets have short names."""
        return Path(f"/tmp/modmix-ray-{self.port}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add_node(self) -> None:
        arguments = ["--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
        arguments += ["--object-store-memory=100000000"]
        if self.nodes:
            arguments += [f"--address={self.address}"]
        else:
            arguments += ["--head", f"--port={self.port}", "--include-dashboard=false"]
            arguments += [f"--temp-dir={self.ray_folder}"]
        log = (self.folder / f"node{len(self.nodes)}.log").open("wb")
        ray = Path(sys.executable).with_name("ray")
        self.nodes.append(
            subprocess.Popen(
                [str(ray), "start", *arguments],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        self.wait_until_up(len(self.nodes) - 1)

    def wait_until_up(self, node: int) -> None:
        end = time.monotonic() + 90
        log = self.folder / f"node{node}.log"
        while time.monotonic() < end:
            if "Ray runtime started" in log.read_text():
                return
            assert self.nodes[node].poll() is None, log.read_text()
            time.sleep(0.2)
        raise AssertionError(log.read_text())

    def kill_node(self, node: int) -> None:
        """Everything of a node at once, as when its machine loses power."""
        parent = psutil.Process(self.nodes[node].pid)
        for process in [*parent.children(recursive=True), parent]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        self.nodes[node].wait()

    def stop(self) -> None:
        for node, process in enumerate(self.nodes):
            if process.poll() is None:
                self.kill_node(node)
        shutil.rmtree(self.ray_folder, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        made.add_node()
        made.add_node()
        yield made
    finally:
        made.stop()


def test_a_node_dies_and_the_study_finishes(
    place: Place, cluster: Cluster, same_as: Callable[[Place], None]
) -> None:
    place.environment.update(cluster.environment)

    place.environment["RAY_AUTH_TOKEN"] = "not-the-token-of-this-cluster-000"
    code, output = place.run("run", str(place.file), "--address", cluster.address, "--no-mlflow")
    assert code == 2, output
    assert f"the Ray cluster at {cluster.address} refuses the token: set RAY_AUTH_MODE" in output
    assert "InvalidAuthToken" not in output
    assert not (place.home.path / "ledger.db").exists()

    place.environment["RAY_AUTH_TOKEN"] = cluster.token
    process = place.start("run", str(place.file), "--address", cluster.address, "--no-mlflow")
    assert place.wait_for(6, process)
    cluster.kill_node(1)
    before = place.finished()
    assert len(before) < MODELS
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = place.finished()
    assert before.items() <= after.items()
    assert len(after) == MODELS
    assert {r.state for r in place.replicates()} == {"done"}
    same_as(place)


ONE_PACK = """
study: one
task: {name: digits, train_rows: 200}
seeds: 2
training: {epochs: 250, batch_size: 64, stack: always}
parts: {one: {methods: {mul: {beta: {grid: [0, 1]}}}}}
"""


def test_a_killed_driver_leaves_no_worker_and_its_pack_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "cluster-trace"
    monkeypatch.setenv("MODMIX_TRACE", str(trace))  # workers have the nodes' environment
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    cluster, place = Cluster(tmp_path), Place(tmp_path)
    place.environment.update(cluster.environment)
    (tmp_path / "one.yaml").write_text(ONE_PACK)
    command = ["run", str(tmp_path / "one.yaml"), "--address", cluster.address, "--no-mlflow"]

    def epochs() -> dict[int, list[float]]:
        """Epochs trained so far, by process."""
        found: dict[int, list[float]] = {}
        for line in trace.read_text().splitlines() if trace.exists() else []:
            noted = json.loads(line)
            assert len(noted["replicates"]) == 4
            found.setdefault(noted["process"], []).append(noted["epoch"])
        return found

    try:
        cluster.add_node()
        driver = place.start(*command)
        while sum(map(len, epochs().values())) < 10:
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        driver.kill()
        driver.communicate()
        (first,) = epochs()
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(first).wait(timeout=20)  # raises if it trains on
        before = epochs()[first]
        assert before[-1] < 250, "it was over before it was killed"
        assert list(place.home.checkpoints.glob("*/*.safetensors"))

        code, output = place.run(*command)
        assert code == 0, output
        (second,) = set(epochs()) - {first}
        after = epochs()[second]
        # The last epoch may have been trained and not saved.
        assert before == list(range(1, len(before) + 1))
        assert after == list(range(int(after[0]), 251))
        assert after[0] in (before[-1], before[-1] + 1)
        ledger = Ledger(place.home.ledger_url)
        assert {r.state for r in ledger.replicates("one")} == {"done"}
        assert [(pack.state, pack.failures) for pack in ledger.packs("one")] == [("done", 0)]
        ledger.close()
    finally:
        cluster.stop()
