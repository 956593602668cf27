"""The plan: a study file held against the shelves; every point of its grids, the space of its
searches, and how a point becomes replicates.

A method's block in a study file may name the method's own hyperparameters, any training setting
(`learning_rate`), any encoder field for all modalities (`encoder.hidden`) and any option of the
task (`task.share`). Each may be a value, or a domain:

    beta: 0.3                                   a constant
    beta: {grid: [0, 0.5, 1]}                   every one of these
    beta: {low: 0, high: 1}                     a range (also: log, step, int)
    merge: {choices: [sum, concat]}             one of these
    width: {low: 16, high: 64, int: true, when: {merge: sum}}      only where merge is sum
    weights: {value: {low: 0.3, high: 1.0}}     a constant that is itself a mapping

Problems are collected over the whole file, so that a user sees everything at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modmix import spec as spec_module
from modmix.encoders.table import ENCODERS
from modmix.errors import DataError, InputError, Problem, SpecError
from modmix.methods.table import METHODS
from modmix.methods.table import modalities as modalities_used
from modmix.methods.table import problems as method_problems
from modmix.metrics import METRICS, higher_is_better
from modmix.packing import NUMERICS_VERSION, Replicate, TaskRef, digest
from modmix.settings import TRAINING, WITHOUT_EFFECT, training_defaults
from modmix.space import (
    Choices,
    Condition,
    Constant,
    Domain,
    Grid,
    Hyperparameter,
    Range,
    every_value,
    grid_points,
    in_order_of_conditions,
)
from modmix.spec import Source, StudySpec, unknown
from modmix.tasks.table import TASKS, default_encoders, option_problems, resolve_options

if TYPE_CHECKING:
    from modmix.tasks.data import Data

MAX_GRID_POINTS = 100_000
_DOMAIN_KEYS = {"grid", "choices", "low", "high", "int", "log", "step", "value", "when"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration of one method: what is shown, and the replicates it needs."""

    key: str
    method: str
    params: Mapping[str, Any]
    task: TaskRef
    replicates: tuple[Replicate, ...]


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """One part: per method its domains, and for a grid its assignments."""

    name: str
    x: str | None
    search: spec_module.SearchSpec | None
    domains: Mapping[str, Mapping[str, Domain]]  # method -> name -> domain

    def assignments(self, method: str) -> list[dict[str, Any]]:
        """The points of a grid, as what the file varies or sets."""
        assert self.search is None
        return grid_points(self.domains[method])


@dataclass
class Plan:
    """A checked study file with its data: everything `study` needs to run it."""

    spec: StudySpec
    source: Source
    parts: tuple[PartPlan, ...]
    task_options: Mapping[str, Any]
    data: Data
    _variants: dict[str, Data] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.spec.study

    @property
    def task(self) -> TaskRef:
        return self._task_ref(self.task_options, self.data)

    @cached_property
    def directions(self) -> tuple[bool, ...]:
        """Per objective, whether higher is better."""
        return tuple(higher_is_better(name) for name in self.spec.objective)

    def _task_ref(self, options: Mapping[str, Any], data: Data) -> TaskRef:
        return TaskRef(
            name=self.spec.task["name"], options=dict(options), fingerprint=data.fingerprint
        )

    def data_of(self, options: Mapping[str, Any]) -> Data:
        """The task's data under these options (loaded once per variant)."""
        if options == self.task_options:
            return self.data
        key = digest(dict(options))
        if key not in self._variants:
            self._variants[key] = _load(self.spec.task["name"], options)
        return self._variants[key]

    def point(self, method: str, assignment: Mapping[str, Any]) -> Point:
        """Resolve what a part sets or a sampler proposes into a point and its replicates."""
        entry = METHODS[method]
        declared = {h.name: h for h in entry.hyperparameters}
        params = {h.name: h.normalise(h.default) for h in entry.hyperparameters}
        training = {**training_defaults(), **_recipe(self.spec)}
        options = dict(self.task_options)
        encoder_fields: dict[str, Any] = {}
        shown: dict[str, Any] = {}
        for name, value in assignment.items():
            if name in declared:
                params[name] = declared[name].normalise(value)
            elif name in TRAINING:
                training[name] = shown[name] = TRAINING[name].normalise(value)
            elif name.startswith("encoder."):
                encoder_fields[name.removeprefix("encoder.")] = value
                shown[name] = value
            else:
                options[name.removeprefix("task.")] = value
                shown[name] = value
        data = self.data_of(options)
        task = self._task_ref(options, data)
        encoders = {
            modality: _encoder(self.spec, modality, encoder_fields)
            for modality in modalities_used(method, list(data.modalities), params)
        }
        shown = {**params, **shown}
        key = digest([method, shown])
        return Point(
            key=key,
            method=method,
            params=shown,
            task=task,
            replicates=tuple(
                _replicate(key, seed, method, params, training, encoders, task)
                for seed in self.spec.seeds
            ),
        )

    def details(self) -> dict[str, Any]:
        """What a reader of the ledger wants to know of data and code, as JSON."""
        from modmix import __version__

        data = self.data
        return {
            "task": self.spec.task["name"],
            "task_options": dict(self.task_options),
            "fingerprint": data.fingerprint,
            "classes": data.classes,
            "class_names": list(data.class_names),
            "modalities": {name: list(shape) for name, shape in data.shapes.items()},
            "rows": {name: split.rows for name, split in data.splits.items()},
            "modmix": __version__,
            "numerics": NUMERICS_VERSION,
            **_versions(),
        }


