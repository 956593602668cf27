"""Hyperparameters: how a method declares one, and what a study file may say about it.

A declaration (`Hyperparameter`) belongs to a method, an encoder or the training settings. What a
study file says about it (`Constant`, `Grid`, `Range`, `Choices`, each with an optional condition)
is a *domain*. Everything here is plain Python: the tables declare with it, the plan checks with
it, the samplers read it, and none of them needs torch for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Any, Literal, get_args

Value = Any  # a JSON value: number, string, boolean, null, list of such

Number = Literal["float", "int", "ints", "floats", "mapping"]
# Options of tasks only: distinct words, input -> its columns, input -> settings of its own.
OptionKind = Literal["path", "strs", "columns", "by_input"]
Kind = Number | Literal["bool", "str"] | OptionKind


# Whole numbers beyond this are no float's neighbour any more; none of ours comes near.
_LARGEST_INT = 2**53


def _is_number(value: Value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_int(value)


def _is_int(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_INT


def _fits_kind(kind: Kind, value: Value) -> bool:
    match kind:
        case "float":
            return _is_number(value)
        case "int":
            return _is_int(value)
        case "bool":
            return isinstance(value, bool)
        case "str" | "path":
            return isinstance(value, str)
        case "ints":
            return isinstance(value, list) and all(_fits_kind("int", v) for v in value)
        case "floats":
            return isinstance(value, list) and all(_fits_kind("float", v) for v in value)
        case "mapping":
            return isinstance(value, Mapping) and all(_is_number(v) for v in value.values())
        case "strs":
            return _are_names(value) and len(set(value)) == len(value)
        case "columns":
            return _are_names(value, Mapping) and all(_are_names(v) for v in value.values())
        case "by_input":
            return _are_names(value, Mapping) and all(
                v is None or isinstance(v, Mapping) for v in value.values()
            )


def _are_names(value: Value, kind: Any = (list, tuple)) -> bool:
    return isinstance(value, kind) and bool(value) and all(isinstance(v, str) and v for v in value)


_KIND_WORDS: dict[Kind, str] = {
    "float": "a finite number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a word",
    "ints": "a list of whole numbers",
    "floats": "a list of finite numbers",
    "mapping": "a mapping of names to finite numbers",
    "path": "a path",
    "strs": "a list of distinct words",
    "columns": "a mapping of inputs to lists of column names",
    "by_input": "a mapping of inputs to their settings",
}


def canonical(value: Value) -> Value:
    """The one float that stands for a number: of 15 significant digits, so 0.1 + 0.2 is 0.3.

    A number that is written with up to 15 digits stays itself. Lists and mappings are gone
    through; −0.0 is 0.0.

    Example:
        >>> canonical([0.1 + 0.2, 3 * 0.1, -0.0, 7, "word"])
        [0.3, 0.3, 0.0, 7, 'word']
    """
    if isinstance(value, float):
        rounded = float(f"{value:.15g}") + 0.0
        return rounded if math.isfinite(rounded) else value  # the largest float would be none
    if isinstance(value, list):
        return [canonical(v) for v in value]
    if isinstance(value, Mapping):
        return {key: canonical(v) for key, v in value.items()}
    return value


def shown(value: Value) -> str:
    """A value as a message quotes it: short, whatever a file holds."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One declared hyperparameter.

    ``low`` and ``high`` are inclusive bounds for numbers (and for each element of lists);
    ``choices`` restricts words; ``optional`` admits null. ``stackable`` ones may differ between
    the models of one pack, the others change shapes or the program and so split packs.
    """

    name: str
    kind: Kind
    default: Value
    doc: str  # one clause with the unit and the special values
    stackable: bool = False
    optional: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def problem(self, value: Value) -> str | None:
        """Say in one clause why ``value`` is not acceptable, or None when it is."""
        if value is None:
            return None if self.optional else f"must be {_KIND_WORDS[self.kind]}, got null"
        if not _fits_kind(self.kind, value):
            single = self.kind == "str" and self.choices
            what = f"one of {', '.join(self.choices)}" if single else _KIND_WORDS[self.kind]
            return f"must be {what}, got {shown(value)}"
        elements = value if self.kind in ("ints", "floats", "strs") else [value]
        for word in elements if self.choices else ():
            if word not in self.choices:
                return f"must be one of {', '.join(self.choices)}, got {shown(word)}"
        numbers = value.values() if self.kind == "mapping" else elements
        for number in numbers if self.kind in get_args(Number) else ():
            if self.low is not None and number < self.low:
                return f"must be at least {self.low:g}, got {number:g}"
            if self.high is not None and number > self.high:
                return f"must be at most {self.high:g}, got {number:g}"
        return None

    def normalise(self, value: Value) -> Value:
        """Give the one spelling of a value that digests see: 1 and 1.0 are the same β, and so
        are 0.3 and 0.1 + 0.2.
        """
        if value is None:
            return None
        match self.kind:
            case "float":
                return canonical(float(value))
            case "floats":
                return [canonical(float(v)) for v in value]
            case "ints":
                return list(value)
            case "mapping":
                return {str(k): canonical(float(v)) for k, v in sorted(value.items())}
            case "strs":
                return list(value)
            case "columns":  # the order of inputs matters and is kept
                return {name: list(columns) for name, columns in value.items()}
            case _:
                return value


# ---------------------------------------------------------------- domains


@dataclass(frozen=True, kw_only=True)
class Condition:
    """This hyperparameter is used only where another one has one of these values."""

    name: str
    values: tuple[Value, ...]

    def holds(self, assignment: Mapping[str, Value]) -> bool:
        return self.name in assignment and assignment[self.name] in self.values


@dataclass(frozen=True, kw_only=True)
class Constant:
    value: Value
    when: Condition | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every listed value, in the order given."""

    values: tuple[Value, ...]
    when: Condition | None = None


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of several values, proposed by a sampler."""

    values: tuple[Value, ...]
    when: Condition | None = None


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between low and high (inclusive), proposed by a sampler.

    ``integer`` makes whole numbers; ``log`` samples the logarithm evenly (low > 0); ``step``
    keeps to low, low + step, …
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None
    when: Condition | None = None

    @property
    def last(self) -> float:
        """The highest value that it reaches: high, or with a step, the last one up to high."""
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return self._at(int((high - low) // step))

    def nearest(self, value: float) -> float:
        """The value of this range that a sampler's number stands for, as every list has it."""
        if self.integer:
            return int(value)
        if self.step is None:
            return float(canonical(float(value)))
        return self._at(round((value - self.low) / self.step))

    def _at(self, place: int) -> float:
        """low + place · step, in decimal: the third step of 0.1 is 0.3, not 0.30000000000000004."""
        step = 1 if self.step is None else self.step
        return float(canonical(float(Decimal(str(self.low)) + place * Decimal(str(step)))))


