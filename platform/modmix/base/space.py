"""Hyperparameters and their search spaces.

A method, an encoder and the training settings declare hyperparameters (`Hyperparameter`). A study
file assigns each a *domain* (`Constant`, `Grid`, `Range` or `Choices`, each with an optional
condition). Everything here is plain Python without torch; the tables, the plan and the samplers
share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import product
from typing import Any, Literal, get_args

Value = Any  # a JSON value: number, string, boolean, null, or a list or mapping of these

Number = Literal["float", "int", "ints", "floats", "mapping"]
# For task options only: path, distinct strings, input -> column names, input -> its settings.
OptionKind = Literal["path", "strs", "columns", "by_input"]
Kind = Number | Literal["bool", "str"] | OptionKind


# Larger integers are not all exact in float64.
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
    """Round floats to 15 significant digits, so that 0.1 + 0.2 is 0.3.

    Numbers written with up to 15 digits are unchanged; −0.0 becomes 0.0. Applied recursively to
    lists and mappings.

    Example:
        >>> canonical([0.1 + 0.2, 3 * 0.1, -0.0, 7, "word"])
        [0.3, 0.3, 0.0, 7, 'word']
    """
    if isinstance(value, float):
        rounded = float(f"{value:.15g}") + 0.0
        return rounded if math.isfinite(rounded) else value  # the largest float would round to inf
    if isinstance(value, list):
        return [canonical(v) for v in value]
    if isinstance(value, Mapping):
        return {key: canonical(v) for key, v in value.items()}
    return value


def shown(value: Value) -> str:
    """The repr of a value for messages, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, kw_only=True)
class Hyperparameter:
    """One declared hyperparameter.

    ``low`` and ``high`` are inclusive bounds for numbers (and for each element of lists and
    mappings); ``choices`` restricts strings; ``optional`` allows null. ``stackable`` ones may
    differ between the models of one pack; models that differ in any other go into separate packs.
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
        """Why ``value`` is invalid, in one clause; None if it is valid."""
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
        """The canonical form of a value, used in digests: 1 and 1.0 are the same β, and so are
        0.3 and 0.1 + 0.2.
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
    """A hyperparameter is active only where another one has one of these values."""

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
    """All listed values, in the order given."""

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

    ``integer`` restricts it to integers; ``log`` samples uniformly in the logarithm (low > 0);
    ``step`` restricts it to low, low + step, …
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None
    when: Condition | None = None

    @property
    def last(self) -> float:
        """The largest value: high, or with a step the last multiple of it up to high."""
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return self._at(int((high - low) // step))

    def nearest(self, value: float) -> float:
        """A sampler's number in canonical form: rounded to an integer, a step, or 15 digits."""
        if self.integer:
            return int(value)
        if self.step is None:
            return float(canonical(float(value)))
        return self._at(round((value - self.low) / self.step))

    def _at(self, place: int) -> float:
        """low + place · step in decimal arithmetic: 3 · 0.1 is 0.3, not 0.30000000000000004."""
        step = 1 if self.step is None else self.step
        return float(canonical(float(Decimal(str(self.low)) + place * Decimal(str(step)))))


Domain = Constant | Grid | Choices | Range
_DOMAINS: Mapping[str, type] = {
    kind.__name__.lower(): kind for kind in (Constant, Grid, Choices, Range)
}


def domain_to_json(domain: Domain) -> dict[str, Value]:
    """A domain as JSON values, for the ledger.

    Example:
        >>> domain_to_json(Choices(values=(1, 2)))
        {'kind': 'choices', 'values': [1, 2], 'when': None}
    """
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(domain).items()}
    return {"kind": type(domain).__name__.lower(), **fields}


def domain_from_json(raw: Mapping[str, Value]) -> Domain:
    """The inverse of `domain_to_json`."""
    fields = {name: value for name, value in raw.items() if name != "kind"}
    if fields.get("when") is not None:
        name, values = fields["when"]["name"], fields["when"]["values"]
        fields["when"] = Condition(name=name, values=tuple(values))
    if "values" in fields:
        fields["values"] = tuple(fields["values"])
    domain: Domain = _DOMAINS[raw["kind"]](**fields)
    return domain


def grid_configurations(domains: Mapping[str, Domain]) -> list[dict[str, Value]]:
    """All configurations of constants and grids, the last name varying fastest.

    A hyperparameter is left out of configurations where its condition does not hold; the
    duplicates that result are removed.

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
                raise AssertionError("a range or a choice has no grid; study.parts checks this")
    configurations: dict[
        str, dict[str, Value]
    ] = {}  # by repr, since values may be unhashable lists
    for values in product(*options):
        configuration = active(domains, dict(zip(names, values, strict=True)))
        configurations.setdefault(repr(configuration), configuration)
    return list(configurations.values())


def active(domains: Mapping[str, Domain], assignment: Mapping[str, Value]) -> dict[str, Value]:
    """The assignment without inactive hyperparameters.

    One is inactive if its condition does not hold or reads an inactive one.
    """
    kept: dict[str, Value] = {}
    for name in in_order_of_conditions(domains):
        when = domains[name].when
        if name in assignment and (when is None or when.holds(kept)):
            kept[name] = assignment[name]
    return {name: kept[name] for name in domains if name in kept}


def in_order_of_conditions(domains: Mapping[str, Domain]) -> list[str]:
    """Names in topological order: each after the one that its condition reads.

    Raises:
        ValueError: the conditions form a cycle.
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
    """All values of a domain, or None for a continuous range."""
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
