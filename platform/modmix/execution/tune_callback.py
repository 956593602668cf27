"""What the study is told about its trials by Ray Tune: starts, results, ends and failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from modmix.execution.nodes import Nodes
from modmix.execution.trials import Trials
from modmix.execution.tune_cluster import Cluster

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

DIED = "the worker process or its node died"
LOST = "its node was lost"


class StudyCallback(tune.Callback):
    """Passes on what happens to trials, and finds out whose fault a failure is.

    * of the configuration: the trial said so; the pack's models fail with its traceback;
    * of the machine: the pack is handed out again and avoids the node;
    * of nobody: a node was lost, or failed its preflight; this does not count against the pack.
    """

    def __init__(self, trials: Trials, cluster: Cluster, nodes: Nodes, store: Any) -> None:
        self._trials, self._cluster, self._nodes = trials, cluster, nodes
        self._store = store
        self._failures: dict[str, dict[str, Any]] = {}  # by trial, as told in its last result
        self._told_to_stop = False

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._trials.tick()
        if self._trials.stopping and not self._told_to_stop:
            self._told_to_stop = True
            with self._trials.guard():
                ray.get(self._store.stop.remote())

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._trials.started(trial.trial_id)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        result.pop("events", None)  # the scheduler has handed them on
        if result.get("failure"):
            self._failures[trial.trial_id] = result

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        pack = self._trials.pack(trial.trial_id)
        if pack is not None and not self._trials.stopping:
            self._nodes.forget(pack.id)
        self._end(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        pack = self._trials.pack(trial.trial_id)
        if pack is None:
            return
        told = self._failures.pop(trial.trial_id, {})
        why = told.get("failure") or DIED
        if not told.get("of_machine", True):
            self._end(trial, why, of_machine=False)
            return
        node = None
        with self._trials.guard():
            node = ray.get(self._store.node.remote(pack.id))
        if node is None:
            self._trials.failed_start(why)
            self._end(trial, why)
        elif not told and not self._cluster.is_alive(node):
            self._end(trial, LOST, counted=False)
        else:
            unfit = bool(told.get("unfit"))
            name = self._cluster.node_name(node)
            self._nodes.failed(node, pack.id, why, unfit=unfit, name=name)
            others = self._nodes.has_good(self._cluster.nodes())
            self._end(trial, f"{why} (on node {name})", counted=not (unfit and others))

    def _end(
        self, trial: Trial, failure: str = "", *, of_machine: bool = True, counted: bool = True
    ) -> None:
        pack = self._trials.pack(trial.trial_id)
        if pack is not None:
            self._store.remove.remote(pack.id)
        self._trials.ended(trial.trial_id, failure, of_machine=of_machine, counted=counted)


class StudyStopper(tune.Stopper):
    """Ends what is left once the study stops and its trials have had time to save."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._trials.overdue
