"""How many configurations a search may have in flight, and for how long it proposes. Pure.

A sampler learns from results only. If it proposed as many configurations as a cluster has places,
a large cluster would turn every search into a random one.
"""

from __future__ import annotations

import math

from modmix.study.spec import LEARNING, BudgetSpec, SearchSpec

IN_FLIGHT = 5  # at most a fifth of a search's configurations


def has_room(
    search: SearchSpec, *, count: int, proposed: int, pending: int, batches: int, slots: float
) -> bool:
    """Whether a search may propose another batch.

    With ``parallel: auto``, as many batches are in flight as there are slots for. A sampler that
    uses results has further limits: beside its first ``startup`` configurations, a fifth of its
    configurations. One batch is always allowed.

    Args:
        count: size of the next batch.
        proposed: configurations proposed so far.
        pending: those that have not been told yet.
        batches: in which these were proposed.
        slots: the search's share of the packs trained at a time.
    """
    if batches == 0:
        return True
    if search.parallel != "auto":
        return batches < search.parallel
    if batches >= math.ceil(slots):
        return False
    if search.sampler not in LEARNING or proposed + count <= search.startup:
        return True
    return pending + count <= max(search.batch, search.configurations // IN_FLIGHT)


def seconds_for(budget: BudgetSpec, *, searches: int, slots: int, wall: float) -> float:
    """Device seconds that each search of a study may use; 0 once the wall-clock time is over.

    All have the same: a search whose models take longer gets fewer configurations, and none uses
    the time of another.

    Args:
        searches: among how many the budget is divided.
        slots: packs trained at a time; the wall-clock time has as many device seconds each second.
        wall: seconds that the study has run for.
    """
    limits = []
    if budget.wall_minutes is not None:
        if wall >= 60 * budget.wall_minutes:
            return 0.0
        limits.append(60 * budget.wall_minutes * slots)
    if budget.device_hours is not None:
        limits.append(3600 * budget.device_hours)
    return min(limits, default=math.inf) / searches
