"""The plan of a study of several tasks: a plan per task, each of the parts that run on it.

A file with ``tasks`` is read as one file per task (`files.sources_of_tasks`), and every task is
checked as if it were alone. Here the plans become one study: a part ``curve`` on the task ``higgs``
is the part ``curve@higgs``, with its own grid or search, and a configuration belongs to one task.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modmix.base.errors import Problem, SpecError
from modmix.base.home import NAME_LENGTH
from modmix.base.messages import TaskRef, digest
from modmix.study import data_checks, make_plan
from modmix.study import spec as spec_module
from modmix.study.checks import task_options
from modmix.study.configurations import Configuration
from modmix.study.files import Source, sources_of_tasks
from modmix.study.make_plan import Watch
from modmix.study.parts import PartPlan
from modmix.study.plan import Plan
from modmix.study.spec import StudySpec, unknown
from modmix.study.validate import Checker
from modmix.study.variables import expanded
from modmix.tasks.table import resolve_options

if TYPE_CHECKING:
    from modmix.tasks.data import Data

AT = "@"  # between the names of part and task; no name has it


@dataclass
class TasksPlan:
    """Has what `execution` asks of a `Plan`; ``of`` has the plans by task."""

    spec: StudySpec
    source: Source
    of: Mapping[str, Plan]

    @property
    def name(self) -> str:
        return self.spec.study

    @cached_property
    def parts(self) -> tuple[PartPlan, ...]:
        """All parts of all tasks, in the order of the file: parts, then tasks."""
        found = [
            replace(
                part,
                name=f"{part.name}{AT}{task}",
                task=task,
                best_of=None if part.best_of is None else f"{part.best_of}{AT}{task}",
            )
            for task, plan in self.of.items()
            for part in plan.parts
        ]
        order = list(self.spec.parts)
        return tuple(sorted(found, key=lambda part: order.index(part.name.partition(AT)[0])))

    @property
    def directions(self) -> tuple[bool, ...]:
        """Per objective, whether higher is better."""
        return next(iter(self.of.values())).directions

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what the file sets and has no effect."""
        return tuple(f"{task}: {each}" for task, plan in self.of.items() for each in plan.warnings)

    def gpus_of(self, method: str) -> float:
        """As `Plan.gpus_of`."""
        # Every task knows the methods and resources of the whole file.
        return next(iter(self.of.values())).gpus_of(method)

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of the tasks' data with their options as given."""
        return frozenset().union(*(plan.fingerprints for plan in self.of.values()))

    def data_for(self, task: TaskRef) -> Data:
        """The data that a configuration refers to."""
        plans = [plan for plan in self.of.values() if plan.task_name == task.name]
        known = [plan for plan in plans if plan.task.fingerprint == task.fingerprint]
        return (known or plans)[0].data_for(task)

    def configuration(
        self, method: str, assignment: Mapping[str, Any], part: str = ""
    ) -> Configuration:
        """As `Plan.configuration`; ``part`` is the name of one of `parts`."""
        name, _, task = part.partition(AT)
        found = self.of[task].configuration(method, assignment, name)
        # A configuration belongs to one task, and so do its results where two may be equal.
        key, own = digest([task, found.key]), task in self._alike
        replicates = tuple(
            replace(one, configuration=key, key=digest([task, one.key]) if own else one.key)
            for one in found.replicates
        )
        return replace(found, key=key, task_name=task, replicates=replicates)

    @cached_property
    def _alike(self) -> frozenset[str]:
        """Tasks whose data may be that of another task, with other encoders or training.

        Their models are not shared with other studies.
        """
        pairs = itertools.permutations(self.of.items(), 2)
        return frozenset(
            name
            for (name, one), (_, other) in pairs
            if one.task_name == other.task_name
            and (
                one.data.fingerprint == other.data.fingerprint
                or one.varied_options
                or other.varied_options
            )
        )

    def seeds_of(self, part: str) -> tuple[int, ...]:
        """The seeds of a part's configurations."""
        name, _, task = part.partition(AT)
        return self.of[task].seeds_of(name)

    def first(self, configuration: Configuration) -> Configuration:
        """A searched configuration as it is asked for; see `Plan.first`."""
        return self.of[configuration.task_name].first(configuration)

    def signatures(self) -> dict[tuple[str, str], str]:
        """Per part and method, what its entries depend on."""
        return {
            (f"{part}{AT}{task}", method): value
            for task, plan in self.of.items()
            for (part, method), value in plan.signatures().items()
        }

    def details(self) -> dict[str, Any]:
        """As `Plan.details`, by task under ``tasks``; what all have in common beside it."""
        each = {task: plan.details() for task, plan in self.of.items()}
        first = next(iter(each.values()))
        common = {
            name: value
            for name, value in first.items()
            if all(name in one and one[name] == value for one in each.values())
        }
        bundles = {k: v for one in each.values() for k, v in one["sources"].items()}
        names = ", ".join(dict.fromkeys(str(one["task"]) for one in each.values()))
        return {**common, "task": names, "sources": bundles, "tasks": each}


