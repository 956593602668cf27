"""Stops a running study on Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modmix.execution.local import Runner
    from modmix.execution.run import StudyRun


@contextmanager
def stops_on_signals(
    work: StudyRun, runner: Runner, lost: threading.Event, log: Callable[[str], None]
) -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM: the first stops gracefully, the second immediately.

    ``lost`` is set when SIGTERM ends the processes that train, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: object) -> None:
        if work.stopping:
            raise KeyboardInterrupt
        work.stop()
        said = (
            "stopping; the same command resumes from the checkpoints (Ctrl-C again stops at once)"
        )
        # In a thread: the main thread may be in the middle of printing, which cannot be reentered.
        threading.Thread(target=log, args=(said,), daemon=True).start()
        # Slurm and `timeout` send SIGTERM to all processes: without its cluster, Ray would wait for
        # a minute and then abort this process.
        if number == signal.SIGTERM and runner.is_lost():
            lost.set()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
