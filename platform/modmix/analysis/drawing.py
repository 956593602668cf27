"""Draws data from `curves`, `figure_data` and `searches` on an axis. No pyplot, no global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import modmix.analysis.backend  # noqa: F401  # isort: skip
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from modmix.analysis.conditions import PREFIX
from modmix.analysis.curves import Curve, Line, Reference, X, x_text
from modmix.analysis.figure_data import ByCondition, LearningCurves, Results
from modmix.analysis.labels import (
    higher_is_better,
    metric_label,
    metric_name,
    metric_text,
    parameter_label,
    parameter_name,
    unit,
)
from modmix.analysis.searches import Importance, SearchHistory, Trace, TradeOff
from modmix.analysis.statistics import Estimate
from modmix.analysis.style import (
    DASHES,
    FAINT,
    INK,
    MARKERS,
    PAPER,
    MethodStyle,
    draw_empty,
    heading,
    horizontal_grid,
    legend_below,
    wide_heading,
)
from modmix.base.errors import InputError
from modmix.base.wording import counted

_LETTERS = 62  # of an axis label that fit in a line below an axis of the common width
_PANEL_LETTERS = 34  # below a panel
_MANY = 1000  # markers; more are rasterized inside the SVG
ERROR_BARS = {"ci": "95 % confidence interval", "std": "standard deviation"}


# Of horizontal lines of the same method.
REFERENCE_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (4, 2)), (0, (1.5, 1.5)))


def check_error_bars(errors: str) -> None:
    """Check the kind of error bars.

    Raises:
        InputError: neither "ci" nor "std".
    """
    if errors not in ERROR_BARS:
        raise InputError(f"error bars must be 'ci' or 'std', got {errors!r}")


# ---------------------------------------------------------------- curves


def draw_curve(
    ax: Axes,
    curve: Curve,
    styles: Mapping[str, MethodStyle],
    *,
    errors: str = "ci",
    panel: bool = False,
) -> list[Any]:
    """Mean over x per method, with error bars; a ring marks the x chosen on validation.

    Args:
        errors: "ci" for 95 % confidence intervals, "std" for standard deviations.
        panel: leave notes and legend to the figure; the legend is made of the handles returned.
    """
    check_error_bars(errors)
    label = _x_label(curve, _PANEL_LETTERS if panel else _LETTERS)
    ax.set_xlabel(label)
    ax.set_ylabel(metric_label(curve.metric))
    horizontal_grid(ax)
    if not curve.lines and not curve.references:
        heading(ax, curve.title)
        draw_empty(ax)
        return []
    step = _step(curve)
    middle = (len(curve.lines) - 1) / 2
    handles = [
        # Lines are shifted slightly, so that error bars do not overlap.
        _draw_line(ax, curve, line, styles[line.method], (place - middle) * step, errors)
        for place, line in enumerate(curve.lines)
    ]
    for found in curve.references:
        alike = [one for one in curve.references if one.method == found.method]
        dash = REFERENCE_DASHES[alike.index(found) % len(REFERENCE_DASHES)]
        handles.append(_draw_reference(ax, found, styles, errors, dash))
    drop = _label_x(ax, curve)
    if not panel:
        legend_below(ax, handles, drop=drop + 12 * label.count("\n"))
    heading(ax, curve.title, () if panel else curve_notes(curve, errors))
    return handles


def _x_label(curve: Curve, letters: int) -> str:
    """The name of x, with a task option's description; two lines of so many letters at most."""
    option = parameter_name(curve.x.removeprefix(PREFIX))
    if curve.x_entry:
        return f"{option} {'on' if curve.x.startswith(PREFIX) else 'for'} {curve.x_entry}"
    if not curve.x_doc:
        return parameter_label(curve.x)
    return textwrap.fill(
        f"{option}: {curve.x_doc}", letters, max_lines=2, placeholder=" …", break_on_hyphens=False
    )


