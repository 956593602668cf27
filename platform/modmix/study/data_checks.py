"""Checks of a plan that need its data: names of inputs and modalities, and models that run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modmix.base import sources
from modmix.base.errors import DataError, InputError, Problem, SpecError
from modmix.base.messages import Replicate, digest
from modmix.base.space import (
    Choices,
    Constant,
    Domain,
    Grid,
    Range,
    every_value,
    grid_configurations,
)
from modmix.encoders.table import encoder_entry, modality_inputs
from modmix.methods.table import method_entry
from modmix.methods.table import problems as method_problems
from modmix.study import compatibility
from modmix.study.domains import EVERY_MODALITY
from modmix.study.parts import PartPlan
from modmix.study.plan import Plan, whole
from modmix.study.spec import unknown

if TYPE_CHECKING:
    from modmix.tasks.data import Data, Input


def check(plan: Plan) -> None:
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
        models = _Check(plan)
        for part in plan.parts:
            for method, block in part.domains.items():
                path = ("parts", part.name, "methods", method)
                try:
                    problem = models.first_problem(part, method, block)
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
        for data in plan.variants:
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
            f"{', '.join(these)} for others, but a block has one list of modalities: give "
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
                values = (whole(declared, value) for value in _ends(block[name]))
                problems = (declared.problem(value) for value in values)
                if (problem := next(filter(None, problems), None)) is not None:
                    what = sources.place(encoder["name"])
                    return (
                        f"{name} {problem} for the encoder {what} of input {given!r}: set it "
                        "for each input under encoders"
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
