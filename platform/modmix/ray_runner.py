"""Seats on a Ray cluster, one Ray Tune trial each. The only file with ray.

One trial is one seat: a worker process that trains pack after pack until the study has nothing more
for it (`modmix.seat`). Tune asks for seats through a small `Searcher`, places them by their
resources, wherever and whenever there is room, and tells us when one died. The obvious other way,
one trial a pack, costs a second or more of Tune's and Ray's time each, as much as a small pack
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
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modmix.bridge import DIED, Bridge
from modmix.errors import Incomplete, InputError, RunnerError
from modmix.mailbox import Mailbox
from modmix.runners import Work, cpu_count
from modmix.seat import serve

# Tune reads these when it is imported.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the study stops itself, and in order
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
# All seats may be on their way at once. (Its own choice is to start one after another.)
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "100000")
# It would start the seats of a node that was taken away by itself, under their old names.
os.environ.setdefault("RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A local cluster gets a token of its own; a cluster's nodes and drivers must be given theirs.
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# A seat without work gives its place on a shared cluster back after so long.
SEAT_IDLE_SECONDS = 10.0
# Of every turn of Tune's loop, while no seat comes or goes: Tune waits 0.1 s for its own events
# in each, and ours would wait with it.
TURN_SECONDS = 0.5
LOOPBACK = "127.0.0.1"

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class RayRunner:
    """Trains packs on a Ray cluster.

    Args:
        cpus: processors a pack occupies; also its number of threads.
        gpus: devices a pack occupies; a fraction shares one between packs.
        address: of a cluster; None starts one on this machine that ends with the study.
        workers: processors of the cluster started on this machine; None: all this process may use.
    """

    def __init__(
        self,
        *,
        cpus: float = 1,
        gpus: float = 0,
        address: str | None = None,
        workers: int | None = None,
    ) -> None:
        self._cpus, self._gpus = cpus, gpus
        self._address = address
        self._workers = workers or cpu_count()

    def start(self) -> None:
        if ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.WARNING)
        if self._address is None:
            self._check_machine()
        else:
            _check_address(self._address)
        try:
            if self._address is None:
                self._start_here()
            else:
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises several kinds, some of them bare RuntimeErrors
            where = self._address or "on this machine"
            raise InputError(
                f"no Ray cluster {where} could be used ({_first_line(error)}): check the address, "
                "that `ray start --head` ran there, and that RAY_AUTH_MODE and the token are the "
                "same on every node"
            ) from error
        self._check_resources()

    def _start_here(self) -> None:
        gpus = None if self._gpus else 0
        with _quiet(), _on_loopback():
            ray.init(
                num_cpus=self._workers,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                _node_ip_address=LOOPBACK,
                # Packs hand over small events; the default takes a third of the memory.
                object_store_memory=256 * 1024**2,
            )

    def _check_machine(self) -> None:
        if self._cpus > self._workers:
            raise InputError(
                f"resources: a pack asks for {self._cpus:g} CPUs, and this machine may use "
                f"{self._workers}: ask for less, or name a larger cluster by --address"
            )

    def _check_resources(self) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(
            node.get("CPU", 0) >= self._cpus and node.get("GPU", 0) >= self._gpus for node in nodes
        ):
            raise InputError(
                f"resources: a pack asks for {self._cpus:g} CPUs and {self._gpus:g} GPUs, and no "
                "node of the Ray cluster has them: ask for less, or join a larger node"
            )

    @property
    def slots(self) -> int:
        if not ray.is_initialized():
            return max(1, int(self._workers // self._cpus))
        slots = 0
        for node in ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                by_cpu = have.get("CPU", 0) // self._cpus
                by_gpu = have.get("GPU", 0) / self._gpus if self._gpus else by_cpu
                slots += int(min(by_cpu, by_gpu + 1e-6))
        return max(1, slots)

    def run(self, work: Work) -> None:
        mailbox = self._make_mailbox()
        bridge = Bridge(
            work,
            _Line(mailbox),
            # A cluster of our own has nobody who waits for the place.
            idle_seconds=float("inf") if self._address is None else SEAT_IDLE_SECONDS,
        )
        folder = tempfile.mkdtemp(prefix="modmix-tune-")
        threads = max(1, int(self._cpus))
        trainable = tune.with_resources(
            tune.with_parameters(_Seat, mailbox=mailbox, gpus=self._gpus, threads=threads),
            {"cpu": self._cpus, "gpu": self._gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(search_alg=_SeatSearcher(bridge, self), num_samples=-1),
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
            with _quiet():
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
                f"the Ray cluster was lost ({_first_line(bridge.error)}): what is finished is "
                "kept, the same command continues"
            ) from bridge.error
        if bridge.error is not None:
            raise bridge.error
        if not work.finished and not work.stopping:
            raise RunnerError("Ray Tune ended before the study did: type the same command again")

    def close(self) -> None:
        if ray.is_initialized():
            ray.shutdown()

    def _make_mailbox(self) -> Any:
        # On the driver's own node: events must survive the death of any other.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": 10_000}
        return ray.remote(Mailbox).options(**options).remote()


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
        _import_early()
        self._line, self._name = _Line(mailbox), config["seat"]
        self._gpus, self._threads = gpus, threads

    def step(self) -> dict[str, Any]:
        serve(self._line, self._name, gpus=self._gpus, threads=self._threads)
        return {"done": True}


def _import_early() -> None:
    """What every worker needs and takes seconds to import."""
    import modmix.trainer  # noqa: F401


class _SeatSearcher(Searcher):
    """Hands seats to Tune as configurations of trials."""

    def __init__(self, bridge: Bridge, runner: RayRunner) -> None:
        super().__init__(metric="done", mode="max")
        self._bridge, self._runner = bridge, runner

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._bridge.serve()  # Tune may ask here for minutes, when no seat is left
        if self._bridge.over:
            return str(Searcher.FINISHED)
        if not self._bridge.wants_seat(self._runner.slots):
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


def _check_address(address: str) -> None:
    """See within seconds whether anything answers; Ray itself would try for ten minutes."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise InputError(
            f"the address of a Ray cluster must be host:port, got {address!r}: the Ray Client's "
            "protocol cannot carry a study; type the command on a machine of the cluster"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(
            f"the address of a Ray cluster must be host:port or auto, got {address!r}: give what "
            "`ray start --head` printed"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check the address, "
            "and that `ray start --head` ran there"
        ) from error


@contextlib.contextmanager
def _on_loopback() -> Any:
    """Nothing of a cluster started here listens beyond this machine.

    Ray replaces a loopback address by the machine's own, because other nodes could not reach it;
    a cluster of one has no other nodes.
    """
    services = ray._private.services
    before = services.resolve_ip_for_localhost, services.get_node_ip_address
    services.resolve_ip_for_localhost = lambda host: host
    services.get_node_ip_address = lambda *_, **__: LOOPBACK
    try:
        yield
    finally:
        services.resolve_ip_for_localhost, services.get_node_ip_address = before


@contextlib.contextmanager
def _quiet() -> Any:
    """Ray's and Tune's chatter goes to their logs, not between the lines of our display."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.tune.tune")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
