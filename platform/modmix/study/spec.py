"""The study file's schema. No torch.

`check` validates what `files` has parsed against the Pydantic models below. What depends on the
tables (methods and their hyperparameters, tasks, encoders, training settings) is checked in
`validate`; `make_plan` reports the problems of both at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from modmix.base.errors import Problem
from modmix.base.home import NAME_RULE, is_name, is_taken
from modmix.base.space import shown
from modmix.study.files import Path_, Source

SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc", "grid", "nsga2")

LEARNING = frozenset({"tpe", "gp", "cmaes", "nsga2"})  # samplers that use results

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]


# ---------------------------------------------------------------- schema


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _checked_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(f"a name must be {NAME_RULE}, got {name!r}")
    return name


def _seeds_by_count(value: Any, first: int = 0) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 10_000:
            raise ValueError(f"the number of seeds must be between 1 and 10000, got {value}")
        return list(range(first, first + value))
    if not isinstance(value, list):
        raise ValueError(f"must be a number of seeds or a list of them, got {shown(value)}")
    return value


def _seeds_differ(value: list[int]) -> list[int]:
    if len(set(value)) != len(value):
        raise ValueError(f"must differ from each other, got {shown(value)}")
    return value


# A number of seeds (0, 1, …), or the seeds themselves.
Seeds = Annotated[
    list[Annotated[StrictInt, Field(ge=0, lt=2**31)]],
    Field(min_length=1),
    BeforeValidator(_seeds_by_count),
    AfterValidator(_seeds_differ),
]


FIRST_OF_PART = 1000


PartSeeds = Annotated[
    list[Annotated[StrictInt, Field(ge=0, lt=2**31)]],
    Field(min_length=1),
    BeforeValidator(lambda value: _seeds_by_count(value, first=FIRST_OF_PART)),
    AfterValidator(_seeds_differ),
]


class SearchSpec(_Model):
    """How configurations of a part are proposed: the same number for every method."""

    configurations: Annotated[StrictInt, Field(ge=1)]
    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc", "grid", "nsga2"] = "tpe"
    # Configurations proposed at once; the sampler gets no results in between (constant liar).
    batch: Annotated[StrictInt, Field(ge=1)] = 5
    # Random configurations before tpe and gp learn from results. So many may be in flight at once.
    startup: Annotated[StrictInt, Field(ge=1)] = 10
    # Another study, NAME or OWNER/NAME: its best configurations of the method come first.
    start_from: StrictStr | None = None
    # Batches in flight per method. "auto": as many as keep the workers busy, but after ``startup``
    # configurations at most a fifth of all (see `search.limits`), sharing packs with anything of
    # the same structure. 1: every batch has its own packs and proposals do not depend on which
    # pack finishes first, so the search is reproducible.
    parallel: Annotated[StrictInt, Field(ge=1)] | Literal["auto"] = "auto"
    seed: Annotated[StrictInt, Field(ge=0)] = 0


class TaskSpec(_Model):
    """One of several tasks of a study, and what differs for it from the rest of the file."""

    task: dict[str, Any]
    encoders: dict[str, dict[str, Any]] = {}
    training: dict[str, Any] = {}
    paper: dict[str, dict[str, Number | list[Number]]] = {}

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class PartSpec(_Model):
    """A grid or a search; with ``x``, also a curve over that hyperparameter."""

    # In a study of several tasks, those of the part; null: all.
    tasks: list[StrictStr] | None = Field(default=None, min_length=1)
    title: StrictStr | None = None
    # Names of the part's rows in the results, "{method}*" say. Where a part has one, the results
    # have a row for each method of such parts, and no others.
    label: StrictStr | None = None
    x: StrictStr | None = None
    search: SearchSpec | None = None
    # Settings of all methods of the part; a method's own block overrides them.
    shared: dict[str, Any] = {}
    methods: dict[str, dict[str, Any] | None] = Field(min_length=1)
    # Null: the study's. A search with seeds of its own leaves the study's fresh for the others.
    # A number: so many that no study uses by itself (1000, 1001, …).
    seeds: PartSeeds | None = None
    # Another part: train the configuration that each method has there as its best on validation,
    # once it is known, with the seeds of this part.
    best_of: StrictStr | None = None
    # Methods drawn as horizontal lines in the curve, each by its best configuration in the study.
    references: list[StrictStr] = []


class ReplicatesSpec(_Model):
    """Seeds in two stages, in searches only; grids train all seeds of all configurations.

    Every configuration is trained with the first ``start`` seeds, and the best ``keep`` fraction of
    each batch with the remaining seeds as well.
    """

    start: Annotated[StrictInt, Field(ge=1)]
    # The total number of seeds; sets `seeds` if that is left out.
    full: Annotated[StrictInt, Field(ge=2, le=10_000)] | None = None
    keep: Annotated[Number, Field(gt=0, lt=1)] = 0.5


def _whole_devices_or_a_share(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"must be a fraction below 1 or a whole number, got {gpus:g}")
    return gpus


Gpus = Annotated[Number, Field(ge=0), AfterValidator(_whole_devices_or_a_share)]


class MethodResourcesSpec(_Model):
    """What packs of one method occupy; null: as the study's other packs."""

    cpus: Positive | None = None
    gpus: Gpus | None = None
    memory: Positive | None = None
    accelerator_type: StrictStr | None = None


