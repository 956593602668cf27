"""Clusters of several Ray nodes on this machine."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.harness import ROOT, BenchmarkError

HERE = Path(__file__).parent
STORE = 80 * 1024**2  # bytes of each node's object store
START_SECONDS = 60  # Ray's own limit for a node's agents is 15 s
ATTEMPTS = 3  # to start a node, on a busy machine


def environment(folder: Path) -> dict[str, str]:
    """For processes of a cluster: their workers train as `invented.train` does."""
    dropped = ("RAY_", "TUNE_", "MLFLOW_", "MODMIX_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {
        **inherited,
        "PYTHONPATH": ":".join(map(str, [HERE / "workers", ROOT, ROOT / "platform"])),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": str(START_SECONDS),  # many processes start at once
        "OMP_NUM_THREADS": "1",
        "MODMIX_DATA": str(folder / "data"),
        "MODMIX_BENCH_TRACE": str(folder / "trace"),
    }


class Nodes:
    """`ray.cluster_utils.Cluster`: a head without processors, and nodes that come and go."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        from ray.cluster_utils import Cluster

        self.seconds = seconds
        self.lost: dict[str, float] = {}  # when, by name
        self._cluster = Cluster()
        self._nodes: dict[str, Any] = {}
        self._cluster.add_node(num_cpus=0, object_store_memory=STORE, include_dashboard=False)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, count: int, cpus: int, *, gpus: int = 0, does: str = "") -> list[str]:
        """Start nodes; ``does``: see `invented`. Returns their names in the trace."""
        return [self._add(cpus, gpus, does) for _ in range(count)]

    def _add(self, cpus: int, gpus: int, does: str) -> str:
        name = f"node {len(self._nodes) + 1}"
        environment = {
            "MODMIX_BENCH_NODE": name,
            "MODMIX_BENCH_DOES": does,
            "MODMIX_BENCH_SECONDS": str(self.seconds),
        }
        start = partial(
            self._cluster.add_node,
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=STORE,
            env_vars=environment,
        )
        for _ in range(ATTEMPTS - 1):
            with suppress(Exception):  # Ray raises a bare one when a node is late
                self._nodes[name] = start()
                return name
        self._nodes[name] = start()
        return name

    def id_of(self, name: str) -> str:
        """The node's id in Ray."""
        return str(self._nodes[name].node_id)

    def kill(self, name: str) -> None:
        """Everything of a node at once, as when its machine loses power."""
        self.lost[name] = time.time()
        self._cluster.remove_node(self._nodes[name], allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()


class ScalingCluster:
    """A head that starts and ends nodes as packs need them: Ray's autoscaler and its provider for
    tests, whose nodes are processes of this machine.

    Args:
        cpus: of a node.
        most: how many nodes.
    """

    def __init__(self, folder: Path, *, cpus: int, most: int, seconds: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        config = folder / "autoscaler.yaml"  # JSON is YAML
        config.write_text(json.dumps(_scaling(self.address, cpus=cpus, most=most)))
        self._log = folder / "head.log"
        words = ["start", "--head", "--block", "--num-cpus=0", "--node-ip-address=127.0.0.1"]
        words += [f"--port={port}", "--include-dashboard=false", f"--object-store-memory={STORE}"]
        words += [f"--autoscaling-config={config}"]
        with self._log.open("wb") as log:
            self._head = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), *words],
                env={
                    **os.environ,
                    "RAY_FAKE_CLUSTER": "1",
                    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                    "MODMIX_BENCH_SECONDS": str(seconds),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_up(self) -> None:
        end = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in self._log.read_text():
            if time.monotonic() > end:
                raise BenchmarkError(f"no head node:\n{self._log.read_text()[-2000:]}")
            self.check()
            time.sleep(0.2)

    def check(self) -> None:
        """Raise if the head has ended."""
        if self._head.poll() is not None:
            raise BenchmarkError(f"the head node ended:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self._head.poll() is not None:
            return
        head = psutil.Process(self._head.pid)
        for process in [*head.children(recursive=True), head]:
            try:
                process.kill()
            except psutil.Error:
                continue
        self._head.wait()


def _scaling(address: str, *, cpus: int, most: int) -> dict[str, Any]:
    """A cluster file: no node to begin with, and a node without work for 6 s ends."""
    nothing = ["initialization_commands", "setup_commands", "head_setup_commands"]
    nothing += ["worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]
    nothing += ["cluster_synced_files", "rsync_exclude", "rsync_filter"]
    return {
        "cluster_name": "scaling",
        "max_workers": most,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # the nodes share an address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": cpus, "object_store_memory": STORE},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            },
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in nothing},
    }
