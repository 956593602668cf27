"""Looks at the stacks of a Python process a hundred times a second, from inside.

Python imports this file in every process that has its folder in PYTHONPATH, so Ray's workers are
seen as well. With MODMIX_BENCH_SAMPLES a thread adds up, per stack, the time between two looks, and
writes them to PROCESS.json in that folder every second (workers are killed, not ended).
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from types import FrameType

_INTERVAL = 0.01  # seconds
_DEPTH = 80  # frames, from the innermost


def _stack(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < _DEPTH:
        names.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
        frame = frame.f_back
    return "|".join(reversed(names))


class _Sampler:
    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, f"{os.getpid()}.json")  # noqa: PTH118 - imports little
        self._process = os.getpid()
        self._begun = time.time()
        self._seconds: dict[str, dict[str, float]] = {}  # thread -> stack -> seconds
        self._writing = threading.Lock()  # at the end, two threads may write at once

    def start(self) -> None:
        threading.Thread(target=self._run, name="sampler", daemon=True).start()
        atexit.register(self._write)

    def _run(self) -> None:
        last = written = time.perf_counter()
        while True:
            time.sleep(_INTERVAL)
            if os.getpid() != self._process:
                return
            now = time.perf_counter()
            self._look(now - last)
            last = now
            if now - written > 1.0:
                self._write()
                written = time.perf_counter()

    def _look(self, passed: float) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        mine = threading.get_ident()
        for ident, frame in sys._current_frames().items():
            if ident != mine:
                stacks = self._seconds.setdefault(names.get(ident, "native"), {})
                stack = _stack(frame)
                stacks[stack] = stacks.get(stack, 0.0) + passed

    def _write(self) -> None:
        if os.getpid() != self._process:
            return
        told = {
            "command": sys.orig_argv,
            "begun": self._begun,
            "ended": time.time(),
            "threads": self._seconds,
        }
        temporary = f"{self._path}.tmp"
        with self._writing:
            with open(temporary, "w") as file:
                file.write(json.dumps(told))  # several times as fast as `dump`
            os.replace(temporary, self._path)  # noqa: PTH105 - imports little


if _folder := os.environ.get("MODMIX_BENCH_SAMPLES"):
    _Sampler(_folder).start()
