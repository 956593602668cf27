"""Decodes the items of a media task in several processes, in shards, so it can be resumed.

Each process runs `media_worker`, which builds the task anew from its name and options, reads
requests from its standard input and reports each item on its standard output. (Worker processes of
Python's own pools would import the user's main script again.) If a process dies, for
example by a fault in a decoder, only the item it was decoding is left out.

A shard is an .npz with the arrays of consecutive items, written atomically. Those of a killed
preparation are found and kept by the next one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from modmix.base import sources as own
from modmix.base.errors import DataError
from modmix.tasks.data import Array
from modmix.tasks.files import Progress

_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)
_SHARD_BYTES = 32 << 20
_MOST_ITEMS = 64  # per shard, so at most what each process loses if killed
REASONS = "_reasons"  # of a shard: JSON, row of the shard -> reason
# Signals of a fault in the decoder itself; any other exit is not attributed to an item.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One example of a media task.

    ``files`` are relative to the task's `root`; a folder stands for the files in it. ``start`` and
    ``end`` are in seconds (None: the end of the file). ``text`` belongs to the item itself.
    """

    files: tuple[str, ...]
    label: int
    split: str
    start: float = 0.0
    end: float | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of decoded items: those from ``first`` up to, not including, ``last``."""

    path: Path
    first: int
    last: int

    def is_complete(self) -> bool:
        """Whether it is there and can be opened."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return REASONS in arrays.files
        except _DAMAGE:
            return False

    def is_older(self, time: int) -> bool:
        """Whether it is there and was written before files were changed (ns), as by a repair."""
        try:
            return self.path.stat().st_mtime_ns <= time
        except OSError:
            return False

    def reasons(self) -> dict[int, str]:
        """Item -> reason, of the items that could not be read.

        Raises:
            DataError: damaged; the shard has been removed.
        """
        found = json.loads(self.read(REASONS).tobytes())
        return {self.first + int(row): reason for row, reason in found.items()}

    def read(self, name: str) -> Array:
        """The array of an input, of the items that could be read.

        Raises:
            DataError: damaged; the shard has been removed.
        """
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found: Array = arrays[name]
                return found
        except _DAMAGE as error:
            self.path.unlink(missing_ok=True)
            raise DataError(
                f"{self.path}: was damaged ({error}) and has been removed; run the command again"
            ) from error


def shards_of(folder: Path, items: int, bytes_per_item: int) -> list[Shard]:
    """The shards of all items, in order."""
    size = max(1, min(_MOST_ITEMS, _SHARD_BYTES // bytes_per_item))
    return [
        Shard(path=folder / f"{first:08}-{last:08}.npz", first=first, last=last)
        for first in range(0, items, size)
        for last in [min(first + size, items)]
    ]


def worker_count() -> int:
    """Decoding processes: MODMIX_DATA_WORKERS, by default the CPUs that this process may use.

    Raises:
        DataError: MODMIX_DATA_WORKERS is not a positive whole number.
    """
    given = os.environ.get("MODMIX_DATA_WORKERS", "")
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise DataError(f"MODMIX_DATA_WORKERS must be a whole number from 1, got {given!r}")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode(
    task: str,
    options: Mapping[str, Any],
    items: Sequence[Item],
    shards: Sequence[Shard],
    progress: Progress,
) -> None:
    """Write the shards that are not there yet; ``task`` and ``options`` are for `make_task`.

    Raises:
        DataError: the task is invalid in the process, or its `decode` failed.
        OSError: a shard could not be written.
    """
    todo = [shard for shard in shards if not shard.is_complete()]
    done = len(items) - sum(shard.last - shard.first for shard in todo)
    progress("decode", done, len(items))
    requests: SimpleQueue[Shard | None] = SimpleQueue()
    events: SimpleQueue[Any] = SimpleQueue()
    for shard in todo:
        requests.put(shard)
    workers = [
        _Worker(task, options, items, requests, events)
        for _ in range(min(worker_count(), len(todo)))
    ]
    running = len(workers)
    try:
        for worker in workers:
            requests.put(None)
            worker.start()
        while running:
            match events.get():
                case BaseException() as error:
                    raise error
                case None:
                    running -= 1
                case _:
                    progress("decode", done := done + 1, len(items))
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            if worker.ident is not None:
                worker.join()


class _Worker(threading.Thread):
    """Sends shards to one process; puts True per item, None at the end, or an exception."""

    def __init__(
        self,
        task: str,
        options: Mapping[str, Any],
        items: Sequence[Item],
        requests: SimpleQueue[Shard | None],
        events: SimpleQueue[Any],
    ) -> None:
        super().__init__(name="modmix-decode", daemon=True)
        sources = own.bundles([task])
        self._start_line = json.dumps({"task": task, "options": dict(options), "sources": sources})
        self._items, self._requests, self._events = items, requests, events
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self) -> None:
        try:
            while not self._stopped and (shard := self._requests.get()) is not None:
                self._write(shard)
            self._events.put(None)
        except BaseException as error:
            self._events.put(error)
        finally:
            self.stop()
            self._forget()

    def _forget(self) -> None:
        """Close the pipes of a process that has ended."""
        if (process := self._process) is not None:
            self._process = None
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()

    def stop(self) -> None:
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()
            process.wait()

    def _write(self, shard: Shard) -> None:
        """Have a shard written; if the process dies, retry without the item it was decoding."""
        crashed: dict[int, str] = {}
        reported: set[int] = set()
        while not self._stopped:
            process = self._running()
            items = [asdict(item) for item in self._items[shard.first : shard.last]]
            request = {"path": str(shard.path), "items": items, "crashed": crashed}
            current = None
            for answer in _answers(process, request):
                if "error" in answer:
                    raise _failure(answer)
                if "done" in answer:
                    return
                current = answer["item"]
                if current not in reported:
                    reported.add(current)
                    self._events.put(True)
            code = process.wait()
            self._forget()
            if self._stopped:
                return
            if current is None or current in crashed or -code not in _CRASHES:
                raise DataError(
                    f"a decoding process ended with code {code} (-9: killed, often out of "
                    "memory); run the command again, with MODMIX_DATA_WORKERS set to fewer "
                    "processes if it happens again"
                )
            crashed[current] = f"the decoder crashed ({signal.Signals(-code).name})"

    def _running(self) -> subprocess.Popen[str]:
        """The process, started if there is none."""
        if self._process is None:
            # One thread each: there is a process per core.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            environment["PYTHONPATH"] = os.pathsep.join(
                path or str(Path.cwd()) for path in sys.path
            )
            environment["PYTHONSAFEPATH"] = "1"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "modmix.tasks.media_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches only this process, which ends the other
            )
            _send(self._process, self._start_line)
        return self._process


def _send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died: its output ends
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _answers(process: subprocess.Popen[str], request: Any) -> Iterator[dict[str, Any]]:
    """Send a request and yield the answers until the process ends."""
    assert process.stdout is not None
    _send(process, json.dumps(request))
    for line in process.stdout:
        yield json.loads(line)


def _failure(answer: Mapping[str, Any]) -> Exception:
    if answer["errno"] is not None:
        return OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"])
    return DataError(answer["error"])
