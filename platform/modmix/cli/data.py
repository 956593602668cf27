"""`modmix data`: download, prepare and verify data sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from modmix.base.errors import InputError

data_app = typer.Typer(no_args_is_help=True, help="Download, prepare and verify data sets.")


def _progress() -> Any:
    from rich.console import Console

    from modmix.cli.display import DataProgress

    return DataProgress(Console(stderr=True, soft_wrap=True))


Task = Annotated[str, typer.Argument(help="Name of a task, or a study file.", show_default=False)]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="Task option as name=value.")
]


def _task(task: str, options: list[str] | None) -> tuple[str, dict[str, Any]]:
    from modmix.study.domains import variable_problem
    from modmix.tasks.table import resolve_options

    given: dict[str, Any] = {}
    folder: Path | None = None
    if task.endswith((".yaml", ".yml")):
        from modmix.study import spec

        source = spec.read(Path(task))
        block = source.raw.get("task")
        block = {"name": block} if isinstance(block, str) else block
        if not isinstance(block, dict) or not isinstance(block.get("name"), str):
            raise InputError(f"{task}: must name a task: task: {{name: digits}}")
        given, folder = dict(block), source.folder
        task = given.pop("name")
    given |= dict(map(_option, options or ()))
    for name, value in given.items():
        if (problem := variable_problem(value)) is not None:
            raise InputError(f"option {name}: {problem}")
        given[name] = os.path.expandvars(value) if isinstance(value, str) else value
    return task, resolve_options(task, given, folder)


def _option(text: str) -> tuple[str, Any]:
    from modmix.study.spec import parse_value

    rule = "--option must be name=value with a value as in a study file"
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"{rule}, got {text!r}")
    try:
        return name, parse_value(value)
    except InputError as error:
        raise InputError(f"{rule}, got {text!r}: {error}") from error


@data_app.command("get")
def data_get(task: Task, option: Options = None) -> None:
    """Download the official files of a data set."""
    from modmix.tasks.base import get_task

    name, options = _task(task, option)
    with _progress() as progress:
        paths = get_task(name, options, progress)
    for path in paths:
        print(path)


@data_app.command("prepare")
def data_prepare(task: Task, option: Options = None) -> None:
    """Prepare a data set for training; done once."""
    from modmix.tasks.base import prepare_task

    name, options = _task(task, option)
    with _progress() as progress:
        path = prepare_task(name, options, progress)
    print(path)


@data_app.command("check")
def data_check(task: Task, option: Options = None) -> None:
    """Verify the checksums of prepared data."""
    from modmix.tasks.base import check_task

    name, options = _task(task, option)
    with _progress() as progress:
        path = check_task(name, options, progress)
    print(f"{path}: checksums match")
