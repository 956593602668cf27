"""Drawing: each function takes numbers from `curves` or `searches` and an axis.

No pyplot: figures are plain objects, so threads and notebooks do not disturb each other. The same
numbers give the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modmix.analysis import curves, searches
from modmix.analysis.curves import Curve, LearningCurves, Line, Results, X
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.searches import Importance, SearchHistory, TradeOff
from modmix.analysis.statistics import Estimate
from modmix.analysis.words import higher_is_better, metric_label, parameter_label
from modmix.errors import InputError
from modmix.ledger import Ledger

# Okabe and Ito's colours, told apart by colour-blind readers; markers repeat the difference.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5fb5", "#8c6d31")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
INK = "#262626"  # text and axes; the report replaces it by its own colour
FAINT = "#9a9a9a"  # grids and what stands behind
WIDTH = 5.6  # inches
DPI = 200

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "svg.hashsalt": "modmix",
    "svg.fonttype": "path",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn, the same in every figure of a study."""

    colour: str
    marker: str


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """One look per method, by its place in the study."""
    return {
        method: Look(PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
        for i, method in enumerate(methods)
    }


# ---------------------------------------------------------------- curves


def draw_curve(ax: Axes, curve: Curve, look: Mapping[str, Look], *, errors: str = "ci") -> None:
    """Mean over x per method with error bars; the best mean of each line is ringed.

    Args:
        errors: "ci" for 95 % intervals, "std" for standard deviations.
    """
    if errors not in ("ci", "std"):
        raise InputError(f"error bars are 'ci' or 'std', got {errors!r}")
    words = curve.categories
    several = len({line.label for line in curve.lines})
    for place, line in enumerate(curve.lines):
        # Lines are set apart a little, so that error bars at one x do not cover each other.
        shift = (place - (len(curve.lines) - 1) / 2) * _nudge(curve, several)
        _draw_line(ax, line, look[line.method], words, shift, errors, _dash(curve, line), curve)
    for reference in curve.references:
        _draw_reference(ax, reference.method, reference.value, look, errors)
    if words:
        ax.set_xticks(range(len(words)), words)
    elif curve.lines:
        _numeric_axis(ax, sorted({float(d.x) for line in curve.lines for d in line.dots}))
    ax.set_xlabel(parameter_label(curve.x))
    ax.set_ylabel(metric_label(curve.metric))
    ax.set_title(curve.title)
    _finish(ax, curve.lines or curve.references, _caption(curve, errors))


def _draw_line(
    ax: Axes,
    line: Line,
    look: Look,
    words: Sequence[str],
    shift: float,
    errors: str,
    dash: tuple[int, tuple[float, ...]],
    curve: Curve,
) -> None:
    xs = np.array([_place(dot.x, words) for dot in line.dots]) + shift
    means = np.array([dot.value.mean for dot in line.dots])
    bars = np.nan_to_num(np.array([_bars(dot.value, errors) for dot in line.dots]).T)
    ns = sorted({dot.value.n for dot in line.dots})
    ax.errorbar(
        xs,
        means,
        yerr=bars,
        color=look.colour,
        marker=look.marker,
        markersize=4.5,
        linewidth=1.4 if curve.connected else 0,
        linestyle=dash,
        elinewidth=1.0,
        capsize=2.5,
        label=f"{line.label}, {_n_text(ns)}",
        zorder=3,
    )
    if line.minimum is not None and len(line.dots) > 1:
        at = line.minimum
        ax.plot(
            xs[at], means[at], marker="o", markersize=10, markerfacecolor="none",
            markeredgecolor=look.colour, markeredgewidth=1.2, linestyle="none", zorder=4,
        )  # fmt: skip


def _draw_reference(
    ax: Axes, method: str, value: Estimate, look: Mapping[str, Look], errors: str
) -> None:
    colour = look[method].colour
    ax.axhline(
        value.mean, color=colour, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2,
        label=f"{method} (best), n = {value.n}",
    )  # fmt: skip
    below, above = _bars(value, errors)
    if math.isfinite(below):
        ax.axhspan(
            value.mean - below, value.mean + above, color=colour, alpha=0.13, linewidth=0, zorder=1
        )


def _bars(value: Estimate, errors: str) -> tuple[float, float]:
    if errors == "std":
        return value.std, value.std
    return value.mean - value.ci_low, value.ci_high - value.mean


def _dash(curve: Curve, line: Line) -> tuple[int, tuple[float, ...]]:
    variants = [other.variant for other in curve.lines if other.method == line.method]
    return DASHES[variants.index(line.variant) % len(DASHES)]


def _place(x: X, words: Sequence[str]) -> float:
    if words:
        return float(words.index(curves.x_word(x)))
    assert isinstance(x, float)
    return x


def _nudge(curve: Curve, several: int) -> float:
    """How far lines stand apart at one x: a fraction of the closest step; none on log axes."""
    if several < 2 or not curve.connected:
        return 0.0
    if curve.categories:
        return 0.24 / several
    xs = sorted({float(d.x) for line in curve.lines for d in line.dots})
    if len(xs) < 2 or _is_logarithmic(xs):
        return 0.0
    return float(min(np.diff(xs))) * 0.16 / several


def _is_logarithmic(xs: Sequence[float]) -> bool:
    """Whether x values were chosen by factors: positive, over a wide range, evenly in the log."""
    if len(xs) < 3 or xs[0] <= 0 or xs[-1] / xs[0] < 15:
        return False
    steps = np.diff(np.log(xs))
    return bool(steps.max() < 4 * steps.min())


def _numeric_axis(ax: Axes, xs: Sequence[float]) -> None:
    if _is_logarithmic(xs):
        ax.set_xscale("log")
    if len(xs) <= 12:
        ax.set_xticks(xs, [f"{x:.4g}" for x in xs])
        ax.minorticks_off()


def _caption(curve: Curve, errors: str) -> str:
    bars = {"ci": "95 % confidence intervals", "std": "standard deviations"}[errors]
    best = "highest" if higher_is_better(curve.metric) else "lowest"
    has_bars = any(dot.value.n > 1 for line in curve.lines for dot in line.dots)
    pieces = [f"bars: {bars}"] if has_bars else ["one seed: no error bars"]
    if any(len(line.dots) > 1 for line in curve.lines):
        pieces.append(f"ring: {best} mean of a line")
    return "; ".join(pieces)


def _n_text(ns: Sequence[int]) -> str:
    return f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]}–{ns[-1]}" if ns else "n = 0"


