"""Mean ranks with the critical difference of the Nemenyi test: data and drawing of the diagram.

Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets" (JMLR 2006), section 3.2.2
and figure 1. The blocks are tasks: seeds of one task are not independent data sets.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import modmix.analysis.backend  # noqa: F401  # isort: skip
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from modmix.analysis.labels import p_clause
from modmix.analysis.statistics import Ranks
from modmix.analysis.style import FAINT, INK, STYLE, draw_empty

ALPHA = 0.05
_AXIS = 3.2  # width of the axis of ranks, in inches
_STUB = 0.15  # from the ends of the axis to the labels, in inches
_GAP = 0.08  # after the longest text, in inches
_EDGE = 0.08  # around the axes, in inches
_INCHES = 0.26  # height of a row; y is in rows
_BAR = 0.6  # between the bars of groups, in rows
_CAPTION = 1.55  # lower edge of the caption, in rows


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
    return _INCHES * (_top(found) - _bottom(found)) + 2 * _EDGE


def width(found: CriticalDifference) -> float:
    """Width of the figure, in inches: the axis of ranks and the longest label on either side."""
    left, right = _margins(found)
    return left + _AXIS + right + 2 * _EDGE


def draw(ax: Axes, found: CriticalDifference, colours: Mapping[str, str]) -> None:
    """Draw methods below an axis of ranks, the better half on the left; bars join each group.

    The figure must be `width` by `height` inches: the axes then have room for every text, which a
    layout computed by matplotlib would not take into account.

    Args:
        colours: by label; other labels are drawn in the text colour.
    """
    ax.set_axis_off()
    if len(found.labels) < 2:
        draw_empty(ax)
        return
    n = len(found.labels)
    low, high = 1.0, float(n)
    inch = (n - 1) / _AXIS  # in ranks
    left, right = _margins(found)
    ax.set_xlim(low - left * inch, high + right * inch)
    ax.set_ylim(_bottom(found), _top(found))
    _draw_axis(ax, found, low, high)
    for place, group in enumerate(found.groups):
        y = -0.5 - _BAR * place
        first, last = found.ranks[group.start], found.ranks[group.stop - 1]
        beyond = 0.03 * inch
        ax.plot([first - beyond, last + beyond], [y, y], color=INK, linewidth=3.2, gid="group")
    rows, bars = math.ceil(n / 2), _BAR * len(found.groups)
    for i, (label, rank) in enumerate(zip(found.labels, found.ranks, strict=True)):
        is_left = i < rows
        y = -(bars + 0.5 + (i if is_left else n - 1 - i))
        end = low - _STUB * inch if is_left else high + _STUB * inch
        colour = colours.get(label, INK)
        ax.plot([rank, rank, end], [0, y, y], color=colour, linewidth=1.0)
        ax.text(
            end, y, _text_of(label, rank, is_left), ha="right" if is_left else "left",
            va="center", fontsize=8, color=INK,
        )  # fmt: skip


def _text_of(label: str, rank: float, is_left: bool) -> str:
    return f"{label} {rank:.2f} " if is_left else f" {rank:.2f} {label}"


def _margins(found: CriticalDifference) -> tuple[float, float]:
    """Inches left and right of the axis of ranks: the longest text there; room for the caption."""
    n, rows = len(found.labels), math.ceil(len(found.labels) / 2)
    texts = [
        _text_of(label, rank, i < rows)
        for i, (label, rank) in enumerate(zip(found.labels, found.ranks, strict=True))
    ]
    left, right = (
        _STUB + _GAP + max((_inches(text, 8) for text in part), default=0.0)
        for part in (texts[:rows], texts[rows:n])
    )
    caption = _GAP + max(_inches(line, 7) for line in _caption(found))
    return left, max(right, caption - _AXIS)


def _inches(text: str, size: float) -> float:
    """The width of a text of this size in points."""
    font = FontProperties(family=STYLE["font.family"], size=size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def _bottom(found: CriticalDifference) -> float:
    """The lower limit of y, in rows."""
    return -(math.ceil(len(found.labels) / 2) + _BAR * len(found.groups) + 0.4)


def _top(found: CriticalDifference) -> float:
    """The upper limit of y, in rows: the caption is above the axis."""
    return _CAPTION + 0.5 * len(_caption(found)) + 0.2


def _caption(found: CriticalDifference) -> tuple[str, str]:
    span = len(found.labels) - 1
    more = ", more than the whole range" if found.difference > span else ""
    p = found.friedman_p  # NaN for two methods
    friedman = "" if math.isnan(p) else f"; Friedman test: {p_clause(p)}"
    return (
        f"critical difference {found.difference:.2f}{more}",
        f"Nemenyi, 5 %; {found.tasks} tasks{friedman}",
    )


def _draw_axis(ax: Axes, found: CriticalDifference, low: float, high: float) -> None:
    ax.plot([low, high], [0, 0], color=INK, linewidth=0.9)
    step = max(1, round((high - low) / 10))
    for tick in range(int(low), int(high) + 1, step):
        ax.plot([tick, tick], [0, 0.18], color=INK, linewidth=0.9)
        ax.text(tick, 0.28, str(tick), ha="center", va="bottom", fontsize=8, color=INK)
    shown = min(found.difference, high - low)
    y = _CAPTION - 0.12
    ax.plot([low, low + shown], [y, y], color=FAINT, linewidth=2.0)
    ax.text(
        low, _CAPTION, "\n".join(_caption(found)), ha="left", va="bottom", fontsize=7, color=INK
    )
