"""A study's runner, started while the study file is still being held against its data.

Ray takes two seconds to start and its workers take three to import torch, as long as the driver
takes to import it and to build a model of every kind. So both go on at once. Everything wrong is
still said before anything is begun, as far as anyone can see: a cluster that was started for a
study that is then refused ends without a word.
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
    """Makes the runner of one study and starts it early; a context manager around both.

    Args:
        kind: "ray" or "local".
        address: of a Ray cluster; None: the environment's RAY_ADDRESS, else this machine.
        workers: processors to use on this machine; None: all.
        home: where results go.
        retry_failed: a study that has finished is trained again where it failed.

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
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._workers = workers
        self._runner: Runner | None = None
        self._error: BaseException | None = None
        self._is_ready = threading.Event()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, spec: StudySpec) -> None:
        """Start in the background what the study will need; return at once.

        ``spec`` is of a file in which nothing seems wrong any more. Only Ray is worth it.
        """
        global _latest
        if self._thread is None and self._kind == "ray":
            before = _latest
            _latest = self._thread = threading.Thread(
                target=self._live, args=(spec, before), name="modmix-runner"
            )
            self._thread.start()

    def _live(self, spec: StudySpec, before: threading.Thread | None) -> None:
        """Start the runner, and close it in the end.

        A thread for all of its life: Linux kills Ray's processes with the thread they come from.
        """
        try:
            if before is not None:  # another one in this program, perhaps just being closed
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
        """The runner, started if the study looks as if it needed it.

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
        elif kind is None:  # an error's sentence is not held up by a cluster that still starts
            self._thread.join()


_latest: threading.Thread | None = None  # of any `Starting` in this program


def looks_finished(home: Home, spec: StudySpec) -> bool:
    """Whether this very file has run to its end: then there will be nothing to start for it."""
    if not has_ledger(home):
        return False
    with closing(Ledger(home.ledger_url)) as ledger:
        if not ledger.has_study(spec.study):
            return False
        record = ledger.study(spec.study)
    same = record.spec == spec.model_dump(mode="json")
    return same and record.state == "finished"


def has_ledger(home: Home) -> bool:
    """Whether there is a ledger to look into; asking a new one would create it."""
    return "MODMIX_LEDGER" in os.environ or (home.path / "ledger.db").exists()