Watch = Callable[[str, int, "int | None"], None]


def make(
    source: Source, *, data_path: str | None = None, progress: Watch = lambda *_: None
) -> Plan:
    """Check a study file against everything and prepare its data.

    Args:
        source: the study file as read.
        data_path: replaces the task's ``path`` option (where the data lies is not part of the
            study, so a flag may say it).
        progress: told about the preparation of large data.

    Raises:
        SpecError: everything that is wrong in the file.
        DataError: the data is missing or damaged.
    """
    if data_path is not None:
        task = source.raw.get("task")
        task = {"name": task} if isinstance(task, str) else dict(task or {})
        absolute = str(Path(data_path).expanduser().absolute())
        source = _replace_raw(source, {**source.raw, "task": {**task, "path": absolute}})
    spec, problems = spec_module.check(source)
    checker = _Checker(source)
    parts = checker.run()
    problems = _merge(problems, checker.problems)
    if problems or spec is None:
        raise SpecError(source.name, problems)
    options = resolve_options(spec.task["name"], _expanded(_task_options(spec.task)), source.folder)
    plan = Plan(
        spec=spec,
        source=source,
        parts=tuple(parts),
        task_options=options,
        data=_load(spec.task["name"], options, progress),
    )
    _check_against_data(plan)
    return plan


# ---------------------------------------------------------------- resolving


def _task_options(task: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in task.items() if name != "name"}


def _expanded(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: os.path.expandvars(value) if isinstance(value, str) else value
        for name, value in options.items()
    }


def _replace_raw(source: Source, raw: Mapping[str, Any]) -> Source:
    return Source(
        name=source.name, text=source.text, raw=raw, lines=source.lines, folder=source.folder
    )


def _load(
    task: str, options: Mapping[str, Any], progress: Watch = lambda *_: None
) -> Data:
    from modmix.tasks.base import load_task

    return load_task(task, options, progress)


def _recipe(spec: StudySpec) -> dict[str, Any]:
    recipe = {"monitor": spec.objective[0], **TASKS[spec.task["name"]].training, **spec.training}
    return {name: TRAINING[name].normalise(value) for name, value in recipe.items()}