# ---------------------------------------------------------------- results


def draw_results(ax: Axes, results: Results, look: Mapping[str, Look]) -> None:
    """One line per row: the mean with its 95 % interval, every seed, the paper's number."""
    for i, row in enumerate(results.rows):
        value = row.best.test[results.metric]
        colour = look[row.best.method].colour
        seeds = results.values[i]
        ax.plot(
            seeds, [i] * len(seeds), marker="|", markersize=9, linestyle="none",
            color=colour, alpha=0.55, zorder=2,
        )  # fmt: skip
        bars = np.nan_to_num(np.array([_bars(value, "ci")]).T)
        ax.errorbar(
            value.mean, i, xerr=bars, color=colour, marker=look[row.best.method].marker,
            markersize=6, elinewidth=1.6, capsize=3.5, zorder=3,
        )  # fmt: skip
        if (paper := results.papers[i]) is not None:
            ax.plot(
                paper[0], i + 0.28, marker="*", markersize=8, markerfacecolor="none",
                markeredgecolor=INK, markeredgewidth=0.9, linestyle="none", zorder=3,
            )  # fmt: skip
    ax.set_yticks(
        range(len(results.rows)),
        [f"{row.label}, n = {row.best.n}" for row in results.rows],
    )
    ax.set_ylim(len(results.rows) - 0.4, -0.6)
    ax.set_xlabel(metric_label(results.metric))
    ax.set_title(results.title)
    ax.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.45)
    pieces = ["marker and bar: mean and 95 % confidence interval", "ticks: seeds"]
    if any(paper is not None for paper in results.papers):
        pieces.append("star: paper")
    _note(ax, "; ".join(pieces))
    if not results.rows:
        _empty(ax)


# ---------------------------------------------------------------- learning


def draw_learning(ax: Axes, learning: LearningCurves, look: Mapping[str, Look]) -> None:
    """Mean per epoch with a band of one standard deviation; dotted once replicates have ended."""
    for line in learning.lines:
        colour = look[line.method].colour
        whole = np.where(line.whole, line.mean, np.nan)
        ax.plot(
            line.epochs, whole, color=colour, linewidth=1.5, zorder=3,
            label=f"{line.method}, n = {line.n}",
        )  # fmt: skip
        if not line.whole.all():
            ax.plot(line.epochs, line.mean, color=colour, linewidth=1.1, linestyle=":", zorder=2)
        if np.isfinite(line.std).any():
            ax.fill_between(
                line.epochs, line.mean - line.std, line.mean + line.std,
                color=colour, alpha=0.15, linewidth=0, zorder=1,
            )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epochs")
    ax.set_ylabel(metric_label(learning.metric))
    ax.set_title(learning.title)
    pieces = ["band: one standard deviation"] if any(x.n > 1 for x in learning.lines) else []
    if any(not line.whole.all() for line in learning.lines):
        pieces.append("dotted: some seeds have stopped early")
    _finish(ax, learning.lines, "; ".join(pieces))


