"""What the ledger keeps, as values: studies, configurations, entries, replicates, packs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REPLICATE_STATES = ("pending", "running", "done", "pruned", "failed", "interrupted")
ENDED = ("done", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study as the ledger knows it. ``state``: running, finished, stopped or failed."""

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

    def is_as_given(self, params: Mapping[str, Any]) -> bool:
        """Whether a configuration was trained on the task as the study file's task block gives it.

        Configurations that set other options of the task saw other data: no winner is among both.
        """
        given = self.details.get("task_options") or {}
        return all(
            value == given.get(name.removeprefix("task."))
            for name, value in params.items()
            if name.startswith("task.")
        )


@dataclass(frozen=True, kw_only=True)
class ConfigurationRecord:
    """One configuration of a study: what the study asked for, and where it is mirrored."""

    key: str
    number: int
    method: str
    params: Mapping[str, Any]
    mlflow_run: str | None
    mirrored: str | None


@dataclass(frozen=True, kw_only=True)
class ReplicateRecord:
    """One replicate of a study: a configuration, a seed, and the result as far as there is one."""

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
    origin: str  # "trained" or "reused" by this study, "" while it has no result


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One numbered configuration of one part and method: of a grid, or proposed by a sampler."""

    part: str
    method: str
    number: int
    configuration: str
    batch: int = 0  # when it was asked: asks and tells of a sampler count as one sequence
    proposal: Mapping[str, Any] = field(default_factory=dict)
    state: str = "pending"
    values: tuple[float, ...] | None = None  # what the sampler was told
    step: int | None = None  # of a pruned configuration: the epoch of its values
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
    """A replicate's end, ready to be recorded. ``history``: column -> value per evaluation."""

    replicate: str
    state: str
    reason: str = ""
    epochs: int = 0
    best_epoch: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write one study's results, kept alive by a heartbeat."""

    study: str
    token: str


@dataclass(frozen=True, kw_only=True)
class NewConfiguration:
    """A configuration to be added, with the replicates it needs: (replicate key, seed)."""

    key: str
    method: str
    params: Mapping[str, Any]
    replicates: Sequence[tuple[str, int]]


# ---------------------------------------------------------------- as text in a column


def dump(value: Any) -> str:
    """JSON with null for NaN, and words for infinities, which JSON has not; in the given order."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # seldom: a NaN or an infinity, or a mapping of another kind
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
    """The number that `dump` wrote."""
    return math.nan if value is None else float(value)
