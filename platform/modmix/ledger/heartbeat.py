"""The thread that renews a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable

from modmix.ledger.studies import HEARTBEAT_SECONDS


class Heartbeat:
    """Calls ``beat`` regularly while a study runs; a context manager."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modmix-heartbeat", daemon=True)

    def _run(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            self._beat()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
