"""The driver's record of its trials: which pack each one trains, and what the study is told.

Shared by the searcher, the scheduler and the callback that Ray Tune calls. Tune turns exceptions
of these into its own, so an exception of the study is kept here, stops the trials, and is raised by
the runner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from modmix.base.errors import Incomplete
from modmix.base.messages import Event, Pack
from modmix.execution.local import IDLE_SECONDS, Work

# How long trials may take to reach their next evaluation after they were told to stop.
STOP_SECONDS = 20.0
# How long after a worker's silent death a cluster may take to see that its node is gone.
SILENT_SECONDS = 30.0
# How long a worker may take to start. A trial that waits longer has no place.
STARTING_SECONDS = 30.0
# How long a worker counts as free after its trial has ended, and a trial as about to take it over.
FREE_SECONDS = 5.0
# Why the pack of a waiting trial is handed out anew.
WITHDRAWN = "the nodes on which it could run are gone"
# Workers in a row that died before they were ready, while no other one lives.
MAX_FAILED_STARTS = 5


class Unsaved:
    """Left out of the snapshots that Tune pickles of its searcher, scheduler and callbacks: nobody
    reads them, the ledger holds everything.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return (object, ())


class Trials(Unsaved):
    """Packs in flight, by trial id."""

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self.work = work
        self.error: Exception | None = None
        self.clock = clock
        self._packs: dict[str, Pack] = {}
        self._added: dict[str, float] = {}  # when
        self._started: set[str] = set()
        self._freed: list[float] = []  # end times of trials whose workers have been free since
        self._next: dict[str, float] = {}  # trials that are to take over these workers: since when
        self.slots = 0  # trials that can run at a time, as the searcher has last seen it
        self._stopped: float | None = None  # when the study began to stop
        self._ticked = 0.0
        self._failed_starts = 0
        self._held: list[tuple[float, Callable[[bool], bool]]] = []

    # ------------------------------------------------------------ state

    @property
    def in_flight(self) -> int:
        """Trials that run or wait for a place."""
        return len(self._packs)

    @property
    def running(self) -> int:
        return len(self._started)

    @property
    def starting(self) -> int:
        """Trials whose workers may be starting: asked for not long ago."""
        since = self.clock() - STARTING_SECONDS
        return sum(at > since for trial, at in self._added.items() if trial not in self._started)

    def next_in_line(self) -> str | None:
        """The trial that is to take over a free worker; None if there is no such worker.

        The one that has waited longest for a place. The first of those that wait may already have
        a place and a worker that is starting, which a takeover would end.
        """
        now = self.clock()
        self._freed = [at for at in self._freed if now - at < FREE_SECONDS]
        self._next = {
            trial: at
            for trial, at in self._next.items()
            if trial in self._added and now - at < FREE_SECONDS
        }
        if len(self._freed) <= len(self._next):
            return None
        starting = max(0, self.slots - self.running - len(self._freed))
        taken = self._started | self._next.keys()
        waiting = (trial for trial in self._added if trial not in taken)
        trial = next(islice(waiting, starting, None), None)
        if trial is not None:
            self._next[trial] = now
        return trial

    @property
    def stopping(self) -> bool:
        return self.error is not None or self.work.stopping

    @property
    def over(self) -> bool:
        """Whether no further pack will be handed out."""
        return self.stopping or self.work.finished

    @property
    def overdue(self) -> bool:
        """Whether the trials that are left may be ended by force: the study stops, and none has
        anything to save, or they were given the time to do so.
        """
        if not self.stopping:
            return False
        if self._stopped is None:
            self._stopped = self.clock()
        late = self.clock() - self._stopped > STOP_SECONDS
        return late or not self._started

    def pack(self, trial: str) -> Pack | None:
        return self._packs.get(trial)

    # ------------------------------------------------------------ what happens

    def add(self, trial: str) -> Pack | None:
        """Hand out the next pack to a new trial."""
        with self.guard():
            pack = None if self.over else self.work.next_pack()
            if pack is not None:
                self._packs[trial], self._added[trial] = pack, self.clock()
            return pack
        return None

    def has_started(self, trial: str) -> bool:
        """Whether a worker was ready to train it."""
        return trial in self._started

    def started(self, trial: str) -> None:
        self._started.add(trial)
        self._freed = self._freed[1:]
        self._next.pop(trial, None)
        self._failed_starts = 0

    def record(self, events: Sequence[Event]) -> None:
        if events:
            with self.guard():
                self.work.record(events)

    def ended(
        self, trial: str, failure: str = "", *, of_machine: bool = True, counted: bool = True
    ) -> None:
        """A trial is over; see `Work.ended`.

        After a failure of the runner itself, failures are not counted against packs.
        """
        counted = counted and self.error is None
        if trial in self._started and not failure:
            self._freed.append(self.clock())
            self._failed_starts = 0  # its worker lives, and may take over the next trial
        pack = self._packs.pop(trial, None)
        self._added.pop(trial, None)
        self._started.discard(trial)
        if pack is not None:
            with self.guard():
                self.work.ended(pack.id, failure, of_machine=of_machine, counted=counted)

    def hold(self, trial: str, settle: Callable[[bool], bool]) -> None:
        """Keep an ended trial's pack until it is known why it ended.

        Args:
            settle: called now and then until it returns True, having called `ended`; its argument
                says that it is the last time.
        """
        self._started.discard(trial)
        self._added.pop(trial, None)
        self._held.append((self.clock() + SILENT_SECONDS, settle))

    def failed_start(self, why: str) -> None:
        """A worker died before it was ready."""
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS and not self._started and self.error is None:
            self.error = Incomplete(
                f"{self._failed_starts} attempts in a row to start a worker failed ({why}): fix "
                "this and run the same command again"
            )

    def tick(self) -> None:
        """Called often; passed on to the study a few times a second."""
        now = self.clock()
        if now - self._ticked > IDLE_SECONDS:
            self._ticked = now
            self._held = [(end, settle) for end, settle in self._held if not settle(now > end)]
            with self.guard():
                self.work.tick()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep the first exception of the study instead of raising it.

        An interruption passes: Tune lets it through.
        """
        try:
            yield
        except Exception as error:
            if self.error is None:
                self.error = error