Domain = Constant | Grid | Choices | Range


def grid_configurations(domains: Mapping[str, Domain]) -> list[dict[str, Value]]:
    """All configurations of constants and grids, the last name varying fastest.

    A conditional name is left out of the configurations where its condition does not hold;
    configurations that become equal through that are listed once.

    Example:
        >>> grid_configurations({"depth": Grid(values=(0, 1)), "merge": Constant(value="sum")})
        [{'depth': 0, 'merge': 'sum'}, {'depth': 1, 'merge': 'sum'}]
    """
    names = list(domains)
    options: list[Sequence[Value]] = []
    for domain in domains.values():
        match domain:
            case Constant(value=value):
                options.append((value,))
            case Grid(values=values):
                options.append(values)
            case _:
                raise AssertionError("a range or a choice has no grid; plan.py checks this")
    configurations: dict[
        str, dict[str, Value]
    ] = {}  # by spelling: values may be lists, not hashable
    for values in product(*options):
        configuration = active(domains, dict(zip(names, values, strict=True)))
        configurations.setdefault(repr(configuration), configuration)
    return list(configurations.values())


def active(domains: Mapping[str, Domain], assignment: Mapping[str, Value]) -> dict[str, Value]:
    """Drop the names whose condition (or whose condition's own name) does not hold."""
    kept: dict[str, Value] = {}
    for name in in_order_of_conditions(domains):
        when = domains[name].when
        if name in assignment and (when is None or when.holds(kept)):
            kept[name] = assignment[name]
    return {name: kept[name] for name in domains if name in kept}


def in_order_of_conditions(domains: Mapping[str, Domain]) -> list[str]:
    """Names so that each comes after the one its condition reads.

    Raises:
        ValueError: conditions that wait for each other in a circle.
    """
    placed: list[str] = []
    waiting = list(domains)
    while waiting:
        ready = [
            name
            for name in waiting
            if (when := domains[name].when) is None
            or when.name in placed
            or when.name not in domains
        ]
        if not ready:
            raise ValueError(f"conditions form a circle: {', '.join(waiting)}")
        placed += ready
        waiting = [name for name in waiting if name not in ready]
    return placed


def every_value(domain: Domain) -> tuple[Any, ...] | None:
    """Every value of a domain, or None when there is no end of them."""
    match domain:
        case Constant(value=value):
            return (value,)
        case Choices(values=values) | Grid(values=values):
            return values
        case Range(low=low, integer=integer, step=step, last=last):
            if step is None and not integer:
                return None
            count = round((last - low) / (step or 1)) + 1
            return tuple(domain.nearest(low + i * (step or 1)) for i in range(count))
