"""Mean ranks with the critical difference of the Nemenyi test: data and drawing of the diagram.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006), section 3.2.2
and figure 1. The blocks are tasks: seeds of one task are not independent data sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import modmix.analysis.backend  # noqa: F401  # isort: skip
import pandas as pd
from matplotlib.axes import Axes

from modmix.analysis.labels import p_clause
from modmix.analysis.statistics import Ranks
from modmix.analysis.style import FAINT, INK, draw_empty

ALPHA = 0.05
_ROW = 0.26  # inches
_TOP = 0.95


@dataclass(frozen=True, kw_only=True)
class CriticalDifference:
    """Methods by mean rank, best first, and groups without significant differences.

    Two methods differ significantly at the 5 % level, all pairs taken together, if their mean ranks
    differ by more than ``difference``. Each of ``groups`` is a maximal run of methods, as a range
    of positions in ``labels``, whose ranks span no more than that.
    """

    labels: tuple[str, ...]
    ranks: tuple[float, ...]
    difference: float
    groups: tuple[range, ...]
    tasks: int
    friedman_p: float

    def frame(self) -> pd.DataFrame:
        """A row per method; ``critical_difference`` is the same in all."""
        return pd.DataFrame(
            {
                "method": self.labels,
                "rank/mean": self.ranks,
                "critical_difference": self.difference,
                "tasks": self.tasks,
            }
        )


def critical_difference(ranks: Ranks) -> CriticalDifference:
    """The data of the diagram, from mean ranks over at least two tasks of at least two methods."""
    labels = tuple(ranks.frame["method"].tolist())
    means = tuple(ranks.frame["rank/mean"].tolist())
    assert ranks.blocks >= 2, ranks
    difference = nemenyi(len(labels), ranks.blocks)
    return CriticalDifference(
        labels=labels,
        ranks=means,
        difference=difference,
        groups=tuple(groups_within(means, difference)),
        tasks=ranks.blocks,
        friedman_p=ranks.friedman_p,
    )


def nemenyi(methods: int, blocks: int, alpha: float = ALPHA) -> float:
    """The critical difference q_α √(k(k+1) / 6N) of mean ranks of k methods over N blocks.

    q_α is the upper α quantile of the studentised range of k normal variables, divided by √2.

    Example:
        >>> round(nemenyi(4, 24, alpha=0.05), 3)
        0.957
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def groups_within(ranks: Sequence[float], difference: float) -> list[range]:
    """The maximal runs of at least two sorted ranks that span no more than ``difference``."""
    found: list[range] = []
    for first, rank in enumerate(ranks):
        stop = next((i for i, r in enumerate(ranks) if r - rank > difference), len(ranks))
        if stop - first > 1 and (not found or stop > found[-1].stop):
            found.append(range(first, stop))
    return found


def height(found: CriticalDifference) -> float:
    """Height of the figure, in inches."""
    return _TOP + _ROW * (math.ceil(len(found.labels) / 2) + 0.6 * len(found.groups))


def draw(ax: Axes, found: CriticalDifference, colours: Mapping[str, str]) -> None:
    """Draw methods below an axis of ranks, the better half on the left; bars join each group.

    Args:
        colours: by label; other labels are drawn in the text colour.
    """
    ax.set_axis_off()
    if len(found.labels) < 2:
        draw_empty(ax)
        return
    n = len(found.labels)
    low, high = 1.0, float(n)
    ax.set_xlim(low - 0.45 * (n - 1), high + 0.45 * (n - 1))
    bars = 0.6 * len(found.groups)
    rows = math.ceil(n / 2)
    ax.set_ylim(-(rows + bars + 0.4), 2.2)
    _draw_axis(ax, found, low, high)
    for place, group in enumerate(found.groups):
        y = -0.5 - 0.6 * place
        first, last = found.ranks[group.start], found.ranks[group.stop - 1]
        ax.plot([first - 0.06, last + 0.06], [y, y], color=INK, linewidth=3.2, gid="group")
    for i, (label, rank) in enumerate(zip(found.labels, found.ranks, strict=True)):
        left = i < rows
        y = -(bars + 0.5 + (i if left else n - 1 - i))
        end = low - 0.06 * (n - 1) if left else high + 0.06 * (n - 1)
        colour = colours.get(label, INK)
        ax.plot([rank, rank, end], [0, y, y], color=colour, linewidth=1.0)
        ax.text(
            end, y, f"{label} {rank:.2f} " if left else f" {rank:.2f} {label}",
            ha="right" if left else "left", va="center", fontsize=8, color=INK,
        )  # fmt: skip


def _draw_axis(ax: Axes, found: CriticalDifference, low: float, high: float) -> None:
    ax.plot([low, high], [0, 0], color=INK, linewidth=0.9)
    step = max(1, round((high - low) / 10))
    for tick in range(int(low), int(high) + 1, step):
        ax.plot([tick, tick], [0, 0.18], color=INK, linewidth=0.9)
        ax.text(tick, 0.28, str(tick), ha="center", va="bottom", fontsize=8, color=INK)
    shown = min(found.difference, high - low)
    ax.plot([low, low + shown], [1.45, 1.45], color=FAINT, linewidth=2.0)
    more = "" if shown == found.difference else ", more than the whole range"
    ax.text(
        low, 1.55,
        f"critical difference {found.difference:.2f}{more} (Nemenyi, 5 %); {found.tasks} tasks; "
        f"Friedman test: {p_clause(found.friedman_p)}",
        ha="left", va="bottom", fontsize=7, color=INK,
    )  # fmt: skip
