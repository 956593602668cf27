"""From a study file of one task to its plan.

Problems are collected over the whole file, so that users see all of them at once. Everything that
can be checked against the tables is checked before the data is loaded, the rest afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modmix.base.errors import DataError, InputError, Problem, SpecError
from modmix.base.home import user_path
from modmix.study import data_checks
from modmix.study import spec as spec_module
from modmix.study.checks import is_key_of, task_options
from modmix.study.files import Source
from modmix.study.parts import PartPlan
from modmix.study.plan import Plan
from modmix.study.spec import StudySpec
from modmix.study.validate import Checker
from modmix.study.variables import expanded
from modmix.tasks.table import TASKS, resolve_options

if TYPE_CHECKING:
    from modmix.tasks.data import Data


Watch = Callable[[str, int, "int | None"], None]


def make(
    source: Source,
    *,
    data_path: str | None = None,
    progress: Watch = lambda *_: None,
) -> Plan:
    """Validate a study file, prepare its data, and dry-run its models.

    Args:
        source: the parsed study file.
        data_path: overrides the task's ``path`` option (the location of the data is not part of
            the study).
        progress: called during the preparation of large data.

    Raises:
        SpecError: the study file is invalid; lists every problem found.
        DataError: the data is missing or damaged.
        InputError: ``data_path`` for a task that reads no file, or in an unknown home directory.
    """
    if data_path is not None:
        source = _with_path(source, _given_path(data_path))
    spec, parts, checker, problems = check(source)
    if problems or spec is None:
        raise SpecError(source.name, problems)
    plan = loaded(source, spec, parts, checker, progress)
    data_checks.check(plan)
    return plan


def check(source: Source) -> tuple[StudySpec | None, list[PartPlan], Checker, list[Problem]]:
    """Everything that can be checked without data, and all problems."""
    spec, problems = spec_module.check(source)
    checker = Checker(source)
    parts = checker.run()
    return spec, parts, checker, _merge([*source.problems, *problems], checker.problems)


def loaded(
    source: Source, spec: StudySpec, parts: Sequence[PartPlan], checker: Checker, progress: Watch
) -> Plan:
    """The plan of a file without problems, with its data."""
    options = resolve_options(checker.task, expanded(task_options(spec.task or {})), source.folder)
    return Plan(
        spec=spec,
        source=source,
        parts=tuple(parts),
        methods=checker.methods,
        encoders=checker.encoders,
        task_name=checker.task,
        task_options=options,
        data=_load_checked(source, checker.task, options, progress),
    )


def _given_path(path: str) -> str:
    try:
        return str(user_path(path).absolute()).replace("$", "$$")  # a name, not a variable
    except InputError as error:
        raise InputError(f"--data: {error}") from error


def _with_path(source: Source, path: str) -> Source:
    """The study file with the task's ``path`` option replaced.

    Raises:
        InputError: the task reads no file.
    """
    raw = source.raw.get("task")
    task = {"name": raw} if isinstance(raw, str) else raw
    if not isinstance(task, Mapping):
        return source  # reported by the checks
    if "class" in task:
        return replace(source, raw={**source.raw, "task": {**task, "path": path}})
    if not is_key_of(task.get("name"), TASKS):
        return source
    if all(option.name != "path" for option in TASKS[task["name"]].options):
        raise InputError(f"--data: task {task['name']} reads no file: leave the flag out")
    return replace(source, raw={**source.raw, "task": {**task, "path": path}})


def _load_checked(source: Source, task: str, options: Mapping[str, Any], progress: Watch) -> Data:
    """Load data; errors in a user's own task or in files are reported at their line."""
    from modmix.tasks.base import load_task

    try:
        return load_task(task, options, progress)
    except DataError as error:
        raise DataError(_with_line(source, options, str(error))) from error
    except InputError as error:
        raise SpecError(source.name, [source.problem(("task", "class"), str(error))]) from error


def _with_line(source: Source, options: Mapping[str, Any], message: str) -> str:
    """A message on data, with the line of the option whose file it names.

    Not if ``--data`` has named it, or if it is about something else, such as a full disk.
    """
    block = source.raw.get("task")
    for name, written in block.items() if isinstance(block, Mapping) else ():
        if not isinstance(written, str) or written not in source.text:
            continue
        path = options.get(name)
        if isinstance(path, str) and Path(path).is_absolute() and path in message:
            return f"{source.name}: {source.problem(('task', name), message)}"
    return message


def _merge(first: Sequence[Problem], second: Sequence[Problem]) -> list[Problem]:
    """Both lists, without problems of the second whose path already has one in the first."""
    places = {problem.path for problem in first}
    return [*first, *(problem for problem in second if problem.path not in places)]
