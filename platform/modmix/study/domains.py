"""Parse what a study file says about one hyperparameter into a domain.

beta: 0.3                                   a constant
beta: {grid: [0, 0.5, 1]}                   all of these values
beta: {low: 0, high: 1}                     a range (also: log, step, int)
merge: {choices: [sum, concat]}             one of these values
width: {low: 16, high: 64, int: true, when: {merge: sum}}      active only if merge is sum
weights: {value: {low: 0.3, high: 1.0}}     a constant that is itself a mapping
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from modmix.base.messages import digest
from modmix.base.settings import TRAINING, training_problem
from modmix.base.space import (
    Choices,
    Condition,
    Constant,
    Domain,
    Grid,
    Hyperparameter,
    Range,
    canonical,
    every_value,
    shown,
)
from modmix.methods.table import method_entry
from modmix.study.spec import unknown
from modmix.study.variables import variable_problem
from modmix.training.pbt import is_numeric

_KEYS = {"grid", "choices", "low", "high", "int", "log", "step", "value", "when"}

# Placeholder for "one configuration per modality" until the data is loaded.
EVERY_MODALITY = Choices(values=("*",))


class DomainError(ValueError):
    """Invalid domain: the problem, and the path of the key inside it."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


def read(declared: Any, value: Any) -> Domain:
    """Parse the value given for a declared hyperparameter (or task option) into a domain.

    Args:
        declared: the declaration, or several, of which the value must fit one.

    Raises:
        DomainError: the first problem found.
    """
    if isinstance(declared, tuple):
        return _read_any(declared, value)
    if not isinstance(value, Mapping) or (
        declared.kind in ("mapping", "columns") and not set(value) & {"grid", "choices", "value"}
    ):
        return Constant(value=_one(declared, value))
    if extra := [key for key in value if key not in _KEYS]:
        raise DomainError(unknown(extra[0], _KEYS, "key of a domain"), extra[0])
    kinds = [kind for kind in ("value", "grid", "choices", "low") if kind in value]
    if len(kinds) != 1 or ("low" in value) != ("high" in value):
        raise DomainError("must have exactly one of grid, choices, value, or low with high")
    when = _when(value["when"]) if "when" in value else None
    match kinds[0]:
        case "value":
            return Constant(value=_one(declared, value["value"]), when=when)
        case "grid":
            return Grid(values=_list("grid", declared, value["grid"]), when=when)
        case "choices":
            return Choices(values=_list("choices", declared, value["choices"]), when=when)
        case _:
            return _range(declared, value, when)


def _read_any(declarations: Sequence[Any], value: Any) -> Domain:
    first: DomainError | None = None
    for declared in declarations:
        try:
            return read(declared, value)
        except DomainError as error:
            first = first or error
    assert first is not None
    raise first


def _one(declared: Any, value: Any, *path: str) -> Any:
    if (problem := value_problem(declared, value)) is not None:
        raise DomainError(problem, *path)
    return declared.normalise(value)


def _list(key: str, declared: Any, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise DomainError(f"must be a list with at least one value, got {shown(values)}", key)
    normal = [_one(declared, value, key) for value in values]
    if len({digest(value) for value in normal}) != len(normal):
        raise DomainError(f"names a value twice: {shown(values)}", key)
    return tuple(normal)


def _when(raw: Any) -> Condition:
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise DomainError(
            "must name one hyperparameter and its values: when: {merge: [sum]}", "when"
        )
    (name, values), *_ = raw.items()
    listed = values if isinstance(values, list) else [values]
    return Condition(name=name, values=tuple(canonical(listed)))


def _range(declared: Any, value: Mapping[str, Any], when: Condition | None) -> Range:
    if declared.kind not in ("float", "int"):
        raise DomainError("has no range: use choices")
    whole = value.get("int", declared.kind == "int")
    if not isinstance(whole, bool) or (declared.kind == "int" and not whole):
        raise DomainError("must be true, or left out: it says that the numbers are whole", "int")
    for end in ("low", "high"):
        _number(end, value[end], whole)
        if problem := declared.problem(value[end]):
            raise DomainError(problem, end)
    low, high = canonical(float(value["low"])), canonical(float(value["high"]))
    if low >= high:
        raise DomainError(f"low must be below high, got low {low:g} and high {high:g}")
    log, step = value.get("log", False), value.get("step")
    if not isinstance(log, bool) or (log and low <= 0):
        raise DomainError(f"log must be true or false, and needs low above 0, got low {low:g}")
    if step is not None:
        _number("step", step, whole)
        width = canonical(high - low)
        if log or not 0 < step <= width:
            rule = f"must be above 0 and at most high - low ({width:g}), without log"
            raise DomainError(f"{rule}, got {step:g}", "step")
    return Range(low=low, high=high, integer=whole, log=log, step=canonical(step), when=when)


def _number(key: str, value: Any, whole: bool) -> None:
    kind: Literal["int", "float"] = "int" if whole else "float"
    if problem := Hyperparameter(name=key, kind=kind, default=0, doc="").problem(value):
        raise DomainError(problem, key)


def perturbable(method: str, domains: Mapping[str, Domain]) -> dict[str, Domain]:
    """What population-based training may change: numbers that may differ within a pack.

    Without those that conditions read: with them, the hyperparameters of a model would change.

    Args:
        method: a built-in name or a reference.
    """
    declared = (*method_entry(method).hyperparameters, *TRAINING.values())
    stackable = {one.name for one in declared if one.stackable}
    read = {domain.when.name for domain in domains.values() if domain.when is not None}
    return {
        name: domain
        for name, domain in domains.items()
        if name in stackable and name not in read and is_numeric(domain)
    }


# ---------------------------------------------------------------- problems of values


def value_problem(declared: Any, value: Any) -> str | None:
    """Why a value is invalid for a declaration, or None."""
    setting = TRAINING.get(declared.name)
    if setting is not None and setting is declared:
        return training_problem(declared.name, value)
    problem: str | None = declared.problem(value)
    return problem or (variable_problem(value) if declared.kind == "path" else None)


def condition_problem(when: Condition | None, domains: Mapping[str, Domain]) -> str | None:
    """Why a condition, or one of its values, can never hold; or None."""
    if when is None:
        return None
    if (other := domains.get(when.name)) is None:
        return f"its condition reads {when.name!r}, which this block does not set"
    values: Sequence[Any] | None = every_value(other)
    if other is EVERY_MODALITY:
        return None
    if values is None:
        return (
            f"{when.name!r} has a continuous range, which equals a value only by chance: give "
            "it choices or a step, or leave the condition out"
        )
    for value in when.values:
        if value not in values:
            return f"{when.name!r} is never {value!r} here: name one of its values"
    return None
