"""`Mirror` shows a study in MLflow while it runs, from a thread of its own; `sync` does it at once.

Training never waits for MLflow: while it cannot be reached the mirror tries again, ever more
seldom, and then catches up; what is missing at the end is written by the next run or by `sync`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modmix.errors import InputError, LedgerError, TrackingError
from modmix.home import Home
from modmix.ledger import Ledger
from modmix.packing import Progress
from modmix.tracking.content import STATUS
from modmix.tracking.store import check, shown
from modmix.tracking.writer import PARTIAL_SECONDS, Live, Writer

_log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds, while MLflow cannot be reached
LONGEST_REST = 30.0  # seconds between two looks at the ledger


class Mirror:
    """Mirrors one study into MLflow while it runs.

    Args:
        ledger_url: the thread opens its own connection.
        study: its name; it must be in the ledger before `start`.
        uri: MLflow's tracking URI.
        home: where artifacts go when ``uri`` is a database.

    Example:
        mirror = Mirror(home.ledger_url, "quickstart", home.tracking_uri, home)
        mirror.check()                        # before anything is started
        mirror.start()
        mirror.wake()                         # whenever the ledger has something new
        mirror.log_outputs([figure])          # at the end
        if not mirror.close("finished"):
            print(mirror.trouble)
    """

    def __init__(self, ledger_url: str, study: str, uri: str, home: Home) -> None:
        self._ledger_url, self._study, self._uri, self._home = ledger_url, study, uri, home
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()  # over the next two
        self._outputs: list[Path] = []
        self._live: dict[str, Live] = {}
        self._state = "running"
        self._deadline = float("inf")
        self._done = False
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, name="modmix-mirror", daemon=True)

    def check(self) -> None:
        """See `check`: raises within seconds if MLflow cannot be used."""
        check(self._uri)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that the ledger has something new. Costs nothing."""
        self._changed.set()

    def observe(self, progress: Progress) -> None:
        """Note an evaluation of replicates in training; long trainings are shown as they go."""
        now = time.monotonic()
        with self._lock:
            for key, metrics in progress.metrics.items():
                since = self._live[key].since if key in self._live else now
                self._live[key] = Live(since=since, epoch=progress.epoch, metrics=metrics)
        self._changed.set()

    def log_outputs(self, paths: Sequence[Path]) -> None:
        """Attach files and folders (figures, tables, the report) to the study's run."""
        with self._lock:
            self._outputs += paths
        self._changed.set()

    @property
    def trouble(self) -> str:
        """What keeps MLflow from being up to date, in one sentence, or ""."""
        return self._trouble

    def close(self, state: str, timeout: float = 60.0) -> bool:
        """Write everything and end the runs; return whether MLflow now holds all of it.

        Args:
            state: of the study: finished, stopped or failed.
            timeout: seconds to wait at most. When that is not enough, `trouble` says what is
                missing, and the next run of the study, or `sync`, catches up.
        """
        assert state in STATUS, state
        assert state != "running"
        self._state, self._deadline = state, time.monotonic() + timeout
        self._closing.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        if not self._done:
            why = self._trouble or f"MLflow at {shown(self._uri)} was still being written to"
            self._trouble = f"{why}; 'modmix sync {self._study}' catches up"
        return self._done

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        ledger: Ledger | None = None
        writer: Writer | None = None
        pause = 0.0
        while not self._done:
            closing, begun = self._closing.is_set(), time.monotonic()
            settled = True
            try:
                ledger = ledger or Ledger(self._ledger_url)
                writer = writer or Writer(ledger, self._study, self._uri, self._home)
                settled = self._update(writer)
                self._trouble, pause, self._done = "", 0.0, closing
            except Exception as error:  # the study goes on whatever happens to its mirror
                self._note(error)
                pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
                if writer is not None:
                    writer.lost()
                if closing and time.monotonic() + FIRST_PAUSE > self._deadline:
                    break
            self._rest(pause, time.monotonic() - begun, settled)
        if ledger is not None:
            ledger.close()

    def _update(self, writer: Writer) -> bool:
        self._changed.clear()
        with self._lock:
            outputs, self._outputs = self._outputs, []
            live = dict(self._live)
        try:
            settled = writer.update(self._state, outputs, live)
        except BaseException:
            with self._lock:
                self._outputs = [*outputs, *self._outputs]
            raise
        with self._lock:
            self._live = {
                k: v for k, v in self._live.items() if k in writer.training or k not in live
            }
        return settled

    def _note(self, error: Exception) -> None:
        if isinstance(error, (TrackingError, LedgerError, InputError)):
            self._trouble = str(error)
        else:
            self._trouble = f"the mirror in MLflow failed ({type(error).__name__}: {error})"
            _log.warning(self._trouble, exc_info=error)

    def _rest(self, pause: float, took: float, settled: bool) -> None:
        """Wait for something to do; only the end of the study shortens the wait."""
        if pause:
            if self._closing.wait(pause):
                time.sleep(FIRST_PAUSE)
            return
        # Reading a large ledger takes a while: look seldom enough to leave the processor alone.
        self._closing.wait(min(LONGEST_REST, max(0.5, 10 * took)))
        if not self._closing.is_set():
            self._changed.wait(None if settled else PARTIAL_SECONDS)


# ---------------------------------------------------------------- at once


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What `sync` did. ``written``: how many points' runs were missing or out of date."""

    study: str
    experiment: str
    written: int


def sync(ledger: Ledger, study: str, uri: str, home: Home) -> Synced:
    """Bring MLflow up to the ledger, whatever it holds, and attach the study's outputs.

    Raises:
        InputError: there is no such study, or it is running (then its own mirror catches up).
        TrackingError: MLflow cannot be reached, or refuses.
    """
    record = ledger.study(study)
    if (holder := ledger.holder(study)) is not None:
        raise InputError(
            f"study {study!r} is being run by process {holder[1]} on {holder[0]}, which mirrors "
            "it itself: wait until it ends"
        )
    check(uri)
    folder = home.study(study)
    outputs = [folder / name for name in ("figures", "tables", "best", "report.html")]
    # A study that says it runs but has no driver was killed.
    state = "stopped" if record.state == "running" else record.state
    writer = Writer(ledger, study, uri, home)
    writer.update(state, [path for path in outputs if path.exists()], rebuild=True)
    return Synced(study=study, experiment=writer.experiment_name, written=writer.written)
