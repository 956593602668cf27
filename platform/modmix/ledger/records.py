"""What the ledger stores, as frozen dataclasses. Imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modmix.base.messages import PackedPredictions
from modmix.base.owner import owner_and_name

REPLICATE_STATES = ("pending", "running", "done", "pruned", "failed", "interrupted")
ENDED = ("done", "pruned", "failed")

# What is recorded of the machine that trained a replicate: its device and name, and versions.
ENVIRONMENT = ("device", "host", "torch", "cuda", "modmix")


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study. ``state``: running, finished, stopped or failed.

    ``name`` is what its reader calls it: without the owner where it is the reader's own.
    """

    name: str
    spec: Mapping[str, Any]
    text: str
    source: str
    state: str
    created: float
    updated: float
    wall_seconds: float
    device_seconds: float
    details: Mapping[str, Any]
    mlflow_run: str | None
    key: str = ""  # in the ledger: ``owner/name``, or the name if it has no owner

    @property
    def owner(self) -> str:
        """The owner; "" of a study from before there were owners."""
        return owner_and_name(self.key)[0]

    def is_as_given(self, params: Mapping[str, Any]) -> bool:
        """Whether a configuration uses the options of the study file's task block.

        Others were trained on different data and cannot be compared with it.
        """
        given = self.details.get("task_options") or {}
        return all(
            value == given.get(name.removeprefix("task."))
            for name, value in params.items()
            if name.startswith("task.")
        )


def of_task(record: StudyRecord, task: str) -> StudyRecord:
    """What a study of several tasks would be if it had this task alone."""
    spec, details = record.spec, record.details
    own = spec["tasks"][task]
    both = {
        key: {**(spec.get(key) or {}), **(own.get(key) or {})} for key in ("encoders", "training")
    }
    parts = {
        name: part
        for name, part in (spec.get("parts") or {}).items()
        if part.get("tasks") is None or task in part["tasks"]
    }
    rest = {key: value for key, value in spec.items() if key not in ("tasks", "paper")}
    return replace(
        record,
        name=f"{record.name}/{task}",
        spec={**rest, **both, "task": own["task"], "paper": own.get("paper") or {}, "parts": parts},
        details={**details, **(details.get("tasks") or {}).get(task, {})},
    )


@dataclass(frozen=True, kw_only=True)
class ConfigurationRecord:
    """One configuration of a study, and its MLflow run."""

    key: str
    number: int
    method: str
    params: Mapping[str, Any]
    mlflow_run: str | None
    mirrored: str | None
    task: str = ""  # in a study of several tasks
    fingerprint: str = ""  # of the data
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task, that the study varies


def superseded(
    spec: Mapping[str, Any],
    configurations: Sequence[ConfigurationRecord],
    parts_of: Mapping[str, Collection[str]],
    seeds: Mapping[str, int],
) -> set[str]:
    """The keys of configurations for which a part with ``best_of`` has trained the best one.

    It was the best partly by chance, so only its results with other seeds are compared further,
    unless they are fewer than those of another configuration of the method.

    Args:
        spec: the study file's content.
        configurations: complete ones, of one task.
        parts_of: by key, the parts that have it.
        seeds: by key, how many it was trained with.
    """
    source = {
        name: part["best_of"]
        for name, part in (spec.get("parts") or {}).items()
        if part.get("best_of")
    }
    if not source:
        return set()
    own = {
        one.key: {part.partition("@")[0] for part in parts_of.get(one.key, ())}
        for one in configurations
    }
    known = [one for one in configurations if own[one.key]]
    over = {(source[part], one.method) for one in known for part in own[one.key] & source.keys()}
    found = {one.key for one in known if {(part, one.method) for part in own[one.key]} <= over}
    confirmed, rest = Counter[str](), Counter[str]()  # most seeds, by method
    for one in configurations:
        if one.key not in found:
            which = confirmed if own[one.key] & source.keys() else rest
            which[one.method] = max(which[one.method], seeds[one.key])
    return {
        one.key for one in known if one.key in found and confirmed[one.method] >= rest[one.method]
    }


@dataclass(frozen=True, kw_only=True)
class ReplicateRecord:
    """One replicate of a study: configuration, seed, and its result if there is one."""

    key: str
    configuration: str
    seed: int
    state: str
    owner: str | None
    pack: str | None
    attempts: int
    epochs: int
    best_epoch: float
    metrics: Mapping[str, float]  # "val/error" (percent), "test/error", …; NaN where undefined
    reason: str
    seconds: float
    finished: float | None
    origin: str  # "trained" or "reused" by this study, "" without a result
    environment: Mapping[str, str] = field(default_factory=dict)  # by name in `ENVIRONMENT`


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration of a part and method, from its grid or its sampler."""

    part: str
    method: str
    number: int
    configuration: str
    batch: int = 0  # when it was proposed; asks and tells of a sampler share one counter
    proposal: Mapping[str, Any] = field(default_factory=dict)
    state: str = "pending"
    values: tuple[float, ...] | None = None  # as told to the sampler
    step: int | None = None  # epoch of the values, if pruned
    told: int | None = None


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    id: str
    replicates: tuple[str, ...]
    state: str
    note: Mapping[str, Any]
    failures: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a replicate. ``history``: column -> one value per evaluation."""

    replicate: str
    state: str
    reason: str = ""
    epochs: int = 0
    best_epoch: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0
    predictions: PackedPredictions | None = None  # of the test split
    environment: Mapping[str, str] = field(default_factory=dict)  # see `ENVIRONMENT`


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one study, renewed by a heartbeat."""

    study: str
    token: str


@dataclass(frozen=True, kw_only=True)
class NewConfiguration:
    """A configuration to add. ``replicates``: (replicate key, seed)."""

    key: str
    method: str
    params: Mapping[str, Any]
    replicates: Sequence[tuple[str, int]]
    task: str = ""
    fingerprint: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- JSON columns


def dump(value: Any) -> str:
    """JSON with NaN as null and infinities as strings; keeps the order of keys."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # rare: NaN, infinity, or a mapping that is no dict
        return json.dumps(without_nan(value), allow_nan=False)


def without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return value


def number(value: Any) -> float:
    """The inverse of `dump` for one number."""
    return math.nan if value is None else float(value)
