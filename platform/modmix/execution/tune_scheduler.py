"""Successive halving across packs, as a Ray Tune scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from modmix.execution.local import Reply
from modmix.execution.trials import Trials
from modmix.execution.tune_store import Store

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class RungScheduler(FIFOScheduler):
    """Hands a trial's events to the study, which compares it with the others at its rungs.

    A trial reports at every rung and hears the verdict before it trains on. It ends its own models,
    since only the worker has their histories; so no trial is stopped from here.
    """

    def __init__(self, trials: Trials, store: Store) -> None:
        super().__init__()
        self._trials, self._store = trials, store
        self._told: dict[str, Reply] = {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        self._trials.record(result.get("events", ()))
        pack = self._trials.pack(trial.trial_id)
        verdict = None if pack is None else self._trials.work.verdicts.get(pack.id)
        if pack is not None and verdict:
            reply = Reply(drop=dict(verdict))
            if self._told.get(pack.id) != reply:
                self._told[pack.id] = reply
                with self._trials.guard():
                    self._store.tell(pack.id, reply)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Any) -> None:
        self._forget(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)

    def _forget(self, trial: Trial) -> None:
        if (pack := self._trials.pack(trial.trial_id)) is not None:
            self._told.pop(pack.id, None)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune places waiting trials in order by itself; its own choice reads all trials so far."""

    def debug_string(self) -> str:
        return "Using successive halving, in packs and across them, where the study asks for it."

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: rungs are rebuilt from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a study continues from its ledger, never from Tune's snapshot")
