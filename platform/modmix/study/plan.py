"""The plan: a valid study file with its data. Resolves configurations into replicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modmix._version import VERSION
from modmix.base import sources
from modmix.base.messages import NUMERICS_VERSION, Replicate, TaskRef, digest
from modmix.base.metrics import higher_is_better
from modmix.base.owner import current_owner
from modmix.base.settings import TRAINING, selection, training_defaults
from modmix.base.space import Hyperparameter, domain_to_json
from modmix.encoders.table import encoder_entry, modality_inputs
from modmix.methods.table import method_entry
from modmix.methods.table import modalities as modalities_used
from modmix.study import compatibility
from modmix.study.configurations import Configuration, Setting
from modmix.study.files import Source
from modmix.study.parts import PartPlan
from modmix.study.provenance import commit, versions
from modmix.study.spec import StudySpec
from modmix.study.variables import expanded
from modmix.tasks.table import default_encoders, resolve_options, task_entry

if TYPE_CHECKING:
    from modmix.tasks.data import Data


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

    @property
    def variants(self) -> tuple[Data, ...]:
        """All data loaded so far: with the options as given, and with others."""
        return (self.data, *self._variants.values())

    def data_for(self, task: TaskRef) -> Data:
        """The data that a configuration refers to."""
        return self.data_of(task.options)

    def data_of(self, options: Mapping[str, Any]) -> Data:
        """The task's data under these options, loaded once per variant."""
        if options == self.task_options:
            return self.data
        key = digest(dict(options))
        if key not in self._variants:
            from modmix.tasks.base import load_task

            self._variants[key] = load_task(self.task_name, options)
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
            own = [self.name, part, self._signatures.get((part, method))]
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
            values = {h.name: whole(h, own.get(h.name, h.default)) for h in declared}
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

    @cached_property
    def _signatures(self) -> Mapping[tuple[str, str], str]:
        return self.signatures()

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
                        # More configurations are more populations, unless the last one grows.
                        last = part.search.configurations % part.search.batch
                        what += [part.search.configurations if last else 0]
                        # The first proposals are up to `startup` of the other study's.
                        what += [part.search.startup] if part.search.start_from else []
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


def whole(declared: Hyperparameter, value: Any) -> Any:
    """1 for 1.0 where whole numbers are asked for: another encoder's field may take any number."""
    if declared.kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    if declared.kind == "ints" and isinstance(value, list):
        return [int(v) if isinstance(v, float) and v.is_integer() else v for v in value]
    return value
