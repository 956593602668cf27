"""The Ray cluster a study runs on: one that is there, or one of this machine that ends with it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modmix.base.errors import InputError
from modmix.execution.local import cpu_count
from modmix.execution.trials import Unsaved

# A local cluster gets a token of its own; a cluster's nodes and drivers must be given theirs.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

_ANSWER_SECONDS = 20.0  # how long a cluster may take to say that it is there
_ENDING_SECONDS = 1.0  # within which its processes end after SIGTERM
_LOOK_SECONDS = 2.0  # how old a look at the cluster may be

_is_alone = False  # whether this process has started a cluster on the loopback address


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one pack occupies. ``memory`` in bytes."""

    cpus: float = 1
    gpus: float = 0
    memory: float = 0
    accelerator_type: str | None = None

    def __str__(self) -> str:
        words = [f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"]
        if self.gpus:
            words.append(f"{self.gpus:g} GPU{'' if self.gpus == 1 else 's'}")
        if self.memory:
            words.append(f"{self.memory / 1e9:g} GB of memory")
        if self.accelerator_type is not None:
            words.append(f"a device of type {self.accelerator_type}")
        return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray names it."""
        bundle = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        if self.accelerator_type is not None:
            bundle[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: amount for name, amount in bundle.items() if amount}

    def fitting(self, resources: dict[str, float]) -> int:
        """How many packs these resources of one node have room for.

        Fractions of a GPU are taken from one device each: at 0.3, three to a device.
        """
        counts = []
        for name, amount in self.bundle.items():
            have = resources.get(name, 0.0)
            if name == "GPU" and amount < 1:
                counts.append(int(have) * int(1 / amount + 1e-9))
            else:
                counts.append(int(have / amount + 1e-9))
        return min(counts)


class Cluster(Unsaved):
    """A connection to a cluster.

    Args:
        needs: of a pack, by method; "" is for all other methods, and the cluster is counted in it.
        address: of a cluster; None starts one on this machine that ends with `close`.
        workers: processors of the cluster started on this machine; None: all this process may use.
        study: the name of the job in the Ray dashboard.
    """

    def __init__(
        self,
        needs: Mapping[str, Needs],
        *,
        address: str | None = None,
        workers: int | None = None,
        study: str = "study",
    ) -> None:
        self._needs = needs
        self._address = address
        self._study = study
        self._workers = workers or cpu_count()
        self._is_ours = False  # the connection, and the cluster if there is no address
        self._closing = threading.Lock()
        self._nodes: tuple[float, dict[str, dict[str, Any]]] = (-_LOOK_SECONDS, {})

    @property
    def is_local(self) -> bool:
        """Whether the cluster was started here and is used by nobody else."""
        return self._is_ours and self._address is None

    def check(self) -> None:
        """Check the address, and set what Ray reads when it is imported.

        Raises:
            InputError: no cluster can be there.
        """
        global _is_alone
        if self._address is None:
            _is_alone = True
            # A cluster of one listens on the loopback address only.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            return
        _check_address(self._address)
        if _is_alone:
            raise InputError(
                "this program has already started its own Ray cluster and cannot join the one "
                f"at {self._address}: use a new process"
            )

    def connect(self) -> None:
        """Start or join the cluster, unless this program is connected to one already.

        Raises:
            InputError: there is none.
        """
        import ray

        if ray.is_initialized():  # a program that runs on Ray itself
            return
        try:
            self._init()
        except InputError:
            raise
        except Exception as error:  # Ray raises several kinds, some of them bare RuntimeErrors
            why = first_line(error)
            raise InputError(
                f"Ray could not be started on this machine ({why}): see "
                "/tmp/ray/session_latest/logs, or train in this process with --local"
                if self._address is None
                else f"the Ray cluster at {self._address} could not be used ({why}): check that "
                "RAY_AUTH_MODE and the token are the same on every node"
            ) from error

    def _init(self) -> None:
        import ray
        from ray.job_config import JobConfig

        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self._address is not None:
            _await_answer(self._address)
            how["address"] = self._address
            how["job_config"] = JobConfig(metadata={"job_name": self._study})
        else:
            _provide_token()
            how |= {
                "address": "local",  # not a cluster that happens to run on this machine
                "num_cpus": self._workers,
                "num_gpus": None if any(one.gpus for one in self._needs.values()) else 0,
                "include_dashboard": False,
                # Packs hand over small events; the default takes a third of the memory.
                "object_store_memory": 256 * 1024**2,
            }
        self._is_ours = True  # from now on it is to be closed
        with quiet(), _interrupted_after():
            ray.init(**how)

    def is_ending(self) -> bool:
        """Whether a cluster started here ends within a second, as after SIGTERM to all processes.

        Ray's own calls would wait for it for a minute.
        """
        if not self.is_local:
            return False
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        end = time.monotonic() + _ENDING_SECONDS
        while time.monotonic() < end:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                return True
            time.sleep(0.05)
        return False

    def close(self) -> None:
        """Disconnect; a cluster started here ends. In any thread."""
        with self._closing:
            if self._is_ours:
                import ray

                with quiet():
                    ray.shutdown()
            self._is_ours = False

    # ------------------------------------------------------------ what there is

    def nodes(self, method: str = "") -> dict[str, dict[str, Any]]:
        """Nodes that are alive and large enough for a pack of this method, by id."""
        needs = self._needs.get(method, self._needs[""])
        return {
            id_: node for id_, node in self._alive().items() if needs.fitting(node["Resources"])
        }

    def _alive(self) -> dict[str, dict[str, Any]]:
        import ray

        now = time.monotonic()
        if now - self._nodes[0] > _LOOK_SECONDS:
            self._nodes = (now, {node["NodeID"]: node for node in ray.nodes() if node["Alive"]})
        return self._nodes[1]

    def has_node_for(self, needs: Needs) -> bool:
        """Whether a node that is alive is large enough, free or not."""
        import ray

        return any(needs.fitting(node["Resources"]) for node in ray.nodes() if node["Alive"])

    def is_alive(self, node: str) -> bool:
        """Whether a node is alive now."""
        import ray

        return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())

    def node_name(self, node: str) -> str:
        """A node's address, for people."""
        found = self._alive().get(node)
        return node[:8] if found is None else f"{found['NodeManagerAddress']} ({node[:8]})"

    def capacity(self) -> int:
        """How many packs all nodes together have room for, free or not."""
        return sum(self._needs[""].fitting(node["Resources"]) for node in self.nodes().values())

    def free(self) -> int:
        """How many packs there is room for now, beside everything that runs on the cluster."""
        import ray

        available = ray.available_resources()
        amounts = self._needs[""].bundle.items()
        room = min(int(available.get(name, 0.0) / amount + 1e-9) for name, amount in amounts)
        return min(self.capacity(), room)


def first_line(error: BaseException) -> str:
    """What an error says, short."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def _check_address(address: str) -> None:
    """See within seconds whether anything answers; Ray itself would try for ten minutes.

    With ``auto``, Ray uses RAY_ADDRESS or else a cluster on this machine. Ray has no public API for
    the latter's address, so only `_await_answer` can check that it is running.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
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


def _await_answer(address: str) -> None:
    """See within a bounded time whether a cluster is there and takes the token. What else may be
    wrong, `ray.init` says.

    In a process of its own, because Ray tries for minutes, and nothing can stop it.

    Raises:
        InputError: nothing answers, or the cluster refuses the token.
    """
    where = "the address that auto resolves to on this machine" if address == "auto" else address
    command = [str(Path(sys.executable).with_name("ray")), "status", "--address", address]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:  # no such command beside this Python: ray.init says what is wrong
        return
    timer = threading.Timer(_ANSWER_SECONDS, process.kill)
    timer.start()
    refuses = silent = False
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                silent = silent or b"Timed out" in line
                if b"InvalidAuthToken" in line:  # repeated for as long as Ray tries
                    refuses = True
                    process.kill()
        except BaseException:  # interrupted
            process.kill()
            raise
        finally:
            timer.cancel()
    if refuses:
        raise InputError(
            f"the Ray cluster at {where} refuses the token: set RAY_AUTH_MODE and RAY_AUTH_TOKEN "
            "to the values with which its nodes were started"
        )
    if silent or process.returncode == -signal.SIGKILL:
        raise InputError(
            f"no Ray cluster answers at {where}: check that it is still running (`ray status` "
            "there), start it with `ray start --head`, or give another address"
        )


@contextlib.contextmanager
def _interrupted_after() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until `ray.init` has returned; the second one acts at once.

    In the middle they may leave a connection that nothing can close, with which the program ends in
    a segmentation fault. Ray also sets a handler of SIGTERM of its own, which exits with code 15:
    the program keeps its handlers, and a SIGTERM in the meantime is treated as Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):  # neither ignored nor left to the system
            signal.signal(number, note)
    try:
        yield
    except BaseException as error:  # also Ray's own, when the signal ended its processes
        if received or (isinstance(error, SystemExit) and error.code == signal.SIGTERM):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray's and Tune's messages go to their logs, not between the lines of our display."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.tune.tune")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
