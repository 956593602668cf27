"""What a running study knows of its configurations and replicates; the ledger holds the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from modmix.base.messages import Ended, Finished, Progress, Replicate, TaskRef
from modmix.ledger.records import ENDED, REPLICATE_STATES, Entry, ReplicateRecord
from modmix.study.plan import Configuration


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a study stands: what displays and `modmix status` show."""

    configurations: Mapping[str, int]
    replicates: Mapping[str, int]
    trained: int
    reused: int
    best: Mapping[str, tuple[float, Mapping[str, object]]]  # method -> mean objective, parameters
    running: Mapping[str, Progress | None]
    failed: Sequence[str]
    seconds: float


@dataclass
class ConfigurationProgress:
    """One configuration: the replicates it is to have, what it waits for, what has been
    measured.
    """

    configuration: Configuration
    waiting: set[str] = field(default_factory=set)  # replicate keys without a result
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


class RunState:
    """Configurations and replicates of one study by key.

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
        self.configurations: dict[str, ConfigurationProgress] = {}
        self.replicates: dict[str, Replicate] = {}
        self.tasks: dict[str, TaskRef] = {}  # by structure
        self.states: dict[str, str] = {}  # by replicate
        self.monitored: dict[str, float] = {}  # best value of what early stopping watches
        self.best: dict[str, tuple[float, Mapping[str, object]]] = {}  # by method
        self._ranks: dict[str, tuple[int, float]] = {}  # of the best ones
        self.reasons: list[str] = []  # why replicates failed

    def add(self, configurations: Sequence[Configuration]) -> None:
        """Take in configurations that are not there yet, and replicates that known ones lack."""
        for configuration in configurations:
            known = self.configurations.setdefault(
                configuration.key,
                ConfigurationProgress(configuration=replace(configuration, replicates=())),
            )
            there = {replicate.key for replicate in known.configuration.replicates}
            fresh = [r for r in configuration.replicates if r.key not in there]
            if not fresh:
                continue
            known.configuration = replace(
                known.configuration, replicates=(*known.configuration.replicates, *fresh)
            )
            known.waiting |= {replicate.key for replicate in fresh}
            for replicate in fresh:
                self.replicates[replicate.key] = replicate
                self.states.setdefault(replicate.key, "pending")
                self.tasks[replicate.structure] = configuration.task

    def leave_out_spare(self) -> set[str]:
        """Forget replicates of pruned configurations that nobody has begun; return which.

        (Seeds that were added to the study since, or that another study had no use for.)
        """
        found: set[str] = set()
        for known in self.configurations.values():
            if known.pruned is None:
                continue
            spare = {key for key in known.waiting if self.states[key] == "pending"}
            found |= spare
            known.waiting -= spare
            rest = tuple(r for r in known.configuration.replicates if r.key not in spare)
            known.configuration = replace(known.configuration, replicates=rest)
            for key in spare:
                del self.replicates[key], self.states[key]
        return found

    def take_result(self, key: str, end: Finished | ReplicateRecord) -> None:
        """A replicate has ended."""
        state, metrics = end.state, end.metrics
        self.states[key] = state
        monitor = self.replicates[key].training["monitor"]
        self.monitored[key] = metrics.get(monitor, math.nan)
        owner = self.configurations[self.replicates[key].configuration]
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

    def _compare(self, owner: ConfigurationProgress) -> None:
        means = owner.means(len(self._objectives))
        if means is None or owner.pruned is not None:
            return
        if owner.configuration.task.fingerprint != self._fingerprint:
            return  # what was trained on other data is no better or worse
        # A mean over few seeds is lucky more often than one over all of them.
        rank = (-len(owner.values), self._sign * means[0])
        method = owner.configuration.method
        if method not in self._ranks or rank < self._ranks[method]:
            self._ranks[method] = rank
            self.best[method] = (means[0], owner.configuration.params)

    def means(self, configuration: str) -> tuple[float, ...] | None:
        """The objectives' means of a configuration, or None when they cannot be told.

        Of a pruned configuration those of its last evaluation.
        """
        return self.configurations[configuration].means(len(self._objectives))

    def pruned_at(self, configuration: str) -> int | None:
        """The epoch at which halving dropped a configuration, or None."""
        return self.configurations[configuration].pruned

    def replicates_of(self, configuration: str) -> Sequence[Replicate]:
        """The replicates that a configuration is to have, by what is known so far."""
        return self.configurations[configuration].configuration.replicates

    def mean_of_first(self, configuration: str, seeds: int) -> float | None:
        """The first objective's mean over a configuration's first seeds; None where it has none.

        A configuration that failed or was pruned has none.
        """
        known = self.configurations[configuration]
        first = [r.key for r in known.configuration.replicates[:seeds]]
        if known.failed or known.pruned is not None:
            return None
        values = [known.values[key][0] for key in first if key in known.values]
        found = fmean(values) if values else math.nan
        return found if math.isfinite(found) else None

    def lacks_first(self, configuration: str, seeds: int) -> bool:
        """Whether one of a configuration's first seeds is without a result."""
        known = self.configurations[configuration]
        return any(r.key in known.waiting for r in known.configuration.replicates[:seeds])

    def has_results(self, configuration: str, beside: Sequence[Replicate]) -> bool:
        """Whether replicates of a configuration are done that are none of these."""
        these = {replicate.key for replicate in beside}
        mine = [r.key for r in self.replicates_of(configuration) if r.key not in these]
        return any(self.states[key] == "done" for key in mine)

    def is_waiting(self, configuration: str) -> bool:
        """Whether a configuration still lacks a result."""
        return bool(self.configurations[configuration].waiting)

    def state_of(self, configuration: str) -> str:
        return configuration_state(
            [
                self.states[r.key]
                for r in self.configurations[configuration].configuration.replicates
            ]
        )

    def keys_of(self, entries: Sequence[Entry]) -> list[str]:
        """The replicates of these entries' configurations, each once."""
        configurations = dict.fromkeys(entry.configuration for entry in entries)
        return [
            r.key for p in configurations for r in self.configurations[p].configuration.replicates
        ]

    def count_configurations(self) -> dict[str, int]:
        counts = {"done": 0, "pruned": 0, "failed": 0, "running": 0, "pending": 0}
        for key in self.configurations:
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


def configuration_state(replicates: Sequence[str]) -> str:
    """A configuration's state from those of its replicates: done, pruned, failed, running or
    pending.
    """
    states = set(replicates)
    for state in ("failed", "pruned"):
        if state in states and states <= set(ENDED):
            return state
    if states == {"done"}:
        return "done"
    return "running" if "running" in states or "done" in states else "pending"
