"""Environment variables in the task options of study files.

`${NAME}` and `$NAME` in a string stand for the variable's value, `$$` for a dollar sign.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))", re.ASCII)


def variable_problem(value: Any) -> str | None:
    """A sentence about the first unset environment variable in a string, or None."""
    for name in _names(value) if isinstance(value, str) else ():
        if name not in os.environ:
            return (
                f"the environment variable {name} is not set: export it first, or write $$ for a "
                "dollar sign"
            )
    return None


def expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with environment variables in strings replaced; those not set stay as they are.

    Example:
        >>> expanded({"path": "a$$b.npz", "classes": 2})
        {'path': 'a$b.npz', 'classes': 2}
    """
    return {
        name: _VARIABLE.sub(_value, value) if isinstance(value, str) else value
        for name, value in options.items()
    }


def escaped(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `expanded`: what a study file must have for exactly these strings."""
    return {
        name: value.replace("$", "$$") if isinstance(value, str) else value
        for name, value in options.items()
    }


def _names(text: str) -> Iterator[str]:
    """The variables in a text."""
    for match in _VARIABLE.finditer(text):
        if not match.group(1):
            yield match.group(2) or match.group(3)


def _value(match: re.Match[str]) -> str:
    if match.group(1):
        return "$"
    return os.environ.get(match.group(2) or match.group(3), match.group(0))
