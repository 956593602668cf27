"""All figures of a study, by name. The same data give the same bytes: no dates, no random ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import modmix.analysis.backend  # noqa: F401  # isort: skip
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modmix.analysis import critical_difference, curves, drawing, figure_data, searches
from modmix.analysis.conditions import PREFIX
from modmix.analysis.curves import Curve, x_text
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.labels import metric_name, parameter_name
from modmix.analysis.over_tasks import over_tasks
from modmix.analysis.style import (
    WIDTH,
    MethodStyle,
    height_with_legend,
    method_styles,
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
    "critical_difference",
)


@dataclass(frozen=True, kw_only=True)
class FigureOf:
    """One figure of a study: caption, drawing, data."""

    name: str  # also the file name
    caption: str
    draw: Callable[[], Figure]
    numbers: Callable[[], pd.DataFrame]


def figure_names(ledger: Ledger, study: str) -> list[str]:
    """Names of a study's figures: "results", curves by part, "learning", "search_<part>", …"""
    return list(figures_of(ledger, read(ledger, study)))


def figure(ledger: Ledger, study: str, name: str, *, errors: str = "ci") -> Figure:
    """One figure by name; `to_bytes` converts it to PNG or SVG.

    Args:
        errors: error bars of curves: "ci" (95 % confidence intervals) or "std".

    Raises:
        InputError: the study has no figure of that name.
    """
    known = figures_of(ledger, read(ledger, study), errors=errors)
    if name not in known:
        raise InputError(f"study {study!r} has the figures {', '.join(known)}; got {name!r}")
    return known[name].draw()


def figures_of(ledger: Ledger, snapshot: Snapshot, *, errors: str = "ci") -> dict[str, FigureOf]:
    """All figures of a study by name; each is drawn on demand.

    Of a study of several tasks: results and curves with a panel per task, mean ranks with their
    critical difference, then the other figures of each task as "task.name".
    """
    drawing.check_error_bars(errors)
    styles = method_styles(snapshot.methods)
    if not snapshot.tasks:
        return _of_one_task(ledger, snapshot, styles, errors)
    of_tasks = {task: snapshot.of_task(task) for task in snapshot.tasks}
    found = [_panels_of_results(of_tasks, styles)]
    drawn = {found[0].name}
    for part, spec in snapshot.parts.items():
        if spec.get("x"):
            found.append(_panels_of_curves(of_tasks, part, styles, errors))
            drawn |= {found[-1].name, part}
    found += _critical_difference(snapshot, styles)
    for task, one in of_tasks.items():
        found += [
            replace(each, name=f"{task}.{name}", caption=f"{task}: {each.caption}")
            for name, each in _of_one_task(ledger, one, styles, errors).items()
            if name not in drawn or (name == "results" and one.conditions.is_split)
        ]
    return {one.name: one for one in found}


def _of_one_task(
    ledger: Ledger, snapshot: Snapshot, styles: Mapping[str, MethodStyle], errors: str
) -> dict[str, FigureOf]:
    conditions = snapshot.conditions
    found = [_results(snapshot, styles)] if not conditions.is_split else []
    if len(conditions.all) > 1:
        found.append(_conditions(snapshot, styles))
    found += [
        _curve(snapshot, part, styles, errors)
        for part, spec in snapshot.parts.items()
        if spec.get("x")
    ]
    if not conditions.is_split:
        found.append(_learning(ledger, snapshot, styles))
    found += [
        _search(snapshot, part, styles)
        for part, spec in snapshot.parts.items()
        if spec.get("search")
    ]
    if searches.importance(snapshot):
        found.append(_importance(snapshot, styles))
    if len(snapshot.objectives) == 2 and not conditions.is_split:
        found.append(_trade_off(snapshot, styles))
    return {one.name: one for one in found}


def _results(snapshot: Snapshot, styles: Mapping[str, MethodStyle]) -> FigureOf:
    found = figure_data.results(snapshot)
    height = 1.2 + 0.36 * max(2, len(found.rows))
    return FigureOf(
        name="results",
        caption=f"{_capitalised(found.metric)} of each method's best configuration.",
        draw=lambda: _one(lambda ax: drawing.draw_results(ax, found, styles), height),
        numbers=found.frame,
    )