def _draw_line(
    ax: Axes, curve: Curve, line: Line, styles: MethodStyle, shift: float, errors: str
) -> Any:
    xs = np.array([_position(point.x, curve.categories) for point in line.points]) + shift
    means = np.array([point.value.mean for point in line.points])
    bars = np.nan_to_num(np.array([_bars(point.value, errors) for point in line.points]).T)
    variants = [other.variant for other in curve.lines if other.method == line.method]
    variant = variants.index(line.variant)
    marker = MARKERS[(MARKERS.index(styles.marker) + variant) % len(MARKERS)]
    is_dense = not curve.connected and len(line.points) > 12
    handle = ax.errorbar(
        xs, means, yerr=bars, color=styles.colour, marker=marker, markersize=4.5,
        linewidth=1.4 if curve.connected else 0.0, elinewidth=0.7 if is_dense else 1.0,
        capsize=0 if is_dense else 2.5, alpha=0.7 if is_dense else 1.0, zorder=3,
        linestyle=DASHES[variant % len(DASHES)], label=f"{line.label}, {_n_text(line)}",
    )  # fmt: skip
    partial = [i for i, point in enumerate(line.points) if not point.complete]
    if partial:
        ax.plot(
            xs[partial], means[partial], marker=marker, markersize=4.5, linestyle="none",
            color=styles.colour, markerfacecolor=PAPER, zorder=4,
        )  # fmt: skip
    if line.chosen is not None and _has_ring(line):
        ax.plot(
            xs[line.chosen], means[line.chosen], marker="o", markersize=10, linestyle="none",
            markerfacecolor="none", markeredgecolor=styles.colour, markeredgewidth=1.2, zorder=5,
        )  # fmt: skip
    return handle


def _draw_reference(
    ax: Axes,
    reference: Reference,
    styles: Mapping[str, MethodStyle],
    errors: str,
    dash: tuple[int, tuple[float, ...]],
) -> Any:
    value, colour = reference.value, styles[reference.method].colour
    below, above = _bars(value, errors)
    if math.isfinite(below):
        ax.axhspan(
            value.mean - below, value.mean + above, color=colour, alpha=0.13, linewidth=0, zorder=1
        )
    return ax.axhline(
        value.mean, color=colour, linewidth=1.3, linestyle=dash, zorder=2,
        label=f"{reference.label}, n = {value.n}",
    )  # fmt: skip


def _bars(value: Estimate, errors: str) -> tuple[float, float]:
    if errors == "std":
        return value.std, value.std
    return value.mean - value.ci_low, value.ci_high - value.mean


def _position(x: X, categories: Sequence[str]) -> float:
    if categories:
        return float(categories.index(x_text(x)))
    assert isinstance(x, float)
    return x


def _step(curve: Curve) -> float:
    """Shift between lines: a fraction of the smallest step; 0 on log axes."""
    lines = len(curve.lines)
    if lines < 2 or not curve.connected or curve.logarithmic:
        return 0.0
    if curve.categories:
        return 0.24 / lines
    xs = curve.xs
    # Visible, but too small to be read as another x.
    return min(float(min(np.diff(xs))) * 0.16, 0.03 * (xs[-1] - xs[0])) / lines if xs[1:] else 0.0


def _label_x(ax: Axes, curve: Curve) -> float:
    """Set ticks at the x values; return the legend's distance below the axis, in points."""
    if curve.categories:
        longest = max(len(text) for text in curve.categories)
        is_wide = longest * len(curve.categories) > 70
        turned: Any = {"rotation": 30, "ha": "right"} if is_wide else {}
        ax.set_xticks(range(len(curve.categories)), curve.categories, **turned)
        return 40.0 + 2.4 * longest if is_wide else 36.0
    xs = curve.xs
    if curve.logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    gaps = np.diff(np.log(xs) if curve.logarithmic else xs)
    is_even = len(xs) < 2 or gaps.min() > 0.04 * gaps.sum()
    if xs and len(xs) <= 12 and is_even:  # otherwise tick labels overlap
        ax.set_xticks(xs, [f"{x:.4g}" for x in xs])
        ax.xaxis.set_minor_locator(NullLocator())
    return 36.0