class ResourcesSpec(_Model):
    """Resources of one pack, and its maximum size."""

    cpus: Positive = 1
    gpus: Gpus = 0  # a fraction shares one device between packs
    memory: Positive | None = None  # GB that a node must have free; null: not counted
    accelerator_type: StrictStr | None = None  # as Ray names it: H100, A100, L4 …
    methods: dict[str, MethodResourcesSpec] = {}  # where packs of a method need something else
    # "auto": 256, or 1024 on a GPU (see `largest_pack`); memory may allow fewer at a time.
    max_models: Annotated[StrictInt, Field(ge=1)] | Literal["auto"] = "auto"

    @property
    def largest_pack(self) -> int:
        """The maximum number of models in a pack."""
        if self.max_models != "auto":
            return self.max_models
        on_gpus = self.gpus or any(own.gpus for own in self.methods.values())
        return 1024 if on_gpus else 256

    def of(self, method: str) -> MethodResourcesSpec:
        """What a pack of this method occupies, with the study's values where it has none."""
        own = self.methods.get(method, MethodResourcesSpec()).model_dump(exclude_none=True)
        common = self.model_dump(include=set(MethodResourcesSpec.model_fields))
        return MethodResourcesSpec(**{**common, **own})


class BudgetSpec(_Model):
    """When searches stop proposing configurations. Null: no limit."""

    wall_minutes: Positive | None = None
    device_hours: Positive | None = None
    target: Number | None = None  # a method's search ends once its best mean reaches this


class FinalSpec(_Model):
    """In files written by `modmix best`: the configuration to be retrained."""

    of: StrictStr
    task: StrictStr | None = None  # of several
    method: StrictStr
    configuration: StrictStr


