"""Divides replicates into packs: few and large ones that keep all workers busy. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from modmix.base.messages import Replicate
from modmix.base.settings import compares


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a pack of n models: ``fixed`` + n · ``each``, in any unit; only ratios matter.

    ``fixed`` is shared by stacked models: the starting of operations. It is 0 for models that are
    trained one after another (``stack: never``), whose packs may be as small as is useful.
    ``each`` is above 0 for every model, including one that fails at once.
    """

    fixed: float
    each: float

    def __post_init__(self) -> None:
        assert self.fixed >= 0, self
        assert self.each > 0, self

    def of(self, models: int) -> float:
        return self.fixed + self.each * models


TOLERANCE = 0.02  # packs are made smaller only for a larger relative gain in time


def group(
    replicates: Sequence[Replicate],
    *,
    slots: int,
    max_models: int,
    cost: Callable[[Replicate], Cost] = lambda _: Cost(fixed=0.0, each=1.0),
    others: Sequence[float] = (),
    busy: Sequence[float] = (),
) -> list[tuple[Replicate, ...]]:
    """Divide replicates into packs: one structure each, at most ``max_models`` models.

    Structures are cut into equal parts, as long as that shortens the makespan by more than
    `TOLERANCE` and the fixed cost stays below half of a pack's cost. The makespan assumes that each
    free slot takes the most expensive pack left. The most expensive pack comes first, and
    replicates of a configuration stay together.

    Structures with halving or `pbt` are cut only into as few packs of whole configurations as
    ``max_models`` allows, because the configurations of a pack are compared. (A configuration with
    more replicates than that becomes a pack of its own.)

    Args:
        slots: packs that can run at a time.
        cost: of a replicate's structure.
        others: costs of other waiting packs.
        busy: remaining costs of running packs.
    """
    structures: dict[str, list[Replicate]] = {}
    for replicate in replicates:
        structures.setdefault(replicate.structure, []).append(replicate)
    costs = {name: cost(members[0]) for name, members in structures.items()}
    whole = [
        (pack, costs[name].of(len(pack)))
        for name, members in structures.items()
        if compares(members[0].training)
        for pack in _whole_configurations(members, max_models)
    ]
    free = {n: m for n, m in structures.items() if not compares(m[0].training)}
    parts = _Division(
        [(costs[name], len(members)) for name, members in free.items()],
        slots=slots,
        max_models=max_models,
        others=[*others, *(spent for _, spent in whole)],
        busy=busy,
    ).best()
    cut = [
        (pack, costs[name].of(len(pack)))
        for (name, members), count in zip(free.items(), parts, strict=True)
        for pack in _cut(members, count)
    ]
    return [pack for pack, _ in sorted([*whole, *cut], key=lambda item: -item[1])]


def makespan(costs: Iterable[float], slots: int, busy: Sequence[float] = ()) -> float:
    """When the last slot ends, if each free slot takes the most expensive pack left.

    Args:
        busy: remaining costs of running packs.
    """
    ends = sorted(busy)[:slots]
    ends += [0.0] * (slots - len(ends))
    heapq.heapify(ends)
    for spent in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + spent)
    return max(ends)


class _Division:
    """Finds how many equal packs each structure is cut into."""

    def __init__(
        self,
        structures: Sequence[tuple[Cost, int]],  # and how many models
        *,
        slots: int,
        max_models: int,
        others: Sequence[float],  # packs that are not cut
        busy: Sequence[float],
    ) -> None:
        self._structures = structures
        self._slots = slots
        self._others = others
        self._busy = busy
        self._fewest = [math.ceil(models / max_models) for _, models in structures]
        self._most = [
            max(fewest, math.floor(models / max(1.0, cost.fixed / cost.each)))
            for (cost, models), fewest in zip(structures, self._fewest, strict=True)
        ]

    def best(self) -> tuple[int, ...]:
        """The fewest packs whose makespan is within `TOLERANCE` of the best.

        First finds a common limit on the cost of a pack, then cuts single structures further while
        that helps.
        """
        ends = {parts: self._end(parts) for parts in {self._within(x) for x in self._limits()}}
        good = min(ends.values()) / (1 - TOLERANCE)
        _, end, parts = min((sum(p), end, p) for p, end in ends.items() if end <= good)
        while True:
            finer = [
                (*parts[:i], parts[i] + 1, *parts[i + 1 :])
                for i in range(len(parts))
                if parts[i] < self._most[i]
            ]
            sooner, next_ = min(((self._end(p), p) for p in finer), default=(math.inf, parts))
            if sooner > (1 - TOLERANCE) * end:
                return parts
            end, parts = sooner, next_

    def _limits(self) -> set[float]:
        """Candidate limits: the cost of each structure's largest pack for every number of parts.

        Stops at packs far smaller than a slot's share of the work, which cannot help.
        """
        work = sum(cost.of(models) for cost, models in self._structures)
        work += sum(self._others) + sum(self._busy)
        limits = {math.inf}
        for i, (cost, models) in enumerate(self._structures):
            for parts in range(self._fewest[i], self._most[i] + 1):
                limit = cost.of(math.ceil(models / parts))
                limits.add(limit)
                if 4 * limit < work / self._slots:
                    break
        return limits

    def _within(self, limit: float) -> tuple[int, ...]:
        """The fewest parts of each structure that cost at most the limit, if possible."""
        found = []
        for i, (cost, models) in enumerate(self._structures):
            parts = self._fewest[i]
            if cost.of(math.ceil(models / parts)) > limit:
                most = max(1, math.floor((limit - cost.fixed) / cost.each + 1e-9))
                parts = min(self._most[i], max(parts, math.ceil(models / most)))
            found.append(parts)
        return tuple(found)

    def _end(self, parts: Sequence[int]) -> float:
        packs = [
            cost.of(size)
            for (cost, models), count in zip(self._structures, parts, strict=True)
            for size in _sizes(models, count)
        ]
        return makespan([*packs, *self._others], self._slots, self._busy)


def _sizes(models: int, parts: int) -> list[int]:
    bounds = [round(i * models / parts) for i in range(parts + 1)]
    return [b - a for a, b in pairwise(bounds)]


def _cut(members: Sequence[Replicate], parts: int) -> list[tuple[Replicate, ...]]:
    """Equal parts, in order."""
    ends = list(accumulate(_sizes(len(members), parts)))
    return [tuple(members[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def _whole_configurations(
    members: Sequence[Replicate], max_models: int
) -> list[tuple[Replicate, ...]]:
    """The fewest equal packs of whole configurations with at most ``max_models`` models."""
    configurations: dict[str, list[Replicate]] = {}
    for replicate in members:
        configurations.setdefault(replicate.configuration, []).append(replicate)
    groups = list(configurations.values())
    for parts in range(math.ceil(len(members) / max_models), len(groups) + 1):
        ends = list(accumulate(_sizes(len(groups), parts)))
        packs = [
            tuple(r for configuration in groups[a:b] for r in configuration)
            for a, b in zip([0, *ends], ends, strict=False)
        ]
        if all(len(pack) <= max_models for pack in packs):
            return packs
    return [tuple(configuration) for configuration in groups]
