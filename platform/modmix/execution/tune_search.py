"""Packs as trials: the `Searcher` that Ray Tune asks for the next configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from modmix.execution.description import config_of
from modmix.execution.nodes import Nodes
from modmix.execution.sharing import allowance
from modmix.execution.trials import Trials
from modmix.execution.tune_cluster import Cluster, Needs
from modmix.execution.tune_store import ActorStore

NODE_LABEL = "ray.io/node-id"  # of every node, set by Ray
_LOOK_SECONDS = 1.0


class PackSearcher(Searcher):
    """Suggests the study's next pack, as long as there is use for another trial.

    Beyond those that run, some trials wait for a place: an autoscaler sees them (as many as run, so
    that a cluster doubles), and a worker that has ended its trial takes over the next one. They are
    no more, because a pack that was handed out is divided and proposed for good.
    """

    def __init__(self, trials: Trials, cluster: Cluster, nodes: Nodes, store: ActorStore) -> None:
        super().__init__(metric="done", mode="max")
        self._trials, self._cluster, self._nodes = trials, cluster, nodes
        self._store = store
        self._looked = float("-inf")
        self._slots, self._limit = 0, 1

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
        if avoided := self._nodes.avoided(pack.id, self._cluster.nodes(pack.method)):
            config["avoided_nodes"] = ",".join(avoided)
        return config

    def _most(self) -> int:
        """How many trials may be in flight, running or waiting; looked up once a second."""
        now = self._trials.clock()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            with self._trials.guard():
                self._look()
        return self._limit

    def _look(self) -> None:
        trials, capacity = self._trials, self._cluster.capacity()
        others = []
        if self._cluster.is_local:
            self._slots = capacity
        else:
            # What starts holds a place that is neither free nor running.
            starting = min(trials.starting, max(0, self._slots - trials.running))
            self._slots = min(capacity, trials.running + starting + self._cluster.free())
            useful = min(capacity, trials.in_flight + trials.work.queued)
            others = self._store.others(useful / max(1, capacity))
        ahead = max(1, self._slots // 2) if self._cluster.is_local else max(4, self._slots)
        self._limit = self._slots + ahead
        if others:
            self._limit = allowance(useful, capacity, others)
            self._slots = min(self._slots, self._limit)
        trials.slots = self._slots
        trials.work.resize(max(1, self._slots))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Results are told by the callback, from the events of single models."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: the ledger holds it."""


def placement(config: Mapping[str, Any], needs: Mapping[str, Needs]) -> tune.PlacementGroupFactory:
    """Where a trial may run, from its configuration. ``needs`` by method; "": all others."""
    bundle = needs.get(config.get("method", ""), needs[""]).bundle
    if avoided := config.get("avoided_nodes"):
        selector = [{NODE_LABEL: f"!in({avoided})"}]
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=selector)
    return tune.PlacementGroupFactory([bundle])
