"""What a running study knows of its points and replicates; the ledger holds the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from modmix.ledger import ENDED, REPLICATE_STATES, Entry, ReplicateRecord
from modmix.packing import Ended, Finished, Replicate, TaskRef
from modmix.plan import Point


@dataclass
class PointProgress:
    """One point: what it waits for and what has been measured."""

    point: Point
    waiting: set[str]  # replicate keys without a result
    # The objectives by replicate: of a finished one its result, of a pruned one the last values.
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    failed: bool = False  # a replicate did, or diverged
    pruned: int | None = None  # the epoch at which halving dropped it

    def means(self, objectives: int) -> tuple[float, ...] | None:
        """The objectives' means over replicates, or None when they cannot be told."""
        if self.failed or not self.values:
            return None
        means = tuple(fmean(v[i] for v in self.values.values()) for i in range(objectives))
        return means if all(math.isfinite(m) for m in means) else None


class Book:
    """Points and replicates of one study by key.

    Args:
        objectives: names of the metrics that select, as "val/error".
        higher_is_better: of the first objective.
        fingerprint: of the task's data as the study file gives it.
    """

    def __init__(
        self, objectives: Sequence[str], *, higher_is_better: bool, fingerprint: str
    ) -> None:
        self._fingerprint = fingerprint
        self._objectives = tuple(objectives)
        self._sign = -1 if higher_is_better else 1
        self.points: dict[str, PointProgress] = {}
        self.replicates: dict[str, Replicate] = {}
        self.tasks: dict[str, TaskRef] = {}  # by structure
        self.states: dict[str, str] = {}  # by replicate
        self.monitored: dict[str, float] = {}  # best value of what early stopping watches
        self.best: dict[str, tuple[float, Mapping[str, object]]] = {}  # by method
        self.reasons: list[str] = []  # why replicates failed

    def add(self, points: Sequence[Point]) -> None:
        """Take in points that are not there yet."""
        for point in points:
            if point.key in self.points:
                continue
            waiting = {replicate.key for replicate in point.replicates}
            self.points[point.key] = PointProgress(point=point, waiting=waiting)
            for replicate in point.replicates:
                self.replicates[replicate.key] = replicate
                self.states.setdefault(replicate.key, "pending")
                self.tasks[replicate.structure] = point.task

    def take_result(self, key: str, end: Finished | ReplicateRecord) -> None:
        """A replicate has ended."""
        state, metrics = end.state, end.metrics
        self.states[key] = state
        monitor = self.replicates[key].training["monitor"]
        self.monitored[key] = metrics.get(monitor, math.nan)
        owner = self.points[self.replicates[key].point]
        owner.waiting.discard(key)
        if state == "failed":
            owner.failed = True
            self.reasons.append(end.reason)
        else:
            owner.values[key] = tuple(metrics.get(name, math.nan) for name in self._objectives)
        if state == "pruned":
            owner.pruned = max(end.epochs, owner.pruned or 0)
        if not owner.waiting:
            self._compare(owner)

    def _compare(self, owner: PointProgress) -> None:
        means = owner.means(len(self._objectives))
        if means is None or owner.pruned is not None:
            return
        if owner.point.task.fingerprint != self._fingerprint:
            return  # what was trained on other data is no better or worse
        known = self.best.get(owner.point.method)
        if known is None or self._sign * means[0] < self._sign * known[0]:
            self.best[owner.point.method] = (means[0], owner.point.params)

    def means(self, point: str) -> tuple[float, ...] | None:
        """The objectives' means of a point, or None when they cannot be told.

        Of a pruned point those of its last evaluation.
        """
        return self.points[point].means(len(self._objectives))

    def pruned_at(self, point: str) -> int | None:
        """The epoch at which halving dropped a point, or None."""
        return self.points[point].pruned

    def replicates_of(self, point: str) -> Sequence[Replicate]:
        return self.points[point].point.replicates

    def has_results(self, point: str, beside: Sequence[Replicate]) -> bool:
        """Whether replicates of a point are done that are none of these."""
        these = {replicate.key for replicate in beside}
        mine = [r.key for r in self.replicates_of(point) if r.key not in these]
        return any(self.states[key] == "done" for key in mine)

    def is_waiting(self, point: str) -> bool:
        """Whether a point still lacks a result."""
        return bool(self.points[point].waiting)

    def state_of(self, point: str) -> str:
        return point_state([self.states[r.key] for r in self.points[point].point.replicates])

    def keys_of(self, entries: Sequence[Entry]) -> list[str]:
        """The replicates of these entries' points, each once."""
        points = dict.fromkeys(entry.point for entry in entries)
        return [r.key for p in points for r in self.points[p].point.replicates]

    def count_points(self) -> dict[str, int]:
        counts = {"done": 0, "pruned": 0, "failed": 0, "running": 0, "pending": 0}
        for key in self.points:
            counts[self.state_of(key)] += 1
        return counts

    def count_replicates(self) -> dict[str, int]:
        counts = dict.fromkeys(REPLICATE_STATES, 0)
        for state in self.states.values():
            counts[state] += 1
        return counts

    def ended_of(self, members: Sequence[Replicate]) -> dict[str, Ended]:
        """How those members of a pack ended that have a result."""
        found = {}
        for r in members:
            if self.states[r.key] in ENDED:
                best = self.monitored[r.key]
                value = None if math.isnan(best) else best
                found[r.key] = Ended(state=self.states[r.key], best=value)
        return found

    def left(self) -> int:
        """Replicates without a result."""
        return sum(state not in ENDED for state in self.states.values())


def point_state(replicates: Sequence[str]) -> str:
    """A point's state from those of its replicates: done, pruned, failed, running or pending."""
    states = set(replicates)
    for state in ("failed", "pruned"):
        if state in states and states <= set(ENDED):
            return state
    if states == {"done"}:
        return "done"
    return "running" if "running" in states or "done" in states else "pending"
