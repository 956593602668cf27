"""Validate the parts of a study file against the tables, and parse their domains.

A method's block may contain the method's own hyperparameters, any training setting
(`learning_rate`), any encoder field for all inputs (`encoder.hidden`) and any task option
(`task.share`), each with a value or a domain (see `domains`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modmix.base.errors import Problem
from modmix.base.home import is_name
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
from modmix.methods.table import method_entry
from modmix.study.checks import (
    Checks,
    is_key_of,
    labels_of,
    methods_of,
    search_of,
    seeds_of_part,
    tasks_of_part,
)
from modmix.study.domains import (
    EVERY_MODALITY,
    DomainError,
    condition_problem,
    perturbable,
    read,
    value_problem,
)
from modmix.study.files import Source
from modmix.study.spec import LEARNING, SearchSpec, unknown
from modmix.tasks.table import task_entry
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


class PartChecker(Checks):
    """Checks parts, given what the rest of the file has."""

    def __init__(
        self,
        source: Source,
        problems: list[Problem],
        *,
        task: str,
        methods: Mapping[str, str],
        encoders: Mapping[str, Mapping[str, Any]],
    ) -> None:
        super().__init__(source, problems)
        self.task = task
        self.methods = methods
        self.encoders = encoders

    def run(self, name: str, raw: Mapping[str, Any]) -> PartPlan | None:
        """The plan of a part, as far as it is valid."""
        path = ("parts", name)
        methods = raw.get("methods")
        if not isinstance(methods, Mapping):
            return None
        search = search_of(raw.get("search"))
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
            seeds=seeds_of_part(raw.get("seeds")),
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
        there = methods_of(others[of])
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
            seeds = self.seeds
            if search is not None and isinstance(start := self.given("replicates", "start"), int):
                seeds = min(seeds, start)  # the seeds trained first
            most = self.given("resources", "max_models")
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
        if self.given("replicates") is not None:
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
            most, seeds = self.given("resources", "max_models"), self.seeds
            population = search.batch
            if isinstance(most, int) and seeds:
                population = min(population, most // seeds)
            if number_of_copies(settings, population) < 1:
                message = (
                    f"{settings['fraction']:g} of a population of {population} configurations is "
                    "none: give a larger batch (and max_models), or a larger fraction"
                )
                self.add(where, message)

    def _references(self, name: str, raw: Any) -> None:
        """Methods to draw in a curve are trained by a part that shares a task with it."""
        parts = self.source.all_parts
        tasks = tasks_of_part(parts.get(name))
        near = [
            part
            for part in parts.values()
            if isinstance(part, Mapping)
            and (tasks is None or (own := tasks_of_part(part)) is None or tasks & own)
        ]
        methods = {method for part in near for method in methods_of(part)}
        trained = methods | labels_of(near)
        # Where methods are wrong, which is reported already, it may be one of these.
        is_known = all(map(methods_of, near)) and methods <= self.methods.keys()
        for reference in raw if isinstance(raw, list) else ():
            if is_key_of(reference, self.methods):
                if reference in trained or not is_known:
                    continue
                message = (
                    f"no part trains {reference!r}: add it to a part, or name one of "
                    f"{', '.join(sorted(trained))}"
                )
                self.add(("parts", name, "references"), message)
            elif str(reference) not in trained:
                message = unknown(str(reference), {*self.methods, *trained}, "method")
                self.add(("parts", name, "references"), message)

    def _settings(self, name: str, domains: Mapping[str, Domain]) -> tuple[Any, ...]:
        """All values of a training setting in a block; empty if invalid or continuous."""
        if (domain := domains.get(name)) is not None:
            return every_value(domain) or ()
        training = self.source.raw.get("training")
        recipe = task_entry(self.task).training if self.task else {}
        given = {**recipe, **(training if isinstance(training, Mapping) else {})}
        value = given.get(name, TRAINING[name].default)
        return (value,) if value_problem(TRAINING[name], value) is None else ()
