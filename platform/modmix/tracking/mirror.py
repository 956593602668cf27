"""`Mirror` logs a study to MLflow while it runs, in a background process; `sync` does so once.

Training never waits for MLflow: the process (`follow`) reads the ledger and writes to MLflow by
itself. It retries with growing pauses while MLflow is unreachable; anything missing at the end of
the study is written by its next run or by `sync`. If the process dies it is restarted and resumes;
if the driver dies, so does the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.base.messages import Progress
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Lease
from modmix.tracking.content import LIVE_SECONDS
from modmix.tracking.store import check, is_server, page, redacted

_SEND_SECONDS = 1.0  # between two messages to the process
_MAX_PACKS = 100  # with live metrics
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the process is restarted


class Mirror:
    """Mirrors one study to MLflow while it runs.

    Args:
        ledger_url: the background process opens its own connection.
        study: its name; must be in the ledger before `start`.
        uri: MLflow's tracking URI.
        home: holds artifacts if ``uri`` is a database.
        pace: overrides the waiting times of `follow.Task`, by name.

    Example:
        mirror = Mirror(home.ledger_url, "quickstart", home.tracking_uri, home)
        mirror.check()                        # before the study starts
        mirror.start(lease)                   # of the driver
        mirror.wake()                         # after changes of the ledger
        if not mirror.close("finished"):
            print(mirror.problem)
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
        self._begin = threading.Event()  # start the process
        self._changed = threading.Event()
        self._over = threading.Event()  # the process has reported "done"
        self._lock = threading.Lock()  # guards the next three
        self._live: dict[str, dict[str, tuple[float, int, Mapping[str, float]]]] = {}  # by pack
        self._end: dict[str, Any] = {}
        self._flush = False
        self._process: subprocess.Popen[str] | None = None
        self._done = False
        self._problem = ""
        self._left = 0  # runs left to write
        self._thread = threading.Thread(target=self._work, name="modmix-mirror", daemon=True)

    def check(self) -> None:
        """Raise within seconds if MLflow cannot be used; see `store.check`."""
        check(self._uri)

    def start(self, lease: Lease | None = None, *, delay: float = 0.0) -> None:
        """Start the process at the first evaluation, or after ``delay`` seconds.

        Args:
            lease: of the driver; once another driver has taken the study over, the process ends.
            delay: leaves CPU time to starting workers.
        """
        self._task["token"] = "" if lease is None else lease.token
        self._delay = delay
        self._thread.start()

    def wake(self) -> None:
        """Signal that the ledger has changed; returns at once."""
        self._changed.set()

    def observe(self, progress: Progress) -> None:
        """Record live metrics of replicates in training."""
        now = time.monotonic()
        with self._lock:
            before = self._live.pop(progress.pack, {})
            self._live[progress.pack] = {
                key: (before[key][0] if key in before else now, progress.epoch, metrics)
                for key, metrics in progress.metrics.items()
            }
            while len(self._live) > _MAX_PACKS:
                del self._live[next(iter(self._live))]
        self._tell()

    def flush(self) -> None:
        """Write everything now: training is over."""
        self._flush = True
        self._tell()

    def _tell(self) -> None:
        self._begin.set()
        self._changed.set()

    @property
    def problem(self) -> str:
        """Why MLflow is not up to date, or ""."""
        return self._problem

    def close(
        self,
        state: str,
        timeout: float = 60.0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> bool:
        """Write everything, outputs too, and end the runs; return whether MLflow is up to date.

        Args:
            state: of the study: finished, stopped or failed.
            timeout: seconds to wait at most; for a finished study, seconds without progress. After
                a timeout `problem` has the reason, and the next run or `sync` catches up.
            progress: called with the number of runs left, every few seconds.
        """
        assert state in ("finished", "stopped", "failed"), state
        with self._lock:
            self._end = {"end": state, "seconds": timeout}
        self._tell()
        end, left, reported = time.monotonic() + timeout, self._left, time.monotonic()
        while self._thread.is_alive() and time.monotonic() < end:
            self._over.wait(0.2)
            if self._over.is_set():
                self._thread.join(max(0.0, end - time.monotonic()))
            if self._left != left and state == "finished":
                left, end = self._left, time.monotonic() + timeout
            if left and time.monotonic() - reported > 5.0:
                reported = time.monotonic()
                progress(left)
        if not self._done or self._thread.is_alive():
            self._kill()
        if not self._done:
            why = self._problem or f"MLflow at {redacted(self._uri)} was still being written to"
            self._problem = f"{why}; 'modmix sync {self._study}' catches up"
        return self._done

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        self._begin.wait(self._delay)
        pause = 0.0
        while not self._over.is_set():
            try:
                why = f"the mirror's process ended ({self._run_process()})"
            except OSError as error:  # out of processes or memory
                why = f"the mirror's process cannot be started ({error.strerror or error})"
            if self._over.is_set():
                return
            self._problem = why
            pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
            time.sleep(pause if not self._end else FIRST_PAUSE)

    def _run_process(self) -> str:
        """Run the process until it ends; return its last line of errors, or its exit code."""
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            with subprocess.Popen(
                [sys.executable, "-m", "modmix.tracking.follow"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C in the terminal is handled by the driver
            ) as process:
                self._process = process
                assert process.stdin is not None
                assert process.stdout is not None
                ended = threading.Event()
                reader = threading.Thread(target=self._read, args=(process.stdout, ended))
                reader.start()
                with suppress(OSError):  # broken pipe: the process has ended
                    self._send(process.stdin, ended)
                reader.join()
                with suppress(OSError):
                    process.stdin.close()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {process.returncode}"

    def _send(self, stdin: IO[str], ended: threading.Event) -> None:
        def write(message: Mapping[str, Any]) -> None:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()

        write(self._task)
        sent_live = 0.0
        while not ended.is_set():
            self._changed.wait()
            self._changed.clear()
            with self._lock:
                now = time.monotonic()
                message = dict(self._end)
                if self._flush:
                    message["flush"], self._flush = True, False
                if now - sent_live >= self._live_seconds:
                    sent_live, message["live"] = now, self._live_long(now)
            write(message)
            ended.wait(None if "end" in message else _SEND_SECONDS)

    def _live_long(self, now: float) -> dict[str, tuple[float, int, Mapping[str, float]]]:
        """Replicates in training for at least ``live_seconds``: age, epoch, metrics."""
        return {
            key: (now - since, epoch, metrics)
            for pack in self._live.values()
            for key, (since, epoch, metrics) in pack.items()
            if now - since >= self._live_seconds
        }

    def _read(self, stdout: IO[str], ended: threading.Event) -> None:
        with suppress(ValueError):  # incomplete line of a killed process
            for line in stdout:
                message = json.loads(line)
                self._problem = message.get("problem", self._problem)
                self._left = message.get("left", self._left)
                if "done" in message:
                    self._done = message["done"]
                    self._over.set()
        ended.set()
        self._changed.set()

    def _kill(self) -> None:
        """End the process: nothing may write to MLflow after the driver has released the study."""
        self._over.set()
        if self._process is not None:
            self._process.kill()
            self._process.wait()


# ---------------------------------------------------------------- sync


@dataclass(frozen=True, kw_only=True)
class Synced:
    """The result of `sync`.

    ``written``: number of runs that were missing or out of date. ``page``: the study's in the UI of
    a server, or "".
    """

    study: str
    experiment: str
    written: int
    page: str = ""


def sync(
    ledger: Ledger,
    study: str,
    uri: str,
    home: Home,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Synced:
    """Update a study's runs in MLflow from the ledger, and attach the study's outputs.

    Args:
        progress: called with the number of configurations left.

    Raises:
        InputError: there is no such study, it is somebody else's, or it is running.
        TrackingError: MLflow is unreachable or refuses.
    """
    from modmix.tracking.writer import Writer

    record = ledger.study(study)
    ledger.check_own(study)
    if (holder := ledger.holder(study)) is not None:
        raise InputError(
            f"study {study!r} is being run by process {holder[1]} on {holder[0]}, which also logs "
            "to MLflow: wait until it ends"
        )
    check(uri)
    # Without a driver, a running study was killed.
    state = "stopped" if record.state == "running" else record.state
    writer = Writer(ledger, study, uri, home, progress=progress)
    writer.update(state, rebuild=True)
    return Synced(
        study=study,
        experiment=writer.experiment_name,
        written=writer.written,
        page=page(uri, writer.experiment_id) if is_server(uri) else "",
    )