class StudySpec(_Model):
    """A complete study file."""

    study: StrictStr
    description: StrictStr = ""
    task: dict[str, Any] | None = None  # or tasks
    tasks: dict[Annotated[str, AfterValidator(_checked_name)], TaskSpec] = {}
    encoders: dict[str, dict[str, Any]] = {}
    training: dict[str, Any] = {}
    seeds: Seeds = [0, 1, 2, 3, 4]
    replicates: ReplicatesSpec | None = None  # null: all seeds at once
    objective: list[StrictStr] = Field(default=["val/error"], min_length=1, max_length=2)
    parts: dict[Annotated[str, AfterValidator(_checked_name)], PartSpec] = Field(min_length=1)
    paper: dict[str, dict[str, Number | list[Number]]] = {}
    final: FinalSpec | None = None
    resources: ResourcesSpec = ResourcesSpec()
    budget: BudgetSpec = BudgetSpec()
    reuse: StrictBool = True
    # Whose test predictions are kept in the ledger: see `execution.keeping`.
    predictions: StrictBool | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _task_or_tasks(self) -> StudySpec:
        if self.task is not None and self.tasks:
            raise ValueError("must have task or tasks, not both")
        if self.tasks and self.paper:
            raise ValueError("paper: give each task its own: tasks: {NAME: {paper: …}}")
        if self.tasks and self.final:
            raise ValueError("a final study has one task")
        return self

    @model_validator(mode="before")
    @classmethod
    def _seeds_by_replicates(cls, raw: Any) -> Any:
        staged = raw.get("replicates") if isinstance(raw, Mapping) else None
        full = staged.get("full") if isinstance(staged, Mapping) else None
        if "seeds" in raw or type(full) is not int or not 2 <= full <= 10_000:
            return raw
        return {**raw, "seeds": full}

    @field_validator("study")
    @classmethod
    def _study_is_a_name(cls, value: str) -> str:
        if is_taken(value):
            raise ValueError(f"{value!r} is the name of something else in the results folder")
        return _checked_name(value)

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_objective(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("predictions", mode="before")
    @classmethod
    def _predictions_by_name(cls, value: Any) -> Any:
        if not isinstance(value, bool) and value != "auto":
            raise ValueError(f"must be true, false or auto, got {shown(value)}")
        return value


# ---------------------------------------------------------------- validation


def check(source: Source) -> tuple[StudySpec | None, list[Problem]]:
    """Validate a file against the schema: returns the spec, or None and all problems.

    Top-level keys that begin with ``x-`` are ignored; they can hold anchors.
    """
    raw = {key: value for key, value in source.raw.items() if not key.startswith("x-")}
    missing = []
    if "task" not in raw and not raw.get("tasks"):
        missing.append(source.problem(("task",), "is required but missing"))
    try:
        spec = StudySpec.model_validate(raw)
        missing += [] if source.task else _methods_without_part(source, spec)
        return (None if missing else spec), missing
    except ValidationError as error:
        known = {(problem.line, problem.path) for problem in source.problems}
        found = [*missing, *_problems(source, error)]
        return None, [problem for problem in found if (problem.line, problem.path) not in known]


def _methods_without_part(source: Source, spec: StudySpec) -> list[Problem]:
    """Methods with resources of their own that no part of the whole file trains."""
    known = {method for part in spec.parts.values() for method in part.methods}
    return [
        source.problem(
            ("resources", "methods", method),
            f"{unknown(method, known, 'method')} (no part trains it)",
        )
        for method in spec.resources.methods
        if method not in known
    ]


def _problems(source: Source, error: ValidationError) -> list[Problem]:
    found: dict[Path_, Problem] = {}
    for item in error.errors():
        path = _known_path(source, item["loc"])
        message = _message(item, path)
        if path not in found:  # unions report every branch; keep the first
            found[path] = source.problem(path, message)
    return list(found.values())


def _known_path(source: Source, loc: Sequence[str | int]) -> Path_:
    """A Pydantic error location without the names of union branches and validators."""
    path: list[str | int] = []
    for i, name in enumerate(loc):
        if (*path, name) in source.lines or (i == len(loc) - 1 and not _is_branch(name)):
            path.append(name)
    return tuple(path)


def _is_branch(name: str | int) -> bool:
    return isinstance(name, str) and (
        name in ("int", "float", "str", "bool")
        or name.startswith(("constrained-", "literal[", "list[", "dict[", "[", "function-"))
    )


def _message(item: Mapping[str, Any], path: Path_) -> str:
    given = item.get("input")
    got = "null" if given is None else shown(given)
    match item["type"]:
        case "extra_forbidden":
            return unknown(str(path[-1]), _fields_at(path[:-1]), "key")
        case "missing":
            return "is required but missing"
        case "model_type":
            return f"must be a mapping, got {got}"
        case "too_short":
            return f"must have at least {item['ctx']['min_length']} entry, got {got}"
        case "too_long":
            return f"must have at most {item['ctx']['max_length']} entries, got {got}"
        case "value_error":
            return str(item["ctx"]["error"])
        case _:
            text = str(item["msg"]).replace("Input should", "must")
            for theirs, ours in _WORDS.items():
                text = text.replace(theirs, ours)
            remedy = (
                ": write {add: , mul: }" if path[0] == "parts" and path[-1] == "methods" else ""
            )
            return f"{text}, got {got}{remedy}"


_WORDS = {  # Pydantic's terms -> ours
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a word",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid dictionary": "a mapping",
}


def _fields_at(path: Sequence[str | int]) -> list[str]:
    """Keys allowed at ``path`` in a study file."""
    model: Any = StudySpec
    for name in path:
        if isinstance(model, type) and issubclass(model, _Model):
            field = model.model_fields.get(str(name))
            model = field.annotation if field is not None else None
        elif get_origin(model) is dict:
            model = get_args(model)[1]
        if get_origin(model) is not dict:  # X | None: unwrap the model
            model = next((a for a in get_args(model) if _is_model(a)), model)
    return list(model.model_fields) if _is_model(model) else []


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, _Model)


def unknown(name: str, known: Iterable[str], what: str, own: Sequence[str] = ()) -> str:
    """The message for an unknown name, suggesting a close match or listing all.

    Args:
        own: the known names to prefer, also those of which ``name`` is the beginning.
    """
    names = sorted(known)
    near = (
        sorted((one for one in own if len(name) > 1 and one.startswith(name)), key=len)
        or difflib.get_close_matches(name, own, n=1, cutoff=0.75)
        or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    )
    if near:
        return f"unknown {what} {name!r}: did you mean {near[0]!r}?"
    return f"unknown {what} {name!r}: it may be {', '.join(names) if names else 'nothing here'}"
