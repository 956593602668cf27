"""Parts that train the best configurations of other parts with seeds of their own (`best_of`).

What validation has chosen looks better there than it is: the best of many means is partly luck.
Trained again with seeds that the choice has not seen, it is an honest estimate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from modmix.base import ties
from modmix.ledger.records import Entry
from modmix.search.run_state import RunState
from modmix.search.searches import Searches
from modmix.study.configurations import Configuration
from modmix.study.parts import PartPlan
from modmix.study.tasks_plan import StudyPlan


class Confirmations:
    """What parts with ``best_of`` train, once the parts that they refer to are over."""

    def __init__(self, plan: StudyPlan, state: RunState, searches: Searches) -> None:
        self._plan = plan
        self._state = state
        self._searches = searches
        self._waiting: list[tuple[PartPlan, str]] = []  # parts, and methods

    def begin(self, known: Collection[Entry]) -> None:
        """Wait for all that has not been chosen in an earlier run, given the entries of that."""
        present = {(entry.part, entry.method) for entry in known}
        self._waiting = [
            (part, method)
            for part in self._plan.parts
            if part.best_of is not None
            for method in part.domains
            if (part.name, method) not in present
        ]

    def due(
        self, entries: Mapping[tuple[str, str], Sequence[Entry]]
    ) -> list[tuple[Configuration, Entry]]:
        """What can be chosen now, of the study's ``entries`` by part and method; each once."""
        found: list[tuple[Configuration, Entry]] = []
        waiting, self._waiting = self._waiting, []
        for part, method in waiting:
            source = next(one for one in self._plan.parts if one.name == part.best_of)
            candidates = entries.get((source.name, method), [])
            if not self._searches.is_over(source.name) or not is_trained(candidates, self._state):
                self._waiting.append((part, method))
                continue
            best = best_entry(
                candidates,
                self._state,
                seeds=len(self._plan.seeds_of(source.name)),
                higher_is_better=self._plan.directions[0],
            )
            if best is None:
                continue  # none of its configurations was trained to the end
            chosen = best.proposal or source.assignments(method)[best.number]
            configuration = self._plan.configuration(method, chosen, part.name)
            entry = Entry(
                part=part.name,
                method=method,
                number=0,
                configuration=configuration.key,
                proposal=dict(chosen),
            )
            found.append((configuration, entry))
        return found

    @property
    def configurations_to_come(self) -> int:
        """How many have not been chosen yet."""
        return len(self._waiting)

    @property
    def replicates_to_come(self) -> int:
        """How many replicates these will have."""
        return sum(len(self._plan.seeds_of(part.name)) for part, _ in self._waiting)


def best_entry(
    entries: Sequence[Entry], state: RunState, *, seeds: int, higher_is_better: bool
) -> Entry | None:
    """The entry of the best mean of the first objective; the first of ties.

    Only configurations count that are done with all their seeds (not those that halving dropped or
    that were not promoted).

    Args:
        entries: of one part and method.
        seeds: how many a whole configuration has.
    """
    best: Entry | None = None
    value = math.nan
    for entry in sorted(entries, key=lambda entry: entry.number):
        key = entry.configuration
        if state.state_of(key) != "done" or len(state.replicates_of(key)) < seeds:
            continue
        means = state.means(key)
        if means is None or not math.isfinite(means[0]):
            continue
        if best is None or ties.is_better(means[0], value, higher_is_better=higher_is_better):
            best, value = entry, means[0]
    return best


def is_trained(entries: Collection[Entry], state: RunState) -> bool:
    """Whether all of these entries' configurations have ended."""
    return not any(state.is_incomplete(entry.configuration) for entry in entries)
