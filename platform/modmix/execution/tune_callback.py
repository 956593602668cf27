"""What the study is told about its trials by Ray Tune: starts, results, ends and failures."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from modmix.execution.nodes import Nodes
from modmix.execution.trials import Trials
from modmix.execution.tune_cluster import Cluster
from modmix.execution.tune_store import ActorStore

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

    def __init__(self, trials: Trials, cluster: Cluster, nodes: Nodes, store: ActorStore) -> None:
        self._trials, self._cluster, self._nodes = trials, cluster, nodes
        self._store = store
        self._failures: dict[str, dict[str, Any]] = {}  # by trial, as told in its last result
        self._told_to_stop = False

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._trials.tick()
        if self._trials.stopping and not self._told_to_stop:
            self._told_to_stop = True
            with self._trials.guard():
                self._store.stop()

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
        if pack is not None and self._nodes.has_failures and not self._trials.stopping:
            with self._trials.guard():
                if (node := self._store.node(pack.id)) is not None:
                    self._nodes.trained(node, pack.id)
        self._end(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        pack = self._trials.pack(trial.trial_id)
        if pack is None:
            return
        told = self._failures.pop(trial.trial_id, {})
        why = told.get("failure") or _why(trial)
        if not told.get("of_machine", True):
            self._end(trial, why, of_machine=False)
            return
        started = self._trials.has_started(trial.trial_id)
        if not started:
            self._trials.failed_start(why)
        node = None
        with self._trials.guard():
            node = self._store.node(pack.id)
        if node is None:
            self._nodes.failed_start(why, silent=why == DIED)
            self._end(trial, why, counted=False)
        elif told or self._cluster.is_local:
            self._blame(trial, node, why, started=started, unfit=bool(told.get("unfit")))
        else:
            self._trials.hold(trial.trial_id, partial(self._settle, trial, node, why, started))

    def _settle(self, trial: Trial, node: str, why: str, started: bool, last: bool) -> bool:
        """Find out whether a worker that died without a word died with its node."""
        if not self._cluster.is_alive(node):
            self._end(trial, LOST, counted=False)
            return True
        if last:
            self._blame(trial, node, why, started=started)
        return last

    def _blame(
        self, trial: Trial, node: str, why: str, *, started: bool, unfit: bool = False
    ) -> None:
        """A failure of the machine: of this node, and of the pack unless the node is unfit.

        A worker that was not ready had not begun with the pack; `Trials.failed_start` counts those.
        """
        pack = self._trials.pack(trial.trial_id)
        if pack is not None:
            name = self._cluster.node_name(node)
            self._nodes.failed(node, pack.id, why, unfit=unfit or not started, name=name)
            others = self._nodes.has_good(self._cluster.nodes(pack.method))
            self._end(trial, why, counted=started and not (unfit and others))

    def _end(
        self, trial: Trial, failure: str = "", *, of_machine: bool = True, counted: bool = True
    ) -> None:
        pack = self._trials.pack(trial.trial_id)
        if pack is not None:
            with self._trials.guard():
                self._store.remove(pack.id)
        self._trials.ended(trial.trial_id, failure, of_machine=of_machine, counted=counted)


class StudyStopper(tune.Stopper):
    """Ends what is left once the study stops and its trials have had time to save."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._trials.overdue


# The last line of a traceback, as in "ModuleNotFoundError: No module named 'x'".
_ERROR = re.compile(r"[\w.]*(Error|Exception): ")


def _why(trial: Trial) -> str:
    """Why a worker died, as far as Ray knows: from the text of its error, which Tune keeps."""
    try:
        text = Path(trial.error_file).read_text().strip()
    except (OSError, TypeError):
        return DIED
    lines = [line.strip() for line in text.splitlines()] or [""]
    # Ray may append a sentence that does not give the reason.
    last = next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
    if "OutOfMemory" in text:
        return "the worker process was killed because its node ran out of memory"
    if "creation task" in text:
        return f"the worker could not start: {last}"
    return f"the worker failed: {last}" if "Traceback" in text else DIED
