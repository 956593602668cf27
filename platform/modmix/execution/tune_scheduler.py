"""Successive halving across packs, and the order of trials, as a Ray Tune scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from modmix.execution.local import Reply
from modmix.execution.nodes import Nodes
from modmix.execution.trials import WITHDRAWN, Trials
from modmix.execution.tune_cluster import Cluster
from modmix.execution.tune_store import ActorStore

# How long a pack waits for another node before it is placed on a bad one.
REPLACING_SECONDS = 300.0


class RungScheduler(FIFOScheduler):
    """Hands a trial's events to the study, which compares it with the others at its rungs.

    A trial reports at every rung and hears the verdict before it trains on. It ends its own models,
    since only the worker has their histories; so no trial is stopped from here.
    """

    def __init__(self, trials: Trials, cluster: Cluster, nodes: Nodes, store: ActorStore) -> None:
        super().__init__()
        self._trials, self._cluster, self._nodes = trials, cluster, nodes
        self._store = store
        self._stranded: dict[str, float] = {}  # by trial: since when only bad nodes are left
        self._added: dict[str, Trial] = {}  # waiting and running, by id

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._added[trial.trial_id] = trial

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        self._trials.record(result.get("events", ()))
        pack = self._trials.pack(trial.trial_id)
        verdict = None if pack is None else self._trials.work.verdicts.get(pack.id)
        if pack is not None and verdict:
            with self._trials.guard():
                self._store.tell(pack.id, Reply(drop=dict(verdict)))
        return str(TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The trial that takes over a free worker: the study hands out the largest packs first.

        Tune by itself would take the trial that came last.
        """
        with self._trials.guard():
            self._withdraw(tune_controller)
        trial = self._trials.next_in_line()
        found = None if trial is None else self._added.get(trial)
        return found if found is not None and found.status == Trial.PENDING else None

    def _withdraw(self, tune_controller: Any) -> None:
        """Take back the packs of waiting trials that avoid all nodes that are left.

        The nodes that a trial avoids are in its placement group, which cannot be changed. Handed
        out again, the pack may be placed on a node where it has failed, as there is no other. If
        only bad nodes are left, the cluster is first given time to replace the good one.
        """
        now, stranded = self._trials.clock(), self._stranded
        self._stranded = {}
        for id_, trial in list(self._added.items()):
            avoided, pack = trial.config.get("avoided_nodes"), self._trials.pack(id_)
            if trial.status != Trial.PENDING or not avoided or pack is None:
                continue
            left = self._cluster.nodes(pack.method)
            if not left or not left.keys() <= set(avoided.split(",")):
                continue
            only_bad = not self._nodes.has_good(left)
            if only_bad and now - (since := stranded.get(id_, now)) < REPLACING_SECONDS:
                self._stranded[id_] = since
                continue
            self._nodes.taken_back(only_bad=only_bad)
            self._store.remove(pack.id)
            self._trials.ended(id_, WITHDRAWN, counted=False)
            tune_controller.stop_trial(trial)

    def on_trial_complete(
        self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]
    ) -> None:
        self._added.pop(trial.trial_id, None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._added.pop(trial.trial_id, None)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._added.pop(trial.trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: rungs are rebuilt from the ledger."""