def curve_notes(curve: Curve, errors: str) -> list[str]:
    points = [point for line in curve.lines for point in line.points]
    values = [point.value for point in points] + [found.value for found in curve.references]
    has_bars = any(value.n > 1 for value in values)
    return [
        f"mean and {ERROR_BARS[errors]}" if has_bars else "one seed: no error bars",
        "ring: best on validation" if any(_has_ring(line) for line in curve.lines) else "",
        "hollow: incomplete" if any(not point.complete for point in points) else "",
        f"{curve.omitted} more lines in the table" if curve.omitted else "",
    ]


def _has_ring(line: Line) -> bool:
    return line.chosen is not None and len(line.points) > 1


def _n_text(line: Line) -> str:
    ns = sorted({point.value.n for point in line.points})
    return f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]}–{ns[-1]}"


# ---------------------------------------------------------------- results


def draw_results(
    ax: Axes, results: Results, styles: Mapping[str, MethodStyle], *, panel: bool = False
) -> None:
    """One line per row: mean with 95 % interval, all seeds, the paper's number.

    ``panel``: leave the notes to the figure.
    """
    ax.set_xlabel(metric_label(results.metric))
    if not results.rows:
        heading(ax, results.title)
        draw_empty(ax)
        return
    for i, row in enumerate(results.rows):
        value, style = row.best.estimates[results.metric], styles[row.best.method]
        seeds = results.values[i]
        ax.plot(
            seeds, [i + 0.26] * len(seeds), marker="o", markersize=2.6, linestyle="none",
            color=style.colour, alpha=0.6, markeredgewidth=0, zorder=2,
        )  # fmt: skip
        bars = np.nan_to_num(np.array([_bars(value, "ci")]).T)
        ax.errorbar(
            value.mean, i, xerr=bars, color=style.colour, marker=style.marker,
            markersize=5.5, elinewidth=1.5, capsize=3, zorder=3,
        )  # fmt: skip
        if (paper := results.papers[i]) is not None:
            ax.plot(
                paper[0], i - 0.3, marker="*", markersize=7.5, markerfacecolor="none",
                markeredgecolor=INK, markeredgewidth=0.9, linestyle="none", zorder=3,
            )  # fmt: skip
    labels = [f"{row.label}, n = {row.best.n}" for row in results.rows]
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.45)
    heading(ax, results.title, () if panel else results_notes(results))


def results_notes(results: Results) -> list[str]:
    """What the marks of `draw_results` mean."""
    has_paper = any(paper is not None for paper in results.papers)
    return ["mean and 95 % confidence interval", "dots: seeds", "star: paper" if has_paper else ""]


def draw_conditions(ax: Axes, found: ByCondition, styles: Mapping[str, MethodStyle]) -> None:
    """One line per condition: gaps of all methods to the reference, and its mean."""
    if not found.methods:
        heading(ax, found.title)
        draw_empty(ax)
        return
    shown = unit(found.metric)
    ax.set_xlabel(
        f"{metric_name(found.metric)}, gap to the method that is best on validation"
        f"{' (points)' if shown == '%' else f' ({shown})' if shown else ''}"
    )
    step, middle = 0.64 / len(found.methods), (len(found.methods) - 1) / 2
    handles = []
    for place, method in enumerate(found.methods):
        rows = [i for i, values in enumerate(found.gaps) if method in values]
        values = [found.gaps[i][method] for i in rows]
        bars = np.array([(v.gap - v.low, v.high - v.gap) for v in values]).T
        handle = ax.errorbar(
            [value.gap for value in values], [i + (place - middle) * step for i in rows],
            xerr=np.nan_to_num(bars), color=styles[method].colour, marker=styles[method].marker,
            markersize=4, linestyle="none", elinewidth=1.0, capsize=0, zorder=3, label=method,
        )  # fmt: skip
        handles.append(handle)
    _write_references(ax, found)
    ax.set_yticks(range(len(found.labels)), found.labels, fontsize=7)
    ax.set_ylim(len(found.labels) - 0.4, -0.6)
    for edge in range(1, len(found.labels)):
        ax.axhline(edge - 0.5, color=FAINT, linewidth=0.5, alpha=0.45, zorder=1)
    ax.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.45)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=1)
    legend_below(ax, handles, is_wide=True)
    has_bars = any(math.isfinite(v.low) for values in found.gaps for v in values.values())
    notes = [
        "bars: paired 95 % confidence interval" if has_bars else "one seed: no error bars",
        "right: the mean of the best on validation",
        f"{found.omitted} more conditions in the table" if found.omitted else "",
    ]
    wide_heading(ax, found.title, notes)


