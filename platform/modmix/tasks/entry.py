"""The declaration of a task for the table, and values shared by several entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modmix.tasks.options import Option

MLP_64: Mapping[str, Any] = {"name": "mlp", "hidden": [64]}
CHAR_CNN: Mapping[str, Any] = {"name": "char_cnn"}
SMALL_RECIPE: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "batch_size": 64,
    "epochs": 20,
}


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One task of the table.

    ``path`` is "module:Class"; ``encoders`` maps an input to its default encoder, "*" standing for
    all other inputs; ``training`` are the training settings that differ from the general defaults;
    ``cost`` is the time, disk space and memory that preparation takes.
    """

    path: str
    doc: str
    options: tuple[Option, ...]
    encoders: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    cost: str
    source: str
    download: bool = False  # whether `modmix data get` has something to fetch


SPLIT_SEED = Option(
    name="split_seed", kind="int", default=0, low=0, doc="seed of the random split of the rows"
)
