"""Packs as trials: the `Searcher` that Ray Tune asks for the next configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from modmix.execution.description import config_of
from modmix.execution.nodes import Nodes
from modmix.execution.sharing import allowance
from modmix.execution.trials import Trials
from modmix.execution.tune_cluster import Cluster, Needs
from modmix.execution.tune_store import Store

NODE_LABEL = "ray.io/node-id"  # of every node, set by Ray
_LOOK_SECONDS = 1.0


class PackSearcher(Searcher):
    """Suggests the study's next pack, as long as there is use for another trial.

    Beyond those that run, some trials wait for a place: an autoscaler sees them, and a worker that
    has ended its trial takes over the next one. They are few, because a pack that was handed out is
    divided and proposed no more.
    """

    def __init__(self, trials: Trials, cluster: Cluster, nodes: Nodes, store: Store) -> None:
        super().__init__(metric="done", mode="max")
        self._trials, self._cluster, self._nodes = trials, cluster, nodes
        self._store = store
        self._limit = (-_LOOK_SECONDS, 1)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._trials.tick()  # Tune may ask here for minutes while no trial is left
        if self._trials.over:
            return str(Searcher.FINISHED)
        if self._trials.in_flight >= self._most():
            return None
        pack = self._trials.add(trial_id)
        if pack is None:
            return None
        with self._trials.guard():
            self._store.put(pack)
        config = config_of(pack)
        if avoided := self._nodes.avoided(pack.id, self._cluster.nodes()):
            config["avoided_nodes"] = ",".join(avoided)
        return config

    def _most(self) -> int:
        """How many trials may be in flight, running or waiting."""
        now = time.monotonic()
        if now - self._limit[0] > _LOOK_SECONDS:
            slots = self._cluster.slots(self._trials.running)
            with self._trials.guard():
                self._trials.work.resize(max(1, slots))
            wanted = slots + max(1, slots // 2)
            self._limit = (now, self._share(wanted))
        return self._limit[1]

    def _share(self, wanted: int) -> int:
        """How many of the wanted trials this study may have, beside others on the cluster."""
        if self._cluster.is_local:
            return wanted
        capacity = max(1, self._cluster.capacity())
        with self._trials.guard():
            return allowance(wanted, capacity, self._store.others(wanted / capacity))
        return wanted

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Results are told by the callback, from the events of single models."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: the ledger holds it."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a study continues from its ledger, never from Tune's snapshot")


def placement(config: Mapping[str, Any], needs: Mapping[str, Needs]) -> tune.PlacementGroupFactory:
    """Where a trial may run, from its configuration. ``needs`` by method; "": all others."""
    bundle = needs.get(config.get("method", ""), needs[""]).bundle
    if avoided := config.get("avoided_nodes"):
        selector = [{NODE_LABEL: f"!in({avoided})"}]
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=selector)
    return tune.PlacementGroupFactory([bundle])