# ---------------------------------------------------------------- searches


def draw_search(ax: Axes, history: SearchHistory, look: Mapping[str, Look]) -> None:
    """Every point of a search, and the best so far as steps."""
    for trace in history.traces:
        style = look[trace.method]
        kept = ~trace.pruned
        ax.plot(
            trace.numbers[kept] + 1, trace.values[kept], marker=style.marker, markersize=3.2,
            linestyle="none", color=style.colour, alpha=0.45, zorder=2,
        )  # fmt: skip
        ax.plot(
            trace.numbers[trace.pruned] + 1, trace.values[trace.pruned], marker="x", markersize=3.5,
            linestyle="none", color=style.colour, alpha=0.45, zorder=2,
        )  # fmt: skip
        ax.step(
            trace.numbers + 1, trace.best, where="post", color=style.colour, linewidth=1.6,
            label=f"{trace.method}, {int(np.isfinite(trace.values).sum())} points", zorder=3,
        )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("points asked for")
    ax.set_ylabel(f"{metric_label(history.metric)}, mean over seeds")
    ax.set_title(history.title)
    drawn = any(np.isfinite(trace.values).any() for trace in history.traces)
    _clip_outliers(ax, history)
    pieces = ["line: best so far", "marks: points"]
    if any(trace.pruned.any() for trace in history.traces):
        pieces.append("×: pruned")
    _finish(ax, history.traces if drawn else (), "; ".join(pieces))


def _clip_outliers(ax: Axes, history: SearchHistory) -> None:
    """Keep a few very bad points from flattening what matters; the caption of axes says so."""
    values = np.concatenate([t.values for t in history.traces]) if history.traces else np.zeros(0)
    values = values[np.isfinite(values)]
    if len(values) < 8:
        return
    sign = -1.0 if higher_is_better(history.metric) else 1.0
    ordered = np.sort(values * sign)
    best, bulk, worst = ordered[0], ordered[int(0.8 * (len(ordered) - 1))], ordered[-1]
    limit = bulk + 1.0 * (bulk - best)
    if worst <= limit or bulk == best:
        return
    margin = 0.05 * (limit - best)
    ends = sorted([sign * (best - margin), sign * limit])
    ax.set_ylim(ends[0], ends[1])
    hidden = int((ordered > limit).sum())
    ax.annotate(
        f"{hidden} worse {'point' if hidden == 1 else 'points'} outside", (0.99, 0.97),
        xycoords="axes fraction", ha="right", va="top", fontsize=7, color=INK, alpha=0.8,
    )  # fmt: skip


def draw_importance(ax: Axes, one: Importance, look: Mapping[str, Look]) -> None:
    """Bars of variance shares; the sign of the rank correlation stands at the end."""
    names = [parameter_label(name) for name in one.names]
    ax.barh(range(len(names)), one.share, color=look[one.method].colour, height=0.6, alpha=0.85)
    for i, (share, correlation) in enumerate(zip(one.share, one.correlation, strict=True)):
        text = f"{share:.2f}" + (
            f"  (ρ = {correlation:+.2f})" if correlation == correlation else ""
        )
        ax.annotate(
            text, (share, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.25)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    ax.set_title(f"{one.method}, {one.points} points")


def draw_trade_off(ax: Axes, trade: TradeOff, look: Mapping[str, Look]) -> None:
    """Complete points on both objectives; the front's are filled and joined."""
    for method in dict.fromkeys(trade.methods):
        mine = np.array([name == method for name in trade.methods])
        for chosen, face in (
            (mine & trade.front, look[method].colour),
            (mine & ~trade.front, "none"),
        ):
            ax.plot(
                trade.values[chosen, 0], trade.values[chosen, 1], marker=look[method].marker,
                markersize=5, linestyle="none", color=look[method].colour, markerfacecolor=face,
                alpha=1.0 if face != "none" else 0.55, zorder=3,
                label=f"{method}, {int(mine.sum())} points" if face != "none" else None,
            )  # fmt: skip
    front = trade.values[trade.front]
    front = front[np.argsort(front[:, 0], kind="stable")]
    ax.plot(front[:, 0], front[:, 1], color=FAINT, linewidth=1, zorder=1)
    ax.set_xlabel(metric_label(trade.metrics[0]))
    ax.set_ylabel(metric_label(trade.metrics[1]))
    ax.set_title(trade.title)
    _finish(ax, trade.methods, "filled: no other point is as good on both")


# ---------------------------------------------------------------- shared pieces


def _finish(ax: Axes, drawn: Iterable[object], note: str) -> None:
    ax.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.45)
    ax.set_axisbelow(True)
    if not list(drawn):
        _empty(ax)
        return
    handles, labels = ax.get_legend_handles_labels()
    # Below the axes, where it covers no value.
    widest = max((len(label) for label in labels), default=1)
    ax.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(-0.02, -0.2),
        ncols=max(1, min(len(labels), 84 // (widest + 8))), handlelength=2.4,
        columnspacing=1.4, borderaxespad=0.0,
    )  # fmt: skip
    _note(ax, note)


def _note(ax: Axes, note: str) -> None:
    if note:
        ax.annotate(
            note, (1.0, 1.0), xytext=(0, 3), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="bottom", fontsize=6.5, color=INK, alpha=0.8,
        )  # fmt: skip


def _empty(ax: Axes) -> None:
    ax.annotate(
        "nothing finished yet", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center",
        fontsize=9, color=INK, alpha=0.7,
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])


