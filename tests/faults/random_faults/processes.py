"""Processes of a study: found by their parents, or by an environment variable that they inherit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

import psutil

TAG = "MODMIX_TEST_SCENE"  # the study that a process belongs to
POLL = 0.05  # seconds


class LateError(Exception):
    """A study did not end within its time, or the program is to end."""


class Patience:
    """Waits, for a limited time in all, and not once the program is to end."""

    def __init__(self, seconds: float, over: threading.Event) -> None:
        self._seconds, self._end, self._over = seconds, time.monotonic() + seconds, over

    def sleep(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, true: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Wait until something is true; return whether it was within ``seconds``.

        Raises:
            LateError: the study's time is over.
        """
        end = time.monotonic() + seconds
        while not true():
            now = time.monotonic()
            if now > end:
                return False
            if now > self._end or self._over.is_set():
                raise LateError(f"the study was not finished after {self._seconds:.0f} s")
            time.sleep(min(POLL, max(0.0, end - now)))
        return True


def below(pid: int) -> list[psutil.Process]:
    """All descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def trainers(pids: Iterable[int]) -> list[psutil.Process]:
    """Ray workers below these processes that train a pack now."""
    found = [(p, command_line(p)) for pid in pids for p in below(pid)]
    return [p for p, line in found if line.startswith("ray::") and ".train" in line]


def mirrors(pid: int) -> list[psutil.Process]:
    """The process that a driver's mirror has started."""
    return [p for p in below(pid) if "modmix.tracking.follow" in command_line(p)]


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that its parent has not noticed the end of does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def tagged(tag: str) -> list[psutil.Process]:
    """Living processes that have inherited a study's tag."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(TAG) == tag and lives(process):
                found.append(process)
    return found


def kill(processes: Collection[psutil.Process], patience: float = 10.0) -> None:
    """Kill processes and wait until they have gone."""
    send(processes, signal.SIGKILL)
    end = time.monotonic() + patience
    while any(map(lives, processes)) and time.monotonic() < end:
        time.sleep(POLL)
