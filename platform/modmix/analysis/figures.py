"""Whole figures of a study, by name; `drawing` draws on their axes.

The same numbers give the same bytes: no dates, no random ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modmix.analysis import curves, drawing, figure_data, searches
from modmix.analysis.conditions import PREFIX
from modmix.analysis.curves import Curve, x_word
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.labels import metric_words, parameter_words
from modmix.analysis.style import (
    Look,
    height_with_legend,
    looks,
    new_figure,
    styled,
    to_bytes,
)
from modmix.base.errors import InputError
from modmix.ledger.ledger import Ledger

__all__ = ["FigureOf", "figure", "figure_names", "figures_of", "to_bytes"]


RESERVED = (
    "results",
    "configurations",
    "conditions",
    "ranks",
    "learning",
    "importance",
    "trade_off",
)


@dataclass(frozen=True, kw_only=True)
class FigureOf:
    """One figure of a study: what it shows in words, its picture and its numbers."""

    name: str  # also of its files
    caption: str
    draw: Callable[[], Figure]
    numbers: Callable[[], pd.DataFrame]


def figure_names(ledger: Ledger, study: str) -> list[str]:
    """The figures a study has: "results", its curves by part, "learning", "search_<part>", …"""
    return list(figures_of(ledger, read(ledger, study)))


def figure(ledger: Ledger, study: str, name: str, *, errors: str = "ci") -> Figure:
    """One figure by name; `to_bytes` makes PNG or SVG of it.

    Args:
        errors: the error bars of curves: "ci" (95 % intervals) or "std".

    Raises:
        InputError: the study has no figure of that name.
    """
    known = figures_of(ledger, read(ledger, study), errors=errors)
    if name not in known:
        raise InputError(f"study {study!r} has the figures {', '.join(known)}; got {name!r}")
    return known[name].draw()


def figures_of(ledger: Ledger, snapshot: Snapshot, *, errors: str = "ci") -> dict[str, FigureOf]:
    """Every figure of a study by name; nothing is drawn before it is asked for."""
    drawing.check_errors(errors)
    look = looks(snapshot.methods)
    conditions = snapshot.conditions
    found = [_results(snapshot, look)] if not conditions.is_split else []
    if len(conditions.all) > 1:
        found.append(_conditions(snapshot, look))
    found += [
        _curve(snapshot, part, look, errors)
        for part, spec in snapshot.parts.items()
        if spec.get("x")
    ]
    if not conditions.is_split:
        found.append(_learning(ledger, snapshot, look))
    found += [
        _search(snapshot, part, look) for part, spec in snapshot.parts.items() if spec.get("search")
    ]
    if searches.importance(snapshot):
        found.append(_importance(snapshot, look))
    if len(snapshot.objectives) == 2 and not conditions.is_split:
        found.append(_trade_off(snapshot, look))
    return {one.name: one for one in found}


def _results(snapshot: Snapshot, look: Mapping[str, Look]) -> FigureOf:
    found = figure_data.results(snapshot)
    height = 1.2 + 0.36 * max(2, len(found.rows))
    return FigureOf(
        name="results",
        caption=f"{_sentence(found.metric)} of each method's best configuration.",
        draw=lambda: _one(lambda ax: drawing.draw_results(ax, found, look), height),
        numbers=found.frame,
    )


def _conditions(snapshot: Snapshot, look: Mapping[str, Look]) -> FigureOf:
    """Takes the place of the results where no method wins over all."""
    found = figure_data.by_condition(snapshot)
    height = height_with_legend(found.methods) - 2.1 + 0.36 * max(2, len(found.labels))
    return FigureOf(
        name="results" if snapshot.conditions.is_split else "conditions",
        caption=f"{_sentence(found.metric)} of each method's best configuration in each "
        "condition, beside "
        "the best of that condition: only configurations of one condition are of the same data.",
        draw=lambda: _one(lambda ax: drawing.draw_conditions(ax, found, look), height),
        numbers=found.frame,
    )


def _curve(snapshot: Snapshot, part: str, look: Mapping[str, Look], errors: str) -> FigureOf:
    found = curves.curve(snapshot, part)
    shown = found.first()
    return FigureOf(
        name=f"curve_{part}" if _is_taken(part) else part,
        caption=f"{_sentence(found.metric)} over {_name_of(found.x)}."
        f"{_chosen(shown)}{_left_out(snapshot, found)}",
        draw=lambda: _one(
            lambda ax: drawing.draw_curve(ax, shown, look, errors=errors),
            height_with_legend([f"{label}, n = 5" for label in shown.labels]),
        ),
        numbers=found.frame,
    )


def _sentence(metric: str) -> str:
    """A metric at the beginning of a sentence."""
    words = metric_words(metric)
    return words[:1].upper() + words[1:]


def _chosen(curve: Curve) -> str:
    """What validation chooses along each line; what is drawn is test."""
    chosen = [
        f"{x_word(line.dots[line.chosen].x)} for {line.label}"
        for line in curve.lines
        if line.chosen is not None and len(line.dots) > 1
    ]
    words = parameter_words(curve.x)
    return f" Validation chooses {words} = {', '.join(chosen)}." if chosen else ""


def _name_of(x: str) -> str:
    words = parameter_words(x.removeprefix(PREFIX))
    return f"the task's {words}" if x.startswith(PREFIX) else words


def _left_out(snapshot: Snapshot, curve: Curve) -> str:
    """Why there are no reference lines although the study file asks for some."""
    if curve.conditions < 2 or not snapshot.parts[curve.part].get("references"):
        return ""
    return (
        " Its configurations are on different data, so no configuration can be a reference for all "
        "of them."
    )


def _is_taken(part: str) -> bool:
    """Whether a part is named like another output, so that its curve needs another name."""
    return part in RESERVED or part.startswith("search_")


def _learning(ledger: Ledger, snapshot: Snapshot, look: Mapping[str, Look]) -> FigureOf:
    found = figure_data.learning_curves(ledger, snapshot)
    return FigureOf(
        name="learning",
        caption=f"{_sentence(found.metric)} while the best configurations were trained.",
        draw=lambda: _one(
            lambda ax: drawing.draw_learning(ax, found, look),
            height_with_legend([f"{line.method}, n = 5" for line in found.lines]),
        ),
        numbers=found.frame,
    )


def _search(snapshot: Snapshot, part: str, look: Mapping[str, Look]) -> FigureOf:
    found = searches.search_history(snapshot, part)
    return FigureOf(
        name=f"search_{part}",
        caption=f"{_sentence(found.metric)} of every configuration the search proposed.",
        draw=lambda: _one(
            lambda ax: drawing.draw_search(ax, found, look),
            height_with_legend(
                [f"{t.method}, 100 configurations, best 10.00" for t in found.traces]
            ),
        ),
        numbers=found.frame,
    )


def _importance(snapshot: Snapshot, look: Mapping[str, Look]) -> FigureOf:
    found = searches.importance(snapshot)
    heights = [0.62 + 0.27 * len(one.names) for one in found]

    def draw() -> Figure:
        with styled():
            figure = new_figure(0.4 + sum(heights))
            axes = figure.subplots(
                len(found), 1, squeeze=False, height_ratios=heights, sharex=True
            )[:, 0]
            for ax, one in zip(axes, found, strict=True):
                drawing.draw_importance(ax, one, look)
            axes[-1].set_xlabel(f"share of the variance of {metric_words(snapshot.objectives[0])}")
        return figure

    return FigureOf(
        name="importance",
        caption=f"What the objective depends on: {searches.IMPORTANCE_METHOD}. "
        "ρ is Spearman's rank correlation with the objective.",
        draw=draw,
        numbers=lambda: searches.importance_frame(found),
    )


def _trade_off(snapshot: Snapshot, look: Mapping[str, Look]) -> FigureOf:
    found = searches.trade_off(snapshot)
    return FigureOf(
        name="trade_off",
        caption="Both objectives of every finished configuration.",
        draw=lambda: _one(lambda ax: drawing.draw_trade_off(ax, found, look)),
        numbers=found.frame,
    )


def _one(draw: Callable[[Axes], None], height: float = 3.4) -> Figure:
    with styled():
        figure = new_figure(height)
        draw(figure.add_subplot())
    return figure
