"""Between the driver and its workers: packs one way, events the other, and a word to stop.

`Mailbox` lives on the driver's own node, so that what a worker has sent outlives the worker. Both
sides wait at it instead of asking again and again. It knows nothing of Ray (an actor is made of it)
and decides nothing: who gets which pack is the driver's business.

    worker   next    wait for a pack                  driver   take    what has come, in order
             put     what happened to it                       give    a pack to a waiting worker
             listen  wait for another `Reply`                  say     a `Reply` to one worker
                                                               forget  a worker that is gone
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from modmix.base.messages import Event
from modmix.execution.local import Reply


@dataclass(frozen=True, kw_only=True)
class Asks:
    """A worker waits for a pack."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A worker has done with its pack, after an attempt that may have failed."""

    failure: str = ""
    of_machine: bool = True


Item = Asks | Ended | Sequence[Event]

GONE = Reply(stop=True)  # what a worker hears that the driver takes for dead


class Mailbox:
    """See the module. All methods are coroutines of one event loop; ``seat`` names a worker."""

    def __init__(self) -> None:
        self._items: list[tuple[str, Item]] = []
        self._came = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[str | None]] = {}
        self._said: dict[str, Reply] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._gone: set[str] = set()

    # ------------------------------------------------------------ for workers

    async def next(self, seat: str) -> str | None:
        """Wait for a pack, as JSON; None: leave, there is nothing more to do."""
        if seat in self._gone:
            return None
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[seat] = waiting
        self._keep(seat, Asks())
        given: str | None = await waiting
        return given

    async def put(self, seat: str, items: Sequence[Item]) -> Reply:
        """Keep what happened; when this returns it cannot be lost by the worker any more."""
        for item in items:
            self._keep(seat, item)
        return self._reply(seat)

    async def listen(self, seat: str, known: Reply) -> Reply:
        """Wait until the driver has something else to say than ``known``."""
        while self._reply(seat) == known:
            news = self._news.setdefault(seat, asyncio.Event())
            news.clear()
            await news.wait()
        return self._reply(seat)

    # ------------------------------------------------------------ for the driver

    async def take(self, wait: float = 0.0) -> list[tuple[str, Item]]:
        """Everything that has come since the last time; wait for something so many seconds."""
        if not self._items and wait > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._came.wait(), wait)
        items, self._items = self._items, []
        self._came.clear()
        return items

    async def give(self, seat: str, pack: str | None) -> None:
        """Give a waiting worker its pack, or let it go."""
        waiting = self._waiting.pop(seat, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(pack)

    async def say(self, seat: str, reply: Reply) -> None:
        """From now on this is what a worker hears."""
        self._said[seat] = reply
        if (news := self._news.get(seat)) is not None:
            news.set()

    async def forget(self, seat: str) -> None:
        """A worker is gone; should it live after all (a broken network), it hears to stop."""
        self._gone.add(seat)
        self._said.pop(seat, None)
        if (news := self._news.pop(seat, None)) is not None:
            news.set()
        await self.give(seat, None)

    # ------------------------------------------------------------

    def _keep(self, seat: str, item: Item) -> None:
        if seat not in self._gone:
            self._items.append((seat, item))
            self._came.set()

    def _reply(self, seat: str) -> Reply:
        return GONE if seat in self._gone else self._said.get(seat, Reply())
