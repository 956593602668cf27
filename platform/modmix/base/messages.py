"""Packs (replicates trained together) and the messages between driver and workers.

Pure Python, no torch: the driver builds packs, the worker's trainer reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Bumped whenever the same settings would give different numbers than before (a new initialisation,
# a different batch order, a corrected loss). It is part of every replicate's key, so results from
# different versions are never mixed.
NUMERICS_VERSION = 2


def digest(value: Any) -> str:
    """A stable hash of a JSON value as 32 hex digits (keys sorted, floats by shortest repr)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class TaskRef:
    """A task, its resolved options, and the fingerprint of the data at planning time.

    ``name`` is a built-in task or a reference to a user's own class (see `modmix.base.sources`).
    """

    name: str
    options: Mapping[str, Any]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One model to train: a method's configuration with one seed, fully resolved.

    ``training`` holds every training setting, ``params`` every hyperparameter of the method, and
    ``encoders`` one entry per input that the model reads (``{"name": "mlp", "hidden": [64]}``;
    empty for methods that read raw inputs). ``method`` and encoder names are built-in or
    references to users' own classes (see `modmix.base.sources`).
    """

    key: str
    configuration: str
    seed: int
    method: str
    params: Mapping[str, Any]
    training: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    structure: str  # digest of everything that must be equal within a pack


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a replicate of a resumed pack ended in an earlier run.

    ``best`` is the best value of the monitored metric; None if it has none.
    """

    state: str
    best: float | None


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Replicates of one structure, trained together in one process."""

    id: str
    study: str
    task: TaskRef
    replicates: tuple[Replicate, ...]
    checkpoint: str | None = None  # this pack's checkpoint folder; None: no checkpoints
    keep_weights: bool = False  # return each model's selected weights with its result
    # Keys of the replicates whose test predictions are returned with their results.
    keep_predictions: tuple[str, ...] = ()
    # Whether the training setting `halving` applies. False for packs that add seeds to
    # configurations that already have results: these have already been compared.
    halving: bool = True
    # With the training setting `pbt`: the domains of what it may change, by name, as JSON values
    # (see `space.domain_to_json`).
    domains: Mapping[str, Any] = field(default_factory=dict)
    # Replicates (by key) that already have a result in the ledger. A pack is resumed with all its
    # replicates, so that its checkpoint matches; these are not trained again.
    ended: Mapping[str, Ended] = field(default_factory=dict)
    # Source texts of users' own task, method and encoder classes, by digest. A worker registers
    # them before anything else.
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
        raw["keep_predictions"] = tuple(raw["keep_predictions"])
        raw["ended"] = {key: Ended(**ended) for key, ended in raw["ended"].items()}
        return Pack(**raw)


# ---------------------------------------------------------------- messages from workers


@dataclass(frozen=True, kw_only=True)
class PackedPredictions:
    """Test predictions of one replicate: `predictions.ExamplePredictions` as bytes."""

    rows: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class PackStarted:
    """How a pack is trained: stacked or sequentially, on which device, and why."""

    pack: str
    models: int
    device: str
    stacked: bool
    why: str
    measured: Mapping[str, float] = field(default_factory=dict)  # way -> seconds per step
    resumed_epoch: int = 0  # 0: from scratch
    # The machine that trains it, see `ledger.records.ENVIRONMENT`.
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One evaluation of all models of a pack that are still training."""

    pack: str
    epoch: int
    epochs: int
    active: int
    # Replicate key -> metric -> value. Like other long fields of events it is left out of the repr:
    # Ray Tune formats every result for its debug log.
    metrics: Mapping[str, Mapping[str, float]] = field(repr=False)
    # At a halving rung: its epoch, counted over all stages (else 0), and per configuration the mean
    # over replicates of the monitored metric: with `select: best` the best value in this stage so
    # far, otherwise the last.
    rung: int = 0
    at_rung: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The result of one replicate: ``done``, ``failed`` (with ``reason``) or ``pruned``."""

    pack: str
    replicate: str
    state: str
    reason: str = ""
    epochs: int = 0  # trained
    best_epoch: float = 0  # of the weights that were evaluated
    metrics: Mapping[str, float] = field(default_factory=dict)  # "val/error", "test/error", …
    # Column -> value per evaluation.
    history: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    seconds: float = 0.0  # this model's share of the pack's device time
    # Safetensors, if the pack keeps weights.
    weights: bytes | None = field(default=None, repr=False)
    # Of the test split, if the pack keeps them.
    predictions: PackedPredictions | None = field(default=None, repr=False)


Event = PackStarted | Progress | Finished


def pack_id(replicates: Sequence[Replicate], *, study: str = "") -> str:
    """A digest of a pack's replicates and study, by which an interrupted pack is found again."""
    return digest(["pack", study, [r.key for r in replicates]])
