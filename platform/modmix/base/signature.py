"""Hyperparameters of users' own classes, declared as keyword-only constructor arguments.

    def __init__(self, features, classes, *, width: int = 32, merge: Literal["sum", "max"] = "sum")

declares ``width``, an integer, and ``merge``, one of two strings. A constructor that accepts
``**others`` also has the arguments of its base class.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from modmix.base.errors import InputError
from modmix.base.space import Hyperparameter, Kind

ArgumentKind = Literal["float", "int", "bool", "str", "ints", "floats", "mapping", "path", "strs"]

_PLAIN: dict[Any, ArgumentKind] = {
    float: "float", int: "int", bool: "bool", str: "str", Path: "path"
}  # fmt: skip
_ELEMENTS: dict[Any, ArgumentKind] = {int: "ints", float: "floats", str: "strs"}
_OF_MODELS = frozenset({"float", "int", "bool", "str", "ints", "floats", "mapping"})
_READABLE = "int, float, bool, str, Literal[...] of words, list[int], list[float], X | None"


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A keyword-only argument; ``required`` if it has no default."""

    name: str
    kind: ArgumentKind
    default: Any
    optional: bool
    choices: tuple[str, ...]
    required: bool


def arguments(
    kind: type, where: str, *, admitted: Collection[str], without: Collection[str] = ()
) -> tuple[Argument, ...]:
    """The keyword-only arguments of a class's constructor.

    Args:
        kind: the class.
        where: its name in error messages.
        admitted: argument kinds allowed for this sort of class.
        without: arguments to skip, which modmix passes itself.

    Raises:
        InputError: an argument has no annotation or an unsupported one, or it has a default but
            is not keyword-only.
    """
    found: dict[str, Argument] = {}
    for owner in inspect.getmro(kind):
        constructor = vars(owner).get("__init__")
        if not isinstance(constructor, types.FunctionType):
            continue
        parameters = inspect.signature(constructor).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in without:
                argument = _argument(parameter, owner, f"{where}: argument {parameter.name}")
                if argument.kind not in admitted:
                    raise _unreadable(f"{where}: argument {parameter.name}", parameter.annotation)
                found.setdefault(parameter.name, argument)
            elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not _is_empty(parameter):
                raise InputError(
                    f"{where}: argument {parameter.name} has a default, so it must be "
                    "keyword-only: put a * before it"
                )
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return tuple(found.values())


def _is_empty(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


def _argument(parameter: inspect.Parameter, owner: type, where: str) -> Argument:
    annotation = _evaluated(parameter, owner, where)
    optional, annotation = _without_none(annotation)
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if not all(isinstance(choice, str) for choice in choices):
            raise _unreadable(where, parameter.annotation)
        kind: ArgumentKind = "str"
    else:
        kind = _kind(annotation, where, parameter.annotation)
    required = _is_empty(parameter)
    default = None if required else parameter.default
    return Argument(
        name=parameter.name,
        kind=kind,
        default=_as_json(default),
        optional=optional,
        choices=choices,
        required=required,
    )


def _as_json(default: Any) -> Any:
    if isinstance(default, Path):
        return str(default)
    return list(default) if isinstance(default, tuple) else default


def _evaluated(parameter: inspect.Parameter, owner: type, where: str) -> Any:
    """The annotation as a type, evaluated alone: others may be valid for type checkers only."""
    if parameter.annotation is parameter.empty:
        raise InputError(f"{where} must have an annotation ({_READABLE})")
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return get_type_hints(holder, globalns=vars(sys.modules[owner.__module__]))["it"]
    except Exception as error:
        raise _unreadable(where, parameter.annotation) from error


def _without_none(annotation: Any) -> tuple[bool, Any]:
    if get_origin(annotation) not in (Union, types.UnionType):
        return False, annotation
    members = [member for member in get_args(annotation) if member is not type(None)]
    optional = len(members) < len(get_args(annotation))
    return optional, members[0] if optional and len(members) == 1 else annotation


def _kind(annotation: Any, where: str, written: Any) -> ArgumentKind:
    if isinstance(annotation, type) and annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (dict, Mapping) and inner == (str, float):
        return "mapping"
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        inner = inner[:1]
    if origin in (list, Sequence, tuple) and len(inner) == 1 and inner[0] in _ELEMENTS:
        return _ELEMENTS[inner[0]]
    raise _unreadable(where, written)


def _unreadable(where: str, annotation: Any) -> InputError:
    shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return InputError(f"{where} must have an annotation we can read ({_READABLE}), got {shown}")


def hyperparameters(
    kind: type, where: str, *, reserved: Collection[str], without: Collection[str] = ()
) -> tuple[Hyperparameter, ...]:
    """The hyperparameters that a user's method or encoder declares in its constructor.

    Those listed in the class attribute ``stackable`` may differ between the models of one pack;
    the class keeps them as buffers.

    Raises:
        InputError: an argument has no default, an invalid default or a reserved name, or
            ``stackable`` lists an unknown name.
    """
    stackable = frozenset(getattr(kind, "stackable", ()))
    found = []
    for argument in arguments(kind, where, admitted=_OF_MODELS, without=without):
        what = f"{where}: argument {argument.name}"
        if argument.required:
            raise InputError(f"{what} must have a default")
        if argument.name in reserved:
            raise InputError(f"{what} has the name of something else in a study file: rename it")
        made = Hyperparameter(
            name=argument.name,
            kind=cast(Kind, argument.kind),
            default=argument.default,
            doc=f"of {where}",
            stackable=argument.name in stackable,
            optional=argument.optional,
            choices=argument.choices,
        )
        if (problem := made.problem(made.default)) is not None:
            raise InputError(f"{what} has a default that it would refuse: {problem}")
        found.append(made)
    if unknown := sorted(stackable - {made.name for made in found}):
        raise InputError(f"{where}: stackable names {unknown[0]!r}, which is no hyperparameter")
    return tuple(found)


def summary(kind: type) -> str:
    """The first line of a class's docstring."""
    lines = (kind.__doc__ or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else "no docstring"
