"""Configurations and replicates of a running study, in memory; the ledger is authoritative."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from modmix.base import ties
from modmix.base.messages import Ended, Finished, Progress, Replicate, TaskRef
from modmix.ledger.records import ENDED, REPLICATE_STATES, Entry, ReplicateRecord
from modmix.study.configurations import Configuration


@dataclass(frozen=True, kw_only=True)
class Status:
    """Counts and best configurations of a running study, for displays."""

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
    """One configuration: its replicates, and their results so far."""

    configuration: Configuration
    missing: set[str] = field(default_factory=set)  # keys of replicates without a result
    # Objectives by replicate: final values, or the last ones if it was pruned.
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    failed: bool = False  # a replicate failed or diverged
    pruned: int | None = None  # the epoch at which halving dropped it
    seconds: float = 0.0  # device time that this study spent on it

    def means(self, objectives: int) -> tuple[float, ...] | None:
        """Means of the objectives over replicates; None if failed or not finite."""
        if self.failed or not self.values:
            return None
        means = tuple(fmean(v[i] for v in self.values.values()) for i in range(objectives))
        return means if all(math.isfinite(m) for m in means) else None


class RunState:
    """Configurations and replicates of one study, by key.

    Args:
        objectives: metrics that select, such as "val/error".
        higher_is_better: for the first objective.
        fingerprints: of the data with the study file's task options.
    """

    def __init__(
        self, objectives: Sequence[str], *, higher_is_better: bool, fingerprints: Collection[str]
    ) -> None:
        self._fingerprints = fingerprints
        self._objectives = tuple(objectives)
        self._higher = higher_is_better
        self.configurations: dict[str, ConfigurationProgress] = {}
        self.replicates: dict[str, Replicate] = {}
        self.tasks: dict[str, TaskRef] = {}  # by structure
        self.states: dict[str, str] = {}  # by replicate
        self.monitored: dict[str, float] = {}  # best value of the monitored metric
        self.best: dict[
            str, tuple[float, Mapping[str, object]]
        ] = {}  # by method, and task of several
        self._seeds: dict[str, int] = {}  # of the best configurations: seeds in their means
        self.reasons: list[str] = []  # why replicates failed
        self.seconds = 0.0  # device time that this study spent on all configurations

    def add(self, configurations: Sequence[Configuration]) -> None:
        """Add new configurations, and new replicates of known ones."""
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
            known.missing |= {replicate.key for replicate in fresh}
            for replicate in fresh:
                self.replicates[replicate.key] = replicate
                self.states.setdefault(replicate.key, "pending")
                self.tasks[replicate.structure] = configuration.task

    def drop_unneeded(self) -> set[str]:
        """Remove replicates of pruned configurations that were never started; return their keys."""
        found: set[str] = set()
        for known in self.configurations.values():
            if known.pruned is None:
                continue
            spare = {key for key in known.missing if self.states[key] == "pending"}
            found |= spare
            known.missing -= spare
            rest = tuple(r for r in known.configuration.replicates if r.key not in spare)
            known.configuration = replace(known.configuration, replicates=rest)
            for key in spare:
                del self.replicates[key], self.states[key]
        return found

    def record_result(self, key: str, end: Finished | ReplicateRecord) -> None:
        """Take in the result of a replicate."""
        state, metrics = end.state, end.metrics
        self.states[key] = state
        monitor = self.replicates[key].training["monitor"]
        self.monitored[key] = metrics.get(monitor, math.nan)
        owner = self.configurations[self.replicates[key].configuration]
        if key in owner.missing and (isinstance(end, Finished) or end.origin == "trained"):
            owner.seconds += end.seconds
            self.seconds += end.seconds
        owner.missing.discard(key)
        if state == "failed":
            owner.failed = True
            self.reasons.append(end.reason)
        else:
            owner.values[key] = tuple(metrics.get(name, math.nan) for name in self._objectives)
        if state == "pruned":
            owner.pruned = max(end.epochs, owner.pruned or 0)
        if not owner.missing:
            self._compare(owner)

    def _compare(self, owner: ConfigurationProgress) -> None:
        means = owner.means(len(self._objectives))
        if means is None or owner.pruned is not None:
            return
        if owner.configuration.task.fingerprint not in self._fingerprints:
            return  # trained on other data: not comparable
        # More seeds first: means over few seeds have a larger variance.
        one, seeds = owner.configuration, len(owner.values)
        method = f"{one.method} ({one.task_name})" if one.task_name else one.method
        most = self._seeds.get(method, 0)
        best = self.best[method][0] if most else math.nan
        is_better = ties.is_better(means[0], best, higher_is_better=self._higher)
        if seeds > most or (seeds == most and is_better):
            self._seeds[method] = seeds
            self.best[method] = (means[0], owner.configuration.params)

    def means(self, configuration: str) -> tuple[float, ...] | None:
        """Means of a configuration's objectives, or None; of its last evaluation if pruned."""
        return self.configurations[configuration].means(len(self._objectives))

    def seconds_of(self, configuration: str) -> float:
        """Device time that this study spent on a configuration; reused results cost nothing."""
        return self.configurations[configuration].seconds

    def pruned_at(self, configuration: str) -> int | None:
        """The epoch at which halving dropped a configuration, or None."""
        return self.configurations[configuration].pruned

    def replicates_of(self, configuration: str) -> Sequence[Replicate]:
        """The replicates a configuration has been given so far."""
        return self.configurations[configuration].configuration.replicates

    def mean_of_first(self, configuration: str, seeds: int) -> float | None:
        """Mean of the first objective over the first ``seeds`` seeds; None if one of these failed
        or was pruned. Later seeds, trained after a promotion, have no influence.
        """
        known = self.configurations[configuration]
        first = [r.key for r in known.configuration.replicates[:seeds]]
        if any(self.states[key] in ("failed", "pruned") for key in first):
            return None
        values = [known.values[key][0] for key in first if key in known.values]
        found = fmean(values) if values else math.nan
        return found if math.isfinite(found) else None

    def awaits_first_seeds(self, configuration: str, seeds: int) -> bool:
        """Whether one of a configuration's first seeds has no result yet."""
        known = self.configurations[configuration]
        return any(r.key in known.missing for r in known.configuration.replicates[:seeds])

    def has_results(self, configuration: str, beside: Sequence[Replicate]) -> bool:
        """Whether a configuration has finished replicates other than those in ``beside``."""
        these = {replicate.key for replicate in beside}
        mine = [r.key for r in self.replicates_of(configuration) if r.key not in these]
        return any(self.states[key] == "done" for key in mine)

    def is_incomplete(self, configuration: str) -> bool:
        """Whether a replicate of a configuration has no result yet."""
        return bool(self.configurations[configuration].missing)

    def state_of(self, configuration: str) -> str:
        return configuration_state(
            [
                self.states[r.key]
                for r in self.configurations[configuration].configuration.replicates
            ]
        )

    def keys_of(self, entries: Sequence[Entry]) -> list[str]:
        """Keys of all replicates of these entries' configurations, each once."""
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
        """The outcomes of those members of a pack that have a result."""
        found = {}
        for r in members:
            if self.states[r.key] in ENDED:
                best = self.monitored[r.key]
                value = None if math.isnan(best) else best
                found[r.key] = Ended(state=self.states[r.key], best=value)
        return found

    def remaining(self) -> int:
        """The number of replicates without a result."""
        return sum(state not in ENDED for state in self.states.values())


def configuration_state(replicates: Sequence[str]) -> str:
    """A configuration's state (done, pruned, failed, running, pending) from its replicates'."""
    states = set(replicates)
    for state in ("failed", "pruned"):
        if state in states and states <= set(ENDED):
            return state
    if states == {"done"}:
        return "done"
    return "running" if "running" in states or "done" in states else "pending"
