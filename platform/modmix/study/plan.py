"""The plan: a validated study file with its data. Resolves configurations into replicates.

Problems are collected over the whole file, so that users see all of them at once. Everything that
can be checked against the tables is checked before the data is loaded, the rest afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modmix._version import VERSION
from modmix.base import sources
from modmix.base.errors import DataError, InputError, Problem, SpecError
from modmix.base.home import user_path
from modmix.base.messages import NUMERICS_VERSION, Replicate, TaskRef, digest
from modmix.base.metrics import higher_is_better
from modmix.base.owner import current_owner
from modmix.base.settings import TRAINING, selection, training_defaults
from modmix.base.space import (
    Choices,
    Constant,
    Domain,
    Grid,
    Hyperparameter,
    Range,
    domain_to_json,
    every_value,
    grid_configurations,
)
from modmix.encoders.table import encoder_entry, modality_inputs
from modmix.methods.table import method_entry
from modmix.methods.table import modalities as modalities_used
from modmix.methods.table import problems as method_problems
from modmix.study import compatibility
from modmix.study import spec as spec_module
from modmix.study.configurations import Configuration, Setting
from modmix.study.domains import EVERY_MODALITY
from modmix.study.provenance import commit, versions
from modmix.study.spec import Source, StudySpec, unknown
from modmix.study.validate import Checker, PartPlan, is_key_of, task_options
from modmix.study.variables import expanded
from modmix.tasks.table import TASKS, default_encoders, resolve_options, task_entry

if TYPE_CHECKING:
    from modmix.tasks.data import Data, Input


@dataclass
class Plan:
    """A validated study file with its data: everything needed to run it.

    ``methods`` (by name in the file), ``encoders`` (by input, as given in the file) and
    ``task_name`` hold built-in names or references to users' own classes.
    """

    spec: StudySpec
    source: Source
    parts: tuple[PartPlan, ...]
    methods: Mapping[str, str]
    encoders: Mapping[str, Mapping[str, Any]]
    task_name: str
    task_options: Mapping[str, Any]
    data: Data
    _variants: dict[str, Data] = field(default_factory=dict, repr=False)
    _warnings: dict[str, dict[str, None]] = field(default_factory=dict, repr=False)  # by method

    @property
    def name(self) -> str:
        return self.spec.study

    @property
    def task(self) -> TaskRef:
        return self._task_ref(self.task_options, self.data)

    @cached_property
    def directions(self) -> tuple[bool, ...]:
        """For each objective, whether higher is better."""
        return tuple(higher_is_better(name) for name in self.spec.objective)

    def _task_ref(self, options: Mapping[str, Any], data: Data) -> TaskRef:
        return TaskRef(name=self.task_name, options=dict(options), fingerprint=data.fingerprint)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about settings in the file without effect (see `compatibility`)."""
        return tuple(
            f"{', '.join(methods)}: {sentence}" for sentence, methods in self._warnings.items()
        )

    def warn(self, method: str, names: Iterable[str], replicate: Replicate, data: Data) -> None:
        """Record which of the named settings of a configuration have no effect."""
        given = [*self.spec.training, *names]
        gpus = self.spec.resources.of(method).gpus or 0
        for sentence in compatibility.warnings_of(given, replicate, data, gpus):
            self.note(method, sentence)

    def note(self, method: str, sentence: str) -> None:
        """Record a warning about a method."""
        self._warnings.setdefault(sentence, {})[method] = None

    def gpus_of(self, method: str) -> float:
        """GPUs of a pack of a method, which is named as replicates name it."""
        given = [name for name in self.spec.resources.methods if self.methods.get(name) == method]
        return self.spec.resources.of(given[-1] if given else "").gpus or 0

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of the data with the task options as given."""
        return frozenset({self.data.fingerprint})

    def data_for(self, task: TaskRef) -> Data:
        """The data that a configuration refers to."""
        return self.data_of(task.options)

    def data_of(self, options: Mapping[str, Any]) -> Data:
        """The task's data under these options, loaded once per variant."""
        if options == self.task_options:
            return self.data
        key = digest(dict(options))
        if key not in self._variants:
            self._variants[key] = _load(self.task_name, options)
        return self._variants[key]

    @cached_property
    def shown(self) -> Mapping[str, tuple[str, ...]]:
        """Per method, what its configurations display besides the method's own hyperparameters.

        All configurations of a method display every setting that any part sets or varies, so two
        parts that describe the same model in different ways share one configuration.
        """
        found: dict[str, dict[str, None]] = {}
        for part in self.parts:
            for method, domains in part.domains.items():
                own = {h.name for h in method_entry(self.methods[method]).hyperparameters}
                names = found.setdefault(method, {})
                names.update(dict.fromkeys(name for name in domains if name not in own))
        return {method: tuple(names) for method, names in found.items()}

    @cached_property
    def varied_options(self) -> tuple[str, ...]:
        """The task options that some configuration of the study sets."""
        names = (name for of_method in self.shown.values() for name in of_method)
        return tuple(
            dict.fromkeys(name.removeprefix("task.") for name in names if name.startswith("task."))
        )

    def seeds_of(self, part: str) -> tuple[int, ...]:
        """The seeds of a part's configurations."""
        own = next((one.seeds for one in self.parts if one.name == part), None)
        return tuple(self.spec.seeds) if own is None else own

    def configuration(
        self, method: str, assignment: Mapping[str, Any], part: str = ""
    ) -> Configuration:
        """Resolve an assignment (from a grid or a sampler) into a configuration with replicates.

        Where ``part`` has seeds of its own, so has the configuration.
        """
        seeds = self.seeds_of(part)
        setting = self._setting(method, assignment)
        shown = self.shown.get(method, ())
        # The same hyperparameters with other seeds are another configuration.
        own: list[Any] = [] if seeds == tuple(self.spec.seeds) else [list(seeds)]
        alone = None if self.spec.reuse else f"{current_owner()}/{self.name}"
        if setting.training["pbt"]:
            # Results depend on the other configurations of the pack, and on all seeds.
            search = next((one.search for one in self.parts if one.name == part), None)
            together = 0 if search is None else search.batch
            own = [self.name, part, list(seeds), together, self.spec.resources.largest_pack]
            alone = digest([current_owner(), *own])
        key = digest([setting.identity, *own])
        return Configuration(
            key=key,
            method=method,
            params={**setting.params, **{name: setting.value(name) for name in shown}},
            task=setting.task,
            options={name: setting.task.options[name] for name in self.varied_options},
            replicates=setting.replicates(key, seeds, owner=alone),
        )

    def _setting(self, method: str, assignment: Mapping[str, Any]) -> Setting:
        entry = method_entry(self.methods[method])
        declared = {h.name: h for h in entry.hyperparameters}
        params = {h.name: h.normalise(h.default) for h in entry.hyperparameters}
        training = {**training_defaults(), **self._recipe()}
        fields: dict[str, Any] = {}  # of all encoders
        chosen: dict[str, Any] = {}  # options of the task
        for name, value in assignment.items():
            if name in declared:
                params[name] = declared[name].normalise(value)
            elif name in TRAINING:
                training[name] = TRAINING[name].normalise(value)
            elif name.startswith("encoder."):
                fields[name.removeprefix("encoder.")] = value
            else:
                chosen[name.removeprefix("task.")] = value
        training["select"] = selection(training)
        options = self._options_with(chosen)
        data = self.data_of(options)
        encoders: dict[str, dict[str, Any]] = {}
        if entry.inputs != "raw":
            every = self.encoders_of(data, fields)
            made = modality_inputs(every, prefixed=len(every) > 1)
            used = modalities_used(method, list(made), params)
            read = {made[modality][0] for modality in used if modality in made}
            encoders = {name: encoder for name, encoder in every.items() if name in read}
        return Setting(
            name=method,
            method=self.methods[method],
            params=params,
            training=training,
            encoders=encoders,
            task=self._task_ref(options, data),
            augmentation={name: one.identity for name, one in data.augmentation.items()},
        )

    def encoders_of(self, data: Data, fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Encoders by input with all hyperparameters; ``fields`` override the file."""
        kinds = {name: one.kind for name, one in data.inputs.items()}
        defaults = default_encoders(self.task_name, kinds, kinds)
        found = {}
        for name in data.inputs:
            own = self.encoders.get(name, self.encoders.get("default", defaults[name]))
            own = {**own, **fields}
            declared = encoder_entry(own["name"]).hyperparameters
            values = {h.name: _whole(h, own.get(h.name, h.default)) for h in declared}
            # A field for all encoders may not fit one that the configuration does not use.
            normal = {
                h.name: h.normalise(value) if h.problem(value) is None else value
                for h, value in zip(declared, values.values(), strict=True)
            }
            found[name] = {"name": own["name"], **normal}
        return found

    @property
    def monitor(self) -> str:
        """The metric for selecting the best evaluation and for early stopping."""
        return str(self._recipe()["monitor"])

    def _recipe(self) -> dict[str, Any]:
        of_task = task_entry(self.task_name).training
        recipe = {"monitor": self.spec.objective[0], **of_task, **self.spec.training}
        return {name: TRAINING[name].normalise(value) for name, value in recipe.items()}

    def first(self, configuration: Configuration) -> Configuration:
        """A configuration as a search first trains it: with staged seeds, only the first ones."""
        staged = self.spec.replicates
        if staged is None:
            return configuration
        return replace(configuration, replicates=configuration.replicates[: staged.start])

    def signatures(self) -> dict[tuple[str, str], str]:
        """Per part and method, a digest of what its entries depend on; a change discards them.

        What other parts vary is not in it.
        """
        found: dict[tuple[str, str], str] = {}
        for part in sorted(self.parts, key=lambda part: part.best_of is not None):
            for method, domains in part.domains.items():
                what: list[object] = [[name, repr(domain)] for name, domain in domains.items()]
                # The default setting covers what all configurations of the method share: training
                # settings, encoders, data and code.
                what += [self._setting(method, {}).identity]
                what += [] if part.seeds is None else [list(part.seeds)]
                if part.best_of is not None:
                    source = next(one for one in self.parts if one.name == part.best_of)
                    asked = None if source.search is None else source.search.configurations
                    what += [found.get((part.best_of, method)), asked]
                    # What the choice is made from: with more seeds or time it is made anew.
                    what += [list(self.seeds_of(source.name)), self.spec.budget.model_dump()]
                if part.search is not None:
                    what += [part.search.sampler, part.search.seed]
                    what += [list(self.spec.objective)]
                    what += [part.search.start_from] if part.search.start_from else []
                    if "pbt" in domains or self._recipe().get("pbt"):
                        # The decisions of a population depend on all of its models.
                        what += [list(self.seeds_of(part.name)), part.search.batch]
                        what += [self.spec.resources.largest_pack]
                found[part.name, method] = digest(what)
        return found

    def _options_with(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        """The task's options, with those that a configuration sets replaced."""
        if not chosen:
            return self.task_options
        options = {**self.task_options, **expanded(chosen)}
        return resolve_options(self.task_name, options, self.source.folder)

    def details(self) -> dict[str, Any]:
        """Metadata about data and code for the ledger, as JSON values."""
        data = self.data
        encoders = self.encoders_of(data, {})
        names = [self.task_name, *self.methods.values()]
        names += [encoder["name"] for encoder in encoders.values()]
        own = [name for name in dict.fromkeys(names) if sources.is_reference(name)]
        return {
            "task": sources.place(self.task_name),
            "task_reference": self.task_name,
            "task_options": dict(self.task_options),
            "fingerprint": data.fingerprint,
            "classes": data.classes,
            "class_names": list(data.class_names),
            "inputs": {name: list(shape) for name, shape in data.shapes.items()},
            "modalities": list(modality_inputs(encoders, prefixed=len(encoders) > 1)),
            "searches": {
                part.name: {
                    method: {name: domain_to_json(domain) for name, domain in domains.items()}
                    for method, domains in part.domains.items()
                }
                for part in self.parts
                if part.search is not None
            },
            "rows": {name: split.rows for name, split in data.splits.items()},
            "modmix": VERSION,
            "numerics": NUMERICS_VERSION,
            "git": commit(),
            "classes_at": {sources.place(name): sources.location(name) for name in own},
            "sources": sources.bundles(own),
            **versions(),
        }


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
    check_against_data(plan)
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


# ---------------------------------------------------------------- resolving


def _given_path(path: str) -> str:
    try:
        return str(user_path(path).absolute())
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


def _load(task: str, options: Mapping[str, Any], progress: Watch = lambda *_: None) -> Data:
    from modmix.tasks.base import load_task

    return load_task(task, options, progress)


def _load_checked(source: Source, task: str, options: Mapping[str, Any], progress: Watch) -> Data:
    """Load data; errors in a user's own task or in files are reported at their line."""
    try:
        return _load(task, options, progress)
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


# ---------------------------------------------------------------- checking against the data


def _merge(first: Sequence[Problem], second: Sequence[Problem]) -> list[Problem]:
    """Both lists, without problems of the second whose path already has one in the first."""
    places = {problem.path for problem in first}
    return [*first, *(problem for problem in second if problem.path not in places)]


def check_against_data(plan: Plan) -> None:
    """Checks that need the data: names of inputs and modalities, and a dry run of the models.

    Raises:
        SpecError: everything that is wrong.
    """
    source, problems = plan.source, []
    inputs = list(plan.data.inputs)
    for name in plan.encoders:
        if name != "default" and name not in inputs:
            message = unknown(name, [*inputs, "default"], "input")
            problems.append(source.problem(("encoders", name), message))
    if not problems:
        plan.parts = tuple(_with_modalities(plan, part) for part in plan.parts)
        check = _Check(plan)
        for part in plan.parts:
            for method, block in part.domains.items():
                path = ("parts", part.name, "methods", method)
                try:
                    problem = check.first_problem(part, method, block)
                except DataError as error:
                    problem = str(error)
                if problem is not None:
                    problems.append(source.problem(path, problem))
        problems += _undefined_metrics(plan)
    if problems:
        raise SpecError(source.name, problems)


def _undefined_metrics(plan: Plan) -> Iterator[Problem]:
    """Problems for objectives and the monitor that are undefined on the loaded data."""
    paths: dict[str, tuple[str, ...]] = {plan.monitor: ("training", "monitor")}
    paths |= dict.fromkeys(plan.spec.objective, ("objective",))
    for metric, path in paths.items():
        for data in (plan.data, *plan._variants.values()):
            if (problem := compatibility.metric_problem(metric, data)) is not None:
                yield plan.source.problem(path, problem)
                break


def _with_modalities(plan: Plan, part: PartPlan) -> PartPlan:
    """The part with the placeholder for every modality replaced by the actual modalities."""
    domains = {}
    for method, block in part.domains.items():
        block = dict(block)
        if block.get("modality") is EVERY_MODALITY:
            encoders = plan.encoders_of(plan.data, _first_fields(block))
            names = tuple(modality_inputs(encoders, prefixed=len(encoders) > 1))
            block["modality"] = Grid(values=names) if part.search is None else Choices(values=names)
        domains[method] = block
    return replace(part, domains=domains)


def _first_fields(block: Mapping[str, Domain]) -> dict[str, Any]:
    """The first value of each encoder field that a block sets or varies."""
    values = {
        name.removeprefix("encoder."): every_value(domain)
        for name, domain in block.items()
        if name.startswith("encoder.")
    }
    return {name: found[0] for name, found in values.items() if found}


def _to_warn_of(assignment: Mapping[str, Any], block: Mapping[str, Domain]) -> list[str]:
    """The settings that the file gives, without a width where depth varies, often from 0 on."""
    varies = (every_value(block["depth"]) or (0, 1))[1:] if "depth" in block else ()
    return [name for name in assignment if name != "width" or not varies]


class _Check:
    """Checks models on the data: builds one per structure and runs one per kind."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._run: set[str] = set()  # kinds of models already run

    def first_problem(self, part: PartPlan, method: str, block: Mapping[str, Domain]) -> str | None:
        """The first problem over all structures (for a search, a sample of them), or None."""
        seen: set[str] = set()
        for assignment in part.assignments(method) if part.search is None else _samples(block):
            configuration = self._plan.configuration(method, assignment)
            replicate = configuration.replicates[0]
            if (problem := _field_problem(replicate, assignment, block)) is not None:
                return problem
            # Stackable values do not change shapes, but `weights` may name an unknown source.
            signature = digest([replicate.structure, replicate.params.get("weights")])
            if signature in seen:
                continue
            seen.add(signature)
            data = self._plan.data_of(configuration.task.options)
            fields = {
                name.removeprefix("encoder."): value
                for name, value in assignment.items()
                if name.startswith("encoder.")
            }
            if (problem := self._problem(replicate, data, fields)) is not None:
                return self._varied_modalities(replicate, block, data, fields) or problem
            self._plan.warn(method, _to_warn_of(assignment, block), replicate, data)
        return None

    def _varied_modalities(
        self,
        replicate: Replicate,
        block: Mapping[str, Domain],
        data: Data,
        fields: Mapping[str, Any],
    ) -> str | None:
        """Why `base` has no list of modalities if a varied field decides which there are."""
        first, these = (
            list(modality_inputs(encoders, prefixed=len(encoders) > 1))
            for encoders in (
                self._plan.encoders_of(data, _first_fields(block)),
                self._plan.encoders_of(data, fields),
            )
        )
        varied = [name for name in block if name.startswith("encoder.")]
        varied = [name for name in varied if not isinstance(block[name], Constant)]
        is_known = replicate.method != "base" or replicate.params["modality"] in these
        if is_known or first == these or not varied:
            return None
        return (
            f"its modalities are {', '.join(first)} for some values of {' and '.join(varied)} and "
            f"{', '.join(these)} for others, and one block has one list of modalities: give "
            "each value a part of its own"
        )

    def _problem(self, replicate: Replicate, data: Data, fields: Mapping[str, Any]) -> str | None:
        entry = method_entry(replicate.method)
        encoders = self._plan.encoders_of(data, fields)
        if entry.inputs == "raw":
            encoders = {name: {"name": "identity"} for name in data.inputs}
        modalities = list(modality_inputs(encoders, prefixed=len(encoders) > 1))
        chosen = replicate.params.get("modality") if replicate.method == "base" else None
        if chosen is not None and chosen not in modalities:
            return f"modality: {unknown(str(chosen), modalities, 'modality')}"
        if problems := method_problems(replicate.method, modalities, replicate.params):
            return problems[0]
        used = encoders if entry.inputs == "raw" else replicate.encoders
        for name, encoder in used.items():
            if (problem := _misfit(data.inputs[name], encoder["name"])) is not None:
                if entry.inputs == "raw":
                    what = f"{replicate.method} reads raw inputs"
                    return f"{what}, and the input {problem}: use another method"
                takes = " and ".join(encoder_entry(encoder["name"]).inputs)
                return (
                    f"encoder {sources.place(encoder['name'])} takes {takes}, and the input "
                    f"{problem}: give that another encoder (encoders: {{{name}: …}})"
                )
        try:
            return self._try(replicate, data)
        except InputError as error:
            return str(error)

    def _try(self, replicate: Replicate, data: Data) -> str | None:
        from modmix.methods.model import model_spec
        from modmix.study.dry_run import build_without_memory, check_model
        from modmix.training.timeline import check_parts

        spec = model_spec(replicate, data)
        names = [[name, encoder["name"]] for name, encoder in replicate.encoders.items()]
        kind = digest([replicate.method, names, data.fingerprint])
        if spec.sources or kind not in self._run:
            self._run.add(kind)
            for sentence in check_model(spec):
                self._plan.note(sources.place(replicate.method), sentence)
        model = build_without_memory(spec)
        check_parts(model.parts(), replicate.training)
        return compatibility.batch_problem(model, replicate, data)


def _whole(declared: Hyperparameter, value: Any) -> Any:
    """1 for 1.0 where whole numbers are asked for: another encoder's field may take any number."""
    if declared.kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if declared.kind == "ints" and isinstance(value, list):
        return [int(v) if isinstance(v, float) and v.is_integer() else v for v in value]
    return value


def _field_problem(
    replicate: Replicate, assignment: Mapping[str, Any], block: Mapping[str, Domain]
) -> str | None:
    """Why a value of an encoder field is invalid for an encoder that it applies to, or None.

    Args:
        assignment: which fields are active; all values of their domains are checked.
    """
    for name in assignment:
        if not name.startswith("encoder."):
            continue
        for given, encoder in replicate.encoders.items():
            for declared in encoder_entry(encoder["name"]).hyperparameters:
                if f"encoder.{declared.name}" != name:
                    continue
                values = (_whole(declared, value) for value in _ends(block[name]))
                problems = (declared.problem(value) for value in values)
                if (problem := next(filter(None, problems), None)) is not None:
                    what = sources.place(encoder["name"])
                    return (
                        f"{name} {problem} for the encoder {what} of input {given!r}: give each "
                        "input its encoder's values under encoders"
                    )
    return None


def _ends(domain: Domain) -> tuple[Any, ...]:
    """All values of a domain; of a range both ends, and of a continuous one a number between."""
    match domain:
        case Range(low=low, last=last, integer=True):
            return int(low), int(last)
        case Range(low=low, last=last, step=None):
            return (low + last) / 2, low, last
        case Range(low=low, last=last, step=step):
            return low, domain.nearest(low + (step or 0)), last
        case _:
            return every_value(domain) or ()


def _misfit(given: Input, encoder: str) -> str | None:
    """A clause with the input's kind if the encoder does not accept it, else None."""
    takes = encoder_entry(encoder).inputs
    return None if "any" in takes or given.kind in takes else f"{given.name!r} is {given.kind}"


def _samples(block: Mapping[str, Domain], limit: int = 64) -> Iterator[dict[str, Any]]:
    """Corners of a search space: all choices, and both ends of ranges, up to ``limit``."""
    corners: dict[str, Domain] = {}
    for name, domain in block.items():
        match domain:
            case Range():
                ends = (domain.low, domain.last)
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
    yield from grid_configurations(corners)