def _write_references(ax: Axes, found: ByCondition) -> None:
    """Write the reference and its mean at the right edge of each condition."""
    for i, (values, method) in enumerate(zip(found.gaps, found.references, strict=True)):
        if method in values:
            text = f"{method} {metric_text(values[method].mean, found.metric)}"
            ax.annotate(
                text, (1.0, i), xytext=(4, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=7, annotation_clip=False,
            )  # fmt: skip


# ---------------------------------------------------------------- learning


def draw_learning(ax: Axes, learning: LearningCurves, styles: Mapping[str, MethodStyle]) -> None:
    """Mean per epoch ± one standard deviation; dotted after the first replicate has ended."""
    ax.set_xlabel("epochs")
    ax.set_ylabel(metric_label(learning.metric))
    horizontal_grid(ax)
    if not learning.lines:
        heading(ax, learning.title)
        draw_empty(ax)
        return
    handles: list[Any] = []
    for line in learning.lines:
        style = styles[line.method]
        handles += ax.plot(
            line.epochs, np.where(line.full, line.mean, np.nan), color=style.colour,
            linewidth=1.5, marker=style.marker, markersize=3.5,
            markevery=max(1, len(line.epochs) // 8), zorder=3, label=f"{line.method}, n = {line.n}",
        )  # fmt: skip
        if not line.full.all():
            ax.plot(
                line.epochs, line.mean, color=style.colour, linewidth=1.1, linestyle=":", zorder=2
            )
        if np.isfinite(line.std).any():
            ax.fill_between(
                line.epochs, line.mean - line.std, line.mean + line.std,
                color=style.colour, alpha=0.15, linewidth=0, zorder=1,
            )  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _use_log_scale_if_useful(ax, learning)
    legend_below(ax, handles)
    has_early = any(not line.full.all() for line in learning.lines)
    notes = [
        "band: one standard deviation" if any(x.n > 1 for x in learning.lines) else "",
        "dotted: some seeds have ended" if has_early else "",
    ]
    heading(ax, learning.title, notes)


def _use_log_scale_if_useful(ax: Axes, learning: LearningCurves) -> None:
    """Use a log axis for errors and losses that fall by a factor of three or more."""
    means = np.concatenate([line.mean for line in learning.lines])
    if higher_is_better(learning.metric) or means.min() <= 0 or means.max() < 3 * means.min():
        return
    lowest = min(float(np.nanmin(line.mean - np.nan_to_num(line.std))) for line in learning.lines)
    ax.set_yscale("log")
    ax.set_ylim(bottom=max(lowest, 0.7 * float(means.min())) * 0.95)
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if means.max() < 30 * means.min() else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


# ---------------------------------------------------------------- searches


def draw_search(ax: Axes, history: SearchHistory, styles: Mapping[str, MethodStyle]) -> None:
    """All configurations of a search, and the best so far."""
    ax.set_xlabel("configurations")
    ax.set_ylabel(f"{metric_label(history.metric)}, mean over seeds")
    horizontal_grid(ax)
    drawn = [trace for trace in history.traces if np.isfinite(trace.values).any()]
    if not drawn:
        heading(ax, history.title)
        draw_empty(ax)
        return
    handles = [_draw_trace(ax, trace, styles[trace.method], history.metric) for trace in drawn]
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    outside = _clip_outliers(ax, drawn, history.metric)
    legend_below(ax, handles)
    notes = [
        "line: best so far" if any(np.isfinite(t.best).any() for t in drawn) else "",
        "markers: configurations",
        "×: pruned" if any(trace.pruned.any() for trace in drawn) else "",
        f"{outside} worse not shown" if outside else "",
    ]
    heading(ax, history.title, notes)


def _draw_trace(ax: Axes, trace: Trace, style: MethodStyle, metric: str) -> Any:
    places = trace.numbers + 1
    is_dense = len(places) > _MANY // 5
    for chosen, marker in ((~trace.pruned, style.marker), (trace.pruned, "x")):
        ax.plot(
            places[chosen], trace.values[chosen], marker=marker, linestyle="none",
            color=style.colour, markersize=2 if is_dense else 4,
            alpha=0.3 if is_dense else 0.55, zorder=2,
            markeredgewidth=0 if is_dense and marker != "x" else 0.8,
            rasterized=len(places) > _MANY,
        )  # fmt: skip
    count = int(np.isfinite(trace.values).sum())
    last = float(trace.best[-1])
    best = "" if math.isnan(last) else f", best {metric_text(last, metric)}"
    steps = ax.step(
        places, trace.best, where="post", color=style.colour, linewidth=1.6, zorder=3,
        marker=style.marker, markevery=[len(places) - 1], markersize=5,
        label=f"{trace.method}, {counted(count, 'configuration')}{best}",
    )  # fmt: skip
    return steps[0]


def _clip_outliers(ax: Axes, traces: Sequence[Trace], metric: str) -> int:
    """Limit the y axis so that outliers do not flatten the curve; return how many are outside."""
    sign = -1.0 if higher_is_better(metric) else 1.0
    values = np.concatenate([trace.values for trace in traces])
    costs = np.sort(values[np.isfinite(values)] * sign)
    if len(costs) < 8:
        return 0
    best, bulk = costs[0], costs[int(0.8 * (len(costs) - 1))]
    # Keep the start of every best-so-far line visible.
    firsts = [t.best[np.isfinite(t.best)][0] * sign for t in traces if np.isfinite(t.best).any()]
    limit = max([bulk + (bulk - best), *firsts])
    outside = int((costs > limit).sum())
    if outside and limit > best:
        margin = 0.06 * (limit - best)
        low, high = sorted((sign * (best - margin), sign * (limit + margin)))
        ax.set_ylim(low, high)
    return outside


def draw_importance(ax: Axes, one: Importance, styles: Mapping[str, MethodStyle]) -> None:
    """Bars of variance shares, annotated with the rank correlations."""
    names = [parameter_name(name) for name in one.names]
    ax.barh(range(len(names)), one.share, color=styles[one.method].colour, height=0.6, alpha=0.85)
    for i, (share, correlation) in enumerate(zip(one.share, one.correlation, strict=True)):
        signed = f"  (ρ = {correlation:+.2f})".replace("-", "−")
        ax.annotate(
            f"{share:.2f}" + ("" if math.isnan(correlation) else signed), (share, i),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
        )  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.2)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    heading(ax, f"{one.part}: {one.method}, {counted(one.configurations, 'configuration')}")


def draw_trade_off(ax: Axes, trade: TradeOff, styles: Mapping[str, MethodStyle]) -> None:
    """Complete configurations on both objectives; those of the front filled and joined."""
    ax.set_xlabel(metric_label(trade.metrics[0]))
    ax.set_ylabel(metric_label(trade.metrics[1]))
    horizontal_grid(ax)
    if not trade.methods:
        heading(ax, trade.title)
        draw_empty(ax)
        return
    handles: list[Any] = []
    for method in dict.fromkeys(trade.methods):
        mine = np.array([name == method for name in trade.methods])
        style = styles[method]
        common: Any = {
            "marker": style.marker, "markersize": 5, "linestyle": "none", "color": style.colour,
        }  # fmt: skip
        rest, front = trade.values[mine & ~trade.front], trade.values[mine & trade.front]
        ax.plot(rest[:, 0], rest[:, 1], markerfacecolor="none", alpha=0.6, zorder=2, **common)
        count = int(mine.sum())
        label = f"{method}, {counted(count, 'configuration')}"
        handles += ax.plot(front[:, 0], front[:, 1], zorder=3, label=label, **common)
    front = trade.values[trade.front]
    front = front[np.argsort(front[:, 0], kind="stable")]
    ax.plot(front[:, 0], front[:, 1], color=FAINT, linewidth=1, zorder=1)
    legend_below(ax, handles)
    heading(ax, trade.title, ["filled: Pareto front"])