def _encoder(spec: StudySpec, modality: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    own = spec.encoders.get(modality, spec.encoders.get("default"))
    if own is None:
        own = default_encoders(spec.task["name"], [modality])[modality]
    own = {**own, **fields}
    declared = ENCODERS[own["name"]].hyperparameters
    values = {h.name: h.normalise(own.get(h.name, h.default)) for h in declared}
    return {"name": own["name"], **values}


def _replicate(
    point: str,
    seed: int,
    method: str,
    params: Mapping[str, Any],
    training: Mapping[str, Any],
    encoders: Mapping[str, Mapping[str, Any]],
    task: TaskRef,
) -> Replicate:
    declared = {h.name: h for h in METHODS[method].hyperparameters}
    effective = {k: v for k, v in training.items() if k not in WITHOUT_EFFECT}
    if METHODS[method].inputs == "raw":
        encoders = {}
    key = digest(
        {
            "method": method,
            "params": dict(params),
            "training": effective,
            "encoders": {name: dict(value) for name, value in encoders.items()},
            "task": [task.name, task.fingerprint],
            "seed": seed,
            "numerics": NUMERICS_VERSION,
        }
    )
    structure = digest(
        {
            "method": method,
            "params": {k: v for k, v in params.items() if not declared[k].stackable},
            "training": {k: v for k, v in training.items() if not TRAINING[k].stackable},
            "encoders": {name: dict(value) for name, value in encoders.items()},
            "task": [task.name, task.fingerprint],
        }
    )
    return Replicate(
        key=key,
        point=point,
        seed=seed,
        method=method,
        params=params,
        training=training,
        encoders=encoders,
        structure=structure,
    )


def _versions() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {}
    for package in ("torch", "ray", "optuna", "mlflow", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


# ---------------------------------------------------------------- checking against the shelves


def _merge(first: Sequence[Problem], second: Sequence[Problem]) -> list[Problem]:
    """Both lists, one problem per place: the outline's word goes before the shelves'."""
    places = {problem.path for problem in first}
    return [*first, *(problem for problem in second if problem.path not in places)]


class _Checker:
    """Holds the raw file against the shelves, tolerant of a file whose outline is wrong."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.task = ""

    def add(self, path: Sequence[str | int], message: str) -> None:
        self.problems.append(self.source.problem(path, message))

    def run(self) -> list[PartPlan]:
        raw = self.source.raw
        self._task(raw.get("task"))
        self._encoders(raw.get("encoders"))
        training = raw.get("training")
        for name, value in training.items() if isinstance(training, Mapping) else ():
            self._value(("training", name), TRAINING.get(name), name, value, list(TRAINING))
        self._objective(raw.get("objective", "val/error"))
        paper = raw.get("paper")
        for method in paper if isinstance(paper, Mapping) else ():
            if method not in METHODS:
                self.add(("paper", method), unknown(method, METHODS, "method"))
        parts = raw.get("parts")
        return [
            plan
            for name, part in (parts.items() if isinstance(parts, Mapping) else ())
            if isinstance(part, Mapping) and (plan := self._part(name, part)) is not None
        ]

    def _value(
        self,
        path: Sequence[str | int],
        declared: Any,
        name: str,
        value: Any,
        known: Sequence[str],
    ) -> None:
        if declared is None:
            self.add(path, unknown(name, known, "setting"))
        elif (problem := declared.problem(value)) is not None:
            self.add(path, problem)
        elif name == "monitor" and not _is_validation_metric(value):
            self.add(path, f"must be one of {', '.join(_validation_metrics())}, got {value!r}")

    def _task(self, raw: Any) -> None:
        task = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(task, Mapping):
            return
        name = task.get("name")
        if name is None:
            self.add(("task",), "must name a task: task: {name: digits}")
        elif name not in TASKS:
            self.add(("task",), unknown(str(name), TASKS, "task"))
        else:
            self.task = str(name)
            options = _task_options(task)
            for option, value in options.items():
                if isinstance(value, str) and (missing := _unset_variable(value)) is not None:
                    message = f"the environment variable {missing} is not set: export it first"
                    self.add(("task", option), message)
            for option, message in option_problems(self.task, options):
                self.add(("task", option), message)

    def _encoders(self, raw: Any) -> None:
        for modality, encoder in raw.items() if isinstance(raw, Mapping) else ():
            path = ("encoders", modality)
            if not isinstance(encoder, Mapping):
                continue
            name = encoder.get("name")
            if name not in ENCODERS:
                message = unknown(str(name), ENCODERS, "encoder") if name else "must have a name"
                self.add(path, message)
                continue
            declared = {h.name: h for h in ENCODERS[name].hyperparameters}
            for key, value in encoder.items():
                if key != "name":
                    self._value((*path, key), declared.get(key), key, value, list(declared))

    def _objective(self, raw: Any) -> None:
        objectives = [raw] if isinstance(raw, str) else raw
        for name in objectives if isinstance(objectives, list) else ():
            if isinstance(name, str) and not _is_validation_metric(name):
                known = ", ".join(_validation_metrics())
                self.add(
                    ("objective",),
                    f"must be a validation metric ({known}), got {name!r}: the test split is "
                    "never selected on",
                )

    def _part(self, name: str, raw: Mapping[str, Any]) -> PartPlan | None:
        path = ("parts", name)
        methods = raw.get("methods")
        if not isinstance(methods, Mapping):
            return None
        search = _search(raw.get("search"))
        for reference in raw.get("references") or ():
            if reference not in METHODS:
                self.add((*path, "references"), unknown(str(reference), METHODS, "method"))
        shared = raw.get("shared") if isinstance(raw.get("shared"), Mapping) else {}
        used: set[str] = set()
        domains: dict[str, dict[str, Domain]] = {}
        for method, block in methods.items():
            here = (*path, "methods", method)
            if method not in METHODS:
                self.add(here, unknown(method, METHODS, "method"))
                continue
            if block is not None and not isinstance(block, Mapping):
                continue
            known = self._known(method)
            own = {key: ((*here, key), value) for key, value in (block or {}).items()}
            common = {
                key: ((*path, "shared", key), value)
                for key, value in (shared or {}).items()
                if key not in own and key in known
            }
            used |= set(shared or {}) & set(known)
            domains[method] = self._block(method, {**common, **own}, known, "search" in raw)
            self._x(path, raw, method, domains[method])
            self._size(here, domains[method], search)
        for key in shared or {}:
            if key not in used:
                known_names = {n for m in methods if m in METHODS for n in self._known(m)}
                message = unknown(key, known_names, "setting of these methods")
                self.add((*path, "shared", key), message)
        return PartPlan(name=name, x=raw.get("x"), search=search, domains=domains)

    def _known(self, method: str) -> dict[str, Any]:
        """Everything a method's block may name, with its declaration."""
        encoder = {f"encoder.{h.name}": h for e in ENCODERS.values() for h in e.hyperparameters}
        task = TASKS[self.task].options if self.task else ()
        return {
            **{h.name: h for h in METHODS[method].hyperparameters},
            **TRAINING,
            **encoder,
            **{f"task.{option.name}": option for option in task},
        }

    def _block(
        self,
        method: str,
        block: Mapping[str, tuple[Sequence[str | int], Any]],
        known: Mapping[str, Any],
        searched: bool,
    ) -> dict[str, Domain]:
        domains: dict[str, Domain] = {}
        for name, (path, value) in block.items():
            if name not in known:
                self.add(path, unknown(name, known, f"hyperparameter of {method}"))
                continue
            domain = self._domain(path, known[name], value)
            if domain is None:
                continue
            if searched and isinstance(domain, Grid):
                self.add(path, "a search takes ranges and choices: write choices for grid")
            elif not searched and isinstance(domain, (Range, Choices)):
                self.add(path, "ranges and choices need a search: add search: {points: 20}")
            else:
                domains[name] = domain
        for name, domain in domains.items():
            if domain.when is not None and domain.when.name not in domains:
                message = f"its condition reads {domain.when.name!r}, which this block does not set"
                self.add((*block[name][0], "when"), message)
        try:
            in_order_of_conditions(domains)
        except ValueError as error:
            first = next(iter(block.values()))[0]
            self.add(first[:-1], str(error))
            return {}
        if method == "base" and "modality" not in domains:
            domains = {"modality": _EVERY_MODALITY, **domains}
        return domains

    def _domain(self, path: Sequence[str | int], declared: Any, value: Any) -> Domain | None:
        if not isinstance(value, Mapping) or (
            declared.kind in ("mapping", "columns")
            and not set(value) & {"grid", "choices", "value"}
        ):
            return self._listed(path, declared, [value], Constant)
        if extra := [key for key in value if key not in _DOMAIN_KEYS]:
            self.add((*path, extra[0]), unknown(extra[0], _DOMAIN_KEYS, "key of a domain"))
            return None
        kinds = [kind for kind in ("value", "grid", "choices", "low") if kind in value]
        if len(kinds) != 1 or ("low" in value) != ("high" in value):
            self.add(path, "must have exactly one of grid, choices, value, or low with high")
            return None
        when = self._when((*path, "when"), value["when"]) if "when" in value else None
        if kinds == ["value"]:
            return self._listed(path, declared, [value["value"]], Constant, when)
        if kinds == ["low"]:
            return self._range(path, declared, value, when)
        values = value[kinds[0]]
        if not isinstance(values, list) or not values:
            self.add((*path, kinds[0]), f"must be a list with at least one value, got {values!r}")
            return None
        kind = Grid if kinds == ["grid"] else Choices
        return self._listed((*path, kinds[0]), declared, values, kind, when)

    def _listed(
        self,
        path: Sequence[str | int],
        declared: Any,
        values: Sequence[Any],
        kind: type[Constant] | type[Grid] | type[Choices],
        when: Condition | None = None,
    ) -> Domain | None:
        problems = [problem for value in values if (problem := declared.problem(value))]
        if not problems and declared.name == "monitor":
            problems = ["give it under training, once for the study"]
        normal = [declared.normalise(value) for value in values] if not problems else []
        if len({digest(value) for value in normal}) != len(normal):
            problems.append(f"names a value twice: {list(values)!r}")
        if problems:
            self.add(path, problems[0])
            return None
        if kind is Constant:
            return Constant(value=normal[0], when=when)
        return (
            Grid(values=tuple(normal), when=when)
            if kind is Grid
            else Choices(values=tuple(normal), when=when)
        )

    def _range(
        self,
        path: Sequence[str | int],
        declared: Any,
        value: Mapping[str, Any],
        when: Condition | None,
    ) -> Range | None:
        if declared.kind not in ("float", "int"):
            self.add(path, "has no range: use choices")
            return None
        for end in ("low", "high"):
            number = Hyperparameter(name=end, kind=declared.kind, default=0, doc="")
            problem = number.problem(value[end]) or declared.problem(value[end])
            if problem:
                self.add((*path, end), problem)
                return None
        low, high = float(value["low"]), float(value["high"])
        if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
            self.add(path, f"low must be below high, got low {low:g} and high {high:g}")
            return None
        log, step = value.get("log", False), value.get("step")
        if not isinstance(log, bool) or (log and low <= 0):
            self.add(path, f"log must be true or false, and needs low above 0, got low {low:g}")
            return None
        if step is not None and (
            isinstance(step, bool) or not isinstance(step, (int, float)) or step <= 0 or log
        ):
            self.add((*path, "step"), f"must be a positive number, without log, got {step!r}")
            return None
        return Range(
            low=low, high=high, integer=declared.kind == "int", log=log, step=step, when=when
        )

    def _when(self, path: Sequence[str | int], raw: Any) -> Condition | None:
        if not isinstance(raw, Mapping) or len(raw) != 1:
            self.add(path, "must name one hyperparameter and its values: when: {merge: [sum]}")
            return None
        (name, values), *_ = raw.items()
        return Condition(name=name, values=tuple(values if isinstance(values, list) else [values]))

    def _x(
        self,
        path: Sequence[str | int],
        raw: Mapping[str, Any],
        method: str,
        domains: Mapping[str, Domain],
    ) -> None:
        x = raw.get("x")
        if isinstance(x, str) and not any(
            problem.path.startswith(".".join((*map(str, path), "methods", method)))
            for problem in self.problems
        ):
            if x not in domains or isinstance(domains[x], Constant):
                message = f"method {method} does not vary {x!r}: give it a grid there or in shared"
                self.add((*path, "x"), message)

    def _size(
        self,
        path: Sequence[str | int],
        domains: Mapping[str, Domain],
        search: spec_module.SearchSpec | None,
    ) -> None:
        if search is not None:
            endless = [n for n, d in domains.items() if every_value(d) is None]
            if search.sampler == "grid" and endless:
                message = f"the grid sampler needs an end: give {endless[0]} a step or choices"
                self.add(path, message)
            return
        size = math.prod(len(d.values) for d in domains.values() if isinstance(d, Grid))
        if size > MAX_GRID_POINTS:
            self.add(path, f"its grid has {size} points, more than {MAX_GRID_POINTS}: use a search")


# Stands for "one point per modality" until the data says which there are.
_EVERY_MODALITY = Choices(values=("*",))


def _search(raw: Any) -> spec_module.SearchSpec | None:
    try:
        return None if raw is None else spec_module.SearchSpec.model_validate(raw)
    except ValueError:
        return None  # the outline's check has said it


def _validation_metrics() -> list[str]:
    return [f"val/{name}" for name in METRICS]


def _is_validation_metric(name: Any) -> bool:
    return name in _validation_metrics()


def _unset_variable(text: str) -> str | None:
    for match in _VARIABLE.finditer(text):
        name = match.group(1) or match.group(2)
        if name not in os.environ:
            return name
    return None


# ---------------------------------------------------------------- checking against the data


def _check_against_data(plan: Plan) -> None:
    """What only the data can tell: modalities' names, and whether each model can be built."""
    source, problems = plan.source, []
    modalities = list(plan.data.modalities)
    for name in plan.spec.encoders:
        if name != "default" and name not in modalities:
            message = unknown(name, [*modalities, "default"], "modality")
            problems.append(source.problem(("encoders", name), message))
    parts = []
    for part in plan.parts:
        domains = {}
        for method, block in part.domains.items():
            block = dict(block)
            if block.get("modality") is _EVERY_MODALITY:
                names = tuple(modalities)
                block["modality"] = (
                    Grid(values=names) if part.search is None else Choices(values=names)
                )
            domains[method] = block
        parts.append(PartPlan(name=part.name, x=part.x, search=part.search, domains=domains))
    plan.parts = tuple(parts)
    for part in plan.parts:
        for method, block in part.domains.items():
            path = ("parts", part.name, "methods", method)
            try:
                message = _first_problem(plan, part, method, block)
            except DataError as error:
                message = str(error)
            if message is not None:
                problems.append(source.problem(path, message))
    if problems:
        raise SpecError(source.name, problems)


def _first_problem(
    plan: Plan, part: PartPlan, method: str, block: Mapping[str, Domain]
) -> str | None:
    """Build one model of every structure (a sample of them for a search); None when all can be."""
    seen: set[str] = set()
    for assignment in part.assignments(method) if part.search is None else _samples(block):
        point = plan.point(method, assignment)
        data = plan.data_of(point.task.options)
        if (chosen := point.params.get("modality")) is not None and chosen not in data.modalities:
            return f"modality: {unknown(str(chosen), data.modalities, 'modality')}"
        replicate = point.replicates[0]
        # Values of stackable hyperparameters do not change shapes, but their names may (weights).
        signature = digest([replicate.structure, replicate.params.get("weights")])
        if signature in seen:
            continue
        seen.add(signature)
        if problems := method_problems(method, list(data.modalities), replicate.params):
            return problems[0]
        if (problem := _unbuildable(replicate, data)) is not None:
            return problem
    return None


def _unbuildable(replicate: Replicate, data: Data) -> str | None:
    """Why a model with these values cannot be built (features that cannot be summed), or None."""
    import torch

    from modmix.methods.model import build_model

    try:
        with torch.device("meta"):  # shapes without memory: a search's largest corner is free
            build_model(
                replicate.method,
                replicate.params,
                replicate.encoders,
                data.shapes,
                data.classes,
                replicate.seed,
            )
    except InputError as error:
        return str(error)
    return None


def _samples(block: Mapping[str, Domain], limit: int = 64) -> Iterator[dict[str, Any]]:
    """Corners of a search space: every choice with the ranges at their ends, up to a limit."""
    corners: dict[str, Domain] = {}
    for name, domain in block.items():
        match domain:
            case Range():
                ends = (domain.low, domain.high)
                values = tuple(int(e) if domain.integer else e for e in ends)
                corners[name] = Grid(values=values, when=domain.when)
            case Choices():
                corners[name] = Grid(values=domain.values, when=domain.when)
            case _:
                corners[name] = domain
    while math.prod(len(d.values) for d in corners.values() if isinstance(d, Grid)) > limit:
        longest = max(
            (name for name, d in corners.items() if isinstance(d, Grid)),
            key=lambda name: len(corners[name].values),  # type: ignore[union-attr]
        )
        grid = corners[longest]
        assert isinstance(grid, Grid)
        corners[longest] = Grid(values=grid.values[: max(1, len(grid.values) // 2)], when=grid.when)
    yield from grid_points(corners)
