"""Training state and history of one replicate. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modmix.base.messages import Finished, Pack, PackedPredictions
from modmix.base.metrics import STAGE
from modmix.training.halving import mean, survivors
from modmix.training.pbt import PREFIX

# Position in the pack -> (state, reason), for models that end at an evaluation.
Endings = dict[int, tuple[str, str]]


@dataclass
class Best:
    """The best evaluation so far of a model, or of one of its parts, in the current stage."""

    value: float = math.nan  # of the monitored metric; NaN: none yet
    at: int | None = None  # its index in the history; None: no evaluation in this stage yet
    waited: int = 0  # evaluations since then without improvement

    def add(self, value: float, at: int, *, higher: bool) -> bool:
        """Add an evaluation; return whether its weights are the best so far in the stage.

        The first always are, even with NaN. NaN is never better than a number.
        """
        better = value > self.value if higher else value < self.value
        better = better or (math.isnan(self.value) and not math.isnan(value))
        self.waited = 0 if better else self.waited + 1
        better = better or self.at is None
        if better:
            self.value, self.at = value, at
        return better


@dataclass
class Record:
    """One replicate's evaluations, the best of them, and how it ended."""

    training: bool = True
    stopped: bool = False  # out of patience in a stage that is not the last
    best: Best = field(default_factory=Best)
    parts: dict[str, Best] = field(default_factory=dict)  # of parts that train independently
    last: float = math.nan  # the monitored metric at the last evaluation
    beaten: bool = False  # its configuration was eliminated at a halving rung
    rung_at: int | None = None  # index of its last evaluation at a halving rung
    seconds: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)  # hyperparameters changed by `pbt`
    finished: dict[str, Any] | None = None  # fields of `Finished`
    known: bool = False  # the driver has its result from an earlier attempt

    @property
    def state(self) -> str:
        """done, failed or pruned; "" while it is not finished."""
        return "" if self.finished is None else str(self.finished["state"])

    def value(self, select: str) -> float:
        """The monitored metric of the weights that would be selected if training ended now."""
        return self.best.value if select == "best" else self.last

    @property
    def waited(self) -> int:
        """Evaluations since the last improvement; with parts, since that of any part."""
        return min((part.waited for part in self.parts.values()), default=self.best.waited)

    def start_stage(self) -> None:
        """Reset patience and the best evaluation: both count within a stage."""
        self.best, self.parts, self.stopped = Best(), {}, False

    def row(self, evaluation: int) -> dict[str, float]:
        """Every column of the history at one evaluation."""
        return {name: column[evaluation] for name, column in self.history.items()}

    def add(self, line: Mapping[str, float], monitor: str, *, higher: bool) -> bool:
        """Append an evaluation; return whether its weights are the best so far in the stage.

        A method's reports may differ between stages: columns are NaN where they are missing.
        """
        before = len(self.history.get("epoch", ()))
        for name in {**self.history, **line}:
            column = self.history.setdefault(name, [math.nan] * before)
            column.append(line.get(name, math.nan))
        self.last = line[monitor]
        return self.best.add(self.last, len(self.history[monitor]) - 1, higher=higher)

    def add_part(self, part: str, value: float, patience: int | None, *, higher: bool) -> bool:
        """Add a part's monitored metric for the evaluation that `add` has just appended.

        Returns whether the part's weights are its best so far. A part that has run out of patience
        is no longer updated, as if it had been trained alone.
        """
        best = self.parts.setdefault(part, Best())
        if patience is not None and best.waited >= patience:
            return False
        at = len(self.history["epoch"]) - 1
        return best.add(value, at, higher=higher)

    def continue_as(self, other: Record, values: Mapping[str, float]) -> None:
        """Continue as a copy of another record, with other hyperparameters.

        The history becomes that of the weights; the device time spent remains this model's own.
        """
        self.best = replace(other.best)
        self.parts = {name: replace(part) for name, part in other.parts.items()}
        self.last = other.last
        self.history = {name: list(column) for name, column in other.history.items()}
        self.values = dict(values)

    def chosen_at(self, select: str) -> int:
        """Index of the evaluation whose weights are selected; with parts, the latest of theirs."""
        if select == "last":
            return len(self.history["epoch"]) - 1
        chosen = [part.at for part in self.parts.values() if part.at is not None]
        if chosen:
            return max(chosen)
        assert self.best.at is not None
        return self.best.at

    def close(
        self,
        state: str,
        reason: str,
        metrics: dict[str, float],
        *,
        at: int = -1,
        chosen: int = -1,
    ) -> None:
        """Finish the replicate as of evaluation ``at``, with the weights of evaluation ``chosen``.

        Both are indices into the history.
        """
        epochs = self.history.get("epoch", [0.0])
        self.training = False
        self.finished = {
            "state": state,
            "reason": reason,
            "epochs": math.ceil(epochs[at]),
            "best_epoch": epochs[chosen],
            "metrics": metrics,
        }

    def event(
        self,
        pack: str,
        replicate: str,
        *,
        weights: bytes | None,
        predictions: PackedPredictions | None,
    ) -> Finished:
        """The result sent to the driver for a finished replicate."""
        assert self.finished is not None
        return Finished(
            pack=pack,
            replicate=replicate,
            history=self.history,
            seconds=self.seconds,
            weights=weights,
            predictions=predictions,
            **self.finished,
        )

    def prune(self, reason: str, select: str) -> None:
        """Finish the replicate as pruned by halving, with its metrics at its last rung.

        It may have been evaluated since: the driver's decision can arrive late.
        """
        at = -1 if self.rung_at is None else self.rung_at
        best = self.best.at
        # The best evaluation may come after the rung; then the rung's own is reported.
        chosen = at if select == "last" or best is None or best > at >= 0 else best
        self.close("pruned", reason, results(self.row(at)), at=at, chosen=chosen)