# ---------------------------------------------------------------- whole figures


def figure_names(ledger: Ledger, study: str) -> list[str]:
    """The figures a study has: "results", its curves by part, "learning", "search_<part>", …"""
    return list(figures_of(ledger, read(ledger, study)))


def figure(ledger: Ledger, study: str, name: str, *, errors: str = "ci") -> Figure:
    """One figure by name.

    Raises:
        InputError: the study has no figure of that name.
    """
    known = figures_of(ledger, read(ledger, study), errors=errors)
    if name not in known:
        raise InputError(f"study {study!r} has the figures {', '.join(known)}, got {name!r}")
    return known[name]()


def figures_of(
    ledger: Ledger, snapshot: Snapshot, *, errors: str = "ci"
) -> dict[str, Callable[[], Figure]]:
    """Every figure of a study by name, each drawn when called."""
    look = looks(snapshot.methods)

    def results_figure() -> Figure:
        found = curves.results(snapshot)
        height = 1.2 + 0.36 * max(2, len(found.rows))
        return _one(lambda ax: draw_results(ax, found, look), height)

    made: dict[str, Callable[[], Figure]] = {"results": results_figure}
    for part, spec in snapshot.parts.items():
        if spec.get("x"):
            made[_free(part, made)] = lambda part=part: _one(  # type: ignore[misc]
                lambda ax: draw_curve(ax, curves.curve(snapshot, part), look, errors=errors)
            )
    made[_free("learning", made)] = lambda: _one(
        lambda ax: draw_learning(ax, curves.learning_curves(ledger, snapshot), look)
    )
    for part, spec in snapshot.parts.items():
        if spec.get("search"):
            made[_free(f"search_{part}", made)] = lambda part=part: _one(  # type: ignore[misc]
                lambda ax: draw_search(ax, searches.search_history(snapshot, part), look)
            )
    if searches.importance(snapshot):
        made[_free("importance", made)] = lambda: _importance_figure(snapshot, look)
    if len(snapshot.objectives) == 2:
        made[_free("trade_off", made)] = lambda: _one(
            lambda ax: draw_trade_off(ax, searches.trade_off(snapshot), look)
        )
    return made


def _free(name: str, taken: Mapping[str, object]) -> str:
    return name if name not in taken else _free(f"{name}_2", taken)


def _one(draw: Callable[[Axes], None], height: float = 3.4) -> Figure:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
    return figure


def _importance_figure(snapshot: Snapshot, look: Mapping[str, Look]) -> Figure:
    found = searches.importance(snapshot)
    heights = [0.6 + 0.28 * len(one.names) for one in found]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + sum(heights)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights, sharex=True)[
            :, 0
        ]
        for ax, one in zip(axes, found, strict=True):
            draw_importance(ax, one, look)
        axes[-1].set_xlabel(f"share of the variance of {metric_label(snapshot.objectives[0])}")
    return figure


def to_bytes(figure: Figure, form: str) -> bytes:
    """A figure as "png" or "svg"; equal figures give equal bytes."""
    metadata = {"svg": {"Date": None, "Creator": "modmix"}, "png": {"Software": "modmix"}}
    if form not in metadata:
        raise InputError(f"a figure's format must be png or svg, got {form!r}")
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=form, metadata=metadata[form])
    return buffer.getvalue()
