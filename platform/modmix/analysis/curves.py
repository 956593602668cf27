"""The numbers behind curves over a hyperparameter. `figures` draws them; here are only values.

Every mean is over a configuration's finished replicates; NaN means are left out of lines. Which
configuration is a method's best is always decided on validation (see `best`), whatever split is
drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from modmix.analysis.best import best_of
from modmix.analysis.conditions import PREFIX, Condition
from modmix.analysis.frames import Snapshot, estimate_columns, short
from modmix.analysis.labels import (
    higher_is_better,
    on_test,
    parameter_words,
    value_text,
)
from modmix.analysis.statistics import Estimate
from modmix.base.errors import InputError
from modmix.ledger.records import ConfigurationRecord
from modmix.tasks.table import TASKS

MOST_LINES = 40  # that a figure shows: more would not be read
X = float | str  # a curve's x: a number, or the text of a word, list or null


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One configuration of a curve."""

    x: X
    value: Estimate
    configuration: str  # full key
    complete: bool  # all its replicates are done
    seeds: int  # that it is to have


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: a method, with all other hyperparameters constant along it.

    ``minimum`` and ``chosen`` are places in ``dots``: the best mean of what is drawn, and what
    validation chooses (None where no dot qualifies, and where the dots are of different data), both
    among the dots with the most seeds.
    """

    method: str
    variant: str  # "depth = 1" where another hyperparameter varies, else ""
    dots: tuple[Dot, ...]
    minimum: int | None
    chosen: int | None

    @property
    def label(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A horizontal line: a method's best configuration in the whole study, on the data of the
    curve.
    """

    method: str
    configuration: str
    value: Estimate


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One part with an ``x``.

    ``connected`` is False for a search: its configurations form no line. ``logarithmic``: x was
    sampled or listed by factors. ``conditions``: on how many different data the configurations are.
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
    x_doc: str  # what x is, for an option of the task; else ""
    left_out: int = 0  # lines that are not here

    def first(self, limit: int = MOST_LINES) -> Curve:
        """As many lines as can be read."""
        left_out = max(0, len(self.lines) - limit)
        return replace(self, lines=self.lines[:limit], left_out=left_out)

    @property
    def labels(self) -> list[str]:
        """What a legend names: the lines, then the references."""
        return [*(x.label for x in self.lines), *(f"{x.method} (best)" for x in self.references)]

    @property
    def xs(self) -> list[float]:
        """The x values in order, each once; only for curves without words."""
        return sorted({float(dot.x) for line in self.lines for dot in line.dots})

    @property
    def categories(self) -> tuple[str, ...]:
        """The x values as words in order, when any of them is not a number; else empty."""
        xs = dict.fromkeys(dot.x for line in self.lines for dot in line.dots)
        if all(isinstance(x, float) for x in xs):
            return ()
        return tuple(x_word(x) for x in xs)

    def frame(self) -> pd.DataFrame:
        """One row per dot and per reference (whose x is empty)."""
        rows: list[dict[str, Any]] = [
            {"line": line.label, "method": line.method, "x": dot.x}
            | estimate_columns(dot.value, self.metric)
            | {"complete": dot.complete, "minimum": i == line.minimum}
            | {"chosen": i == line.chosen, "configuration": short(dot.configuration)}
            for line in self.lines
            for i, dot in enumerate(line.dots)
        ]
        rows += [
            {"line": f"{r.method} (best)", "method": r.method, "x": None}
            | estimate_columns(r.value, self.metric)
            | {"complete": True, "configuration": short(r.configuration)}
            for r in self.references
        ]
        return pd.DataFrame(rows).rename(columns={"x": self.x})


