"""`Mirror` shows a study in MLflow while it runs, in a process of its own; `sync` does it at once.

Training never waits for MLflow, nor does the driver share its interpreter with it: a process that
reads the ledger by itself writes what is there (`follow`). While MLflow cannot be reached it tries
again, ever more seldom, and then catches up; what is missing at the end is written by the next run
or by `sync`.

Killed at any moment, that process is started again, and takes over what it left; killed itself,
the driver takes it along.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.base.messages import Progress
from modmix.ledger.ledger import Ledger
from modmix.tracking.content import LIVE_SECONDS, STATUS
from modmix.tracking.store import check, shown

_SEND_SECONDS = 1.0  # between two messages to the process
_MOST_PACKS = 100  # whose evaluations are kept: more are not shown while they train
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds, before the process is started again


class Mirror:
    """Mirrors one study into MLflow while it runs.

    Args:
        ledger_url: the process opens its own connection.
        study: its name; it must be in the ledger before `start`.
        uri: MLflow's tracking URI.
        home: where artifacts go when ``uri`` is a database.
        pace: other waits than `follow.Task` has, by name.

    Example:
        mirror = Mirror(home.ledger_url, "quickstart", home.tracking_uri, home)
        mirror.check()                        # before anything is started
        mirror.start()
        mirror.wake()                         # whenever the ledger has something new
        mirror.log_outputs([figure])          # at the end
        if not mirror.close("finished"):
            print(mirror.trouble)
    """

    def __init__(
        self,
        ledger_url: str,
        study: str,
        uri: str,
        home: Home,
        *,
        pace: Mapping[str, float] | None = None,
    ) -> None:
        self._study, self._uri = study, uri
        self._task = {
            "ledger_url": ledger_url,
            "study": study,
            "uri": uri,
            "home": str(home.path),
            **(pace or {}),
        }
        self._live_seconds = (pace or {}).get("live_seconds", LIVE_SECONDS)
        self._delay = 0.0
        self._begin = threading.Event()  # there is something to show
        self._changed = threading.Event()
        self._over = threading.Event()  # the process has said its last word
        self._lock = threading.Lock()  # over the next five
        self._live: dict[str, dict[str, tuple[float, int, Mapping[str, float]]]] = {}  # by pack
        self._outputs: list[str] = []
        self._end: dict[str, Any] = {}
        self._hurry = False
        self._process: subprocess.Popen[str] | None = None
        self._done = False
        self._trouble = ""
        self._left = 0  # runs to be written
        self._thread = threading.Thread(target=self._work, name="modmix-mirror", daemon=True)

    def check(self) -> None:
        """See `check`: raises within seconds if MLflow cannot be used."""
        check(self._uri)

    def start(self, delay: float = 0.0) -> None:
        """Begin; after so many seconds, or with the first evaluation, whatever comes first.

        A process takes processor time to start that workers need for the same.
        """
        self._delay = delay
        self._thread.start()

    def wake(self) -> None:
        """Say that the ledger has something new. Costs nothing."""
        self._changed.set()

    def observe(self, progress: Progress) -> None:
        """Note an evaluation of replicates in training; long trainings are shown as they go."""
        now = time.monotonic()
        with self._lock:
            before = self._live.pop(progress.pack, {})
            self._live[progress.pack] = {
                key: (before[key][0] if key in before else now, progress.epoch, metrics)
                for key, metrics in progress.metrics.items()
            }
            while len(self._live) > _MOST_PACKS:
                del self._live[next(iter(self._live))]
        self._begin.set()
        self._changed.set()

    def hurry(self) -> None:
        """Training is over: catch up at once, while figures are drawn."""
        with self._lock:
            self._hurry = True
        self._begin.set()
        self._changed.set()

    def log_outputs(self, paths: Sequence[Path]) -> None:
        """Attach files and folders (figures, tables, the report) to the study's run."""
        with self._lock:
            self._outputs += map(str, paths)
        self._begin.set()
        self._changed.set()

    @property
    def trouble(self) -> str:
        """What keeps MLflow from being up to date, in one sentence, or ""."""
        return self._trouble

    def close(
        self,
        state: str,
        timeout: float = 60.0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> bool:
        """Write everything and end the runs; return whether MLflow now holds all of it.

        Args:
            state: of the study: finished, stopped or failed.
            timeout: seconds to wait at most; of a finished study, without a run being written.
                When that is not enough, `trouble` says what is missing, and the next run of the
                study, or `sync`, catches up.
            progress: told how many runs are still to be written, every few seconds.
        """
        assert state in STATUS, state
        assert state != "running"
        with self._lock:
            self._end = {"end": state, "seconds": timeout}
        self._begin.set()
        self._changed.set()
        end, left, said = time.monotonic() + timeout, self._left, time.monotonic()
        while self._thread.is_alive() and time.monotonic() < end:
            self._over.wait(0.2)
            if self._over.is_set():
                self._thread.join(max(0.0, end - time.monotonic()))
            if self._left != left and state == "finished":
                left, end = self._left, time.monotonic() + timeout
            if left and time.monotonic() - said > 5.0:
                said = time.monotonic()
                progress(left)
        if not self._done:
            self._kill()
            why = self._trouble or f"MLflow at {shown(self._uri)} was still being written to"
            self._trouble = f"{why}; 'modmix sync {self._study}' catches up"
        return self._done

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        self._begin.wait(self._delay)
        pause = 0.0
        while not self._over.is_set():
            try:
                why = f"the mirror's process ended ({self._accompany()})"
            except OSError as error:  # no process, no memory for one
                why = f"the mirror's process cannot be started ({error.strerror or error})"
            if self._over.is_set():
                return
            self._trouble = why
            pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
            time.sleep(pause if not self._end else FIRST_PAUSE)

    def _accompany(self) -> str:
        """Start the process and talk to it until it ends: its last words, or its exit code."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "modmix.tracking.follow"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # a Ctrl-C in the terminal is the driver's business
            )
            self._process = process
            assert process.stdin is not None
            assert process.stdout is not None
            ended = threading.Event()
            reader = threading.Thread(target=self._read, args=(process.stdout, ended), daemon=True)
            reader.start()
            with suppress(OSError):  # a broken pipe: it is gone
                self._write(process.stdin, self._task)
                self._talk(process.stdin, ended)
            reader.join()
            with suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            code = process.wait()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"

    def _talk(self, stdin: IO[str], ended: threading.Event) -> None:
        sent_live, sent_outputs = 0.0, 0  # a process that died gets everything again
        while not ended.is_set():
            self._changed.wait()
            self._changed.clear()
            message: dict[str, Any] = {}
            with self._lock:
                if outputs := self._outputs[sent_outputs:]:
                    message["outputs"], sent_outputs = outputs, len(self._outputs)
                message |= self._end
                if self._hurry:
                    message["hurry"], self._hurry = True, False
                now = time.monotonic()
                if now - sent_live >= self._live_seconds:
                    sent_live = now
                    message["live"] = self._long(now)
            self._write(stdin, message)
            ended.wait(None if "end" in message else _SEND_SECONDS)

    def _long(self, now: float) -> dict[str, tuple[float, int, Mapping[str, float]]]:
        """Replicates that have been in training for long: their ages and last evaluations."""
        return {
            key: (now - since, epoch, metrics)
            for pack in self._live.values()
            for key, (since, epoch, metrics) in pack.items()
            if now - since >= self._live_seconds
        }

    @staticmethod
    def _write(stdin: IO[str], message: Mapping[str, Any]) -> None:
        stdin.write(json.dumps(message) + "\n")
        stdin.flush()

    def _read(self, stdout: IO[str], ended: threading.Event) -> None:
        with suppress(ValueError):  # half a line of a process that was killed
            for line in stdout:
                said = json.loads(line)
                self._trouble = said.get("trouble", self._trouble)
                self._left = said.get("left", self._left)
                if "done" in said:
                    self._done = said["done"]
                    self._over.set()
        ended.set()
        self._changed.set()

    def _kill(self) -> None:
        """Nothing may write to this study's MLflow any more when the driver has let go of it."""
        self._over.set()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


# ---------------------------------------------------------------- at once


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What `sync` did. ``written``: how many configurations' runs were missing or out of date."""

    study: str
    experiment: str
    written: int


def sync(
    ledger: Ledger,
    study: str,
    uri: str,
    home: Home,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Synced:
    """Bring MLflow up to the ledger, whatever it holds, and attach the study's outputs.

    ``progress`` is told how many configurations are still to be written.

    Raises:
        InputError: there is no such study, or it is running (then its own mirror catches up).
        TrackingError: MLflow cannot be reached, or refuses.
    """
    from modmix.tracking.writer import Writer

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
    writer = Writer(ledger, study, uri, home, progress=progress)
    writer.update(state, [path for path in outputs if path.exists()], rebuild=True)
    return Synced(study=study, experiment=writer.experiment_name, written=writer.written)
