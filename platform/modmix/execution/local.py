"""What a runner is, and the one in this process.

A runner takes packs from a `Work` (a study in the driver), trains them somewhere, and hands every
event back. It decides nothing: which pack comes next, what a result means and whether a failed
pack is tried again is the study's business.
"""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from modmix.base import sources
from modmix.base.errors import DataError, InputError, ModmixError, RunnerError
from modmix.base.messages import Event, Finished, Pack, Progress, TaskRef, digest

if TYPE_CHECKING:
    from modmix.tasks.data import Data

# torch reads this with its first tensor: memory for large tensors comes in pages of 2 MB where the
# system has them. In pages of 4 kB the first steps of a pack would take twice as long.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

IDLE_SECONDS = 0.2

_DEVICE = re.compile(r"CUDA|cuDNN|cuBLAS|NCCL|HIP error|device-side|out of memory")


# Models that are to train no further, by replicate key, each with the reason.
Verdict = Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """What the driver has to say to a worker; it stands until another one takes its place.

    ``stop``: end the pack in order, keeping its checkpoint. ``drop``: the pack's models that end
    as pruned before the next part of an epoch.
    """

    stop: bool = False
    drop: Verdict = field(default_factory=dict)


class Work(Protocol):
    """What a runner asks of a study. All calls come from the driver's main thread."""

    @property
    def finished(self) -> bool:
        """No pack will come any more, and none is out."""
        ...

    @property
    def stopping(self) -> bool:
        """Someone asked to stop: end what is running, start nothing."""
        ...

    def next_pack(self) -> Pack | None:
        """A claimed pack, or None when there is nothing to start right now."""
        ...

    @property
    def waiting(self) -> int:
        """How many packs could be claimed right now; searches are asked first."""
        ...

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """By pack that is out: which of its models are to train no further.

        A verdict stands until its pack ends: a worker may ask late, or start again.
        """
        ...

    def record(self, events: Sequence[Event]) -> None:
        """What happened to a pack; finished replicates are in the ledger when this returns."""
        ...

    def ended(self, pack: str, failure: str = "", *, of_machine: bool = True) -> None:
        """A pack has ended: well, or by a failure of the machine or of the code."""
        ...

    def tick(self) -> None:
        """Time has passed: a chance to renew displays and to look at other drivers' work."""
        ...


class Runner(Protocol):
    """Trains packs. ``slots`` is how many can be in training at a time."""

    @property
    def slots(self) -> int: ...

    def start(self) -> None:
        """Make ready (a cluster to connect to, say); a second call does nothing.

        Raises:
            InputError: there is no such cluster; nothing was started.
        """
        ...

    def run(self, work: Work) -> None:
        """Train until the work is finished or stopping."""
        ...

    def close(self) -> None: ...


class LocalRunner:
    """Trains one pack after another in this process: for tests, debugging and a single GPU."""

    def __init__(self, *, gpus: float = 0) -> None:
        self._gpus = gpus

    @property
    def slots(self) -> int:
        return 1

    def start(self) -> None:
        _device(self._gpus)

    def close(self) -> None:
        pass

    def run(self, work: Work) -> None:
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

        events = together(train(pack, gpus=self._gpus, dropped=dropped))
        while True:
            try:
                batch = next(events, None)
            except Exception as error:
                work.ended(pack.id, describe(error), of_machine=is_of_machine(error))
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
    """Load a pack's data and train it here; what every runner does on the machine it chose.

    ``dropped`` is asked before every part of an epoch, and answers from memory.

    Raises:
        RunnerError: this machine's data is not the data the study was planned with.
        InputError: a user's own task that cannot be loaded here.
    """
    from modmix.training.trainer import train_pack

    sources.register(pack.sources)
    data = _data_of(pack.task)
    device = _device(gpus)
    # Of the memory as of the processors (or of the GPU): other packs train beside this one.
    share = min(1.0, gpus if gpus else (threads or cpu_count()) / cpu_count())
    return _traced(
        train_pack(pack, data, device=device, threads=threads, share=share, dropped=dropped)
    )


_LOADED: dict[str, Data] = {}  # by name, options and fingerprint: the latest few
_MOST_LOADED = 4


def _data_of(task: TaskRef) -> Data:
    """A task's data as the study was planned with; it stays mapped from pack to pack."""
    from modmix.tasks.base import load_task

    key = digest([task.name, dict(task.options), task.fingerprint])
    data = _LOADED.pop(key, None)
    if data is None:
        data = load_task(task.name, task.options)
    if data.fingerprint != task.fingerprint:
        raise RunnerError(
            f"task {task.name}: the data on this machine has fingerprint {data.fingerprint}, "
            f"the study was planned with {task.fingerprint}: put the same file on every node"
        )
    _LOADED[key] = data
    while len(_LOADED) > _MOST_LOADED:
        del _LOADED[next(iter(_LOADED))]
    return data


def _traced(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """With MODMIX_TRACE, note every evaluation in that file: who trained what, and when.

    One line of JSON each, appended by all processes; it answers what no result can: whether
    anything was trained that did not need to be.
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


def _device(gpus: float) -> str:
    if not gpus:
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "the study asks for a GPU and this machine shows none: check the driver, or set "
            "resources.gpus to 0"
        )
    return "cuda"


def together(events: Generator[Event, None, None]) -> Generator[list[Event], None, None]:
    """Join replicates that finish at the same moment, so that they are recorded as one.

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


def is_of_machine(error: BaseException) -> bool:
    """Whether a failure says something about the machine rather than about the configuration.

    A device's faults come as plain RuntimeErrors; values that do not fit together come as
    InputErrors and would fail anywhere.
    """
    if isinstance(error, InputError) and not isinstance(error, DataError):
        return False
    if isinstance(error, (ModmixError, OSError, MemoryError)):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"AcceleratorError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and _DEVICE.search(str(error)) is not None
    )


def describe(error: BaseException) -> str:
    """A failure as text: one sentence for our own, a traceback for the unexpected."""
    if isinstance(error, ModmixError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()


def cpu_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