def curve(snapshot: Snapshot, part: str, metric: str | None = None) -> Curve:
    """The curve of a part over its ``x``: mean and interval per method.

    Configurations of a method that share an x differ in another hyperparameter; each combination of
    those becomes a line of its own, labelled with what differs.

    Args:
        metric: any recorded metric; the first objective on test when None.

    Raises:
        InputError: there is no such part, or it has no ``x``.
    """
    spec = snapshot.parts.get(part)
    if spec is None or not spec.get("x"):
        curves = [name for name, found in snapshot.parts.items() if found.get("x")]
        raise InputError(
            f"a curve needs a part of the study with an x ({', '.join(curves) or 'it has none'}), "
            f"got {part!r}"
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
    met = {
        snapshot.conditions.of[key] for configurations in members.values() for key in configurations
    }
    lines = [
        line
        for method in snapshot.methods
        if method in methods
        for line in (
            [_line(snapshot, methods[method], x, drawn, "")]
            if is_search
            else _lines(snapshot, methods[method], x, drawn)
        )
    ]
    return Curve(
        part=part,
        title=spec.get("title") or f"{snapshot.name}: {part}",
        x=x,
        metric=drawn,
        lines=tuple(line for line in lines if line.dots),
        references=tuple(
            # Beside configurations on several data sets no single configuration can be a reference.
            _references(snapshot, spec.get("references") or (), drawn, next(iter(met), None))
            if len(met) < 2
            else ()
        ),
        connected=not is_search,
        logarithmic=_is_sampled_by_log(spec, x) if is_search else _is_by_factors(lines),
        conditions=len(met),
        x_doc=_option_doc(snapshot, x),
    )


def _option_doc(snapshot: Snapshot, x: str) -> str:
    """What an option of the task means: "probability that a modality is weak in an example"."""
    task = TASKS.get(str(snapshot.record.details.get("task")))
    options = {f"{PREFIX}{option.name}": option.doc for option in (task.options if task else ())}
    return options.get(x, "").partition(";")[0]


def _is_sampled_by_log(part: Mapping[str, Any], x: str) -> bool:
    """Whether a search samples the logarithm of x."""
    blocks = [part.get("shared"), *(part.get("methods") or {}).values()]
    domains = [block.get(x) for block in blocks if isinstance(block, Mapping)]
    return any(isinstance(domain, Mapping) and bool(domain.get("log")) for domain in domains)


def _is_by_factors(lines: Sequence[Line]) -> bool:
    """Whether x values are positive, over a wide range, and even in the logarithm."""
    found = {dot.x for line in lines for dot in line.dots}
    xs = sorted(x for x in found if isinstance(x, float))
    if len(xs) < max(3, len(found)) or xs[0] <= 0 or xs[-1] / xs[0] < 15:
        return False
    steps = np.diff(np.log(xs))
    return bool(steps.max() < 4 * steps.min())


def _lines(
    snapshot: Snapshot, configurations: Sequence[ConfigurationRecord], x: str, metric: str
) -> list[Line]:
    varying = _varying(configurations, x)
    groups: dict[tuple[str, ...], list[ConfigurationRecord]] = {}
    for configuration in configurations:
        if not varying or any(name in configuration.params for name in varying):
            key = tuple(_canonical(configuration.params.get(name)) for name in varying)
            groups.setdefault(key, []).append(configuration)
    # A configuration without any of the varying ones (they are conditional) belongs to every line.
    common = [
        p for p in configurations if varying and not any(name in p.params for name in varying)
    ]
    lines = []
    for members in groups.values():
        variant = ", ".join(
            f"{parameter_words(n)} = {value_text(members[0].params[n])}"
            for n in varying
            if n in members[0].params
        )
        lines.append(_line(snapshot, [*common, *members], x, metric, variant))
    return lines


def _varying(configurations: Sequence[ConfigurationRecord], x: str) -> list[str]:
    """The hyperparameters, but for ``x``, in which configurations of the same x differ."""
    names = sorted({name for p in configurations for name in p.params} - {x})
    seen: dict[tuple[str, str], set[str]] = {}
    for configuration in configurations:
        at = _canonical(configuration.params[x])
        for name in names:
            seen.setdefault((name, at), set()).add(_canonical(configuration.params.get(name)))
    return [n for n in names if any(len(v) > 1 for (name, _), v in seen.items() if name == n)]


def _line(
    snapshot: Snapshot, members: Sequence[ConfigurationRecord], x: str, metric: str, variant: str
) -> Line:
    dots = [
        Dot(
            x=_x_value(configuration.params[x]),
            value=snapshot.estimate(configuration.key, metric),
            configuration=configuration.key,
            complete=configuration.key in snapshot.complete,
            seeds=len(snapshot.replicates_of[configuration.key]),
        )
        for configuration in members
    ]
    dots = [dot for dot in dots if math.isfinite(dot.value.mean)]
    if all(isinstance(dot.x, float) for dot in dots):
        dots.sort(key=lambda dot: dot.x)
    objective = snapshot.objectives[0]
    # A mean over few seeds is lucky more often than one over all of them.
    most = max((dot.seeds for dot in dots), default=0)
    drawn = [dot.value.mean if dot.seeds == most else math.nan for dot in dots]
    validation = [
        snapshot.estimate(d.configuration, objective).mean
        if d.complete and d.seeds == most
        else math.nan
        for d in dots
    ]
    # Along an option of the task the best value would only say which data is easy.
    is_one = len({snapshot.conditions.of[dot.configuration] for dot in dots}) == 1
    return Line(
        method=members[0].method,
        variant=variant,
        dots=tuple(dots),
        minimum=_best_place(drawn, metric) if is_one else None,
        chosen=_best_place(validation, objective) if is_one else None,
    )


def _references(
    snapshot: Snapshot, methods: Sequence[str], metric: str, condition: Condition | None
) -> list[Reference]:
    best = {found.method: found for found in best_of(snapshot, condition=condition)}
    references = [
        Reference(
            method=method,
            configuration=best[method].configuration,
            value=snapshot.estimate(best[method].configuration, metric),
        )
        for method in methods
        if method in best
    ]
    return [reference for reference in references if math.isfinite(reference.value.mean)]


def _best_place(values: Sequence[float], metric: str) -> int | None:
    sign = -1.0 if higher_is_better(metric) else 1.0
    places = [i for i, value in enumerate(values) if not math.isnan(value)]
    return min(places, key=lambda i: (sign * values[i], i), default=None)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _x_value(value: Any) -> X:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else value_text(value)


def x_word(x: X) -> str:
    """The text of an x on an axis of words."""
    return x if isinstance(x, str) else value_text(x)
