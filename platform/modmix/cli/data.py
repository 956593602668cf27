"""`modmix data`: download, prepare and verify data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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


def _tasks(task: str, options: list[str] | None) -> list[tuple[str, dict[str, Any]]]:
    """The task of this name, or the tasks of this study file, with their options."""
    from modmix.study import files
    from modmix.study.tasks_plan import tasks_of
    from modmix.study.variables import expanded, variable_problem
    from modmix.tasks.table import resolve_options

    given = dict(map(_option, options or ()))
    if task.endswith((".yaml", ".yml")):
        source = files.read(Path(task))
        return tasks_of(replace(source, raw=_with_options(source.raw, given)) if given else source)
    for name, value in given.items():
        if (problem := variable_problem(value)) is not None:
            raise InputError(f"option {name}: {problem}")
    return [(task, resolve_options(task, expanded(given)))]


def _with_options(raw: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A study file's content with options of its task, which may correct what the file has."""
    for name in ("name", "class"):
        if name in given:
            raise InputError(
                f"--option {name}: the study file names the task: leave the option out"
            )
    several = raw.get("tasks")
    if isinstance(several, Mapping) and several:
        if len(several) > 1:
            raise InputError("--option: the study has several tasks: give the option in the file")
        ((name, block),) = several.items()
        own = _with_options(block, given) if isinstance(block, Mapping) else block
        return {**raw, "tasks": {name: own}}
    block = raw.get("task")
    if not isinstance(block, (str, Mapping)):
        return dict(raw)
    return {**raw, "task": {**({"name": block} if isinstance(block, str) else block), **given}}


def _option(text: str) -> tuple[str, Any]:
    from modmix.study.files import parse_value

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

    for name, options in _tasks(task, option):
        with _progress() as progress:
            paths = get_task(name, options, progress)
        for path in paths:
            print(path)


@data_app.command("prepare")
def data_prepare(task: Task, option: Options = None) -> None:
    """Prepare a data set, or all those of a study, for training; done once."""
    from modmix.tasks.base import prepare_task

    for name, options in _tasks(task, option):
        with _progress() as progress:
            path = prepare_task(name, options, progress)
        print(path)


@data_app.command("check")
def data_check(task: Task, option: Options = None) -> None:
    """Verify the checksums of prepared data."""
    from modmix.tasks.base import check_task

    for name, options in _tasks(task, option):
        with _progress() as progress:
            path = check_task(name, options, progress)
        print(f"{path}: checksums match")