def _conditions(snapshot: Snapshot, styles: Mapping[str, MethodStyle]) -> FigureOf:
    """Replaces the results figure if every configuration changes the task."""
    found = figure_data.by_condition(snapshot)
    height = height_with_legend(found.methods) - 2.1 + 0.36 * max(2, len(found.labels))
    return FigureOf(
        name="results" if snapshot.conditions.is_split else "conditions",
        caption=f"{_capitalised(found.metric)} of each method's best configuration by condition: "
        "gap to the method that is best on validation.",
        draw=lambda: _one(lambda ax: drawing.draw_conditions(ax, found, styles), height),
        numbers=found.frame,
    )


def _curve(
    snapshot: Snapshot, part: str, styles: Mapping[str, MethodStyle], errors: str
) -> FigureOf:
    found = curves.curve(snapshot, part)
    shown = found.first()
    return FigureOf(
        name=f"curve_{part}" if _is_taken(part) else part,
        caption=f"{_capitalised(found.metric)} over {_name_of(found.x)}."
        f"{_chosen(shown)}{_missing_references(snapshot, found)}",
        draw=lambda: _one(
            lambda ax: drawing.draw_curve(ax, shown, styles, errors=errors),
            height_with_legend([f"{label}, n = 5" for label in shown.labels]),
        ),
        numbers=found.frame,
    )


# ---------------------------------------------------------------- a panel per task


def _panels_of_results(
    of_tasks: Mapping[str, Snapshot], styles: Mapping[str, MethodStyle]
) -> FigureOf:
    found = {task: figure_data.results(one) for task, one in of_tasks.items()}
    rows = max((len(one.rows) for one in found.values()), default=0)
    notes = [note for one in found.values() for note in drawing.results_notes(one)]

    def draw(ax: Axes, task: str) -> list[Any]:
        drawing.draw_results(ax, replace(found[task], title=task), styles, panel=True)
        return []

    return FigureOf(
        name="results",
        caption="Each method's best configuration, by task.",
        draw=lambda: _panels(list(found), draw, 1.2 + 0.36 * max(2, rows), notes),
        numbers=lambda: _by_task({task: one.frame() for task, one in found.items()}),
    )


def _critical_difference(snapshot: Snapshot, styles: Mapping[str, MethodStyle]) -> list[FigureOf]:
    """The diagram of mean ranks, if at least two rows have results on at least two tasks."""
    over = over_tasks(snapshot)
    if over.ranks.blocks < 2 or len(over.ranks.frame) < 2:
        return []
    found = critical_difference.critical_difference(over.ranks)
    methods = {label: row.best.method for rows in over.rows.values() for label, row in rows.items()}
    colours = {label: styles[methods[label]].colour for label in found.labels}
    return [
        FigureOf(
            name="critical_difference",
            caption="Mean ranks over tasks; bars join methods whose ranks do not differ "
            "significantly (Nemenyi test, 5 % level).",
            draw=lambda: _one(
                lambda ax: critical_difference.draw(ax, found, colours),
                critical_difference.height(found),
                critical_difference.width(found),
            ),
            numbers=found.frame,
        )
    ]


def _panels_of_curves(
    of_tasks: Mapping[str, Snapshot],
    part: str,
    styles: Mapping[str, MethodStyle],
    errors: str,
) -> FigureOf:
    found = {task: curves.curve(one, part) for task, one in of_tasks.items() if part in one.parts}
    first = next(iter(found.values()))
    notes = [note for one in found.values() for note in drawing.curve_notes(one.first(), errors)]

    def draw(ax: Axes, task: str) -> list[Any]:
        shown = replace(found[task].first(), title=task)
        return drawing.draw_curve(ax, shown, styles, errors=errors, panel=True)

    chosen = "".join(f" {task}:{text}" for task, one in found.items() if (text := _chosen(one)))
    return FigureOf(
        name=f"curve_{part}" if _is_taken(part) else part,
        caption=f"{_capitalised(first.metric)} over {_name_of(first.x)}, by task.{chosen}",
        draw=lambda: _panels(list(found), draw, 2.7, notes),
        numbers=lambda: _by_task({task: one.frame() for task, one in found.items()}),
    )


