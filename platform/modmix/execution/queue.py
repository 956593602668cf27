"""Models that wait for a worker, and the packs they make.

Three kinds wait. Packs that were out before go first and as they were, so that their checkpoints
fit. Packs that must stay as they are formed: those that halve, because a rung compares what they
hold, and those of searches that are to be repeatable. All the rest is only divided into packs when
one is taken, anew whenever something has come: so grids and searches that ask for models of one
structure share packs, and the division fits what is to be done then (see `grouping`).

Among them, the pack goes first that has the most work in it and behind it: what a search can only
ask for afterwards counts with the pack that it waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from modmix.base.messages import Replicate
from modmix.execution.packing import Cost, group

Members = tuple[Replicate, ...]


class PackQueue:
    """See the module.

    Args:
        slots: packs that can run at a time.
        max_models: in a pack.
        cost: of the packs of a replicate's structure.
    """

    def __init__(self, *, slots: int, max_models: int, cost: Callable[[Replicate], Cost]) -> None:
        self._slots = slots
        self._max_models = max_models
        self._cost = cost
        self._as_they_were: deque[Members] = deque()
        self._formed: list[Members] = []
        self._loose: dict[str, Replicate] = {}
        self._packs: list[Members] | None = []  # of the loose ones; None: to be divided again
        self._keys: set[str] = set()  # of all that wait
        self._after: dict[str, float] = {}

    def hold(self, pack: Members, *, first: bool = False) -> None:
        """Take back a pack as it is, before the others that were taken back or after them."""
        self._keys |= {replicate.key for replicate in pack}
        if first:
            self._as_they_were.appendleft(pack)
        else:
            self._as_they_were.append(pack)

    def add(
        self, replicates: Sequence[Replicate], *, after: float = 0.0, apart: bool = False
    ) -> None:
        """Let models wait; those that do already are left out.

        Args:
            after: the cost of what can only be asked for when these are done.
            apart: form packs of these alone, now: one per structure, as ``max_models`` allows.
        """
        fresh = [replicate for replicate in replicates if replicate.key not in self._keys]
        if not fresh:
            return
        self._keys |= {replicate.key for replicate in fresh}
        self._after.update((replicate.key, after) for replicate in fresh)
        if apart:
            most = self._max_models
            self._formed += group(fresh, slots=1, max_models=most, cost=self._cost)
        else:
            self._loose.update((replicate.key, replicate) for replicate in fresh)
        self._packs = None

    def forget(self, keys: Collection[str]) -> None:
        """Nobody waits for these any more."""
        if not self._keys & set(keys):
            return
        self._keys -= set(keys)
        kept = [tuple(r for r in pack if r.key not in keys) for pack in self._formed]
        self._formed = [pack for pack in kept if pack]
        self._loose = {key: r for key, r in self._loose.items() if key not in keys}
        self._packs = None

    def take(self, busy: Iterable[float] = ()) -> Members | None:
        """The pack that goes first, or None; ``busy``: work that is left in the packs out."""
        if self._as_they_were:
            chosen = self._as_they_were.popleft()
        else:
            packs = [*self._formed, *self._divided(busy)]
            if not packs:
                return None
            best = max(range(len(packs)), key=lambda i: self._priority(packs[i]))  # the first
            chosen = packs[best]
            if best < len(self._formed):
                del self._formed[best]
            else:
                assert self._packs is not None
                del self._packs[best - len(self._formed)]
        for replicate in chosen:
            self._keys.discard(replicate.key)
            self._loose.pop(replicate.key, None)
            self._after.pop(replicate.key, None)
        return chosen

    def count(self, busy: Iterable[float] = ()) -> int:
        """How many packs there are."""
        return len(self._as_they_were) + len(self._formed) + len(self._divided(busy))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def _divided(self, busy: Iterable[float]) -> list[Members]:
        if self._packs is None:
            self._packs = group(
                list(self._loose.values()),
                slots=self._slots,
                max_models=self._max_models,
                cost=self._cost,
                others=[self._work(pack) for pack in self._formed],
                busy=list(busy),
            )
        return self._packs

    def _work(self, pack: Members) -> float:
        return self._cost(pack[0]).of(len(pack))

    def _priority(self, pack: Members) -> float:
        return self._work(pack) + max(self._after[replicate.key] for replicate in pack)
