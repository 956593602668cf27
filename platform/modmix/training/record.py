"""What the trainer knows of one replicate while it trains, and where it stands. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """One replicate's evaluations, its best one, and how it ended."""

    training: bool = True
    best: float = math.nan  # of the monitored metric in this stage; NaN: none yet
    best_at: int | None = None  # evaluation of the weights that are kept; None: none in this stage
    waited: int = 0  # evaluations since the best
    seconds: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    finished: dict[str, Any] | None = None  # fields of `Finished`

    @property
    def state(self) -> str:
        """done, failed, pruned, or nothing yet."""
        return "" if self.finished is None else str(self.finished["state"])

    def row(self, evaluation: int) -> dict[str, float]:
        """Every column at one evaluation."""
        return {name: column[evaluation] for name, column in self.history.items()}

    def close(self, state: str, reason: str, metrics: dict[str, float]) -> None:
        """The replicate ends."""
        epochs = self.history.get("epoch", [0.0])
        self.training = False
        self.finished = {
            "state": state,
            "reason": reason,
            "epochs": math.ceil(epochs[-1]),
            "best_epoch": epochs[self.best_at or 0],
            "metrics": metrics,
        }


@dataclass
class Position:
    """Where training stands: all before this part of this epoch of this stage is done."""

    stage: int = 0
    epoch: int = 0
    part: int = 0


def results(line: dict[str, float]) -> dict[str, float]:
    """An evaluation without the columns that are no results."""
    return {name: value for name, value in line.items() if name not in ("epoch", "lr")}
