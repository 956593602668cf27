"""A Ray Tune trial: the training of one pack in a worker process.

A worker is reused for trial after trial (`reset_config`), so that Python, torch and the data are
loaded once. A trial fetches its pack from `tune_store.PackStore`, and asks there at every step what
the driver has to tell it. What the trial has to tell the driver goes into its results: 20
evaluations and a model's result in two reports cost the driver 7 ms of processor time
(`tests/benchmarks/tune_overhead.py`).

Tune's checkpoints are not used: a pack writes its own (`modmix.training.saving`), which the trial
that trains it next finds, on whatever node that is.
"""

from __future__ import annotations

import inspect
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from types import FrameType
from typing import Any

from ray import tune

from modmix.base.messages import Event, Finished, Progress
from modmix.execution.description import Summary, described
from modmix.execution.local import (
    Reply,
    check_checkpoint_folder,
    describe,
    is_machine_failure,
    train,
)
from modmix.execution.tune_cluster import Needs
from modmix.execution.tune_search import placement
from modmix.execution.tune_store import TrialStore

# How often a trial reports while it trains. It also reports when models end and at rungs.
REPORT_SECONDS = 1.0


class PackTrial(tune.Trainable):
    """Trains the pack named by the trial's configuration.

    Results: ``epoch``, ``epochs``, ``active`` and ``finished`` models, mean and best value of the
    error and of the monitored metric. ``events`` carries the messages for the driver, which removes
    them; ``failure`` is set once before the step that raises.
    """

    store: TrialStore
    resources: Mapping[str, Needs]  # by method; "": all others

    def setup(self, config: dict[str, Any]) -> None:
        self.store.enter(config["pack"])  # first of all: the rest may fail on this node
        import modmix.training.trainer  # noqa: F401  (takes seconds; counts as the trial's start)

        self._training: Generator[Event, None, None] | None = None
        self._terminated = False
        self._handle_sigterm()
        self.reset_config(config)

    def _handle_sigterm(self) -> None:
        """Write a checkpoint before the worker ends, as when a node is preempted.

        Ray's own handler would end it in the middle of a step.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        at_once = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            training = self._training
            is_idle = training is None or inspect.getgeneratorstate(training) == inspect.GEN_CLOSED
            if is_idle or self._terminated:
                if callable(at_once):
                    at_once(number, frame)
                sys.exit(1)
            self._terminated = True

        signal.signal(signal.SIGTERM, handle)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._name = str(new_config["pack"])
        method = new_config["method"]
        self._needs = self.resources.get(method, self.resources[""])
        self._training = None
        self._summary: Summary | None = None
        self._reply = Reply()
        self._error: Exception | None = None
        return True

    def step(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error  # the driver has been told what it needs
        try:
            self._reply = self.store.reply(self._name)
        except Exception:  # the driver is gone, and this process will be soon
            self.cleanup()
            raise
        events: list[Event] = []
        try:
            if self._training is None and not self._reply.stop:
                self._training = self._begin()
            if self._reply.stop:
                self.cleanup()
                return self._result(done=True)
            over = self._collect(events)
            if self._terminated:
                self.cleanup()
                sys.exit(1)
        except Exception as error:
            self._error = error
            return self._result(
                events=events,
                failure=describe(error),
                of_machine=is_machine_failure(error),
                unfit=self._training is None,
            )
        # The end is a result of its own: the driver can ask for the next trial before, which then
        # takes over this worker.
        return self._result(events=events, done=over and not events)

    def cleanup(self) -> None:
        """End the training, if any is under way; it writes its checkpoint."""
        if self._training is not None:
            self._training.close()

    def _begin(self) -> Generator[Event, None, None]:
        pack = self.store.fetch(self._name)
        self._summary = Summary(pack)
        # The worker's log, which the Ray dashboard shows.
        print(f"{time.strftime('%F %T')} training {described(pack)}", file=sys.stderr, flush=True)
        check_checkpoint_folder(pack)
        return train(
            pack,
            gpus=self._needs.gpus,
            threads=max(1, int(self._needs.cpus)),
            dropped=lambda: self._reply.drop,
        )

    def _collect(self, events: list[Event]) -> bool:
        """Train until there is something to report; return whether the training is over."""
        assert self._training is not None
        assert self._summary is not None
        end = time.monotonic() + REPORT_SECONDS
        for event in self._training:
            events.append(event)
            self._summary.add(event)
            if self._terminated:
                return False
            if isinstance(event, Progress) and event.at_rung:
                return False  # the driver's verdict is heard before the training goes on
            ended = isinstance(event, Finished)
            if self._summary.settled and (ended or time.monotonic() > end):
                return False
        return True

    def _result(self, **more: Any) -> dict[str, Any]:
        values = {} if self._summary is None else self._summary.values
        return {**values, **more}


def trial_class(study: str, trial_store: TrialStore, needs: Mapping[str, Needs]) -> type[PackTrial]:
    """`PackTrial` as passed to Tune, with its store and its resource requests.

    They are attributes of the class. `tune.with_parameters` would put them into Ray's object store,
    and if a cluster of this machine ends while a worker that starts still needs such an object, Ray
    aborts the driver's process.

    The Ray dashboard lists its workers as ``PackTrial`` and ``PackTrial(STUDY)``. The pack in
    training is in the worker's log, not in that name: Ray reads an actor's repr only once.
    """

    class OfStudy(PackTrial):
        store = trial_store
        resources = needs

        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return placement(config, needs)

        def __repr__(self) -> str:
            return f"{PackTrial.__name__}({study})"

    OfStudy.__name__ = OfStudy.__qualname__ = PackTrial.__name__
    return OfStudy
