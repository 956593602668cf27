"""The background process of `mirror.Mirror`: copies a running study from the ledger to MLflow.

    python -m modmix.tracking.follow

Messages are lines of JSON. When stdin closes, the driver has ended, and the process exits at once.

    stdin   the task (first line); then live metrics, outputs, "flush", and the study's final state
    stdout  why MLflow is not up to date, the number of runs left, "done"
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modmix.base.errors import InputError, LedgerError, TrackingError
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.tracking.content import LIVE_SECONDS
from modmix.tracking.writer import PARTIAL_SECONDS, Live, Writer

_log = logging.getLogger(__name__)

FIRST_PAUSE = 1.0  # seconds after a failure; doubled each time
LONGEST_REST = 30.0  # seconds between two reads of the ledger
NICENESS = 19  # below training: Ray's workers have 15


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to follow. Never logged: URLs may contain passwords."""

    ledger_url: str
    study: str
    uri: str
    home: str
    longest_pause: float = 30.0  # seconds between retries
    live_seconds: float = LIVE_SECONDS

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(kw_only=True)
class Pending:
    """Messages not processed yet, and the state of the study."""

    outputs: list[Path] = field(default_factory=list)
    live: dict[str, Live] = field(default_factory=dict)
    state: str = "running"
    deadline: float = float("inf")  # monotonic


class Follower:
    """Updates MLflow from the ledger until the study has ended.

    Args:
        task: what to follow.
        answer: called with ``problem``, ``left`` or ``done`` and its value.
    """

    def __init__(self, task: Task, answer: Callable[[str, Any], None] = lambda *_: None) -> None:
        self._task = task
        self._answer = answer
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._soon = threading.Event()  # ends the pause between two updates
        self._lock = threading.Lock()  # guards the next one
        self._pending = Pending()
        self._problem = ""
        self._reported_left = 0

    # ------------------------------------------------------------ messages, from any thread

    def receive(self, message: Mapping[str, Any]) -> None:
        """Process a message: ``live``, ``outputs``, ``flush``, ``end`` with ``seconds``, or {}."""
        now = time.monotonic()
        with self._lock:
            if (live := message.get("live")) is not None:
                self._pending.live = {
                    key: Live(since=now - age, epoch=epoch, metrics=metrics)
                    for key, (age, epoch, metrics) in live.items()
                }
            self._pending.outputs += map(Path, message.get("outputs", ()))
            if "end" in message:
                self._pending.state = message["end"]
                self._pending.deadline = now + message["seconds"]
                self._closing.set()
                self._soon.set()
        if message.get("flush"):
            self._soon.set()
        self._changed.set()

    # ------------------------------------------------------------ following

    def follow(self) -> bool:
        """Follow until the study ends; return whether MLflow is up to date."""
        task = self._task
        ledger: Ledger | None = None
        writer: Writer | None = None
        pause, done = 0.0, False
        while not done:
            closing = self._closing.is_set()
            settled = True
            try:
                ledger = ledger or Ledger(task.ledger_url)
                writer = writer or Writer(
                    ledger,
                    task.study,
                    task.uri,
                    Home(Path(task.home)),
                    live_seconds=task.live_seconds,
                    progress=self._report_left,
                )
                settled = self._update(writer)
                self._report("")
                pause, done = 0.0, closing
            except Exception as error:  # must not affect the study
                self._report_error(error)
                pause = min(task.longest_pause, max(FIRST_PAUSE, 2 * pause))
                if writer is not None:
                    writer.reset()
                if closing and time.monotonic() + FIRST_PAUSE > self._pending.deadline:
                    break
            if not done:
                self._rest(pause, writer.read_seconds if writer else 0.0, settled)
        if ledger is not None:
            ledger.close()
        return done

    def _update(self, writer: Writer) -> bool:
        self._changed.clear()
        if not self._closing.is_set():
            self._soon.clear()
        with self._lock:
            pending = self._pending
            outputs, pending.outputs = pending.outputs, []
            live = {k: v for k, v in pending.live.items() if not writer.has_ended(k)}
        try:
            return writer.update(pending.state, outputs, live)
        except BaseException:
            with self._lock:
                pending.outputs = [*outputs, *pending.outputs]
            raise

    def _report_error(self, error: Exception) -> None:
        if isinstance(error, (TrackingError, LedgerError, InputError)):
            self._report(str(error))
        else:
            _log.warning("the mirror failed", exc_info=error)
            self._report(f"logging to MLflow failed ({type(error).__name__}: {error})")

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._answer("problem", problem)

    def _report_left(self, left: int) -> None:
        if left or self._reported_left:
            self._reported_left = left
            self._answer("left", left)

    def _rest(self, pause: float, reading: float, settled: bool) -> None:
        """Wait for changes; only the end of training shortens the minimum wait."""
        if pause:
            if self._closing.wait(pause):
                time.sleep(FIRST_PAUSE)
            return
        # Reading a large study takes a while: spend at most a tenth of the time on it.
        self._soon.wait(min(LONGEST_REST, max(1.0, 10 * reading)))
        if not self._closing.is_set():
            self._changed.wait(None if settled else PARTIAL_SECONDS)


# ---------------------------------------------------------------- the process


def main() -> None:
    with suppress(OSError):
        os.nice(NICENESS)
    # Linux schedules by session before niceness. `Mirror` gives this process a session of its own;
    # in a shared one, every process would become slow, and stay so.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS))
    follower = Follower(Task(**json.loads(sys.stdin.readline())), _answer)
    threading.Thread(target=_listen, args=(follower,), daemon=True).start()
    done = follower.follow()
    _answer("done", done)
    os._exit(0)  # everything is written, and the driver waits


def _answer(what: str, value: Any) -> None:
    with suppress(OSError):  # the driver has gone
        print(json.dumps({what: value}), flush=True)


def _listen(follower: Follower) -> None:
    try:
        for line in sys.stdin:
            follower.receive(json.loads(line))
    finally:
        # The driver has gone, perhaps in the middle of a line. The next mirror completes the runs.
        os._exit(0)


if __name__ == "__main__":
    main()
