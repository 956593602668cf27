"""What the trainer knows of one replicate while it trains, and where it stands. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modmix.halving import mean
from modmix.packing import Pack

# Position in the pack -> (state, reason) of the models that end with an evaluation.
Endings = dict[int, tuple[str, str]]


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
    known: bool = False  # the driver has its result from an earlier start of the pack

    @property
    def state(self) -> str:
        """done, failed, pruned, or nothing yet."""
        return "" if self.finished is None else str(self.finished["state"])

    def row(self, evaluation: int) -> dict[str, float]:
        """Every column at one evaluation."""
        return {name: column[evaluation] for name, column in self.history.items()}

    def add(self, line: Mapping[str, float], monitor: str, *, higher: bool) -> bool:
        """Append one evaluation; whether its weights are to be kept.

        Those of the first are, whatever they are worth. NaN is never better than a number.
        """
        for name, number in line.items():
            self.history.setdefault(name, []).append(number)
        value = line[monitor]
        better = value > self.best if higher else value < self.best
        better = better or (math.isnan(self.best) and not math.isnan(value))
        self.waited = 0 if better else self.waited + 1
        keep = better or self.best_at is None
        if keep:
            self.best, self.best_at = value, len(self.history[monitor]) - 1
        return keep

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


def values_by_point(pack: Pack, records: Sequence[Record], failing: Endings) -> dict[str, float]:
    """Mean over replicates of their best value so far by point, without pruned points.

    NaN where a replicate failed.
    """
    values: dict[str, list[float]] = {}
    for i, (replicate, record) in enumerate(zip(pack.replicates, records, strict=True)):
        state = record.state or failing.get(i, ("",))[0]
        if state != "pruned":
            values.setdefault(replicate.point, []).append(
                math.nan if state == "failed" else record.best
            )
    return {point: mean(found) for point, found in values.items()}
