"""The searches of a running study: budgets, batches, staged seeds, asking and telling."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modmix.base import ties
from modmix.base.messages import Replicate
from modmix.base.space import domain_to_json
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry
from modmix.search.limits import has_room, seconds_for
from modmix.search.proposer import Proposer
from modmix.search.run_state import RunState
from modmix.search.warm_start import starts
from modmix.study.configurations import Configuration
from modmix.study.domains import perturbable
from modmix.study.parts import PartPlan
from modmix.study.tasks_plan import StudyPlan
from modmix.training.halving import promoted, share


@dataclass
class Search:
    """One method's search in one part."""

    part: PartPlan
    method: str
    proposer: Proposer
    entries: dict[int, Entry]
    best: float | None = None
    seconds: float = 0.0  # device time of its configurations, in all runs of the study
    staged: set[int] = field(default_factory=set)  # batches whose best have been promoted

    @property
    def total(self) -> int:
        """How many configurations it proposes in all; a grid sampler's space may have fewer."""
        assert self.part.search is not None
        most, size = self.part.search.configurations, self.proposer.size
        return most if size is None else min(most, size)

    @property
    def is_repeatable(self) -> bool:
        """Whether its results must not depend on what else the study trains.

        (The same model may differ in the last digits in another pack.)
        """
        return self.part.search is not None and self.part.search.parallel == 1

    def batches(self) -> dict[int, list[Entry]]:
        """All entries by batch."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries.values():
            found.setdefault(entry.batch, []).append(entry)
        return found

    def pending_batches(self) -> dict[int, list[Entry]]:
        """Batches with entries that have not been told yet."""
        found = self.batches().items()
        return {n: batch for n, batch in found if any(e.state == "pending" for e in batch)}


class Searches:
    """All searches of a study, rebuilt from the entries in the ledger."""

    def __init__(self, plan: StudyPlan, ledger: Ledger, state: RunState, *, slots: int) -> None:
        self._plan = plan
        self._ledger = ledger
        self._state = state
        self._slots = slots
        # Of all earlier runs: a study that used up its budget proposes nothing when run again.
        self._spent_before = ledger.study(plan.name).wall_seconds
        self._began = time.monotonic()
        self._all: list[Search] = []
        self._counted_at = 0.0  # device seconds of the study when those of searches were counted

    def resize(self, slots: int) -> None:
        """From now on so many packs can run at a time."""
        self._slots = slots

    def rebuild(self, known: Sequence[Entry]) -> None:
        for part in self._plan.parts:
            if part.search is None:
                continue
            for method, domains in part.domains.items():
                proposer = Proposer(
                    domains,
                    sampler=part.search.sampler,
                    seed=part.search.seed,
                    startup=part.search.startup,
                    starts=starts(self._plan, part, method, self._ledger),
                    label=f"{part.name}/{method}",
                    directions=self._plan.directions,
                )
                mine = [e for e in known if (e.part, e.method) == (part.name, method)]
                proposer.rebuild(mine)
                search = Search(part, method, proposer, {e.number: e for e in mine})
                for entry in mine:
                    self._improve(search, entry)
                self._all.append(search)

    def domains_of(self, replicate: Replicate) -> dict[str, Any]:
        """With `pbt`, the domains of what it may perturb, as JSON values; {} for others."""
        if not replicate.training.get("pbt"):
            return {}
        part, method = next(
            (search.part, search.method)
            for search in self._all
            if any(e.configuration == replicate.configuration for e in search.entries.values())
        )
        found = perturbable(replicate.method, part.domains[method])
        return {name: domain_to_json(domain) for name, domain in found.items()}

    def pending_batches(self) -> list[tuple[Search, list[Entry]]]:
        """All batches that have not been told yet."""
        return [
            (search, batch) for search in self._all for batch in search.pending_batches().values()
        ]

    def queued_after(self, search: Search) -> float:
        """How many configurations a search will propose after each of its pending batches."""
        return self._missing(search) / max(1, len(search.pending_batches()))

    # ------------------------------------------------------------ asking

    def wants_more(self) -> bool:
        """Whether a search would propose configurations now.

        One with all its batches pending would not, and never will if one of them was abandoned.
        """
        return any(self._missing(search) > 0 and self._has_room(search) for search in self._all)

    def missing(self) -> int:
        """How many configurations may still be proposed."""
        return sum(self._missing(search) for search in self._all)

    def replicates_to_come(self) -> int:
        """How many replicates further proposals and promotions will add."""
        staged = self._plan.spec.replicates
        count = 0
        for search in self._all:
            assert search.part.search is not None
            seeds = len(self._plan.seeds_of(search.part.name))
            if staged is None:
                count += seeds * self._missing(search)
                continue
            missing, size = self._missing(search), search.part.search.batch
            count += staged.start * missing
            batches = [size] * (missing // size) + [missing % size]
            batches += [
                len(b) for n, b in search.pending_batches().items() if n not in search.staged
            ]
            count += sum((seeds - staged.start) * share(staged.keep, b) for b in batches if b)
        return count

    def _missing(self, search: Search) -> int:
        missing = max(0, search.total - len(search.entries))
        return 0 if missing == 0 or self._spent(search) else missing

    def _spent(self, search: Search) -> bool:
        """Whether this search has used up its share of the budget, or reached its target."""
        budget = self._plan.spec.budget
        if budget.wall_minutes is not None or budget.device_hours is not None:
            wall = self._spent_before + time.monotonic() - self._began
            share = seconds_for(budget, searches=len(self._all), slots=self._slots, wall=wall)
            self._count_seconds()
            if search.seconds >= share:
                return True
        if budget.target is None or search.best is None:
            return False
        higher = self._plan.directions[0]
        return not ties.is_better(budget.target, search.best, higher_is_better=higher)

    def _count_seconds(self) -> None:
        """Add up the device time of each search, if there are new results."""
        if self._counted_at == self._state.seconds:
            return
        self._counted_at = self._state.seconds
        for search in self._all:
            configurations = {entry.configuration for entry in search.entries.values()}
            search.seconds = sum(map(self._state.seconds_of, configurations))

    def ask(self) -> list[tuple[Search, list[Configuration], list[Entry]]]:
        """Propose batches until every search has as many pending as allowed."""
        proposed = []
        for search in self._all:
            assert search.part.search is not None
            while self._has_room(search):
                count = self._next(search)
                if count == 0:
                    break
                proposed.append((search, *self._ask(search, count)))
        return proposed

    def _has_room(self, search: Search) -> bool:
        """Whether a search may have another pending batch."""
        assert search.part.search is not None
        batches = search.pending_batches()
        return has_room(
            search.part.search,
            count=self._next(search),
            proposed=len(search.entries),
            pending=sum(len(batch) for batch in batches.values()),
            batches=len(batches),
            # By all searches, ended ones included: proposals must not depend on which ends first.
            slots=self._slots / len(self._all),
        )

    def _next(self, search: Search) -> int:
        """The size of a search's next batch; 0 if it is over."""
        assert search.part.search is not None
        return min(self._missing(search), search.part.search.batch)

    def _ask(self, search: Search, count: int) -> tuple[list[Configuration], list[Entry]]:
        proposals = search.proposer.ask(count)
        configurations = [
            self._plan.first(self._plan.configuration(search.method, p.values, search.part.name))
            for p in proposals
        ]
        entries = [
            Entry(
                part=search.part.name,
                method=search.method,
                number=proposal.number,
                configuration=configuration.key,
                batch=proposal.batch,
                proposal=proposal.values,
            )
            for proposal, configuration in zip(proposals, configurations, strict=True)
        ]
        search.entries.update({e.number: e for e in entries})
        return list({p.key: p for p in configurations}.values()), entries

    # ------------------------------------------------------------ staged seeds

    def promoted(self) -> list[Configuration]:
        """The best configurations of batches whose first seeds are done, with all their seeds.

        A batch is told to its sampler after that: promoted configurations with the mean over all
        seeds, the others with the mean over the first ones. Promotion depends on the first seeds
        only, so a restart promotes the same configurations.
        """
        staged = self._plan.spec.replicates
        if staged is None:
            return []
        found = []
        for search in self._all:
            for number, batch in search.batches().items():
                if number in search.staged or any(
                    self._state.awaits_first_seeds(entry.configuration, staged.start)
                    for entry in batch
                ):
                    continue
                search.staged.add(number)
                proposals = {entry.configuration: entry.proposal for entry in batch}
                values = {p: self._state.mean_of_first(p, staged.start) for p in proposals}
                higher = self._plan.directions[0]
                found += [
                    self._plan.configuration(search.method, proposals[key], search.part.name)
                    for key in promoted(values, staged.keep, higher_is_better=higher)
                    if not self._is_full(search, key)
                ]
        return found

    def _is_full(self, search: Search, configuration: str) -> bool:
        seeds = self._plan.seeds_of(search.part.name)
        return len(self._state.replicates_of(configuration)) >= len(seeds)

    def is_over(self, part: str) -> bool:
        """Whether the searches of a part have proposed and told everything that they will."""
        return all(
            self._missing(search) == 0 and not search.pending_batches()
            for search in self._all
            if search.part.name == part
        )

    # ------------------------------------------------------------ telling

    def tell_finished(self) -> bool:
        """Tell the samplers about complete batches, in the order of proposal.

        Whole batches, so that proposals do not depend on which pack ends first.

        Returns:
            Whether anything was told.
        """
        told = False
        for search in self._all:
            for batch in search.pending_batches().values():
                if not any(self._state.is_incomplete(entry.configuration) for entry in batch):
                    told = True
                    for entry in batch:
                        if entry.state == "pending":  # not told before a kill
                            self._tell(search, entry)
        return told

    def _tell(self, search: Search, entry: Entry) -> None:
        values = self._state.means(entry.configuration)
        state = self._state.state_of(entry.configuration)
        step = self._state.pruned_at(entry.configuration)
        told = search.proposer.tell(entry.number, values, step=step)
        self._ledger.tell(self._plan.name, entry, state=state, values=values, step=step, told=told)
        known = replace(entry, state=state, values=values, step=step, told=told)
        search.entries[entry.number] = known
        self._improve(search, known)

    def _improve(self, search: Search, entry: Entry) -> None:
        """Update the best value; configurations with only their first seeds do not count."""
        if (
            entry.values is None
            or entry.step is not None
            or not self._is_full(search, entry.configuration)
        ):
            return
        sign, value = -1 if self._plan.directions[0] else 1, entry.values[0]
        if search.best is None or sign * value < sign * search.best:
            search.best = value
