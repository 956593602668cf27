"""What the driver and its trials tell each other beside Ray Tune: one small actor per study.

It lives on the driver's node. It holds packs, which are too long for a trial's configuration, and
the driver's replies to running trials, which Tune has no way to send.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from modmix.base.messages import Pack
from modmix.execution.local import Reply

NAMESPACE, PREFIX = "modmix", "study-"  # of the actors, by which studies find each other


class PackStore:
    """The actor: packs by id, where they are trained, and what their trials are told."""

    def __init__(self) -> None:
        self._packs: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._replies: dict[str, Reply] = {}
        self._stop = False
        self._demand = 0.0

    def put(self, pack: str, text: str) -> None:
        self._packs[pack] = text

    def enter(self, pack: str, node: str) -> None:
        """A worker for this pack has started on this node."""
        self._nodes[pack] = node

    def fetch(self, pack: str, node: str) -> str:
        """A pack as JSON, for the trial on this node."""
        self._nodes[pack] = node
        return self._packs[pack]

    def node(self, pack: str) -> str | None:
        """Where a pack's trial has started; None: nowhere yet."""
        return self._nodes.get(pack)

    def remove(self, pack: str) -> None:
        for of_pack in (self._packs, self._nodes, self._replies):
            of_pack.pop(pack, None)

    def tell(self, pack: str, reply: Reply) -> None:
        """What this pack's trial is told from now on."""
        self._replies[pack] = reply

    def stop(self) -> None:
        """Tell all trials to stop."""
        self._stop = True

    def reply(self, pack: str) -> Reply:
        return Reply(stop=True) if self._stop else self._replies.get(pack, Reply())

    def set_demand(self, demand: float) -> None:
        """Publish which fraction of the cluster the study has use for."""
        self._demand = demand

    def demand(self) -> float:
        return self._demand


class TrialStore:
    """A trial's side of a `PackStore`, in a worker process. ``name`` is that of the actor."""

    def __init__(self, name: str) -> None:
        self._name = name

    @cached_property
    def _actor(self) -> Any:
        return ray.get_actor(self._name, namespace=NAMESPACE)

    def enter(self, pack: str) -> None:
        """Tell on which node the trial of a pack has started."""
        ray.get(self._actor.enter.remote(pack, ray.get_runtime_context().get_node_id()))

    def fetch(self, pack: str) -> Pack:
        node = ray.get_runtime_context().get_node_id()
        return Pack.from_json(ray.get(self._actor.fetch.remote(pack, node)))

    def reply(self, pack: str) -> Reply:
        """What the driver has to say to the trial of this pack."""
        reply: Reply = ray.get(self._actor.reply.remote(pack))
        return reply


class ActorStore:
    """The driver's side of a `PackStore`, which it starts as an actor named after the study."""

    def __init__(self, study: str) -> None:
        self.name = f"{PREFIX}{study}-{uuid.uuid4().hex}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: Mapping[str, Any] = {
            "num_cpus": 0,
            "scheduling_strategy": here,
            "name": self.name,
            "namespace": NAMESPACE,
        }
        self.actor = ray.remote(PackStore).options(**options).remote()

    def put(self, pack: Pack) -> None:
        # Waited for, as the other calls whose effect a trial must see: calls of different
        # processes may overtake each other.
        ray.get(self.actor.put.remote(pack.id, pack.to_json()))

    def node(self, pack: str) -> str | None:
        node: str | None = ray.get(self.actor.node.remote(pack))
        return node

    def tell(self, pack: str, reply: Reply) -> None:
        ray.get(self.actor.tell.remote(pack, reply))

    def stop(self) -> None:
        ray.get(self.actor.stop.remote())

    def remove(self, pack: str) -> None:
        self.actor.remove.remote(pack)

    def others(self, demand: float) -> list[float]:
        """Publish this study's demand; return those of the other studies on the cluster."""
        self.actor.set_demand.remote(demand)
        found = []
        for one in ray.util.list_named_actors(all_namespaces=True):
            name = one["name"]
            if one["namespace"] != NAMESPACE or not name.startswith(PREFIX) or name == self.name:
                continue
            try:
                other = ray.get_actor(name, namespace=NAMESPACE)
                found.append(float(ray.get(other.demand.remote(), timeout=2.0)))
            except (ValueError, ray.exceptions.RayError):
                continue  # that study has just ended
        return found

    def close(self) -> None:
        ray.kill(self.actor)
