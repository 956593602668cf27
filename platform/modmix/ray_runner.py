"""Packs as Ray Tune trials, on this machine or on a cluster. The only file with ray.

One trial is one pack. Tune asks for packs through a small `Searcher`, places them by their
resources, keeps the worker processes warm between packs (``reuse_actors``) and tells us when one
died. Everything else is deliberately not left to it:

* events travel through a mailbox on the driver's node, not through ``tune.report``: a result costs
  Tune its own files and a turn of its loop, and a dead worker's last events must not be lost with
  it. The mailbox's answer tells a worker to stop, which Tune could only do by killing it;
* a dead worker or node ends its trial (``max_failures=0``); the study hands the same pack out
  again, which resumes from its checkpoint. So retries are counted in one place, the ledger;
* Tune's snapshots are not used for anything: the ledger is what a study continues from.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modmix.errors import Incomplete, InputError, RunnerError
from modmix.packing import Event, Pack
from modmix.runners import IDLE_SECONDS, Work, cpu_count, describe, is_of_machine, together, train

# Tune reads these when it is imported.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the study stops itself, and in order
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A local cluster gets a token of its own; a cluster's nodes and drivers must be given theirs.
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# How long a worker may take to reach its next evaluation after it was told to stop.
STOP_SECONDS = 20.0
# A machine that cannot train (no data, no driver) would otherwise take, and fail, pack after pack.
FAILED_PAUSE_SECONDS = 5.0
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
        # On the driver's own node: events must survive the death of any other.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        bridge = _Bridge(work, mailbox)
        folder = tempfile.mkdtemp(prefix="modmix-tune-")
        threads = max(1, int(self._cpus))
        trainable = tune.with_resources(
            tune.with_parameters(_train_pack, mailbox=mailbox, gpus=self._gpus, threads=threads),
            {"cpu": self._cpus, "gpu": self._gpus},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_PackSearcher(bridge), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="packs",
                storage_path=folder,
                verbose=0,
                callbacks=[_Drain(bridge)],
                stop=_StopAll(bridge),
                failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        )
        try:
            with _quiet():
                tuner.fit()
            bridge.drain()
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


class _Mailbox:
    """An actor on the driver's node: workers put events in, the driver takes them out."""

    def __init__(self) -> None:
        self._items: list[tuple[str, Sequence[Event] | _End]] = []
        self._stopping = False

    def put(self, pack: str, item: Sequence[Event] | _End) -> bool:
        """Keep what happened to a pack; return whether its worker should stop."""
        self._items.append((pack, item))
        return self._stopping

    def take(self) -> list[tuple[str, Sequence[Event] | _End]]:
        """Everything that has come since the last time."""
        items, self._items = self._items, []
        return items

    def stop(self) -> None:
        self._stopping = True


def _train_pack(config: Mapping[str, Any], *, mailbox: Any, gpus: float, threads: int) -> None:
    """What a worker does: train the pack, send every event to the driver.

    A failure of the code is sent as an event of its own, so that only the death of the process is
    a failed trial to Tune.
    """
    pack = Pack.from_json(config["pack"])
    failure, of_machine = "", True
    try:
        training = together(train(pack, gpus=gpus, threads=threads))
        for events in training:
            if ray.get(mailbox.put.remote(pack.id, events)):
                training.close()
                break
    except Exception as error:
        failure, of_machine = describe(error), is_of_machine(error)
        if of_machine:
            time.sleep(FAILED_PAUSE_SECONDS)
    ray.get(mailbox.put.remote(pack.id, _End(failure, of_machine)))
    tune.report({"ended": True})


class _End:
    """The worker has done with a pack."""

    def __init__(self, failure: str, of_machine: bool) -> None:
        self.failure = failure
        self.of_machine = of_machine


class _Bridge:
    """Between Tune's loop and the study: everything runs in the driver's main thread.

    An exception of the study (a full disk, say) must not be swallowed by Tune's loop: it is kept,
    the experiment is stopped, and the runner raises it.
    """

    def __init__(self, work: Work, mailbox: Any) -> None:
        self.work = work
        self.error: BaseException | None = None
        self._mailbox = mailbox
        self._stopped: float | None = None  # when the workers were told to stop
        self._trials: dict[str, str] = {}  # trial id -> pack id, of the packs that are out
        self._ticked = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its searcher, callbacks and stopper into snapshots that nobody reads: the
        # study stays out of them.
        return (object, ())

    @property
    def stopping(self) -> bool:
        return self.error is not None or self.work.stopping

    def next_pack(self, trial: str) -> Pack | None:
        with self._guard():
            pack = self.work.next_pack()
            if pack is not None:
                self._trials[trial] = pack.id
            return pack
        return None

    def drain(self) -> None:
        with self._guard():
            if self.stopping and self._stopped is None:
                self._stopped = time.monotonic()
                self._mailbox.stop.remote()
            for pack, item in ray.get(self._mailbox.take.remote()):
                self._take(pack, item)
            if time.monotonic() - self._ticked > IDLE_SECONDS:
                self._ticked = time.monotonic()
                self.work.tick()

    def _take(self, pack: str, item: Sequence[Event] | _End) -> None:
        if not isinstance(item, _End):
            self.work.record(item)
            return
        for trial, name in list(self._trials.items()):
            if name == pack:
                del self._trials[trial]
                self.work.ended(pack, item.failure, of_machine=item.of_machine)

    @property
    def overdue(self) -> bool:
        """Workers were told to stop and one is still at it: Tune may kill it."""
        if self._stopped is None:
            return False
        return not self._trials or time.monotonic() - self._stopped > STOP_SECONDS

    def trial_ended(self, trial: str) -> None:
        """A trial has ended for Tune; without the worker's own word, its process has died."""
        self.drain()
        with self._guard():
            if (pack := self._trials.pop(trial, None)) is not None and not self.stopping:
                self.work.ended(pack, "the worker process or its node died", of_machine=True)

    @contextlib.contextmanager
    def _guard(self) -> Any:
        try:
            yield
        except BaseException as error:
            if self.error is None:
                self.error = error


class _PackSearcher(Searcher):
    """Hands packs to Tune as configurations of trials."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__(metric="ended", mode="max")
        self._bridge = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        bridge = self._bridge
        if bridge.stopping or bridge.work.finished:
            return str(Searcher.FINISHED)
        pack = bridge.next_pack(trial_id)
        if pack is None:
            return str(Searcher.FINISHED) if bridge.work.finished else None
        return {"pack": pack.to_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._bridge.trial_ended(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing of ours is in Tune's snapshots: the ledger holds it."""

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError("a study continues from its ledger, never from Tune's snapshot")


class _Drain(tune.Callback):
    """Takes the workers' events at every turn of Tune's loop."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._bridge.drain()


class _StopAll(tune.Stopper):
    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._bridge.overdue


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