def results(line: dict[str, float]) -> dict[str, float]:
    """The metrics of an evaluation: its columns without epoch, stage, "lr" and hyperparameters."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("epoch", STAGE, "lr") and not name.startswith(PREFIX)
    }


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A halving rung that a pack has reached.

    Attributes:
        epoch: of the rung, counted over all stages.
        values: by configuration, the mean over replicates of the monitored metric (best of the
            stage so far or last, see `Record.value`); NaN if a replicate failed.
    """

    epoch: int
    values: Mapping[str, float]

    def losers(self, pack: Pack, *, higher_is_better: bool) -> dict[int, str]:
        """Positions and reasons of all models whose configuration is not among the best 1/η."""
        eta = int(pack.replicates[0].training["halving"]["eta"])
        kept = survivors(self.values, eta, higher_is_better=higher_is_better)
        n = len(self.values)
        reason = f"not among the best {len(kept)} of {n} configurations after epoch {self.epoch}"
        pairs = enumerate(pack.replicates)
        return {i: reason for i, replicate in pairs if replicate.configuration not in kept}


def rung_of(
    pack: Pack, records: Sequence[Record], failing: Endings, epoch: int, select: str
) -> Rung:
    """The values of a pack's configurations at a rung, without those eliminated or pruned before.

    A failed configuration counts once, as the worst, at the first rung after it failed. Also notes
    the rung in the records of models still in training.
    """
    values: dict[str, list[float]] = {}
    for i, (replicate, record) in enumerate(zip(pack.replicates, records, strict=True)):
        if record.training and record.history:  # empty if it diverged before its first evaluation
            record.rung_at = len(record.history["epoch"]) - 1
        state = record.state or failing.get(i, ("",))[0]
        if state != "pruned" and not record.beaten:
            best = math.nan if state == "failed" else record.value(select)
            values.setdefault(replicate.configuration, []).append(best)
    return Rung(
        epoch=epoch, values={configuration: mean(found) for configuration, found in values.items()}
    )
