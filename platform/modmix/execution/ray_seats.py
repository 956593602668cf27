"""Seats on a Ray cluster, one Ray Tune trial each. Imported after `modmix.execution.ray_runner`.

One trial is one seat: a worker process that trains pack after pack until the study has nothing more
for it (`modmix.execution.seat`). Tune asks for seats through a small `Searcher`, places them by
their resources, wherever and whenever there is room, and tells us when one died. The obvious other
way, one trial a pack, costs a second or more of Tune's and Ray's time each, as much as a small pack
trains. Everything else is deliberately not left to Tune:

* packs and events travel through a mailbox on the driver's node, not through ``tune.report``: a
  result costs Tune its own files and a turn of its loop, and a dead worker's last events must not
  be lost with it. Through it a worker also hears that it is to stop, which Tune could only do by
  killing it;
* a dead worker or node ends its seat (``max_failures=0``); the study hands the pack out again,
  which resumes from its checkpoint, and Tune asks for a seat in its place. So retries are counted
  in one place, the ledger. Machines that join get seats the same way;
* Tune's snapshots are not used for anything: the ledger is what a study continues from.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from modmix.base.errors import Incomplete, RunnerError
from modmix.execution.bridge import DIED, Bridge
from modmix.execution.local import Work
from modmix.execution.mailbox import Mailbox
from modmix.execution.seat import serve

# Of every turn of Tune's loop, while no seat comes or goes: Tune waits 0.1 s for its own events
# in each, and ours would wait with it.
TURN_SECONDS = 0.5

# Names a function that every worker process of a node calls when it starts.
PREPARE = ray._private.ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR

# Tune gives its trials an environment of their own, for what we do not use; no worker process that
# is there already would do then.
class_cache.DEFAULT_ENV_VARS.clear()
class_cache.ENV_VARS_TO_PROPAGATE.clear()

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


def make_mailbox() -> Any:
    """Start the mailbox's process, on the driver's own node: events must survive all others."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Mailbox)
        .options(
            num_cpus=0,
            scheduling_strategy=here,
            max_concurrency=10_000,
            runtime_env={"env_vars": {PREPARE: ""}},  # it needs nothing of what workers prepare
        )
        .remote()
    )


def run_seats(
    work: Work,
    mailbox: Any,
    *,
    cpus: float,
    gpus: float,
    slots: Callable[[], int],
    idle_seconds: float,
) -> None:
    """Train until the work is finished or stopping.

    Args:
        work: the study.
        mailbox: from `make_mailbox`; it ends here.
        cpus: processors of a seat; also its number of threads.
        gpus: devices of a seat.
        slots: how many seats the cluster has room for by now.
        idle_seconds: how long a seat without work keeps its place.

    Raises:
        Incomplete: the cluster was lost, or no worker can be started on it.
        RunnerError: Tune ended early.
    """
    bridge = Bridge(work, _Line(mailbox), idle_seconds=idle_seconds)
    folder = tempfile.mkdtemp(prefix="modmix-tune-")
    trainable = tune.with_resources(
        tune.with_parameters(_Seat, mailbox=mailbox, gpus=gpus, threads=max(1, int(cpus))),
        {"cpu": cpus, "gpu": gpus},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=_SeatSearcher(bridge, slots), num_samples=-1),
        run_config=tune.RunConfig(
            name="seats",
            storage_path=folder,
            verbose=0,
            callbacks=[_Loop(bridge)],
            stop=_StopAll(bridge),
            failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        tuner.fit()
        bridge.serve()
    except ray.exceptions.RayError as error:
        bridge.error = bridge.error or error
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(mailbox)
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(bridge.error, ray.exceptions.RayError):
        raise Incomplete(
            f"the Ray cluster was lost ({first_line(bridge.error)}): what is finished is kept, "
            "the same command continues"
        ) from bridge.error
    if bridge.error is not None:
        raise bridge.error
    if not work.finished and not work.stopping:
        raise RunnerError("Ray Tune ended before the study did: type the same command again")


class _Line:
    """The mailbox, as an actor."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._mailbox, method).remote(*arguments)

    def ready(self, call: Any) -> bool:
        return bool(ray.wait([call], timeout=0)[0])

    def result(self, call: Any) -> Any:
        return ray.get(call)


class _Seat(tune.Trainable):
    """A worker, as Tune sees it: a trial whose only step is all the packs it trains."""

    def setup(self, config: Mapping[str, Any], *, mailbox: Any, gpus: float, threads: int) -> None:
        import_early()
        self._line, self._name = _Line(mailbox), config["seat"]
        self._gpus, self._threads = gpus, threads

    def step(self) -> dict[str, Any]:
        serve(self._line, self._name, gpus=self._gpus, threads=self._threads)
        return {"done": True}


def import_early() -> None:
    """What every worker needs and takes seconds to import; Tune comes with this file."""
    import modmix.training.trainer  # noqa: F401


class _SeatSearcher(Searcher):
    """Hands seats to Tune as configurations of trials."""

    def __init__(self, bridge: Bridge, slots: Callable[[], int]) -> None:
        super().__init__(metric="done", mode="max")
        self._bridge, self._slots = bridge, slots

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._bridge.serve()  # Tune may ask here for minutes, when no seat is left
        if self._bridge.over:
            return str(Searcher.FINISHED)
        if not self._bridge.wants_seat(self._slots()):
            return None
        self._bridge.seat_added(trial_id)
        return {"seat": trial_id}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if not error:  # else `_Loop` knows more
            self._bridge.seat_ended(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: the ledger holds it."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a study continues from its ledger, never from Tune's snapshot")


class _Loop(tune.Callback):
    """Our share of every turn of Tune's loop, and its news of seats that died."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._bridge.serve(TURN_SECONDS if self._bridge.is_settled else 0.0)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._bridge.seat_ended(trial.trial_id, _why(trial))


class _StopAll(tune.Stopper):
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._bridge.overdue


def _why(trial: Trial) -> str:
    """Why a seat died, as far as Ray knows."""
    try:
        error = trial.get_pickled_error()
    except Exception:  # it may be of a class that only the worker has
        error = None
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"{DIED}: its node was out of memory"
    if isinstance(error, ray.exceptions.RayTaskError):
        lines = str(error).strip().splitlines()
        return f"the worker failed: {lines[-1] if lines else type(error).__name__}"
    return DIED


def first_line(error: BaseException) -> str:
    """What an error says, short."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
