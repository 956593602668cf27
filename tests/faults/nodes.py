"""A Ray cluster of several nodes in this process's charge, and workers that do as they are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.patience import RAY_PATIENCE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment() -> dict[str, str]:
    """For processes whose training is that of `tests/faults/workers/sitecustomize.py`."""
    paths = [HERE / "workers", ROOT, ROOT / "platform"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    return {
        **inherited,
        "PYTHONPATH": ":".join(map(str, paths)),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-and-no-other",
        "RAY_USAGE_STATS_ENABLED": "0",
        **RAY_PATIENCE,
        "OMP_NUM_THREADS": "1",
    }


class Nodes:
    """`ray.cluster_utils.Cluster` with nodes that train in different ways."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()

    def add(self, cpus: int = 1, *, does: str = "", gate: str = "") -> Any:
        """Add a node; ``does``: what its workers do, see `workers/sitecustomize.py`."""
        return self.cluster.add_node(
            num_cpus=cpus,
            object_store_memory=80 * 1024**2,
            include_dashboard=False,
            env_vars={"MODMIX_TEST_DOES": does, "MODMIX_TEST_GATE": gate},
        )

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill(self, node: Any) -> None:
        """Everything of a node at once, as when its machine loses power."""
        self.cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()