def _by_task(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(
        [one.assign(task=task).set_index("task").reset_index() for task, one in frames.items()],
        ignore_index=True,
    )


def _panels(
    tasks: Sequence[str],
    draw: Callable[[Axes, str], Sequence[Any]],
    height: float,
    notes: Sequence[str],
) -> Figure:
    """A panel per task, at most three beside each other; notes above, one legend below."""
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    with styled():
        figure = new_figure(rows * height + 0.5, max(WIDTH, 3.5 * columns))
        axes = figure.subplots(rows, columns, squeeze=False).flat
        text = "; ".join(dict.fromkeys(note for note in notes if note))
        figure.suptitle(text, x=0.01, ha="left", fontsize=7)
        handles: dict[str, Any] = {}
        for ax, task in zip(axes, tasks, strict=False):
            for handle in draw(ax, task):
                handles.setdefault(str(handle.get_label()), handle)
        for ax in list(axes)[len(tasks) :]:
            ax.set_visible(False)
        if handles:
            figure.legend(
                list(handles.values()), list(handles), loc="outside lower left",
                ncols=min(len(handles), 2 + columns), handlelength=2.4,
            )  # fmt: skip
    return figure


def _capitalised(metric: str) -> str:
    """A metric's name, capitalised."""
    name = metric_name(metric)
    return name[:1].upper() + name[1:]


def _chosen(curve: Curve) -> str:
    """The x selected on validation, by line."""
    chosen = [
        f"{x_text(line.points[line.chosen].x)} for {line.label}"
        for line in curve.lines
        if line.chosen is not None and len(line.points) > 1
    ]
    if not chosen:
        return ""
    return f" Selected on validation: {parameter_name(curve.x)} = {', '.join(chosen)}."


def _name_of(x: str) -> str:
    name = parameter_name(x.removeprefix(PREFIX))
    return f"the task's {name}" if x.startswith(PREFIX) else name


def _missing_references(snapshot: Snapshot, curve: Curve) -> str:
    """Why there are no reference lines although the study file has some."""
    if curve.conditions < 2 or not snapshot.parts[curve.part].get("references"):
        return ""
    return " No reference lines: the configurations are on different data."


def _is_taken(part: str) -> bool:
    """Whether a part has the name of another output."""
    return part in RESERVED or part.startswith("search_")


def _learning(ledger: Ledger, snapshot: Snapshot, styles: Mapping[str, MethodStyle]) -> FigureOf:
    found = figure_data.learning_curves(ledger, snapshot)
    return FigureOf(
        name="learning",
        caption=f"{_capitalised(found.metric)} during training of the best configurations.",
        draw=lambda: _one(
            lambda ax: drawing.draw_learning(ax, found, styles),
            height_with_legend([f"{line.method}, n = 5" for line in found.lines]),
        ),
        numbers=found.frame,
    )


def _search(snapshot: Snapshot, part: str, styles: Mapping[str, MethodStyle]) -> FigureOf:
    found = searches.search_history(snapshot, part)
    return FigureOf(
        name=f"search_{part}",
        caption=f"{_capitalised(found.metric)} of all configurations of the search.",
        draw=lambda: _one(
            lambda ax: drawing.draw_search(ax, found, styles),
            height_with_legend(
                [f"{t.method}, 100 configurations, best 10.00" for t in found.traces]
            ),
        ),
        numbers=found.frame,
    )


def _importance(snapshot: Snapshot, styles: Mapping[str, MethodStyle]) -> FigureOf:
    found = searches.importance(snapshot)
    heights = [0.62 + 0.27 * len(one.names) for one in found]

    def draw() -> Figure:
        with styled():
            figure = new_figure(0.4 + sum(heights))
            axes = figure.subplots(
                len(found), 1, squeeze=False, height_ratios=heights, sharex=True
            )[:, 0]
            for ax, one in zip(axes, found, strict=True):
                drawing.draw_importance(ax, one, styles)
            axes[-1].set_xlabel(f"share of the variance of {metric_name(snapshot.objectives[0])}")
        return figure

    return FigureOf(
        name="importance",
        caption=f"Hyperparameter importance: {searches.IMPORTANCE_METHOD}. "
        "ρ is Spearman's rank correlation with the objective.",
        draw=draw,
        numbers=lambda: searches.importance_frame(found),
    )


def _trade_off(snapshot: Snapshot, styles: Mapping[str, MethodStyle]) -> FigureOf:
    found = searches.trade_off(snapshot)
    return FigureOf(
        name="trade_off",
        caption="Both objectives of all complete configurations.",
        draw=lambda: _one(lambda ax: drawing.draw_trade_off(ax, found, styles)),
        numbers=found.frame,
    )


def _one(draw: Callable[[Axes], object], height: float = 3.4, width: float = WIDTH) -> Figure:
    with styled():
        figure = new_figure(height, width)
        draw(figure.add_subplot())
    return figure
