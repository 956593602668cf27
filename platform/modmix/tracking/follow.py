"""The background process of `mirror.Mirror`: copies a running study from the ledger to MLflow.

    python -m modmix.tracking.follow

Messages are lines of JSON. When stdin closes, the driver has ended, and the process exits at once.
It also exits when another driver has taken over the study.

    stdin   the task (first line); then the token of the driver's lease, with which the study
            begins; then its final state
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
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from modmix.base.errors import InputError, LeaseLostError, LedgerError, TrackingError
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Lease
from modmix.tracking.store import RefusedError, Store
from modmix.tracking.writer import OvertakenError, Writer

_log = logging.getLogger(__name__)

FIRST_PAUSE = 1.0  # seconds after a failure; doubled each time
SHORTEST_REST, LONGEST_REST = 1.0, 30.0  # seconds between two reads of the ledger
NICENESS = 19  # below training: Ray's workers have 15


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to follow. Never logged: URLs may contain passwords."""

    ledger_url: str
    study: str
    uri: str
    home: str
    longest_pause: float = 30.0  # seconds between retries
    niceness: int = NICENESS

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Follower:
    """Updates MLflow from the ledger until the study has ended.

    Args:
        task: what to follow.
        answer: called with ``problem``, ``left`` or ``done`` and its value.
    """

    def __init__(self, task: Task, answer: Callable[[str, Any], None] = lambda *_: None) -> None:
        self._task, self._answer = task, answer
        self._begun = threading.Event()
        self._token = ""  # of the driver's lease; "": without one
        self._closing = threading.Event()
        self._state = "running"
        self._deadline = float("inf")  # monotonic
        self._problem, self._left = "", 0  # as last reported

    def receive(self, message: Mapping[str, Any]) -> None:
        """Process a message: the lease's token, or the final state and the seconds left."""
        if "token" in message:
            self._token = message["token"]
            self._begun.set()
            return
        self._state = message["end"]
        self._deadline = time.monotonic() + message["seconds"]
        self._closing.set()

    def prepare(self) -> None:
        """Load MLflow, make its database if it is one, and wait until the study begins."""
        with suppress(Exception):  # the first update will hit the same error and report it
            Store(self._task.uri)
        self._begun.wait()

    def follow(self) -> bool:
        """Follow until the study ends; return whether MLflow is up to date."""
        task = self._task
        writer: Writer | None = None
        pause, refused = 0.0, 0
        while True:
            closing = self._closing.is_set()
            try:
                writer = writer or self._make_writer()
                writer.update(self._state if closing else "running")
                self._report("")
                pause = 0.0
                if closing:
                    return True
            except Exception as error:  # must not affect the study
                self._report(self._explained(error))
                pause = min(task.longest_pause, max(FIRST_PAUSE, 2 * pause))
                if writer is not None:
                    writer.reset()
                # Once more, since a run that somebody deleted is found or made again.
                refused = refused + 1 if closing and isinstance(error, RefusedError) else 0
                late = closing and time.monotonic() + FIRST_PAUSE > self._deadline
                if refused > 1 or late or isinstance(error, (OvertakenError, LeaseLostError)):
                    return False
            self._rest(pause, writer.read_seconds if writer else 0.0)

    def _make_writer(self) -> Writer:
        task = self._task
        return Writer(
            Ledger(task.ledger_url),
            task.study,
            task.uri,
            Home(Path(task.home)),
            lease=Lease(study=task.study, token=self._token) if self._token else None,
            progress=self._report_left,
        )

    @staticmethod
    def _explained(error: Exception) -> str:
        if isinstance(error, (TrackingError, LedgerError, InputError)):
            return str(error)
        _log.warning("the mirror failed", exc_info=error)
        return f"logging to MLflow failed ({type(error).__name__}: {error})"

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._answer("problem", problem)

    def _report_left(self, left: int) -> None:
        if left != self._left:
            self._left = left
            self._answer("left", left)

    def _rest(self, pause: float, reading: float) -> None:
        """Wait before the next update; the end of the study shortens the wait."""
        if pause:
            if self._closing.wait(pause):
                time.sleep(FIRST_PAUSE)
            return
        # Reading a large study takes a while: spend at most a tenth of the time on it.
        self._closing.wait(min(LONGEST_REST, max(SHORTEST_REST, 10 * reading)))


# ---------------------------------------------------------------- the process


def main() -> None:
    # Not `sys.stdin`, which Python closes at exit: it would wait for the thread that reads it.
    messages = open(sys.stdin.fileno(), closefd=False)  # noqa: SIM115
    task = Task(**json.loads(messages.readline()))
    with suppress(OSError):
        os.nice(task.niceness)
    # Linux schedules by session before niceness. `Mirror` gives this process a session of its own;
    # in a shared one, every process would become slow, and stay so. Half of the niceness: a
    # tenth of a core where all are busy, so that MLflow does not lag behind until training is over.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(task.niceness // 2))
    answers = sys.stdout

    def answer(what: str, value: Any) -> None:
        with suppress(OSError):  # the driver has gone
            print(json.dumps({what: value}), file=answers, flush=True)

    follower = Follower(task, answer)
    threading.Thread(target=_listen, args=(follower, messages), daemon=True).start()
    with redirect_stdout(sys.stderr):  # MLflow and its plugins may print
        follower.prepare()
        answer("done", follower.follow())


def _listen(follower: Follower, messages: IO[str]) -> None:
    try:
        for line in messages:
            follower.receive(json.loads(line))
    finally:
        # The driver has gone, perhaps in the middle of a line. The next mirror completes the runs,
        # and this one must not write at the same time: the main thread may wait minutes for an
        # unreachable server, and no other thread can interrupt it.
        os._exit(0)


if __name__ == "__main__":
    main()
