"""The driver's half of the mailbox: hands packs to seats and tells the study what comes back.

Everything runs in the driver's main thread. An exception of the study (a full disk, say) must not
be swallowed by whatever loop calls this: it is kept, everything stops, and the runner raises it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from modmix.base.errors import Incomplete
from modmix.base.messages import Pack
from modmix.execution.local import IDLE_SECONDS, Reply, Work
from modmix.execution.mailbox import Asks, Ended, Item
from modmix.execution.seat import Line

# How long a worker may take to reach its next evaluation after it was told to stop.
STOP_SECONDS = 20.0
# A seat that died before it asked for anything: the pause before another is tried, and how many
# may do so one after another while no seat lives.
RESTART_SECONDS = 5.0
MAX_FAILED_STARTS = 5
DIED = "the worker process or its node died"


@dataclass
class _Seat:
    """One worker. ``since``: when it came to this state (monotonic)."""

    state: Literal["starting", "between", "waiting", "busy", "leaving"] = "starting"
    since: float = field(default_factory=time.monotonic)
    pack: Pack | None = None
    said: Reply = field(default_factory=Reply)

    def become(self, state: Literal["between", "waiting", "busy", "leaving"]) -> None:
        self.state, self.since = state, time.monotonic()


class Bridge:
    """Between seats and a study.

    Args:
        work: the study.
        line: to the mailbox.
        idle_seconds: how long a seat without work keeps its place on the cluster.
    """

    def __init__(self, work: Work, line: Line, *, idle_seconds: float) -> None:
        self.work = work
        self.error: BaseException | None = None
        self._line = line
        self._idle_seconds = idle_seconds
        self._seats: dict[str, _Seat] = {}
        self._stopped: float | None = None  # when the seats were told to stop
        self._ticked = 0.0
        self._failed_starts = 0
        self._failed_at = -RESTART_SECONDS

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its searcher, callbacks and stopper into snapshots that nobody reads: the
        # study stays out of them.
        return (object, ())

    @property
    def stopping(self) -> bool:
        return self.error is not None or self.work.stopping

    @property
    def over(self) -> bool:
        """No further seat will be needed."""
        return self.stopping or self.work.finished

    @property
    def overdue(self) -> bool:
        """Workers were told to stop, and have, or one is still at it: it may be killed."""
        if self._stopped is None:
            return False
        return not self._seats or time.monotonic() - self._stopped > STOP_SECONDS

    @property
    def is_settled(self) -> bool:
        """Every seat works or waits; none is about to begin or to leave."""
        return all(seat.state not in ("starting", "leaving") for seat in self._seats.values())

    # ------------------------------------------------------------ seats come and go

    def wants_seat(self, slots: int) -> bool:
        """Whether another worker would have something to do; ``slots`` have room."""
        free = sum(seat.state in ("starting", "waiting") for seat in self._seats.values())
        with self._guard():
            return (
                len(self._seats) < slots
                and time.monotonic() - self._failed_at >= RESTART_SECONDS
                and not self.over
                and self.work.queued > free
            )
        return False

    def seat_added(self, seat: str) -> None:
        self._seats[seat] = _Seat()

    def seat_ended(self, seat: str, why: str = "") -> None:
        """A worker is gone. What it had in training, without its own word, is handed out again."""
        self.serve()
        gone = self._seats.pop(seat, None)
        if gone is None:
            return
        with self._guard():
            self._line.call("forget", seat)
            if gone.pack is not None and not self.stopping:
                self.work.ended(gone.pack.id, why or DIED, of_machine=True)
            if gone.state == "starting" and not self.over:
                self._start_failed(why)

    def _start_failed(self, why: str) -> None:
        self._failed_at = time.monotonic()
        self._failed_starts += 1
        alive = any(seat.state != "starting" for seat in self._seats.values())
        if self._failed_starts > MAX_FAILED_STARTS and not alive:
            raise Incomplete(
                f"no worker could be started, {self._failed_starts} times ({why or DIED}): mend "
                "that, then type the same command again"
            )

    # ------------------------------------------------------------ what comes and what goes out

    def serve(self, seconds: float = 0.0) -> None:
        """Take what has come and hand out what there is; wait for more for so long at most."""
        end = time.monotonic() + seconds
        left = seconds
        while True:
            with self._guard():
                self._turn(max(0.0, min(left, IDLE_SECONDS)))
            left = end - time.monotonic()
            if left <= 0 or self.error is not None or not self.is_settled:
                return

    def _turn(self, wait: float) -> None:
        if self.stopping and self._stopped is None:
            self._stopped = time.monotonic()
            for name, seat in self._seats.items():
                self._say(name, seat, Reply(stop=True))
        items = self._line.result(self._line.call("take", wait))
        failure: BaseException | None = None
        for name, item in items:
            if name not in self._seats:  # a worker taken for dead
                continue
            pack = self._follow(self._seats[name], item)
            if failure is None:
                try:
                    self._tell(item, pack)
                except BaseException as error:
                    # What else has come must not be lost: a worker that asks would wait for ever.
                    failure = error
        if failure is not None:
            raise failure
        if ticking := time.monotonic() - self._ticked > IDLE_SECONDS:
            self._ticked = time.monotonic()
            self.work.tick()
        if items or ticking:
            self._hand_out()
            self._pass_verdicts()

    def _follow(self, seat: _Seat, item: Item) -> Pack | None:
        """What a worker does by now; the pack that it has ended."""
        pack = None
        match item:
            case Asks():
                self._failed_starts = 0
                seat.become("waiting")
            case Ended():
                pack, seat.pack = seat.pack, None
                # A seat whose machine failed leaves by itself.
                seat.become("leaving" if item.failure and item.of_machine else "between")
        return pack

    def _tell(self, item: Item, pack: Pack | None) -> None:
        match item:
            case Asks():
                pass
            case Ended():
                if pack is not None:
                    self.work.ended(pack.id, item.failure, of_machine=item.of_machine)
            case events:
                self.work.record(events)

    def _hand_out(self) -> None:
        now = time.monotonic()
        for name, seat in self._seats.items():
            if seat.state != "waiting":
                continue
            pack = None if self.over else self.work.next_pack()
            if pack is not None:
                seat.pack = pack
                seat.become("busy")
                self._line.call("give", name, pack.to_json())
            elif self.over or now - seat.since > self._idle_seconds:
                seat.become("leaving")
                self._line.call("give", name, None)

    def _pass_verdicts(self) -> None:
        if self._stopped is not None or not (verdicts := self.work.verdicts):
            return
        for name, seat in self._seats.items():
            if seat.pack is not None and (verdict := verdicts.get(seat.pack.id)):
                self._say(name, seat, Reply(drop=dict(verdict)))

    def _say(self, name: str, seat: _Seat, reply: Reply) -> None:
        if reply != seat.said:
            seat.said = reply
            # Waited for: of two calls on their way the second might arrive first.
            self._line.result(self._line.call("say", name, reply))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if self.error is None:
                self.error = error
