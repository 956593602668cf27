"""What a study file asks for, in a few lines: `modmix run FILE --dry-run`."""

from __future__ import annotations

from modmix.base.wording import counted
from modmix.study.parts import PartPlan
from modmix.study.tasks_plan import StudyPlan


def outline(plan: StudyPlan) -> list[str]:
    """Configurations and models of each part, and of all together.

    Configurations that parts share count once in the sum. Searches may train fewer: budgets,
    halving and staged seeds end them earlier.
    """
    rows: list[tuple[str, str]] = []
    grids: dict[str, int] = {}  # models, by configuration
    proposed, of_searches = 0, 0
    for part in plan.parts:
        seeds = len(plan.seeds_of(part.name))
        if part.search is None and part.best_of is None:
            own = dict.fromkeys(_keys(plan, part), seeds)
            grids |= own
            rows.append((part.name, _counts(len(own), sum(own.values()))))
            continue
        each = 1 if part.search is None else part.search.configurations
        number = each * len(part.domains)
        proposed, of_searches = proposed + number, of_searches + number * seeds
        text = _counts(number, number * seeds)
        found = f"up to {text}" if part.search else f"{text}, the best of part {part.best_of}"
        rows.append((part.name, found))
    width = max(len(name) for name, _ in rows)
    configurations, models = len(grids) + proposed, sum(grids.values()) + of_searches
    return [
        f"study {plan.name}: {counted(len(plan.spec.seeds), 'seed')}",
        *(f"  {name:{width}}  {text}" for name, text in rows),
        f"in all {'up to ' if proposed else ''}{_counts(configurations, models)}",
    ]


def _keys(plan: StudyPlan, part: PartPlan) -> set[str]:
    return {
        plan.configuration(method, assignment, part.name).key
        for method in part.domains
        for assignment in part.assignments(method)
    }


def _counts(configurations: int, models: int) -> str:
    return f"{counted(configurations, 'configuration')}, {counted(models, 'model')}"
