"""Data of curves over a hyperparameter; `drawing` draws them.

Means are over a configuration's finished replicates; NaN means are omitted. Best configurations are
selected on validation (see `best`), whatever split is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from modmix.analysis.best import best_index, best_of
from modmix.analysis.conditions import PREFIX, Condition
from modmix.analysis.frames import Snapshot, estimate_columns, short
from modmix.analysis.labels import (
    on_test,
    parameter_name,
    value_text,
)
from modmix.analysis.statistics import Estimate
from modmix.base.errors import InputError
from modmix.ledger.records import ConfigurationRecord
from modmix.tasks.table import TASKS

MAX_LINES = 40  # of a figure
X = float | str  # a curve's x: a number, or the text of any other value


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One configuration of a curve."""

    x: X
    value: Estimate
    configuration: str  # full key
    complete: bool  # all its replicates are done
    seeds: int  # finished or not


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: a method, with all other hyperparameters constant along it.

    ``minimum`` and ``chosen`` are indices of ``points``: the best drawn mean, and the best on
    validation, both among the points with the most seeds. None if there is no such point, or the
    points are of different data.
    """

    method: str
    variant: str  # "depth = 1" if another hyperparameter varies, else ""
    points: tuple[CurvePoint, ...]
    minimum: int | None
    chosen: int | None

    @property
    def label(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A horizontal line: a method's best configuration, in the study or of a labelled part."""

    label: str  # "add (best)", or the label of a part's row
    method: str
    configuration: str
    value: Estimate


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The curve of one part with an ``x``.

    ``connected``: False for a search, whose points are not joined. ``logarithmic``: whether x was
    sampled or listed by factors. ``conditions``: the number of different data sets.
    """

    part: str
    title: str
    x: str
    metric: str
    lines: tuple[Line, ...]
    references: tuple[Reference, ...]
    connected: bool
    logarithmic: bool
    conditions: int
    x_doc: str  # description of a task option, else ""
    x_entry: str = ""  # the one key of x values such as {"image": 0.1}, else ""
    omitted: int = 0  # number of omitted lines

    def first(self, limit: int = MAX_LINES) -> Curve:
        """The curve with its first lines only."""
        omitted = max(0, len(self.lines) - limit)
        return replace(self, lines=self.lines[:limit], omitted=omitted)

    @property
    def labels(self) -> list[str]:
        """Labels of the legend: lines, then references."""
        return [*(x.label for x in self.lines), *(x.label for x in self.references)]

    @property
    def xs(self) -> list[float]:
        """Sorted distinct x values; only for numeric curves."""
        return sorted({float(point.x) for line in self.lines for point in line.points})

    @property
    def categories(self) -> tuple[str, ...]:
        """Distinct x values as text if any of them is not a number, else ()."""
        xs = dict.fromkeys(point.x for line in self.lines for point in line.points)
        if all(isinstance(x, float) for x in xs):
            return ()
        return tuple(x_text(x) for x in xs)

    def frame(self) -> pd.DataFrame:
        """One row per point and per reference (with an empty x)."""
        rows: list[dict[str, Any]] = [
            {"line": line.label, "method": line.method, "x": point.x}
            | estimate_columns(point.value, self.metric)
            | {"complete": point.complete, "minimum": i == line.minimum}
            | {"chosen": i == line.chosen, "configuration": short(point.configuration)}
            for line in self.lines
            for i, point in enumerate(line.points)
        ]
        rows += [
            {"line": r.label, "method": r.method, "x": None}
            | estimate_columns(r.value, self.metric)
            | {"complete": True, "configuration": short(r.configuration)}
            for r in self.references
        ]
        return pd.DataFrame(rows).rename(columns={"x": self.x})


def curve(snapshot: Snapshot, part: str, metric: str | None = None) -> Curve:
    """The curve of a part over its ``x``: mean and interval per method.

    If other hyperparameters vary too, each of their combinations is a line, labelled with them.

    Args:
        metric: any recorded metric; by default the first objective on test.

    Raises:
        InputError: there is no such part, or it has no ``x``.
    """
    spec = snapshot.parts.get(part)
    if spec is None or not spec.get("x"):
        curves = [name for name, found in snapshot.parts.items() if found.get("x")]
        raise InputError(
            f"a curve needs a part with an x ({', '.join(curves) or 'none has'}), got {part!r}"
        )
    x = str(spec["x"])
    drawn = metric or on_test(snapshot.objectives[0])
    members: dict[str, dict[str, ConfigurationRecord]] = {}
    for entry in snapshot.entries:
        configuration = snapshot.by_key.get(entry.configuration)
        if entry.part == part and configuration is not None and x in configuration.params:
            members.setdefault(configuration.method, {})[configuration.key] = configuration
    methods = {method: list(configurations.values()) for method, configurations in members.items()}
    is_search = bool(spec.get("search"))
    shared = _shared_entry([c.params[x] for found in methods.values() for c in found])
    conditions = {
        snapshot.conditions.of[key] for configurations in members.values() for key in configurations
    }
    lines = [
        line
        for method in snapshot.methods
        if method in methods
        for line in (
            [_line(snapshot, methods[method], x, drawn, "", shared)]
            if is_search
            else _lines(snapshot, methods[method], x, drawn, shared)
        )
    ]
    return Curve(
        part=part,
        title=spec.get("title") or f"{snapshot.name}: {part}",
        x=x,
        metric=drawn,
        lines=tuple(line for line in lines if line.points),
        references=tuple(
            # A reference on one data set is not comparable with points on several.
            _references(snapshot, spec.get("references") or (), drawn, next(iter(conditions), None))
            if len(conditions) < 2
            else ()
        ),
        connected=not is_search,
        logarithmic=_is_sampled_by_log(spec, x) if is_search else _is_by_factors(lines),
        conditions=len(conditions),
        x_doc=_option_doc(snapshot, x),
        x_entry=shared or "",
    )


def _option_doc(snapshot: Snapshot, x: str) -> str:
    """The description of a task option."""
    task = TASKS.get(str(snapshot.record.details.get("task")))
    options = {f"{PREFIX}{option.name}": option.doc for option in (task.options if task else ())}
    return options.get(x, "").partition(";")[0]


def _is_sampled_by_log(part: Mapping[str, Any], x: str) -> bool:
    """Whether a search samples x on a log scale."""
    blocks = [part.get("shared"), *(part.get("methods") or {}).values()]
    domains = [block.get(x) for block in blocks if isinstance(block, Mapping)]
    return any(isinstance(domain, Mapping) and bool(domain.get("log")) for domain in domains)


def _is_by_factors(lines: Sequence[Line]) -> bool:
    """Whether x values are positive, of a wide range, and roughly even on a log scale."""
    found = {point.x for line in lines for point in line.points}
    xs = sorted(x for x in found if isinstance(x, float))
    if len(xs) < max(3, len(found)) or xs[0] <= 0 or xs[-1] / xs[0] < 15:
        return False
    steps = np.diff(np.log(xs))
    return bool(steps.max() < 4 * steps.min())


def _lines(
    snapshot: Snapshot,
    configurations: Sequence[ConfigurationRecord],
    x: str,
    metric: str,
    entry: str | None,
) -> list[Line]:
    varying = _varying(configurations, x)
    groups: dict[tuple[str, ...], list[ConfigurationRecord]] = {}
    for configuration in configurations:
        if not varying or any(name in configuration.params for name in varying):
            key = tuple(_canonical(configuration.params.get(name)) for name in varying)
            groups.setdefault(key, []).append(configuration)
    # A configuration without the varying (conditional) names belongs to every line.
    common = [
        p for p in configurations if varying and not any(name in p.params for name in varying)
    ]
    lines = []
    for members in groups.values():
        variant = ", ".join(
            f"{parameter_name(n)} = {value_text(members[0].params[n])}"
            for n in varying
            if n in members[0].params
        )
        lines.append(_line(snapshot, [*common, *members], x, metric, variant, entry))
    return lines


def _varying(configurations: Sequence[ConfigurationRecord], x: str) -> list[str]:
    """Hyperparameters other than ``x`` in which configurations of the same x differ."""
    names = sorted({name for p in configurations for name in p.params} - {x})
    seen: dict[tuple[str, str], set[str]] = {}
    for configuration in configurations:
        at = _canonical(configuration.params[x])
        for name in names:
            seen.setdefault((name, at), set()).add(_canonical(configuration.params.get(name)))
    return [n for n in names if any(len(v) > 1 for (name, _), v in seen.items() if name == n)]


def _line(
    snapshot: Snapshot,
    members: Sequence[ConfigurationRecord],
    x: str,
    metric: str,
    variant: str,
    entry: str | None,
) -> Line:
    points = [
        CurvePoint(
            x=_x_value(configuration.params[x], entry),
            value=snapshot.estimate(configuration.key, metric),
            configuration=configuration.key,
            complete=configuration.key in snapshot.complete,
            seeds=len(snapshot.replicates_of[configuration.key]),
        )
        for configuration in members
    ]
    points = [point for point in points if math.isfinite(point.value.mean)]
    if all(isinstance(point.x, float) for point in points):
        points.sort(key=lambda point: point.x)
    objective = snapshot.objectives[0]
    # Means over fewer seeds vary more.
    most = max((point.seeds for point in points), default=0)
    drawn = [point.value.mean if point.seeds == most else math.nan for point in points]
    validation = [
        snapshot.estimate(d.configuration, objective).mean
        if d.complete and d.seeds == most
        else math.nan
        for d in points
    ]
    # Points on different data have no best.
    is_one = len({snapshot.conditions.of[point.configuration] for point in points}) == 1
    return Line(
        method=members[0].method,
        variant=variant,
        points=tuple(points),
        minimum=best_index(drawn, metric) if is_one else None,
        chosen=best_index(validation, objective) if is_one else None,
    )


def _references(
    snapshot: Snapshot, methods: Sequence[str], metric: str, condition: Condition | None
) -> list[Reference]:
    best = {f"{x.method} (best)": x for x in best_of(snapshot, condition=condition)}
    names = {name: f"{name} (best)" for name in methods}
    for part, spec in snapshot.parts.items():
        for one in best_of(snapshot, part=part, condition=condition) if spec.get("label") else ():
            label = str(spec["label"]).replace("{method}", one.method)
            # A line may have the method's name already.
            names[label] = f"{label} ({part})" if label in snapshot.methods else label
            best[names[label]] = one
    references = [
        Reference(
            label=names[name],
            method=best[names[name]].method,
            configuration=best[names[name]].configuration,
            value=snapshot.estimate(best[names[name]].configuration, metric),
        )
        for name in methods
        if names[name] in best
    ]
    return [reference for reference in references if math.isfinite(reference.value.mean)]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shared_entry(values: Sequence[Any]) -> str | None:
    """The key of values that are all mappings with this entry only, such as {"image": 0.1}."""
    keys = {tuple(value) if isinstance(value, Mapping) else () for value in values}
    return str(next(iter(keys))[0]) if len(keys) == 1 and all(len(k) == 1 for k in keys) else None


def _x_value(value: Any, entry: str | None) -> X:
    if entry is not None:
        value = value[entry]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else value_text(value)


def x_text(x: X) -> str:
    """An x as text, for categorical axes."""
    return x if isinstance(x, str) else value_text(x)
