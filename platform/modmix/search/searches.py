"""The searches of a running study: what they ask for, when, and what they are told."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry
from modmix.search.proposer import Proposer
from modmix.search.run_state import RunState
from modmix.study.plan import Configuration, Plan
from modmix.study.validate import PartPlan
from modmix.training.halving import promoted, share


@dataclass
class Search:
    """One method's search in one part."""

    part: PartPlan
    method: str
    proposer: Proposer
    entries: dict[int, Entry]
    best: float | None = None
    exhausted: bool = False
    staged: set[int] = field(
        default_factory=set
    )  # batches of which the better configurations are chosen

    @property
    def is_repeatable(self) -> bool:
        """Whether nothing it is told may depend on what else the study happens to train.

        (In another pack the same model may differ in the last digits.)
        """
        return self.part.search is not None and self.part.search.parallel == 1

    def batches(self) -> dict[int, list[Entry]]:
        """All entries by batch."""
        found: dict[int, list[Entry]] = {}
        for entry in self.entries.values():
            found.setdefault(entry.batch, []).append(entry)
        return found

    def batches_out(self) -> dict[int, list[Entry]]:
        """Entries that were asked and not told yet, by batch."""
        found = self.batches().items()
        return {n: batch for n, batch in found if any(e.state == "pending" for e in batch)}


