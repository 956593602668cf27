"""The queue of replicates that wait for a worker, divided into packs.

Interrupted packs go first, with the same members, so that their checkpoints fit. Fixed packs keep
their members: those with halving, because a rung compares the members, and those of repeatable
searches. All other replicates are free: they are divided (see `packing`) only when a pack is taken,
so that grids and searches share packs of one structure.

Among fixed and free packs, the one with the most work goes first, counting the work that depends on
it: configurations that a search can propose only afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from modmix.base.messages import Replicate
from modmix.execution.packing import Cost, group

Members = tuple[Replicate, ...]


class PackQueue:
    """Replicates that wait for a worker. True while there are any.

    Args:
        slots: packs that can run at a time.
        max_models: in a pack.
        cost: of a replicate's structure.
    """

    def __init__(self, *, slots: int, max_models: int, cost: Callable[[Replicate], Cost]) -> None:
        self._slots = slots
        self._max_models = max_models
        self._cost = cost
        self._interrupted: deque[Members] = deque()
        self._fixed: list[Members] = []
        self._free: dict[str, Replicate] = {}
        self._packs: list[Members] | None = []  # of the free ones; None: to be divided again
        self._keys: set[str] = set()  # of all replicates in the queue
        self._work_after: dict[str, float] = {}

    def resize(self, slots: int) -> None:
        """From now on so many packs can run at a time."""
        if slots != self._slots:
            self._slots = slots
            self._packs = None

    def put_back(self, pack: Members, *, first: bool = False) -> None:
        """Put an interrupted pack back, before or after the other interrupted ones."""
        self._keys |= {replicate.key for replicate in pack}
        if first:
            self._interrupted.appendleft(pack)
        else:
            self._interrupted.append(pack)

    def add(
        self, replicates: Sequence[Replicate], *, after: float = 0.0, apart: bool = False
    ) -> None:
        """Add replicates that are not in the queue yet.

        Args:
            after: cost of the work that can start only when these are done.
            apart: form fixed packs of these now, one per structure if ``max_models`` allows.
        """
        fresh = [replicate for replicate in replicates if replicate.key not in self._keys]
        if not fresh:
            return
        self._keys |= {replicate.key for replicate in fresh}
        self._work_after.update((replicate.key, after) for replicate in fresh)
        if apart:
            most = self._max_models
            self._fixed += group(fresh, slots=1, max_models=most, cost=self._cost)
        else:
            self._free.update((replicate.key, replicate) for replicate in fresh)
        self._packs = None

    def remove(self, keys: Collection[str]) -> None:
        """Remove replicates; unknown keys are ignored."""
        if not self._keys & set(keys):
            return
        self._keys -= set(keys)
        kept = [tuple(r for r in pack if r.key not in keys) for pack in self._fixed]
        self._fixed = [pack for pack in kept if pack]
        self._free = {key: r for key, r in self._free.items() if key not in keys}
        self._packs = None

    def take(self, busy: Iterable[float] = ()) -> Members | None:
        """Take the next pack, or None. ``busy``: remaining costs of running packs."""
        if self._interrupted:
            chosen = self._interrupted.popleft()
        else:
            packs = [*self._fixed, *self._free_packs(busy)]
            if not packs:
                return None
            best = max(range(len(packs)), key=lambda i: self._priority(packs[i]))
            chosen = packs[best]
            if best < len(self._fixed):
                del self._fixed[best]
            else:
                assert self._packs is not None
                del self._packs[best - len(self._fixed)]
        for replicate in chosen:
            self._keys.discard(replicate.key)
            self._free.pop(replicate.key, None)
            self._work_after.pop(replicate.key, None)
        return chosen

    def count(self, busy: Iterable[float] = ()) -> int:
        """The number of packs."""
        return len(self._interrupted) + len(self._fixed) + len(self._free_packs(busy))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def _free_packs(self, busy: Iterable[float]) -> list[Members]:
        if self._packs is None:
            self._packs = group(
                list(self._free.values()),
                slots=self._slots,
                max_models=self._max_models,
                cost=self._cost,
                others=[self._work(pack) for pack in self._fixed],
                busy=list(busy),
            )
        return self._packs

    def _work(self, pack: Members) -> float:
        return self._cost(pack[0]).of(len(pack))

    def _priority(self, pack: Members) -> float:
        return self._work(pack) + max(self._work_after[replicate.key] for replicate in pack)
