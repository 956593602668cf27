"""Timing of commands, alternating competitors, medians and spreads."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

import psutil

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
MODMIX = str(Path(PYTHON).with_name("modmix"))
TIMEOUT_SECONDS = 1200.0

T = TypeVar("T")


class BenchmarkError(Exception):
    """A benchmark cannot give a number: a command failed, or the peers did other work."""


class Skipped(Exception):
    """A benchmark has nothing to run on here (no data, no GPU, no room); says why."""


@dataclass(frozen=True)
class Options:
    """How much is repeated. ``quick`` is for working on the benchmarks: few and small runs."""

    quick: bool
    rounds: int
    ray_seconds: float  # of each slice of the slow peers
    rows: int  # of the HIGGS file that `prepare` reads

    @staticmethod
    def from_environment() -> Options:
        quick = os.environ.get("BENCH_QUICK", "") not in ("", "0")
        return Options(
            quick=quick,
            rounds=int(os.environ.get("BENCH_ROUNDS") or (1 if quick else 3)),
            ray_seconds=float(os.environ.get("BENCH_RAY_SECONDS") or (20 if quick else 30)),
            rows=int(os.environ.get("BENCH_ROWS") or (200_000 if quick else 11_000_000)),
        )


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


# ---------------------------------------------------------------- commands


@dataclass(frozen=True)
class Run:
    """One command from start to exit.

    ``cpu`` is of the process and the children it waited for, in seconds; ``peak`` the largest sum
    of resident memory over its whole tree, in bytes (0: not watched).
    """

    wall: float
    cpu: float
    output: str
    started: float  # time.time()
    peak: int = 0


def environment(**settings: str | Path | None) -> dict[str, str]:
    """This environment with settings added; None removes one."""
    merged: dict[str, str | None] = dict(os.environ)
    merged.update({k: None if v is None else str(v) for k, v in settings.items()})
    return {name: value for name, value in merged.items() if value is not None}


def command(
    words: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    watch_memory: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> Run:
    """Run a command and time it.

    Raises:
        BenchmarkError: it failed or took too long; the end of its output is in the message.
    """
    with tempfile.TemporaryFile("w+") as log:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        begun = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        watcher = _Memory(process.pid) if watch_memory else None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            end_tree(process)
            raise
        wall = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = watcher.stop() if watcher is not None else 0
        end_tree(process)
        log.seek(0)
        output = log.read()
    if code != 0:
        why = f"took over {timeout:.0f} s" if code is None else f"ended with {code}"
        shown = " ".join(map(str, words))
        raise BenchmarkError(f"`{shown}` {why}:\n{output[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, output, started, peak)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a command's session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)
    process.wait(10)


class _Memory:
    """Looks at the resident memory of a process tree ten times a second."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.1):
            with suppress(psutil.Error):
                tree = [self._root, *self._root.children(recursive=True)]
                self._peak = max(self._peak, sum(_resident(process) for process in tree))

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self._peak


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"modmix-bench-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- repeated runs


@dataclass
class Turns:
    """What each competitor measured, a number per turn."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return median(self.values[name])

    def spread(self, name: str) -> tuple[float, float]:
        return min(self.values[name]), max(self.values[name])

    def ratio(self, ours: str, theirs: str) -> float:
        """Median over median: both were measured in turns."""
        return self.median(ours) / self.median(theirs)


def repeated(measure: Callable[[], T], times: int) -> list[T]:
    return [measure() for _ in range(times)]


def load() -> float:
    """How many processes wanted a processor during the last minute."""
    return os.getloadavg()[0]


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