class Searches:
    """All searches of a study, rebuilt from the entries that the ledger knows."""

    def __init__(self, plan: Plan, ledger: Ledger, state: RunState, *, slots: int) -> None:
        self._plan = plan
        self._ledger = ledger
        self._state = state
        self._slots = slots
        # Over all starts of the study, so that a finished one asks for nothing when run again.
        self._spent_before = ledger.study(plan.name).wall_seconds
        self._began = time.monotonic()
        self._all: list[Search] = []

    def rebuild(self, known: Sequence[Entry]) -> None:
        for part in self._plan.parts:
            if part.search is None:
                continue
            for method, domains in part.domains.items():
                proposer = Proposer(
                    domains,
                    sampler=part.search.sampler,
                    seed=part.search.seed,
                    label=f"{part.name}/{method}",
                    directions=self._plan.directions,
                )
                mine = [e for e in known if (e.part, e.method) == (part.name, method)]
                proposer.rebuild(mine)
                search = Search(part, method, proposer, {e.number: e for e in mine})
                for entry in mine:
                    self._improve(search, entry)
                self._all.append(search)

    def batches_out(self) -> list[tuple[Search, list[Entry]]]:
        """All batches that were asked and not told yet."""
        return [(search, batch) for search in self._all for batch in search.batches_out().values()]

    def behind(self, search: Search) -> float:
        """How many configurations a search will ask for after each of its batches that are out."""
        return self._missing(search) / max(1, len(search.batches_out()))

    # ------------------------------------------------------------ asking

    def wants_more(self) -> bool:
        """Whether a search would ask for configurations now.

        One whose batches are all out would not; when a machine failed too often for one of them,
        it never will.
        """
        return any(self._missing(search) > 0 and self._has_room(search) for search in self._all)

    def missing(self) -> int:
        """How many configurations may still be asked for."""
        return sum(self._missing(search) for search in self._all)

    def replicates_to_come(self) -> int:
        """How many replicates will be wanted beyond those of the configurations so far."""
        staged, seeds = self._plan.spec.replicates, len(self._plan.spec.seeds)
        if staged is None:
            return seeds * self.missing()
        count = 0
        for search in self._all:
            assert search.part.search is not None
            missing, size = self._missing(search), search.part.search.batch
            count += staged.start * missing
            batches = [size] * (missing // size) + [missing % size]
            batches += [len(b) for n, b in search.batches_out().items() if n not in search.staged]
            count += sum((seeds - staged.start) * share(staged.keep, b) for b in batches if b)
        return count

    def _missing(self, search: Search) -> int:
        settings = search.part.search
        assert settings is not None
        if search.exhausted or self._spent(search):
            return 0
        return max(0, settings.configurations - len(search.entries))

    def _spent(self, search: Search) -> bool:
        """Whether the budget is used up, or this search has reached its target."""
        budget = self._plan.spec.budget
        minutes = (self._spent_before + time.monotonic() - self._began) / 60
        if budget.wall_minutes is not None and minutes >= budget.wall_minutes:
            return True
        if budget.device_hours is not None:
            used = self._ledger.study(self._plan.name).device_seconds / 3600
            if used >= budget.device_hours:
                return True
        if budget.target is None or search.best is None:
            return False
        higher = self._plan.directions[0]
        return search.best >= budget.target if higher else search.best <= budget.target

    def ask(self) -> list[tuple[Search, list[Configuration], list[Entry]]]:
        """Propose batches until every search has as many out as it may."""
        asked = []
        for search in self._all:
            assert search.part.search is not None
            while self._has_room(search):
                count = min(self._missing(search), search.part.search.batch)
                if count == 0:
                    break
                asked.append((search, *self._ask(search, count)))
        return asked

    def _has_room(self, search: Search) -> bool:
        """Whether a search may have another batch out."""
        assert search.part.search is not None
        setting = search.part.search.parallel
        # Not by how many searches still run: what is asked must not depend on which ends first.
        most = max(1, math.ceil(self._slots / len(self._all))) if setting == "auto" else setting
        return len(search.batches_out()) < most

    def _ask(self, search: Search, count: int) -> tuple[list[Configuration], list[Entry]]:
        asked = search.proposer.ask(count)
        if len(asked) < count:
            search.exhausted = True
        configurations = [
            self._plan.first(self._plan.configuration(search.method, a.values)) for a in asked
        ]
        entries = [
            Entry(
                part=search.part.name,
                method=search.method,
                number=a.number,
                configuration=configuration.key,
                batch=a.batch,
                proposal=a.values,
            )
            for a, configuration in zip(asked, configurations, strict=True)
        ]
        search.entries.update({e.number: e for e in entries})
        return list({p.key: p for p in configurations}.values()), entries

    # ------------------------------------------------------------ staged seeds

    def promoted(self) -> list[Configuration]:
        """Configurations that are to get all their seeds: the better ones of the batches that are
        through.

        A batch is told to its sampler when these are done, too: the promoted configurations with
        the mean over all their seeds, the others with that over the first ones. Everything follows
        from the first seeds' results, so that a new start promotes the same configurations.
        """
        staged = self._plan.spec.replicates
        if staged is None:
            return []
        found = []
        for search in self._all:
            for number, batch in search.batches().items():
                if number in search.staged or any(
                    self._state.lacks_first(entry.configuration, staged.start) for entry in batch
                ):
                    continue
                search.staged.add(number)
                proposals = {entry.configuration: entry.proposal for entry in batch}
                values = {p: self._state.mean_of_first(p, staged.start) for p in proposals}
                higher = self._plan.directions[0]
                found += [
                    self._plan.configuration(search.method, proposals[key])
                    for key in promoted(values, staged.keep, higher_is_better=higher)
                    if not self._is_full(key)
                ]
        return found

    def _is_full(self, configuration: str) -> bool:
        return len(self._state.replicates_of(configuration)) >= len(self._plan.spec.seeds)

    # ------------------------------------------------------------ telling

    def tell_finished(self) -> bool:
        """Tell the samplers what is complete: whole batches, in the order they were asked.

        A batch as a whole, so that what a sampler knows at its next proposal does not depend on
        which of its packs happened to end first.

        Returns:
            Whether there was anything to tell.
        """
        told = False
        for search in self._all:
            for batch in search.batches_out().values():
                if not any(self._state.is_waiting(entry.configuration) for entry in batch):
                    told = True
                    for entry in batch:
                        if entry.state == "pending":  # a kill may have come in between
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
        """Take over a finished configuration's value where it is the best so far.

        Not that of a configuration with its first seeds alone: it is lucky more often.
        """
        if entry.values is None or entry.step is not None or not self._is_full(entry.configuration):
            return
        sign, value = -1 if self._plan.directions[0] else 1, entry.values[0]
        if search.best is None or sign * value < sign * search.best:
            search.best = value