StudyPlan = Plan | TasksPlan


def make(
    source: Source,
    *,
    data_path: str | None = None,
    progress: Watch = lambda *_: None,
) -> StudyPlan:
    """The plan of a study file, of one task or several; see `make_plan.make`.

    Raises:
        SpecError: everything that is wrong in the file.
        DataError: data is missing or damaged.
    """
    if not source.raw.get("tasks"):
        return make_plan.make(source, data_path=data_path, progress=progress)
    spec, problems = spec_module.check(source)
    problems = [*source.problems, *problems]
    # A task without parts has no plan; `_of_parts` says so.
    sources = {task: one for task, one in sources_of_tasks(source).items() if one.raw.get("parts")}
    found = {task: make_plan.check(one) for task, one in sources.items()}
    seen = {(problem.line, problem.path) for problem in problems}
    for *_, own in found.values():
        new = [problem for problem in own if (problem.line, problem.path) not in seen]
        problems += new
        seen |= {(problem.line, problem.path) for problem in new}
    problems += _of_parts(source, spec)
    if data_path is not None:
        message = "--data: the study has several tasks: give each its path in the file"
        problems.append(source.problem(("tasks",), message))
    if problems or spec is None:
        raise SpecError(source.name, problems)
    plans = {}
    for task, one in sources.items():
        of_task, parts, checker, _ = found[task]
        assert of_task is not None
        plans[task] = make_plan.loaded(one, of_task, parts, checker, progress)
    for plan in plans.values():
        try:
            data_checks.check(plan)
        except SpecError as error:
            problems += [each for each in error.problems if each not in problems]
    if problems:
        raise SpecError(source.name, problems)
    return TasksPlan(spec=spec, source=source, of=plans)


def tasks_of(source: Source) -> list[tuple[str, dict[str, Any]]]:
    """The tasks of a study file, by name or reference, with their options.

    The rest of the file is not checked: data can be prepared before the file is complete.

    Raises:
        SpecError: a task is missing or invalid.
    """
    sources = sources_of_tasks(source) if source.raw.get("tasks") else {"": source}
    found, problems = [], list(source.problems)
    for one in sources.values():
        checker, block = Checker(one), one.raw.get("task")
        checker.run_task()
        problems += checker.problems
        if checker.task:
            given = task_options(block) if isinstance(block, Mapping) else {}
            options = expanded(given)
            found.append((checker.task, options))
        elif not checker.problems:
            problems.append(one.problem(("task",), "must name a task: task: {name: digits}"))
    if not sources:
        problems.append(source.problem(("tasks",), "must have at least one task"))
    if problems:
        raise SpecError(source.name, problems)
    return [(task, resolve_options(task, options, source.folder)) for task, options in found]


def _of_parts(source: Source, spec: StudySpec | None) -> list[Problem]:
    """Tasks that a part names and the file does not have; tasks that no part runs on."""
    if spec is None:
        return []
    problems = []
    for part, block in spec.parts.items():
        for task in block.tasks or ():
            if task not in spec.tasks:
                path = ("parts", part, "tasks")
                problems.append(source.problem(path, unknown(task, spec.tasks, "task")))
        for task in block.tasks or spec.tasks:
            if (length := len(f"{part}{AT}{task}")) > NAME_LENGTH:
                message = (
                    f"the names of a part and of its task have at most {NAME_LENGTH - 1} "
                    f"characters together, got {length - 1} with task {task!r}: shorten one"
                )
                problems.append(source.problem(("parts", part), message))
    used = {task for part in spec.parts.values() for task in part.tasks or spec.tasks}
    problems += [
        source.problem(("tasks", task), "no part runs on this task")
        for task in spec.tasks
        if task not in used
    ]
    return problems
