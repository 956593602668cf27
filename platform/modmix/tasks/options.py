"""Task options and their validation, which needs neither numpy nor torch nor the data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modmix.base.errors import InputError
from modmix.base.home import user_path
from modmix.base.space import Hyperparameter


@dataclass(frozen=True, kw_only=True)
class Option(Hyperparameter):
    """One option of a task: a hyperparameter that can also be required.

    ``fields`` are the settings per input of an option of kind "by_input". ``shapes_arrays`` is
    False if the option does not affect the prepared arrays.
    """

    required: bool = False
    shapes_arrays: bool = True
    fields: tuple[Hyperparameter, ...] = ()

    def problem(self, value: Any) -> str | None:
        """A clause that says why ``value`` is invalid, or None if it is valid."""
        if (problem := super().problem(value)) is not None or value is None:
            return problem
        if self.kind == "path":
            try:
                user_path(value)
            except InputError as error:
                return str(error)
        if not self.fields:
            return None
        for name, settings in value.items():
            for setting, message in problems_of(settings or {}, self.fields, self.name):
                return f"of {name!r}: {setting!r} {message}"
        return None

    def normalise(self, value: Any) -> Any:
        """The canonical form of a value, used in digests; missing settings get their defaults."""
        if not self.fields or value is None:
            return super().normalise(value)
        return {
            name: {f.name: f.normalise((given or {}).get(f.name, f.default)) for f in self.fields}
            for name, given in value.items()
        }


def suggestion(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` if a known name is similar, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def problems_of(
    options: Mapping[str, Any], declared: Iterable[Hyperparameter], whose: str = "this task"
) -> list[tuple[str, str]]:
    """All problems with ``options`` as (name, message): as given, then missing required ones."""
    known = {option.name: option for option in declared}
    found: list[tuple[str, str]] = []
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(known) or "it has none"
            near = suggestion(str(name), known)
            found.append((name, f"is not an option of {whose}{near}: {listed}"))
        elif (problem := known[name].problem(value)) is not None:
            found.append((name, problem))
    for name, option in known.items():
        if isinstance(option, Option) and option.required and name not in options:
            found.append((name, f"is required: {option.doc}"))
    return found
