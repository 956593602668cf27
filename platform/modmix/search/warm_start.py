"""Searches that start from the best configurations of another study (`start_from`).

These take the place of the first random proposals: they are trained here, with this study's data,
settings and seeds, unless the ledger has the same models already. So it does not matter whether
the other study's values can be compared with this one's, and every configuration that a sampler
has learnt from counts towards the search's budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from modmix.base import ties
from modmix.base.errors import InputError, Problem, SpecError
from modmix.base.space import Choices, Constant, Domain, Grid, Range, active, every_value
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, ReplicateRecord, of_task
from modmix.study.parts import PartPlan
from modmix.study.tasks_plan import AT, StudyPlan


def check(plan: StudyPlan, ledger: Ledger | None) -> None:
    """Check that searches with ``start_from`` find something there.

    Args:
        ledger: None: there is none yet.

    Raises:
        SpecError: there is no such study, or it has nothing for a method of the search.
    """
    problems: list[Problem] = []
    for part in plan.parts:
        if part.search is None or part.search.start_from is None:
            continue
        path = ("parts", part.name.partition(AT)[0], "search", "start_from")
        for method in part.domains:
            try:
                if ledger is None:
                    raise InputError(f"no study {part.search.start_from!r}: the ledger is empty")
                if not starts(plan, part, method, ledger):
                    raise InputError(
                        f"study {part.search.start_from!r} has no finished configuration of "
                        f"{method} with values in the domains of this search: leave start_from "
                        "out, or search this method in a part of its own"
                    )
            except InputError as error:
                problem = plan.source.problem(path, str(error))
                if problem not in problems:
                    problems.append(problem)
    if problems:
        raise SpecError(plan.source.name, problems)


def starts(plan: StudyPlan, part: PartPlan, method: str, ledger: Ledger) -> list[dict[str, Any]]:
    """The first proposals of a search: values of the hyperparameters that it varies, best first.

    At most ``startup`` configurations of the method that the other study finished, ranked by this
    study's first objective (those with the most seeds first). A hyperparameter that the other study
    did not record is left to the sampler.

    Raises:
        InputError: there is no such study.
    """
    assert part.search is not None
    if (other := part.search.start_from) is None:
        return []
    record = ledger.study(other)
    tasks = record.details.get("tasks") or {}
    if part.task in tasks:
        record = of_task(record, part.task)
    replicates: dict[str, list[ReplicateRecord]] = {}
    for replicate in ledger.replicates(other):
        replicates.setdefault(replicate.configuration, []).append(replicate)
    ranked = [
        (len(replicates[one.key]), value, found)
        for one in ledger.configurations(other)
        if one.method == method
        and (part.task not in tasks or one.task == part.task)
        and record.is_as_given(one.params)
        and (value := _mean(replicates.get(one.key, ()), plan.spec.objective[0])) is not None
        and (found := inside(part.domains[method], one))
    ]
    values = [value for _, value, _ in ranked]
    places = ties.places(values, higher_is_better=plan.directions[0])
    order = sorted(range(len(ranked)), key=lambda i: (-ranked[i][0], places[i] or 0))
    distinct: dict[str, dict[str, Any]] = {}
    for i in order:
        distinct.setdefault(repr(ranked[i][2]), ranked[i][2])
    return list(distinct.values())[: min(part.search.startup, part.search.configurations)]


def _mean(replicates: Sequence[ReplicateRecord], metric: str) -> float | None:
    """The mean over all seeds of a finished configuration; None for others."""
    values = [replicate.metrics.get(metric, math.nan) for replicate in replicates]
    finished = all(replicate.state == "done" for replicate in replicates)
    mean = fmean(values) if values and finished else math.nan
    return mean if math.isfinite(mean) else None


def inside(domains: Mapping[str, Domain], one: ConfigurationRecord) -> dict[str, Any]:
    """A configuration's values of what a search varies; {} if one is outside its domain.

    Values that the search fixes need not agree.
    """
    fixed = {n: d.value for n, d in domains.items() if isinstance(d, Constant)}
    recorded = {n: one.params[n] for n in domains if n in one.params}
    found: dict[str, Any] = {}
    for name, value in active(domains, {**recorded, **fixed}).items():
        match domains[name]:
            case Constant():
                continue
            case Choices(values=values) | Grid(values=values):
                same = [known for known in values if repr(known) == repr(value)]
                if not same:
                    return {}
                found[name] = same[0]
            case Range() as domain:
                if not _is_in_range(domain, value):
                    return {}
                found[name] = domain.nearest(value)
    return found


def _is_in_range(domain: Range, value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    if domain.step is not None:
        return value in (every_value(domain) or ())
    return domain.low <= value <= domain.high and domain.nearest(value) == value
