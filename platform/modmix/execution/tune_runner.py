"""The runner on a Ray cluster: a study as a Ray Tune experiment, one trial per pack."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

from modmix.base.errors import Incomplete, InputError, RunnerError
from modmix.execution.local import Work
from modmix.execution.nodes import Nodes
from modmix.execution.trials import Trials
from modmix.execution.tune_cluster import Cluster, Needs, first_line, quiet

# Tune reads these when it is imported, or when an experiment starts.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no files per trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the study stops itself, and in order
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # snapshots are not used: the ledger holds everything
    "TUNE_MAX_PENDING_TRIALS_PG": "100000",  # `PackSearcher` decides how many trials wait
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in the ledger
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # A trial of a node that was taken away ends; its pack is handed out again as a new trial.
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers are reused
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TuneRunner:
    """Trains packs on a Ray cluster.

    Args:
        needs: what a pack occupies, by method; "" is for all other methods.
        address: of a cluster; None starts one on this machine that ends with the study.
        workers: processors of the cluster started on this machine; None: all this process may use.
        study: its name, for the Ray dashboard.
        log: called with messages for the user.
    """

    def __init__(
        self,
        needs: Mapping[str, Needs] | None = None,
        *,
        address: str | None = None,
        workers: int | None = None,
        study: str = "study",
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._needs = {"": Needs(), **(needs or {})}
        self._study = study
        self._cluster = Cluster(self._needs, address=address, workers=workers, study=study)
        self._log = log
        self._is_started = False

    @property
    def slots(self) -> int:
        """How many packs there is room for now."""
        return max(1, self._cluster.free()) if self._is_started else 1

    def start(self) -> None:
        if self._is_started:
            return
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        self._cluster.check()  # before anything imports Ray
        ahead = threading.Thread(target=_load_ahead, name="modmix-load-ahead")
        ahead.start()
        try:
            self._cluster.connect()
        finally:
            ahead.join()
        self._is_started = True
        for method, needs in self._needs.items():
            if not self._cluster.has_node_for(needs):
                self._no_node(f"a pack of {method}" if method else "a pack", needs)

    def _no_node(self, what: str, needs: Needs) -> None:
        if self._cluster.is_local:
            self.close()
            raise InputError(
                f"resources: {what} asks for {needs}, more than this machine has or --workers "
                "allows: reduce the resources, or give a larger cluster with --address"
            )
        self._log(
            f"warning: {what} asks for {needs}, and no node of the Ray cluster is that large: the "
            "study waits until one joins"
        )

    def is_lost(self) -> bool:
        lost = self._cluster.is_ending()
        if lost:
            # What is left of Tune's objects would ask the cluster to remove its placement groups
            # when it is collected, and Ray ends the program if it has no answer within a minute.
            gc.freeze()
        return lost

    def close(self) -> None:
        self._is_started = False
        self._cluster.close()

    def run(self, work: Work) -> None:
        """Train until the work is finished or stopping.

        Raises:
            Incomplete: the cluster was lost, or no worker can be started on it.
            RunnerError: Tune ended early.
        """
        self.start()
        import ray
        from ray.tune import TuneError

        trials = Trials(work)
        with quiet():
            try:
                self._fit(trials)
            except ray.exceptions.RayError as error:
                trials.error = trials.error or error
            except TuneError as error:
                trials.error = trials.error or RunnerError(f"Ray Tune failed: {error}")
        failure = trials.error
        if isinstance(failure, ray.exceptions.RayError):
            raise Incomplete(
                f"the Ray cluster was lost ({first_line(failure)}): finished models are kept, the "
                "same command resumes"
            ) from failure
        if failure is not None:
            raise failure
        if not work.finished and not work.stopping:
            raise RunnerError("Ray Tune ended before the study did: run the same command again")

    def _fit(self, trials: Trials) -> None:
        import ray
        from ray import tune

        from modmix.execution.tune_callback import StudyCallback, StudyStopper
        from modmix.execution.tune_scheduler import RungScheduler
        from modmix.execution.tune_search import PackSearcher
        from modmix.execution.tune_store import ActorStore, TrialStore
        from modmix.execution.tune_table import TrialTable
        from modmix.execution.tune_trial import trial_class

        nodes = Nodes(self._log)
        store = ActorStore(self._study)
        folder = tempfile.mkdtemp(prefix="modmix-tune-")
        tuner = tune.Tuner(
            trial_class(self._study, TrialStore(store.name), self._needs),
            tune_config=tune.TuneConfig(
                search_alg=PackSearcher(trials, self._cluster, nodes, store),
                scheduler=RungScheduler(trials, self._cluster, nodes, store),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=folder,
                verbose=int(os.environ.get("MODMIX_TUNE_VERBOSE") == "1"),
                progress_reporter=TrialTable(),
                callbacks=[StudyCallback(trials, self._cluster, nodes, store)],
                stop=StudyStopper(trials),
                failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1, checkpoint_frequency=0, checkpoint_at_end=False
                ),
            ),
        )
        try:
            tuner.fit()
        finally:
            with contextlib.suppress(ray.exceptions.RayError):
                store.close()
            shutil.rmtree(folder, ignore_errors=True)


def _load_ahead() -> None:
    """Load what is needed next while Ray's processes start: two seconds of imports."""
    import ray.tune

    with contextlib.suppress(ImportError):  # Tune imports it, and with it MLflow, to count its use
        import ray.air.integrations.mlflow  # noqa: F401
    from modmix.training import counting  # noqa: F401


def _trial_name(trial: Any) -> str:
    return (
        f"{trial.config['method'].rpartition(':')[2]}-{trial.config['pack'][:8]}-{trial.trial_id}"
    )
