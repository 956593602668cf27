"""Starts a study's runner in the background while the study is still being planned.

Ray takes two seconds to start and its workers three to import torch; planning takes about as long.
If the study is rejected, the cluster is stopped silently.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing

from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.execution.local import Runner
from modmix.ledger.ledger import Ledger
from modmix.study.spec import StudySpec


class Starting:
    """Creates the runner of one study and starts it early; a context manager that closes it.

    Args:
        kind: "ray" or "local".
        address: of a Ray cluster; None: RAY_ADDRESS, else this machine.
        workers: CPUs to use on this machine; None: all.
        home: folder of results.
        retry_failed: start the runner even if the study has finished, to train failed replicates.

    Raises:
        InputError: there is no such kind of runner.
    """

    def __init__(
        self,
        kind: str = "ray",
        *,
        address: str | None = None,
        workers: int | None = None,
        home: Home,
        retry_failed: bool = False,
    ) -> None:
        if kind not in ("ray", "local"):
            raise InputError(f"runner must be ray or local, got {kind!r}")
        self.home = home
        self.retry_failed = retry_failed
        self._kind = kind
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._workers = workers
        self._runner: Runner | None = None
        self._error: BaseException | None = None
        self._is_ready = threading.Event()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, spec: StudySpec) -> None:
        """Start Ray in the background if it is needed; return at once."""
        global _latest
        if self._thread is None and self._kind == "ray":
            before = _latest
            _latest = self._thread = threading.Thread(
                target=self._live, args=(spec, before), name="modmix-runner"
            )
            self._thread.start()

    def _live(self, spec: StudySpec, before: threading.Thread | None) -> None:
        """Start the runner and close it at the end.

        In one thread: Linux kills Ray's processes with the thread that started them.
        """
        try:
            if before is not None:  # an earlier one in this program may still be closing
                before.join()
            self._start(spec)
        except BaseException as error:
            self._error = error
        self._is_ready.set()
        self._is_over.wait()
        if self._runner is not None:
            self._runner.close()

    def _start(self, spec: StudySpec) -> None:
        if self.retry_failed or not looks_finished(self.home, spec):
            runner = self._make(spec)
            runner.start()
            self._runner = runner

    def runner(self, spec: StudySpec) -> Runner:
        """The runner, started unless the study looks finished.

        Raises:
            InputError: it could not be started.
        """
        if self._thread is None:
            self._start(spec)
        else:
            self._is_ready.wait()
        if self._error is not None:
            raise self._error
        if self._runner is None:
            self._runner = self._make(spec)
        return self._runner

    def _make(self, spec: StudySpec) -> Runner:
        resources = spec.resources
        if self._kind == "local":
            from modmix.execution.local import LocalRunner

            return LocalRunner(gpus=resources.gpus)
        from modmix.execution.ray_runner import RayRunner

        return RayRunner(
            cpus=resources.cpus,
            gpus=resources.gpus,
            address=self._address,
            workers=self._workers,
        )

    def __enter__(self) -> Starting:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over.set()
        if self._thread is None:
            if self._runner is not None:
                self._runner.close()
        elif kind is None:  # after an error, do not wait for a cluster that is still starting
            self._thread.join()


_latest: threading.Thread | None = None  # of any `Starting` in this program


def looks_finished(home: Home, spec: StudySpec) -> bool:
    """Whether this study file has already finished, so that no runner is needed."""
    if not home.has_ledger:
        return False
    with closing(Ledger(home.ledger_url)) as ledger:
        if not ledger.has_study(spec.study):
            return False
        record = ledger.study(spec.study)
    same = record.spec == spec.model_dump(mode="json")
    return same and record.state == "finished"
