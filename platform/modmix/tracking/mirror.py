"""`Mirror` logs a study to MLflow while it runs, in a background process; `sync` does so once.

Training never waits for MLflow: the process (`follow`) reads the ledger and writes to MLflow by
itself. It loads MLflow while Ray's processes start, with low priority, and retries with growing
pauses while MLflow is unreachable; anything missing at the end of the study is written by its next
run or by `sync`. If the process dies, it is restarted, up to five times; if the driver dies, the
process exits.
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
from typing import Any

from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Lease
from modmix.tracking.store import check, is_server, page, redacted

RESTARTS = 5  # of a process that dies, during one run of a study
RESTART_PAUSE = 0.5  # seconds


class Mirror:
    """Mirrors one study to MLflow while it runs.

    Args:
        ledger_url: the background process opens its own connection.
        study: its name; must be in the ledger before `start`.
        uri: MLflow's tracking URI.
        home: holds artifacts if ``uri`` is a database.
        pace: overrides fields of `follow.Task`, by name.

    Example:
        mirror = Mirror(home.ledger_url, "quickstart", home.tracking_uri, home)
        mirror.check()                        # before the study starts
        mirror.prepare()
        mirror.start(lease)                   # of the driver
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
        self._over = threading.Event()  # the process has reported "done", or is no longer wanted
        self._lock = threading.Lock()  # guards the next two
        self._process: subprocess.Popen[str] | None = None
        self._messages: list[dict[str, Any]] = []  # sent after the task
        self.is_started = False
        self._done = False
        self._left = 0  # runs left to write
        self.problem = ""  # why MLflow is not up to date
        self._thread = threading.Thread(target=self._work, name="modmix-mirror", daemon=True)

    def check(self) -> None:
        """Raise within seconds if MLflow cannot be used; see `store.check`."""
        check(self._uri)

    def prepare(self) -> None:
        """Start the process, which loads MLflow and then waits for `start`."""
        self._thread.start()

    def start(self, lease: Lease | None = None) -> None:
        """Follow the study from now on.

        Args:
            lease: of the driver; once another driver has taken the study over, the process ends.
        """
        self.is_started = True
        self._tell({"token": "" if lease is None else lease.token})
        if self._thread.ident is None:
            self.prepare()

    def discard(self) -> None:
        """End the process if it is still there, whatever it has left to write.

        Nothing may write to MLflow once the driver has released the study.
        """
        self._over.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

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
                a timeout or Ctrl-C, `problem` has the reason; the next run or `sync` catches up.
            progress: called with the number of runs left, every few seconds.
        """
        assert state in ("finished", "stopped", "failed"), state
        self._tell({"end": state, "seconds": timeout})
        end, left, reported = time.monotonic() + timeout, self._left, time.monotonic()
        try:
            while self._thread.is_alive() and time.monotonic() < end:
                self._thread.join(0.2)
                if self._left != left and state == "finished":
                    left, end = self._left, time.monotonic() + timeout
                if left and time.monotonic() - reported > 5.0:
                    reported = time.monotonic()
                    progress(left)
        except KeyboardInterrupt:
            pass  # the user does not want to wait; `problem` says what is missing
        if not self._done or self._thread.is_alive():
            self.discard()
        if not self._done:
            why = self.problem or f"MLflow at {redacted(self._uri)} was still being written to"
            self.problem = f"{why}; run 'modmix sync {self._study}' to bring it up to date"
        return self._done

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        for _ in range(1 + RESTARTS):
            try:
                why = f"the MLflow mirror process exited ({self._run_process()})"
            except OSError as error:  # out of processes or memory
                why = f"the MLflow mirror process could not be started ({error.strerror or error})"
            if self._over.is_set():
                return
            self.problem = why
            self._over.wait(RESTART_PAUSE)

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
                with self._lock:
                    self._process = process
                    for message in (self._task, *self._messages):
                        _send(process, message)
                    if self._over.is_set():  # discarded meanwhile
                        process.kill()
                self._read(process)
                assert process.stdin is not None
                with suppress(OSError):  # what it did not read
                    process.stdin.close()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {process.returncode}"

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # incomplete line of a killed process
                continue
            self.problem = message.get("problem", self.problem)
            self._left = message.get("left", self._left)
            if "done" in message:
                self._done = message["done"]
                self._over.set()

    def _tell(self, message: dict[str, Any]) -> None:
        """Send a message to the process, and to one that takes its place."""
        with self._lock:
            self._messages.append(message)
            if self._process is not None:
                _send(self._process, message)


def _send(process: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    with suppress(OSError, ValueError):  # the process has ended
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


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
        experiment=writer.found.experiment_name,
        written=writer.written,
        page=page(uri, writer.found.experiment) if is_server(uri) else "",
    )
