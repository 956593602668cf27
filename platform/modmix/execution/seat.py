"""The worker loop: take a pack, train it, send its events, take the next one.

A worker (a "seat") is a long-lived process, so the start-up cost (starting Python, importing torch,
mapping the data) is paid once per worker, not per pack. A background thread sends events in order,
so training does not wait for the driver unless its queue is full; at the end of a pack the worker
waits until all events have been delivered.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import closing, suppress
from typing import Any, Protocol

from modmix.base.messages import Pack
from modmix.execution.local import Reply, batch_finished, describe, is_machine_failure, train
from modmix.execution.mailbox import Ended, Item

# A machine that cannot train (no data, no driver) would otherwise take, and fail, pack after pack.
FAILED_PAUSE_SECONDS = 5.0
_MOST_HELD = 32  # events that may wait to be sent; then training waits, too


class Line(Protocol):
    """A connection to a `Mailbox`. Safe to share between threads."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Begin a call of one of its methods; return at once with what stands for its result."""
        ...

    def ready(self, call: Any) -> bool: ...

    def result(self, call: Any) -> Any:
        """Wait for a call's result."""
        ...


def serve(line: Line, seat: str, *, gpus: float, threads: int) -> None:
    """Train what comes over the line until there is nothing more to do.

    A failure of this machine ends the seat as well: a device that failed once may stay broken for
    the process that holds it.
    """
    with closing(_Outbox(line, seat)) as outbox:
        ear = _Ear(line, seat)
        while (text := line.result(line.call("next", seat))) is not None:
            ended = _train(Pack.from_json(text), outbox, ear, gpus=gpus, threads=threads)
            outbox.send(ended)
            outbox.flush()
            if ended.failure and ended.of_machine:
                return


def _train(pack: Pack, outbox: _Outbox, ear: _Ear, *, gpus: float, threads: int) -> Ended:
    try:
        training = batch_finished(
            train(pack, gpus=gpus, threads=threads, dropped=lambda: ear.reply().drop)
        )
        for events in training:
            outbox.send(events)
            if ear.reply().stop:
                training.close()
                break
    except Exception as error:
        of_machine = is_machine_failure(error)
        if of_machine:
            time.sleep(FAILED_PAUSE_SECONDS)
        return Ended(failure=describe(error), of_machine=of_machine)
    return Ended()


class _Ear:
    """Hears what the driver says at the very next event, without asking for every event."""

    def __init__(self, line: Line, seat: str) -> None:
        self._line, self._seat = line, seat
        self._reply = Reply()
        self._listen()

    def _listen(self) -> None:
        self._call = self._line.call("listen", self._seat, self._reply)

    def reply(self) -> Reply:
        while self._line.ready(self._call):
            self._reply = self._line.result(self._call)
            self._listen()
        return self._reply


class _Outbox:
    """Sends in order, one request at a time, in a thread of its own.

    A failure to send is raised by the next call of `send` or `flush`.
    """

    def __init__(self, line: Line, seat: str) -> None:
        self._line, self._seat = line, seat
        self._items: queue.Queue[Item | None] = queue.Queue(_MOST_HELD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="modmix-outbox", daemon=True)
        self._thread.start()

    def send(self, item: Item) -> None:
        self._check()
        self._items.put(item)

    def flush(self) -> None:
        """Wait until everything has arrived."""
        self._items.join()
        self._check()

    def close(self) -> None:
        self._items.put(None)
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            items = [self._items.get()]
            with suppress(queue.Empty):
                while True:
                    items.append(self._items.get_nowait())
            try:
                if self._error is None and (sent := [i for i in items if i is not None]):
                    self._line.result(self._line.call("put", self._seat, sent))
            except BaseException as error:
                self._error = error
            for _ in items:
                self._items.task_done()
            if None in items:
                return
