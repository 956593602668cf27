"""Parts that train the best configurations of other parts with seeds of their own (`best_of`).

What validation has chosen looks better there than it is: the best of many means is partly luck.
Trained again with seeds that the choice has not seen, it is an honest estimate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from modmix.base import ties
from modmix.ledger.records import Entry
from modmix.search.run_state import RunState


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
