"""A runner on a Ray cluster: one that is there, or one of this machine that ends with the study.

How packs are trained on it says `modmix.execution.ray_seats`. Ray is imported when it is started,
which takes seconds: a study may do that in a thread while it still reads its data.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from modmix.base.errors import InputError
from modmix.execution.local import Work, cpu_count

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

LOOPBACK = "127.0.0.1"
# A seat without work gives its place on a shared cluster back after so long.
SEAT_IDLE_SECONDS = 10.0
_ANSWER_SECONDS = 20.0  # how long a cluster may take to say that it is there
_SLOTS_SECONDS = 2.0  # how old a look at the cluster's nodes may be


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
        self._mailbox: Any = None
        self._is_ours = False  # the connection, and the cluster if there is no address
        self._slots: tuple[float, int] | None = None  # when last looked at

    def start(self) -> None:
        """Start or join the cluster; workers of one started here prepare themselves at once."""
        if self._mailbox is not None:
            return
        if self._address is None:
            self._check_machine()
        else:
            _check_address(self._address)
        import ray

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        if not ray.is_initialized():  # else: somebody's program that runs on Ray itself
            self._connect()
            self._is_ours = True
        self._check_resources()
        with _quiet():
            from modmix.execution import ray_seats

            self._mailbox = ray_seats.make_mailbox()

    def _connect(self) -> None:
        import ray

        try:
            if self._address is None:
                self._start_here()
            else:
                _await_answer(self._address)
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.CRITICAL)
        except InputError:
            raise
        except Exception as error:  # Ray raises several kinds, some of them bare RuntimeErrors
            where = self._address or "on this machine"
            raise InputError(
                f"no Ray cluster {where} could be used ({_first_line(error)}): check the address, "
                "that `ray start --head` ran there, and that RAY_AUTH_MODE and the token are the "
                "same on every node"
            ) from error

    def _start_here(self) -> None:
        import ray

        gpus = None if self._gpus else 0
        _provide_token()
        with _quiet(), _alone():
            ray.init(
                num_cpus=self._workers,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
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
        if self._count_slots() == 0:
            raise InputError(
                f"resources: a pack asks for {self._cpus:g} CPUs and {self._gpus:g} GPUs, and no "
                "node of the Ray cluster has them: ask for less, or join a larger node"
            )

    @property
    def slots(self) -> int:
        """As many as the cluster has room for now; machines come and go."""
        if self._mailbox is None and not self._is_ours:
            return max(1, int(self._workers // self._cpus))
        now = time.monotonic()
        if self._slots is None or now - self._slots[0] > _SLOTS_SECONDS:
            self._slots = (now, self._count_slots())
        return max(1, self._slots[1])

    def _count_slots(self) -> int:
        import ray

        slots = 0
        for node in ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                by_cpu = have.get("CPU", 0) // self._cpus
                by_gpu = have.get("GPU", 0) / self._gpus if self._gpus else by_cpu
                slots += int(min(by_cpu, by_gpu + 1e-6))
        return slots

    def run(self, work: Work) -> None:
        from modmix.execution.ray_seats import run_seats

        self.start()
        mailbox, self._mailbox = self._mailbox, None
        with _quiet():
            run_seats(
                work,
                mailbox,
                cpus=self._cpus,
                gpus=self._gpus,
                slots=lambda: self.slots,
                # A cluster of our own has nobody who waits for the place.
                idle_seconds=float("inf") if self._address is None else SEAT_IDLE_SECONDS,
            )

    def close(self) -> None:
        if self._is_ours:
            import ray

            with _quiet():
                ray.shutdown()
        self._is_ours, self._mailbox, self._slots = False, None, None


def _provide_token() -> None:
    """Give a cluster of this machine a token where Ray has no place to keep one.

    Ray writes ``~/.ray/auth_token``; in a container the user may have no home directory, and
    without HOME its processes end at once.
    """
    if not os.environ.get("HOME"):
        try:
            os.environ["HOME"] = str(Path.home())
        except RuntimeError:  # no entry for this user
            os.environ["HOME"] = "/"  # as container engines set it
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if os.environ["RAY_AUTH_MODE"] != "token" or any(os.environ.get(name) for name in names):
        return
    file = Path(os.environ["HOME"]).absolute() / ".ray" / "auth_token"
    there = next(path for path in (file, *file.parents) if os.path.lexists(path))
    if not os.access(there, os.R_OK if there == file else os.W_OK | os.X_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


# In a process of its own: Ray tries for minutes, and nothing can stop it.
_KNOCK = """
import socket, sys, ray
address = ray._private.services.canonicalize_bootstrap_address(sys.argv[1])
if address is not None:
    print(address, flush=True)
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        sys.exit(9)
    ray._raylet.GcsClient(address=address)
"""


def _await_answer(address: str) -> None:
    """See within a bounded time whether a cluster is there. Why it refuses, `ray.init` says.

    ``auto`` names the cluster that was last started on this machine, which may be long gone.
    """
    command = [sys.executable, "-c", _KNOCK, address]
    try:
        told = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS, check=False)
        if told.returncode != 9:
            return
        said = told.stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
    found = said.decode().strip()
    where = f"{address} ({found})" if found not in ("", address) else address
    raise InputError(
        f"no Ray cluster answers at {where}: check that it still runs (`ray status` there), start "
        "it by `ray start --head`, or name another address"
    )


@contextlib.contextmanager
def _alone() -> Any:
    """A cluster of one: nothing of it listens beyond this machine, and it has what we use.

    Ray replaces a loopback address by the machine's own, because other nodes could not reach it;
    a cluster of one has no other nodes. Nor is there anyone to read its dashboard, to follow its
    workers' output or to add machines: three processes less, and no second of waiting for them.
    """
    import ray

    services, node = ray._private.services, ray._private.node.Node
    get_node = services.get_node
    instead = [
        (services, "resolve_ip_for_localhost", lambda host: host),
        (services, "get_node_ip_address", lambda *_, **__: LOOPBACK),
        (node, "start_api_server", lambda *_, **__: None),
        (node, "start_monitor", lambda *_, **__: None),
        (node, "start_log_monitor", lambda *_, **__: None),
        (ray._private.utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted")),
        (services, "get_node", lambda *node: get_node(*_await_node(*node))),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in instead]
    for owner, name, function in instead:
        setattr(owner, name, function)
    # Ray starts as many idle workers as there are processors; they need not be idle.
    prepare = ray._private.ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    os.environ[prepare] = "modmix.execution.ray_seats.import_early"
    try:
        yield
    finally:
        del os.environ[prepare]
        for owner, name, function in before:
            setattr(owner, name, function)


def _await_node(address: str, node: str) -> tuple[str, str]:
    """Return both once the node is up. Ray itself looks once a second."""
    import ray

    state = ray._private.state.GlobalState()
    state._initialize_global_state(ray._private.services._get_gcs_client_options(address))
    end = time.monotonic() + 30
    while time.monotonic() < end and all(node != n["NodeID"] for n in state.node_table()):
        time.sleep(0.02)
    return address, node


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
