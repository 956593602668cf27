"""Table of tasks: options, default encoders and training recipe, cost and source of each.

These are plain declarations, so a study file can be validated without torch, numpy or the data.
Option defaults and recipes follow the papers where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from modmix.base import sources as own
from modmix.base.errors import DataError
from modmix.base.home import user_path
from modmix.base.signature import arguments, summary
from modmix.tasks.entries_arrays import ARRAYS
from modmix.tasks.entries_bundled import DIGITS, WEAK
from modmix.tasks.entries_papers import CIFAR100, GENDER, HIGGS
from modmix.tasks.entries_text import TEXT
from modmix.tasks.entries_video import VIDEO
from modmix.tasks.entry import CHAR_CNN, MLP_64, TaskEntry
from modmix.tasks.options import Option, problems_of, suggestion

TASKS: dict[str, TaskEntry] = {
    "digits": DIGITS,
    "weak": WEAK,
    "higgs": HIGGS,
    "cifar100": CIFAR100,
    "gender": GENDER,
    "arrays": ARRAYS,
    **VIDEO,
    **TEXT,
}


def task_entry(name: str) -> TaskEntry:
    """The entry of a task, built-in or user-defined (by its reference).

    Raises:
        DataError: there is no such task; a similar name is suggested.
        InputError: a user-defined class has an unsupported signature.
    """
    if own.is_reference(name):
        return _own_entry(name)
    if name not in TASKS:
        raise DataError(
            f"there is no task {name!r}{suggestion(name, TASKS)}; the tasks are {', '.join(TASKS)}"
        )
    return TASKS[name]


_OWN_KINDS = frozenset({"float", "int", "bool", "str", "path", "strs"})


@cache
def _own_entry(name: str) -> TaskEntry:
    found, where = own.load(name), own.place(name)
    options = tuple(
        Option(
            name=argument.name,
            kind=cast(Any, argument.kind),
            default=argument.default,
            doc=f"of {where}",
            optional=argument.optional,
            required=argument.required,
            choices=argument.choices,
        )
        for argument in arguments(found, where, admitted=_OWN_KINDS)
    )
    return TaskEntry(
        path=name,
        doc=summary(found),
        options=options,
        encoders={"*": MLP_64},
        training={},
        cost="unknown",
        source="your own",
    )


def option_problems(name: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All problems with a task's options as (option, message)."""
    return problems_of(options, task_entry(name).options)


def resolve_options(
    name: str, options: Mapping[str, Any], folder: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Options of a task with defaults filled in, in the order of the table.

    Relative paths are resolved against ``folder`` (by default the working directory), so that
    workers with another working directory find the same file.

    Raises:
        DataError: the first problem found.
    """
    entry = task_entry(name)
    for option_name, message in option_problems(name, options):
        raise DataError(f"task {name}: option {option_name!r} {message}")
    resolved: dict[str, Any] = {}
    for option in entry.options:
        value = option.normalise(options.get(option.name, option.default))
        if option.kind == "path" and value is not None:
            value = str(Path(folder or Path.cwd(), user_path(value)).absolute())
        resolved[option.name] = value
    return resolved


def default_encoders(
    name: str, inputs: Iterable[str], kinds: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Default encoder by input: the task's for this input, else char_cnn for tokens, else "*"."""
    encoders = task_entry(name).encoders
    found = {}
    for each in inputs:
        is_tokens = (kinds or {}).get(each) == "tokens"
        rest = CHAR_CNN if is_tokens else encoders.get("*", MLP_64)
        found[each] = dict(encoders.get(each, rest))
    return found
