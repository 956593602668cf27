"""The runner interface, and the runner in this process.

A runner takes packs from a `Work` (the running study), trains them somewhere and returns events. It
makes no decisions: the order of packs, the meaning of results and retries are up to the study.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from modmix.base import sources
from modmix.base.errors import DataError, InputError, ModmixError, RunnerError
from modmix.base.messages import Event, Finished, Pack, Progress, TaskRef, digest

if TYPE_CHECKING:
    from modmix.tasks.data import Data

# Read by torch at its first allocation: 2 MB pages for large tensors. With 4 kB pages the first
# steps of a pack take twice as long.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

IDLE_SECONDS = 0.2

_DEVICE_ERROR = re.compile(r"CUDA|cuDNN|cuBLAS|NCCL|HIP error|device-side|out of memory")


# Models that must stop, by replicate key, each with the reason.
Verdict = Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """The driver's latest instruction to a worker.

    ``stop``: end the pack gracefully, keeping its checkpoint. ``drop``: models that end as pruned
    before the next part of an epoch.
    """

    stop: bool = False
    drop: Verdict = field(default_factory=dict)


class Work(Protocol):
    """The study, as runners see it. All calls come from the driver's main thread."""

    @property
    def finished(self) -> bool:
        """Whether no pack is running and none will follow."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether to end running packs and start no others."""
        ...

    def next_pack(self) -> Pack | None:
        """The next pack, claimed for this driver, or None if there is none right now."""
        ...

    @property
    def queued(self) -> int:
        """How many packs could be claimed right now, including those searches would propose."""
        ...

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """By running pack: which of its models must stop.

        A verdict is kept until its pack ends, in case a worker asks late or restarts.
        """
        ...

    def record(self, events: Sequence[Event]) -> None:
        """Process events of a pack; finished replicates are in the ledger afterwards."""
        ...

    def ended(
        self, pack: str, failure: str = "", *, of_machine: bool = True, counted: bool = True
    ) -> None:
        """A pack has ended, normally or by a failure of the machine or of the code.

        ``counted``: whether a failure of the machine counts against the pack.
        """
        ...

    def resize(self, slots: int) -> None:
        """From now on so many packs can run at a time."""
        ...

    def tick(self) -> None:
        """Called regularly: updates displays, looks for results of other drivers."""
        ...


class Runner(Protocol):
    """Trains packs, up to ``slots`` at a time."""

    @property
    def slots(self) -> int: ...

    def start(self) -> None:
        """Get ready, for example connect to a cluster; can be repeated.

        Raises:
            InputError: there is no such cluster; nothing was started.
        """
        ...

    def run(self, work: Work) -> None:
        """Train until the work is finished or stopping."""
        ...

    def is_lost(self) -> bool:
        """Whether the training processes are ending, as after SIGTERM to all; takes a second."""
        ...

    def close(self) -> None: ...


class LocalRunner:
    """Trains packs one by one in this process: for tests, debugging and a single GPU.

    Args:
        gpus: of a pack, by method; "" is for all other methods.
    """

    def __init__(self, *, gpus: Mapping[str, float] | None = None) -> None:
        self._gpus = {"": 0.0, **(gpus or {})}

    @property
    def slots(self) -> int:
        return 1

    def start(self) -> None:
        _device(max(self._gpus.values()))

    def close(self) -> None:
        pass

    def is_lost(self) -> bool:
        return False

    def run(self, work: Work) -> None:
        work.resize(self.slots)
        while not work.finished and not work.stopping:
            pack = work.next_pack()
            if pack is None:
                time.sleep(IDLE_SECONDS)
                work.tick()
                continue
            self._train(pack, work)

    def _train(self, pack: Pack, work: Work) -> None:
        def dropped() -> Verdict:
            return work.verdicts.get(pack.id, {})

        def started() -> Generator[Event, None, None]:
            gpus = self._gpus.get(pack.method, self._gpus[""])
            yield from train(pack, gpus=gpus, dropped=dropped)

        events = batch_finished(started())
        while True:
            try:
                batch = next(events, None)
            except Exception as error:
                work.ended(pack.id, describe(error), of_machine=is_machine_failure(error))
                return
            if batch is None:
                break
            work.record(batch)
            if work.stopping:
                events.close()
                break
        work.ended(pack.id)


