"""The mirror's own process: follows a running study in the ledger and shows it in MLflow.

    python -m modmix.tracking.follow          (started by `mirror.Mirror`, never by hand)

It reads what it is told from its standard input, a line of JSON each, and answers on its standard
output in the same way. The end of the input is the end of the driver: then it ends at once,
wherever it is, because the driver that comes next has a mirror of its own.

    told     what to follow (the first line), live evaluations, outputs, "wake", "hurry" (training
             is over), how the study ended
    answers  what keeps it from being up to date, how many runs are still to be written, "done"
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

FIRST_PAUSE = 1.0  # seconds, when MLflow cannot be reached; then ever longer ones
LONGEST_REST = 30.0  # seconds between two looks at the ledger
NICENESS = 19  # training goes before it; Ray gives its workers 15


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be followed. Not repeated anywhere: URLs may hold passwords."""

    ledger_url: str
    study: str
    uri: str
    home: str
    longest_pause: float = 30.0  # seconds, while MLflow cannot be reached
    live_seconds: float = LIVE_SECONDS

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(kw_only=True)
class Told:
    """What has been told since the last look, and how the study is."""

    outputs: list[Path] = field(default_factory=list)
    live: dict[str, Live] = field(default_factory=dict)
    state: str = "running"
    deadline: float = float("inf")  # monotonic


class Follower:
    """Brings MLflow up to the ledger again and again, until the study has ended.

    Args:
        task: what to follow.
        answer: told what there is to say: ``trouble``, ``left`` or ``done`` with its value.
    """

    def __init__(self, task: Task, answer: Callable[[str, Any], None] = lambda *_: None) -> None:
        self._task = task
        self._answer = answer
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._soon = threading.Event()  # ends the rest between two looks
        self._lock = threading.Lock()  # over the next one
        self._told = Told()
        self._trouble = ""
        self._said_left = 0

    # ------------------------------------------------------------ being told, from any thread

    def tell(self, message: Mapping[str, Any]) -> None:
        """Take one message: ``live``, ``outputs``, ``hurry``, ``end`` with ``seconds``.

        Any is a wake-up.
        """
        now = time.monotonic()
        with self._lock:
            if (live := message.get("live")) is not None:
                self._told.live = {
                    key: Live(since=now - age, epoch=epoch, metrics=metrics)
                    for key, (age, epoch, metrics) in live.items()
                }
            self._told.outputs += map(Path, message.get("outputs", ()))
            if "end" in message:
                self._told.state = message["end"]
                self._told.deadline = now + message["seconds"]
                self._closing.set()
                self._soon.set()
        if message.get("hurry"):
            self._soon.set()
        self._changed.set()

    # ------------------------------------------------------------ following

    def follow(self) -> bool:
        """Follow until told of the end; return whether MLflow holds everything."""
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
                    progress=self._say_left,
                )
                settled = self._update(writer)
                self._say("")
                pause, done = 0.0, closing
            except Exception as error:  # the study goes on whatever happens to its mirror
                self._note(error)
                pause = min(task.longest_pause, max(FIRST_PAUSE, 2 * pause))
                if writer is not None:
                    writer.lost()
                if closing and time.monotonic() + FIRST_PAUSE > self._told.deadline:
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
            told = self._told
            outputs, told.outputs = told.outputs, []
            live = {k: v for k, v in told.live.items() if not writer.has_ended(k)}
        try:
            return writer.update(told.state, outputs, live)
        except BaseException:
            with self._lock:
                told.outputs = [*outputs, *told.outputs]
            raise

    def _note(self, error: Exception) -> None:
        if isinstance(error, (TrackingError, LedgerError, InputError)):
            self._say(str(error))
        else:
            _log.warning("the mirror failed", exc_info=error)
            self._say(f"the mirror in MLflow failed ({type(error).__name__}: {error})")

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._answer("trouble", trouble)

    def _say_left(self, left: int) -> None:
        if left or self._said_left:
            self._said_left = left
            self._answer("left", left)

    def _rest(self, pause: float, reading: float, settled: bool) -> None:
        """Wait for something to do; only the end of training shortens the wait."""
        if pause:
            if self._closing.wait(pause):
                time.sleep(FIRST_PAUSE)
            return
        # Looking for what is new takes a while in a large study: a tenth of the time at most.
        self._soon.wait(min(LONGEST_REST, max(1.0, 10 * reading)))
        if not self._closing.is_set():
            self._changed.wait(None if settled else PARTIAL_SECONDS)


# ---------------------------------------------------------------- the process


def main() -> None:
    with suppress(OSError):
        os.nice(NICENESS)
    # Linux shares processors out by session before it looks at processes, and this one has its own.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    follower = Follower(Task(**json.loads(sys.stdin.readline())), _answer)
    threading.Thread(target=_listen, args=(follower,), daemon=True).start()
    done = follower.follow()
    _answer("done", done)
    os._exit(0)  # the driver waits; nothing is left to write


def _answer(what: str, value: Any) -> None:
    with suppress(OSError):  # nobody listens any more
        print(json.dumps({what: value}), flush=True)


def _listen(follower: Follower) -> None:
    try:
        for line in sys.stdin:
            follower.tell(json.loads(line))
    finally:
        # The driver is gone, perhaps in the middle of a line. What is half written is finished by
        # the next one's mirror.
        os._exit(0)


if __name__ == "__main__":
    main()
