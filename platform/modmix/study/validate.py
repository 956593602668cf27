"""Validate a study file against the tables: collects all problems, and parses the parts' domains.

A method's block may contain the method's own hyperparameters, any training setting
(`learning_rate`), any encoder field for all inputs (`encoder.hidden`) and any task option
(`task.share`), each with a value or a domain (see `domains`).

The block of a task, of an encoder, or of a method with a new name may give a user's own class:
`class: FILE.py:CLASS`. Nothing heavy is imported unless one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from modmix.base import sources
from modmix.base.errors import InputError, Problem
from modmix.base.home import METHOD_LENGTH, NAME_RULE, is_name
from modmix.base.metrics import METRICS, OVER_LEARNING
from modmix.base.settings import PBT_DEFAULTS, TRAINING
from modmix.base.space import (
    Choices,
    Constant,
    Domain,
    Grid,
    Hyperparameter,
    Range,
    every_value,
    grid_configurations,
    in_order_of_conditions,
)
from modmix.encoders.table import ENCODERS, EncoderEntry, encoder_entry
from modmix.methods.table import METHODS, method_entry
from modmix.study.domains import (
    EVERY_MODALITY,
    DomainError,
    condition_problem,
    perturbable,
    read,
    value_problem,
)
from modmix.study.spec import FIRST_OF_PART, LEARNING, SearchSpec, Source, unknown
from modmix.study.variables import variable_problem
from modmix.tasks.table import TASKS, option_problems, task_entry
from modmix.training.halving import share
from modmix.training.pbt import number_of_copies

MAX_GRID_CONFIGURATIONS = 100_000


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """One part of a study: the domains of each method, and for a grid its assignments."""

    name: str
    x: str | None
    search: SearchSpec | None
    domains: Mapping[str, Mapping[str, Domain]]  # method -> name -> domain
    task: str = ""  # in a study of several tasks
    seeds: tuple[int, ...] | None = None  # null: the study's
    best_of: str | None = None  # the part whose best configurations these are

    def assignments(self, method: str) -> list[dict[str, Any]]:
        """The configurations of a grid, each as the values that the file sets or varies."""
        assert self.search is None
        return [] if self.best_of is not None else grid_configurations(self.domains[method])


class Checker:
    """Validates the raw file against the tables; tolerates files that violate the schema."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.task = ""  # built-in name or reference; "" if invalid
        self.methods = {name: name for name in METHODS}  # own ones: -> reference, "" if invalid
        self.encoders: dict[str, Mapping[str, Any]] = {}  # by input

    def add(self, path: Sequence[str | int], message: str) -> None:
        problem = self.source.problem(path, message)
        if problem not in self.problems:  # shared settings are checked once per method
            self.problems.append(problem)

    def run_task(self) -> None:
        """Check the block ``task`` alone."""
        self._task(self.source.raw.get("task"))

    def run(self) -> list[PartPlan]:
        raw = self.source.raw
        self.run_task()
        self._encoders(raw.get("encoders"))
        self._own_methods()
        training = raw.get("training")
        for name, value in training.items() if isinstance(training, Mapping) else ():
            self._value(("training", name), TRAINING.get(name), name, value, list(TRAINING))
        self._objective(raw.get("objective", "val/error"))
        self._paper(raw.get("paper"))
        final = raw.get("final")
        retrained = final.get("method") if isinstance(final, Mapping) else None
        if isinstance(retrained, str) and retrained not in self.methods:
            self.add(("final", "method"), unknown(retrained, self.methods, "method"))
        parts = raw.get("parts")
        plans = [
            plan
            for name, part in (parts.items() if isinstance(parts, Mapping) else ())
            if isinstance(part, Mapping) and (plan := self._part(name, part)) is not None
        ]
        if isinstance(staged := raw.get("replicates"), Mapping):
            self._replicates(staged, plans)
        self._seeds_of_parts(plans)
        return plans

    def _seeds_of_parts(self, plans: Sequence[PartPlan]) -> None:
        """Two parts have the same seeds or none in common: a model belongs to one configuration."""
        raw = self.source.raw.get("seeds", self._seeds)
        if isinstance(raw, int) and 1 <= raw <= 10_000:
            raw = range(raw)
        if not isinstance(raw, (list, tuple, range)) or not all(isinstance(s, int) for s in raw):
            return  # reported by the schema check
        known = {tuple(raw): "the study"}
        for plan in plans:
            seeds = plan.seeds
            if seeds is None or not all(isinstance(s, int) for s in seeds) or seeds in known:
                continue
            for others, who in known.items():
                if common := sorted(set(seeds) & set(others)):
                    message = (
                        f"share {', '.join(map(str, common[:5]))} with {who}: give the same seeds "
                        "or none of them"
                    )
                    self.add(("parts", plan.name, "seeds"), message)
            known[seeds] = f"part {plan.name}"

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
        elif (problem := value_problem(declared, value)) is not None:
            self.add(path, problem)
        elif name == "monitor" and not _is_validation_metric(value):
            self.add(path, f"must be one of {', '.join(_validation_metrics())}, got {value!r}")

    def _task(self, raw: Any) -> None:
        task = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(task, Mapping):
            return
        name = task.get("name")
        if "class" in task:
            if name is not None:
                self.add(("task",), "must have a name or a class, not both")
                return
            self.task = self._own(("task", "class"), task["class"], task_entry)
            self._task_options(task)
        elif name is None:
            self.add(("task",), "must name a task: task: {name: digits}")
        elif not is_key_of(name, TASKS):
            self.add(("task",), unknown(str(name), TASKS, "task"))
        else:
            self.task = str(name)
            self._task_options(task)

    def _task_options(self, task: Mapping[str, Any]) -> None:
        options = task_options(task) if self.task else {}
        for option, value in options.items():
            if (problem := variable_problem(value)) is not None:
                self.add(("task", option), problem)
        for option, message in option_problems(self.task, options) if self.task else ():
            self.add(("task", option), message)

    def _own(self, path: Sequence[str | int], text: Any, entry: Callable[[str], object]) -> str:
        """The reference for a user's own class, or "" if it has a problem."""
        try:
            reference = sources.find(str(text), self.source.folder)
            entry(reference)
        except InputError as error:
            self.add(path, str(error))
            return ""
        return reference

    def _encoders(self, raw: Any) -> None:
        for each, encoder in raw.items() if isinstance(raw, Mapping) else ():
            path = ("encoders", each)
            if not isinstance(encoder, Mapping):
                continue
            name = encoder.get("name")
            if "class" in encoder:
                if name is not None:
                    self.add(path, "must have a name or a class, not both")
                    continue
                name = self._own((*path, "class"), encoder["class"], encoder_entry)
                if not name:
                    continue
            elif not is_key_of(name, ENCODERS):
                message = unknown(str(name), ENCODERS, "encoder") if name else "must have a name"
                self.add(path, message)
                continue
            values = {k: v for k, v in encoder.items() if k not in ("name", "class")}
            declared = {h.name: h for h in encoder_entry(name).hyperparameters}
            for key, value in values.items():
                self._value((*path, key), declared.get(key), key, value, list(declared))
            self.encoders[each] = {"name": name, **values}

    def _own_methods(self) -> None:
        """Find users' own methods; a class given in one part applies to all parts and tasks."""
        given: dict[str, Any] = {}
        for part, raw in self.source.all_parts.items():
            methods = raw.get("methods") if isinstance(raw, Mapping) else None
            for method, block in methods.items() if isinstance(methods, Mapping) else ():
                if not isinstance(block, Mapping) or "class" not in block:
                    continue
                path = ("parts", part, "methods", method)
                if method in METHODS:
                    message = f"{method} is a method that is here: give your class another name"
                    self.add((*path, "class"), message)
                elif not is_name(method):
                    self.add(path, f"a method's name must be {NAME_RULE}, got {method!r}")
                    self.methods[method] = ""
                elif len(method) > METHOD_LENGTH:
                    got = f"got {method!r} of {len(method)}"
                    self.add(path, f"a method's name has at most {METHOD_LENGTH} characters, {got}")
                    self.methods[method] = ""
                elif method not in given:
                    given[method] = block["class"]
                    self.methods[method] = self._own((*path, "class"), block["class"], method_entry)
                elif given[method] != block["class"]:
                    there = f"{method} is {given[method]} elsewhere in this file"
                    message = f"{there}: give this another name"
                    self.add((*path, "class"), message)

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

        if isinstance(objectives, list) and len(objectives) == 2 and objectives[0] == objectives[1]:
            self.add(("objective",), f"names {objectives[0]!r} twice: give it once")

    def _paper(self, raw: Any) -> None:
        labels = _labels(self._parts())
        for row, numbers in raw.items() if isinstance(raw, Mapping) else ():
            method = row.partition(" (")[0]  # "mul", or "mul (table)" for its row in part `table`
            if method not in self.methods and row not in labels:
                self.add(("paper", row), unknown(method, self.methods, "method"))
            for metric, value in numbers.items() if isinstance(numbers, Mapping) else ():
                known = [*_metrics(), OVER_LEARNING]
                if metric not in known:
                    self.add(("paper", row, metric), unknown(metric, known, "metric"))
                if isinstance(value, list) and not 1 <= len(value) <= 2:
                    message = f"must be a mean or [mean, deviation], got {value!r}"
                    self.add(("paper", row, metric), message)

    def _parts(self) -> list[Mapping[str, Any]]:
        """The parts that are mappings."""
        parts = self.source.raw.get("parts")
        every = parts.values() if isinstance(parts, Mapping) else ()
        return [part for part in every if isinstance(part, Mapping)]

    def _references(self, name: str, raw: Any) -> None:
        """Methods to draw in a curve are trained by a part that shares a task with it."""
        parts = self.source.all_parts
        tasks = _tasks_of(parts.get(name))
        near = [
            part
            for part in parts.values()
            if isinstance(part, Mapping)
            and (tasks is None or (own := _tasks_of(part)) is None or tasks & own)
        ]
        trained = {method for part in near for method in _methods_of(part)} | _labels(near)
        for reference in raw if isinstance(raw, list) else ():
            if is_key_of(reference, self.methods) and reference not in trained:
                message = (
                    f"no part trains {reference!r}: add it to a part, or name one of "
                    f"{', '.join(sorted(trained))}"
                )
                self.add(("parts", name, "references"), message)
            elif str(reference) not in trained:
                message = unknown(str(reference), {*self.methods, *trained}, "method")
                self.add(("parts", name, "references"), message)

    def _part(self, name: str, raw: Mapping[str, Any]) -> PartPlan | None:
        path = ("parts", name)
        methods = raw.get("methods")
        if not isinstance(methods, Mapping):
            return None
        search = _search(raw.get("search"))
        self._references(name, raw.get("references"))
        shared = raw.get("shared")
        shared = shared if isinstance(shared, Mapping) else {}
        used: set[str] = set()
        domains: dict[str, dict[str, Domain]] = {}
        for method, block in methods.items():
            here = (*path, "methods", method)
            if method not in self.methods:
                message = unknown(method, self.methods, "method")
                hint = "" if "did you mean" in message else ", or have a class: FILE.py:CLASS"
                self.add(here, message + hint)
                continue
            if not self.methods[method]:
                continue
            if block is not None and not isinstance(block, Mapping):
                continue
            known = self._known(method)
            own = {
                key: ((*here, key), value) for key, value in (block or {}).items() if key != "class"
            }
            common = {
                key: ((*path, "shared", key), value)
                for key, value in shared.items()
                if key not in own and key in known
            }
            used |= set(shared) & set(known)
            before = len(self.problems)
            searched = raw.get("search") is not None
            block = {**common, **own}
            domains[method] = self._block(method, block, known, searched)
            if len(self.problems) == before:  # do not report consequential problems
                self._x(path, raw.get("x"), method, domains[method])
                self._size(here, domains[method], search)
                where = block["halving"][0] if "halving" in block else ("training", "halving")
                self._halving(where, (*path, "search", "batch"), domains[method], search)
                where = block["pbt"][0] if "pbt" in block else ("training", "pbt")
                if any(self._settings("pbt", domains[method])):
                    self._pbt(where, path, method, domains[method], search)
        for key in shared:
            if key not in used:
                known_names = {n for m in methods if self.methods.get(m) for n in self._known(m)}
                message = unknown(key, known_names, "setting of these methods")
                self.add((*path, "shared", key), message)
        self._objectives_of(path, search)
        if search is not None and search.start_from is not None:
            self._start_from((*path, "search", "start_from"), search.start_from)
        if raw.get("best_of") is not None:
            self._best_of(path, raw, methods)
        return PartPlan(
            name=name,
            x=raw.get("x"),
            search=search,
            domains=domains,
            seeds=_seeds(raw.get("seeds")),
            best_of=raw.get("best_of"),
        )

    def _best_of(
        self, path: Sequence[str | int], raw: Mapping[str, Any], methods: Mapping[str, Any]
    ) -> None:
        """A part that trains what another one found sets nothing of its own."""
        of = raw["best_of"]
        parts = self.source.raw.get("parts")
        others = {n: p for n, p in parts.items() if isinstance(p, Mapping)} if parts else {}
        if not is_key_of(of, others) or of == path[-1]:
            names = [name for name in others if name != path[-1]]
            self.add((*path, "best_of"), unknown(str(of), names, "part"))
            return
        if others[of].get("best_of") is not None:
            self.add((*path, "best_of"), f"part {of} is best_of another part: name that one")
        there = _methods_of(others[of])
        blocks = [others[of].get("shared"), *there.values()]
        if any(isinstance(block, Mapping) and block.get("pbt") for block in blocks):
            self.add(
                (*path, "best_of"), f"part {of} has no constant hyperparameters, because of pbt"
            )
        for key in ("search", "x", "shared"):
            if raw.get(key):
                self.add((*path, key), "a part with best_of sets nothing of its own: leave it out")
        for method, block in methods.items():
            if block:
                message = "a part with best_of sets nothing of its own: leave it empty"
                self.add((*path, "methods", method), message)
            if there and method not in there:
                self.add((*path, "methods", method), unknown(method, there, f"method of part {of}"))

    def _start_from(self, path: Sequence[str | int], other: str) -> None:
        owner, _, name = other.rpartition("/")
        if not is_name(name) or (owner and not is_name(owner)):
            self.add(path, f"must be a study, NAME or OWNER/NAME, got {other!r}")
        elif other == self.source.raw.get("study"):
            self.add(path, "must be another study: this one goes on from its own configurations")

    def _objectives_of(self, path: Sequence[str | int], search: SearchSpec | None) -> None:
        objective = self.source.raw.get("objective")
        two = isinstance(objective, list) and len(objective) > 1
        if search is not None and search.sampler == "cmaes" and two:
            message = "cmaes takes one objective: use nsga2, tpe or gp for two"
            self.add((*path, "search", "sampler"), message)

    def _known(self, method: str) -> dict[str, Any]:
        """Declarations of everything a method's block may contain, by name."""
        encoder: dict[str, list[Hyperparameter]] = {}
        for entry in self._encoder_entries():
            for h in entry.hyperparameters:
                encoder.setdefault(f"encoder.{h.name}", []).append(h)
        task = task_entry(self.task).options if self.task else ()
        return {
            **{h.name: h for h in method_entry(self.methods[method]).hyperparameters},
            **TRAINING,
            **{name: tuple(declared) for name, declared in encoder.items()},
            **{f"task.{option.name}": option for option in task},
        }

    def _encoder_entries(self) -> list[EncoderEntry]:
        """All encoders, those that the study uses first.

        Which one an input has, and which inputs a configuration reads, is known with the data:
        values are then checked against each encoder that they apply to.
        """
        names = [spec["name"] for spec in self.encoders.values()]
        if self.task:
            names += [spec["name"] for spec in task_entry(self.task).encoders.values()]
        return [encoder_entry(name) for name in dict.fromkeys([*names, *ENCODERS])]

    def _block(
        self,
        method: str,
        block: Mapping[str, tuple[Sequence[str | int], Any]],
        known: Mapping[str, Any],
        searched: bool,
    ) -> dict[str, Domain]:
        domains: dict[str, Domain] = {}
        if method == "base" and "modality" not in block:
            domains["modality"] = EVERY_MODALITY
        for name, (path, value) in block.items():
            if name not in known:
                own = [h.name for h in method_entry(self.methods[method]).hyperparameters]
                self.add(path, unknown(name, known, f"hyperparameter of {method}", own))
                continue
            try:
                domain = read(known[name], value)
            except DomainError as error:
                self.add((*path, *error.path), error.message)
                continue
            if name == "monitor":
                self.add(path, "give it under training, once for the study")
            elif searched and isinstance(domain, Grid):
                self.add(path, "a search takes ranges and choices: write choices for grid")
            elif searched and name.startswith("task.") and not isinstance(domain, Constant):
                self.add(path, "a search over data would only find the easiest: use a grid")
            elif not searched and isinstance(domain, (Range, Choices)):
                self.add(path, "ranges and choices need a search: add search: {configurations: 20}")
            else:
                domains[name] = domain
        for name, domain in domains.items():
            if (message := condition_problem(domain.when, domains)) is not None:
                self.add((*block[name][0], "when"), message)
        try:
            in_order_of_conditions(domains)
        except ValueError as error:
            first = next(iter(block.values()))[0]
            self.add(first[:-1], str(error))
            return {}
        return domains

    def _x(
        self, path: Sequence[str | int], x: Any, method: str, domains: Mapping[str, Domain]
    ) -> None:
        if isinstance(x, str) and (x not in domains or isinstance(domains[x], Constant)):
            message = f"method {method} does not vary {x!r}: give it a grid there or in shared"
            self.add((*path, "x"), message)

    def _size(
        self,
        path: Sequence[str | int],
        domains: Mapping[str, Domain],
        search: SearchSpec | None,
    ) -> None:
        if search is not None:
            if all(isinstance(domain, Constant) for domain in domains.values()):
                self.add(path, "nothing to search: give it a range or choices, there or in shared")
            endless = [n for n, d in domains.items() if every_value(d) is None]
            if search.sampler == "grid" and endless:
                message = f"the grid sampler needs an end: give {endless[0]} a step or choices"
                self.add(path, message)
            return
        size = math.prod(len(d.values) for d in domains.values() if isinstance(d, Grid))
        if size > MAX_GRID_CONFIGURATIONS:
            self.add(
                path,
                f"its grid has {size} configurations, more than {MAX_GRID_CONFIGURATIONS}: "
                "use a search",
            )

    def _halving(
        self,
        path: Sequence[str | int],
        batch_path: Sequence[str | int],
        domains: Mapping[str, Domain],
        search: SearchSpec | None,
    ) -> None:
        """Check halving: one objective, a rung before the last epoch, enough configurations."""
        objective = self.source.raw.get("objective")
        epochs = max(self._settings("epochs", domains), default=None)
        for halving in self._settings("halving", domains):
            if halving is None:
                continue
            eta, first = int(halving["eta"]), int(halving["min_epochs"])
            if isinstance(objective, list) and len(objective) > 1:
                message = (
                    "compares configurations by one value, the study has two objectives: "
                    "leave it out"
                )
                self.add(path, message)
            if epochs is not None and first >= epochs:
                message = f"min_epochs must be below epochs ({epochs}), got {first}: lower it"
                self.add(path, message)
            if search is not None and 1 < search.batch < eta:
                message = (
                    f"must be at least halving's eta ({eta}), got {search.batch}: the best "
                    f"1/{eta} of {search.batch} configurations is none (with batch: 1 packs "
                    "of one configuration "
                    "are compared with each other)"
                )
                self.add(batch_path, message)
            seeds = self._seeds
            if search is not None and isinstance(start := self._given("replicates", "start"), int):
                seeds = min(seeds, start)  # the seeds trained first
            most = self._given("resources", "max_models")
            if seeds > 0 and isinstance(most, int) and (search is None or search.batch > 1):
                configurations = most // seeds
                if 1 < configurations < eta:
                    message = (
                        f"a pack of {most} holds {configurations} configurations of {seeds} "
                        "seeds, fewer than "
                        f"halving's eta ({eta}): make it at least {eta * seeds}"
                    )
                    self.add(("resources", "max_models"), message)

    def _pbt(
        self,
        where: Sequence[str | int],
        part: Sequence[str | int],
        method: str,
        domains: Mapping[str, Domain],
        search: SearchSpec | None,
    ) -> None:
        """Check population-based training: a random search whose batches are populations."""
        if search is None:
            self.add(where, "changes hyperparameters that a grid fixes: use it in a search")
            return
        if search.sampler in LEARNING:
            message = (
                f"a sampler cannot learn from hyperparameters that pbt changes, got "
                f"{search.sampler}: set sampler: random"
            )
            self.add((*part, "search", "sampler"), message)
        for name, why in (
            ("halving", "drops the configurations that pbt lets continue as copies"),
            ("patience", "ends single models of the population that pbt compares"),
        ):
            if any(self._settings(name, domains)):
                self.add(where, f"cannot be used with {name}, which {why}: leave one of them out")
        if self._given("replicates") is not None:
            self.add(where, "compares means over all seeds: leave it or replicates out")
        if not perturbable(self.methods[method], domains):
            message = (
                f"nothing to change for {method}: give it a range of a number that may differ "
                "within a pack (see `modmix methods`), such as learning_rate"
            )
            self.add(where, message)
        epochs = max(self._settings("epochs", domains), default=None)
        for pbt in self._settings("pbt", domains):
            if pbt is None:
                continue
            settings = {**PBT_DEFAULTS, **pbt}
            if epochs is not None and settings["every"] >= epochs:
                self.add(where, f"every must be below epochs ({epochs}), got {pbt['every']:g}")
            most, seeds = self._given("resources", "max_models"), self._seeds
            population = search.batch
            if isinstance(most, int) and seeds:
                population = min(population, most // seeds)
            if number_of_copies(settings, population) < 1:
                message = (
                    f"{settings['fraction']:g} of a population of {population} configurations is "
                    "none: give a larger batch (and max_models), or a larger fraction"
                )
                self.add(where, message)

    @property
    def _seeds(self) -> int:
        """The number of seeds; 0 if the file is invalid there."""
        raw = self.source.raw.get("seeds", self._given("replicates", "full") or 5)
        if isinstance(raw, list):
            return len(raw)
        return raw if isinstance(raw, int) and raw > 0 else 0

    def _replicates(self, staged: Mapping[str, Any], plans: Sequence[PartPlan]) -> None:
        """Check staged replicates: one objective, and that staging trains fewer seeds."""
        start, full, keep = staged.get("start"), staged.get("full"), staged.get("keep", 0.5)
        seeds, objective = self._seeds, self.source.raw.get("objective")
        if all(plan.search is None for plan in plans):
            self.add(("replicates",), "stages the seeds of searches, no part is one: leave it out")
        if isinstance(objective, list) and len(objective) > 1:
            message = (
                "compares configurations by one value, the study has two objectives: leave it out"
            )
            self.add(("replicates",), message)
        if isinstance(full, int) and seeds and full != seeds:
            message = f"must be the number of seeds ({seeds}), got {full}: leave it or seeds out"
            self.add(("replicates", "full"), message)
        if isinstance(start, int) and seeds and start >= seeds:
            message = f"must be below the number of seeds ({seeds}), got {start}"
            self.add(("replicates", "start"), message)
        for plan in plans:
            batch = plan.search.batch if plan.search is not None else None
            fits = isinstance(keep, (int, float)) and 0 < keep < 1
            if batch and fits and share(keep, batch) >= batch:
                message = (
                    f"keep: {keep:g} (of replicates) of a batch of {batch} is all of it: give a "
                    "larger batch, or keep less"
                )
                self.add(("parts", plan.name, "search", "batch"), message)

    def _given(self, *path: str) -> Any:
        """The raw value at a path of nested keys, or None."""
        found: Any = self.source.raw
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def _settings(self, name: str, domains: Mapping[str, Domain]) -> tuple[Any, ...]:
        """All values of a training setting in a block; empty if invalid or continuous."""
        if (domain := domains.get(name)) is not None:
            return every_value(domain) or ()
        training = self.source.raw.get("training")
        recipe = task_entry(self.task).training if self.task else {}
        given = {**recipe, **(training if isinstance(training, Mapping) else {})}
        value = given.get(name, TRAINING[name].default)
        return (value,) if value_problem(TRAINING[name], value) is None else ()


def _methods_of(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part's methods; empty if they are no mapping."""
    methods = part.get("methods")
    return methods if isinstance(methods, Mapping) else {}


def _labels(parts: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of rows that parts give by ``label``."""
    return {
        str(part["label"]).replace("{method}", method)
        for part in parts
        if part.get("label")
        for method in _methods_of(part)
    }


def _tasks_of(part: Any) -> set[str] | None:
    """The tasks that a part names; None for all."""
    named = part.get("tasks") if isinstance(part, Mapping) else None
    return set(map(str, named)) if isinstance(named, list) else None


def _seeds(raw: Any) -> tuple[int, ...] | None:
    """A part's seeds; None where it gives none, or wrong ones (the outline's check says so)."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return tuple(range(FIRST_OF_PART, FIRST_OF_PART + raw)) if 1 <= raw <= 10_000 else None
    return tuple(raw) if isinstance(raw, list) else None


def _search(raw: Any) -> SearchSpec | None:
    try:
        return None if raw is None else SearchSpec.model_validate(raw)
    except ValueError:
        return None  # reported by the schema check


def task_options(task: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a task block."""
    return {name: value for name, value in task.items() if name not in ("name", "class")}


def is_key_of(name: Any, table: Mapping[str, Any]) -> TypeGuard[str]:
    return isinstance(name, str) and name in table


def _metrics() -> list[str]:
    return [f"{split}/{name}" for split in ("test", "val") for name in METRICS]


def _validation_metrics() -> list[str]:
    return [f"val/{name}" for name in METRICS]


def _is_validation_metric(name: Any) -> bool:
    return name in _validation_metrics()
