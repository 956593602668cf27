"""The tasks and methods that there are: ``modmix tasks`` and ``modmix methods``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import typer

from modmix.base.errors import InputError
from modmix.cli.options import Json
from modmix.cli.printing import print_json

Entry = TypeVar("Entry")


def tasks(
    name: Annotated[str | None, typer.Argument(help="One task only.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List tasks with their options, cost and data source."""
    from modmix.tasks.table import TASKS

    shown = _one_of(TASKS, name, "task")
    if as_json:
        print_json(
            {n: {"doc": t.doc, "cost": t.cost, "source": t.source} for n, t in shown.items()}
        )
        return
    for name, entry in shown.items():
        print(f"{name}: {entry.doc}\n  data: {entry.source}; {entry.cost}")
        for option in entry.options:
            default = "required" if option.required else f"default {_in_yaml(option.default)}"
            print(f"    {option.name} ({default}): {option.doc}")


def methods(
    name: Annotated[str | None, typer.Argument(help="One method only.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List methods and their hyperparameters."""
    from modmix.methods.table import METHODS

    shown = _one_of(METHODS, name, "method")
    if as_json:
        print_json(
            {
                name: {
                    "doc": entry.doc,
                    "hyperparameters": {h.name: h.default for h in entry.hyperparameters},
                }
                for name, entry in shown.items()
            }
        )
        return
    for name, entry in shown.items():
        print(f"{name}: {entry.doc}")
        for h in entry.hyperparameters:
            print(f"    {h.name} (default {_in_yaml(h.default)}): {h.doc}")


def _in_yaml(value: Any) -> str:
    """As a study file has it: null, true, [64, 64]."""
    return value if isinstance(value, str) else json.dumps(value)


def _one_of(table: Mapping[str, Entry], name: str | None, what: str) -> Mapping[str, Entry]:
    """A table, or one of its entries.

    Raises:
        InputError: there is none of this name.
    """
    from modmix.study.spec import unknown

    if name is None:
        return table
    if name not in table:
        raise InputError(unknown(name, table, what))
    return {name: table[name]}