def train(
    pack: Pack,
    *,
    gpus: float = 0,
    threads: int | None = None,
    dropped: Callable[[], Verdict] = dict,
) -> Generator[Event, None, None]:
    """Load a pack's data and train it in this process; used by all runners.

    Args:
        dropped: returns the current verdicts; called before every part of an epoch.

    Raises:
        RunnerError: the data on this machine differs from the study's.
        InputError: a user's own task cannot be loaded here.
    """
    from modmix.training.trainer import train_pack

    sources.register(pack.sources)
    data = _data_of(pack.task)
    device = _device(gpus)
    # Share of the memory: like that of the CPUs or the GPU, since other packs may run beside.
    share = min(1.0, gpus if gpus else (threads or cpu_count()) / cpu_count())
    return _traced(
        train_pack(pack, data, device=device, threads=threads, share=share, dropped=dropped)
    )


_LOADED: dict[str, Data] = {}  # most recent, by name, options and fingerprint
_MAX_LOADED = 4


def _data_of(task: TaskRef) -> Data:
    """A task's data, checked against the study's fingerprint; stays mapped between packs."""
    from modmix.tasks.base import load_task

    key = digest([task.name, dict(task.options), task.fingerprint])
    data = _LOADED.pop(key, None)
    if data is None:
        data = load_task(task.name, task.options)
    if data.fingerprint != task.fingerprint:
        raise RunnerError(
            f"task {task.name}: the data on this machine has fingerprint {data.fingerprint}, "
            f"the study expects {task.fingerprint}: put the same file on every node"
        )
    _LOADED[key] = data
    while len(_LOADED) > _MAX_LOADED:
        del _LOADED[next(iter(_LOADED))]
    return data


def _traced(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """With MODMIX_TRACE, append a line of JSON for every evaluation to that file.

    Shows which process trained which replicate when, and so whether anything was trained twice.
    """
    path = os.environ.get("MODMIX_TRACE")
    with closing(events):
        for event in events:
            if path and isinstance(event, Progress):
                line = {
                    "time": time.time(),
                    "process": os.getpid(),
                    "epoch": event.epoch,
                    "replicates": sorted(event.metrics),
                }
                with open(path, "a") as file:
                    file.write(json.dumps(line) + "\n")
            yield event


def check_checkpoint_folder(pack: Pack) -> None:
    """See that this machine can write the pack's checkpoint.

    Raises:
        OSError: it cannot.
    """
    if pack.checkpoint is not None:
        folder = Path(pack.checkpoint).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def _device(gpus: float) -> str:
    if not gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "the study needs a GPU and torch finds none: check the NVIDIA driver and that torch is "
            "built for it, or set resources.gpus to 0"
        )
    torch.ones(1, device="cuda").item()  # raises now if the device is broken
    return "cuda"


def batch_finished(events: Generator[Event, None, None]) -> Generator[list[Event], None, None]:
    """Batch replicates that finish together, to record them in one transaction.

    Closing this closes ``events``, which lets a pack write its checkpoint.
    """
    finished: list[Event] = []
    with closing(events):
        for event in events:
            if isinstance(event, Finished):
                finished.append(event)
                if len(finished) >= 256:
                    yield finished
                    finished = []
                continue
            if finished:
                yield finished
                finished = []
            yield [event]
    if finished:
        yield finished


def is_machine_failure(error: BaseException) -> bool:
    """Whether the machine caused a failure, rather than the configuration.

    Device errors are plain RuntimeErrors; invalid values are InputErrors and fail anywhere.
    """
    if isinstance(error, InputError) and not isinstance(error, DataError):
        return False
    if isinstance(error, (ModmixError, OSError, MemoryError)):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"AcceleratorError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and _DEVICE_ERROR.search(str(error)) is not None
    )


def describe(error: BaseException) -> str:
    """A failure as text: the message of a `ModmixError`, otherwise the traceback."""
    if isinstance(error, ModmixError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()


def cpu_count() -> int:
    """The number of CPUs available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
