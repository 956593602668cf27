"""Successive halving across packs, as a Ray Tune scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from modmix.execution.local import Reply
from modmix.execution.trials import Trials
from modmix.execution.tune_store import ActorStore

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class RungScheduler(FIFOScheduler):
    """Hands a trial's events to the study, which compares it with the others at its rungs.

    A trial reports at every rung and hears the verdict before it trains on. It ends its own models,
    since only the worker has their histories; so no trial is stopped from here.
    """

    def __init__(self, trials: Trials, store: ActorStore) -> None:
        super().__init__()
        self._trials, self._store = trials, store

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        self._trials.record(result.get("events", ()))
        pack = self._trials.pack(trial.trial_id)
        verdict = None if pack is None else self._trials.work.verdicts.get(pack.id)
        if pack is not None and verdict:
            with self._trials.guard():
                self._store.tell(pack.id, Reply(drop=dict(verdict)))
        return str(TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune places waiting trials in order by itself; its own choice reads all trials so far."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: rungs are rebuilt from the ledger."""
