"""Compares what a study file asks for with what the ledger has, at the start of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry
from modmix.study.configurations import Configuration
from modmix.study.tasks_plan import StudyPlan

Grids = Mapping[tuple[str, str], Sequence[Configuration]]  # by part and method


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """A study's entries and configurations, as the study file describes them now.

    Attributes:
        known: entries that the ledger has, with the present keys of their configurations.
        moved: those of them whose key has changed.
        new: entries of grids that the ledger does not have yet.
        configurations: all that these entries need, each once.
        kept: those of grids and of parts with ``best_of``, see `keeping.Keeping`.
        chosen_anew: replicates of what a part with ``best_of`` had chosen in an earlier run and
            chooses again.
    """

    known: Sequence[Entry]
    moved: Sequence[Entry]
    new: Sequence[Entry]
    configurations: Sequence[Configuration]
    kept: Sequence[Configuration]
    chosen_anew: Sequence[str]


def reconcile(plan: StudyPlan, ledger: Ledger) -> Reconciled:
    """Compare the plan with the ledger; entries that the plan no longer has are removed there."""
    name = plan.name
    grids: Grids = {
        (part.name, method): [
            plan.configuration(method, a, part.name) for a in part.assignments(method)
        ]
        for part in plan.parts
        if part.search is None
        for method in part.domains
    }
    confirming = {part.name for part in plan.parts if part.best_of is not None}
    confirmed = _configurations_of(confirming, ledger.entries(name)) if confirming else set()
    ledger.keep_only_entries(name, plan.signatures())
    ledger.recover(name)
    resolved = [(entry, _resolve(entry, plan, grids)) for entry in ledger.entries(name)]
    # A key depends on whether a part's seeds are those of the study.
    known = [replace(entry, configuration=found.key) for entry, found in resolved]
    moved = [
        now
        for (was, found), now in zip(resolved, known, strict=True)
        if was.configuration != found.key
    ]
    present = {(entry.part, entry.method, entry.number) for entry in known}
    new = [
        Entry(part=part, method=method, number=number, configuration=configuration.key)
        for (part, method), configurations in grids.items()
        for number, configuration in enumerate(configurations)
        if (part, method, number) not in present
    ]
    found = _of_grids(grids)
    kept = list(found.values())
    of_grids, begun = set(found), ledger.replicate_states(name)
    for entry, configuration in resolved:
        if entry.part in confirming:
            found[configuration.key] = configuration
            kept.append(configuration)
        elif entry.proposal:
            first = plan.first(configuration)
            # A promoted configuration has more than its first seeds.
            more = configuration.replicates[len(first.replicates) :]
            whole = configuration.key in of_grids or any(r.key in begun for r in more)
            found[configuration.key] = configuration if whole else first
    chosen_anew = confirmed - {entry.configuration for entry in known}
    again = ledger.replicates(name, configurations=sorted(chosen_anew)) if chosen_anew else []
    return Reconciled(
        known=known,
        moved=moved,
        new=new,
        configurations=list(found.values()),
        kept=kept,
        chosen_anew=[record.key for record in again],
    )


def _configurations_of(parts: set[str], entries: Sequence[Entry]) -> set[str]:
    return {entry.configuration for entry in entries if entry.part in parts}


def _resolve(entry: Entry, plan: StudyPlan, grids: Grids) -> Configuration:
    """The configuration of a known entry, as the study file describes it now."""
    if of_grid := grids.get((entry.part, entry.method), ()):  # none with `best_of`
        return of_grid[entry.number]
    return plan.configuration(entry.method, entry.proposal, entry.part)


def _of_grids(grids: Grids) -> dict[str, Configuration]:
    """Every configuration of the grids once, by key, with the seeds of all its entries."""
    found: dict[str, Configuration] = {}
    for configurations in grids.values():
        for asked in configurations:
            before = found.get(asked.key)
            found[asked.key] = asked if before is None else before.also(asked)
    return found
