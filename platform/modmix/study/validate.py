"""Validate a study file against the tables: collects all problems of its blocks and `parts`.

The block of a task, of an encoder, or of a method with a new name may give a user's own class:
`class: FILE.py:CLASS`. Nothing heavy is imported unless one does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modmix.base import sources
from modmix.base.errors import InputError
from modmix.base.home import METHOD_LENGTH, NAME_RULE, is_name
from modmix.base.metrics import METRICS, OVER_LEARNING
from modmix.base.settings import TRAINING
from modmix.encoders.table import ENCODERS, encoder_entry
from modmix.methods.table import METHODS, method_entry
from modmix.study.checks import Checks, is_key_of, labels_of, task_options
from modmix.study.domains import value_problem
from modmix.study.files import Source
from modmix.study.parts import PartChecker, PartPlan
from modmix.study.spec import unknown
from modmix.study.variables import variable_problem
from modmix.tasks.table import TASKS, option_problems, task_entry
from modmix.training.halving import share


class Checker(Checks):
    """Validates the raw file against the tables; tolerates files that violate the schema."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.task = ""  # built-in name or reference; "" if invalid
        self.methods = {name: name for name in METHODS}  # own ones: -> reference, "" if invalid
        self.encoders: dict[str, Mapping[str, Any]] = {}  # by input

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
        checker = PartChecker(
            self.source,
            self.problems,
            task=self.task,
            methods=self.methods,
            encoders=self.encoders,
        )
        plans = [
            plan
            for name, part in (parts.items() if isinstance(parts, Mapping) else ())
            if isinstance(part, Mapping) and (plan := checker.run(name, part)) is not None
        ]
        if isinstance(staged := raw.get("replicates"), Mapping):
            self._replicates(staged, plans)
        self._seeds_of_parts(plans)
        return plans

    def _seeds_of_parts(self, plans: Sequence[PartPlan]) -> None:
        """Two parts have the same seeds or none in common: a model belongs to one configuration."""
        raw = self.source.raw.get("seeds", self.seeds)
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
        labels = labels_of(self._parts())
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

    def _replicates(self, staged: Mapping[str, Any], plans: Sequence[PartPlan]) -> None:
        """Check staged replicates: one objective, and that staging trains fewer seeds."""
        start, full, keep = staged.get("start"), staged.get("full"), staged.get("keep", 0.5)
        seeds, objective = self.seeds, self.source.raw.get("objective")
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

    def _parts(self) -> list[Mapping[str, Any]]:
        """The parts that are mappings."""
        parts = self.source.raw.get("parts")
        every = parts.values() if isinstance(parts, Mapping) else ()
        return [part for part in every if isinstance(part, Mapping)]


def _metrics() -> list[str]:
    return [f"{split}/{name}" for split in ("test", "val") for name in METRICS]


def _validation_metrics() -> list[str]:
    return [f"val/{name}" for name in METRICS]


def _is_validation_metric(name: Any) -> bool:
    return name in _validation_metrics()
