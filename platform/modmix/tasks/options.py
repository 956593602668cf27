"""Options of a task: declared in the table, checked without numpy, torch or the data at hand.

An option is to a task what a `Hyperparameter` is to a method, with three kinds more: a path, a list
of words, and a mapping of modality names to lists of column names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from modmix.base.space import Hyperparameter, Kind, canonical

OptionKind = Literal["float", "int", "bool", "str", "path", "strs", "columns"]


def _is_words(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(word, str) and word for word in value)
    )


def _is_columns(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and name for name in value)
        and all(_is_words(columns) for columns in value.values())
    )


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a task.

    ``low`` and ``high`` are inclusive bounds; ``optional`` admits null, ``required`` has no
    default. It answers to the same ``problem`` and ``normalise`` as a `Hyperparameter`.
    """

    name: str
    kind: OptionKind
    default: Any
    doc: str  # one clause with the unit and the special values
    optional: bool = False
    required: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """Say in one clause why ``value`` is not acceptable, or None when it is."""
        if self.kind == "columns":
            if (value is None and self.optional) or _is_columns(value):
                return None
            return f"must map each modality to a list of column names, got {value!r}"
        if self.kind == "strs":
            return self._problem_of_words(value)
        kind = "str" if self.kind == "path" else self.kind
        return Hyperparameter(
            name=self.name,
            kind=cast(Kind, kind),
            default=self.default,
            doc=self.doc,
            optional=self.optional,
            low=self.low,
            high=self.high,
            choices=self.choices,
        ).problem(value)

    def _problem_of_words(self, value: Any) -> str | None:
        if value is None and self.optional:
            return None
        if not _is_words(value):
            return f"must be a list of words, got {value!r}"
        if len(set(value)) < len(value):
            return f"must name each only once, got {list(value)!r}"
        unknown = [word for word in value if self.choices and word not in self.choices]
        if unknown:
            return f"must be from {', '.join(self.choices)}, got {unknown[0]!r}" + suggestion(
                unknown[0], self.choices
            )
        return None

    def normalise(self, value: Any) -> Any:
        """Give the one spelling of a value that digests see."""
        if value is None:
            return None
        match self.kind:
            case "float":
                return canonical(float(value))
            case "strs":
                return list(value)
            case "columns":  # the order of inputs matters and is kept
                return {name: list(columns) for name, columns in value.items()}
            case _:
                return value


def suggestion(name: str, known: Iterable[str]) -> str:
    """Give `` (did you mean 'x'?)`` for a near name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def problems_of(options: Mapping[str, Any], declared: Iterable[Option]) -> list[tuple[str, str]]:
    """List everything wrong with ``options`` as (name, message), in the order given."""
    known = {option.name: option for option in declared}
    found: list[tuple[str, str]] = []
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(known) or "it has none"
            found.append(
                (name, f"is not an option of this task{suggestion(name, known)}: {listed}")
            )
        elif (problem := known[name].problem(value)) is not None:
            found.append((name, problem))
    for name, option in known.items():
        if option.required and name not in options:
            found.append((name, f"is required: {option.doc}"))
    return found
