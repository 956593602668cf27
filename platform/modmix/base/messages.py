"""Packs: which replicates are trained as one stacked model, and what travels to the worker.

Pure Python, no torch: the driver decides here, the worker's trainer reads the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Raised whenever the same settings would give other numbers than before (another initialisation,
# another order of batches, a corrected loss). It is part of every replicate's key, so that results
# of different numerics are never mixed.
NUMERICS_VERSION = 2


def digest(value: Any) -> str:
    """A stable 32-digit name of a JSON value (keys sorted, floats by shortest repr)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class TaskRef:
    """A task, its resolved options, and the fingerprint of the data that the plan saw.

    ``name`` is of the table or a reference to a user's own class (see `modmix.base.sources`).
    """

    name: str
    options: Mapping[str, Any]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One model to train: a configuration of a method with one seed, everything resolved.

    ``training`` holds every training setting, ``params`` every hyperparameter of the method and
    ``encoders`` one entry per input that the model reads (``{"name": "mlp", "hidden": [64]}``;
    none for methods that read raw inputs). ``method`` and the names of encoders are of the tables
    or references to users' own classes (see `modmix.base.sources`).
    """

    key: str
    configuration: str
    seed: int
    method: str
    params: Mapping[str, Any]
    training: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    structure: str  # digest of all that must be equal inside a pack


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a member of a pack ended in an earlier start.

    ``best`` is of the monitored metric; None when it has no value.
    """

    state: str
    best: float | None


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Replicates of one structure, trained as one stacked model in one process."""

    id: str
    study: str
    task: TaskRef
    replicates: tuple[Replicate, ...]
    checkpoint: str | None = None  # folder for this pack's checkpoint; None: none is kept
    keep_weights: bool = False  # send each model's best weights back with its result
    # Whether its training settings' halving acts. Not in a pack that brings further seeds to
    # configurations which have results: those are judged already.
    halving: bool = True
    # Members (by key) with a result in the ledger. A pack is resumed with all its members, so that
    # its checkpoint fits; these are not trained again.
    ended: Mapping[str, Ended] = field(default_factory=dict)
    # Texts of users' own files behind the names of task, method and encoders, by digest. A worker
    # registers them before anything else.
    sources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.replicates[0].method

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Pack:
        raw = json.loads(text)
        raw["task"] = TaskRef(**raw["task"])
        raw["replicates"] = tuple(Replicate(**r) for r in raw["replicates"])
        raw["ended"] = {key: Ended(**ended) for key, ended in raw["ended"].items()}
        return Pack(**raw)


# ---------------------------------------------------------------- what a worker says back


@dataclass(frozen=True, kw_only=True)
class PackStarted:
    """How a pack is being trained: stacked or one after another, on what, and why."""

    pack: str
    models: int
    device: str
    stacked: bool
    why: str
    measured: Mapping[str, float] = field(default_factory=dict)  # way -> seconds a step
    resumed_epoch: int = 0  # 0: from the beginning


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One evaluation of all models of a pack that are still training."""

    pack: str
    epoch: int
    epochs: int
    active: int
    metrics: Mapping[str, Mapping[str, float]]  # replicate key -> metric -> value
    # At a rung of halving: its epoch over all stages (else 0), and by configuration the mean over
    # replicates of the monitored metric's value: the best of the stage so far or the last, as the
    # setting `select` says.
    rung: int = 0
    at_rung: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One replicate's end: ``done``, ``failed`` (with ``reason``) or ``pruned``."""

    pack: str
    replicate: str
    state: str
    reason: str = ""
    epochs: int = 0  # trained
    best_epoch: float = 0  # of the weights that were evaluated
    metrics: Mapping[str, float] = field(default_factory=dict)  # "val/error", "test/error", …
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)  # column -> per evaluation
    seconds: float = 0.0  # this model's share of the pack's device time
    weights: bytes | None = None  # safetensors, when the pack keeps weights


Event = PackStarted | Progress | Finished


def pack_id(replicates: Sequence[Replicate]) -> str:
    """A pack is named by its members, so that an interrupted one is found again."""
    return digest(["pack", [r.key for r in replicates]])
