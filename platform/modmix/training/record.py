"""Training state and history of one replicate. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modmix.base.messages import Finished, Pack
from modmix.training.halving import mean, survivors

# Position in the pack -> (state, reason) of the models that end with an evaluation.
Endings = dict[int, tuple[str, str]]


@dataclass
class Best:
    """The best evaluation so far of one model, or of one part of it, in the present stage."""

    value: float = math.nan  # of the monitored metric; NaN: none yet
    at: int | None = None  # which evaluation of the history; None: none in this stage
    waited: int = 0  # evaluations since then

    def add(self, value: float, at: int, *, higher: bool) -> bool:
        """Take in an evaluation; whether its weights are the best so far.

        Those of the first are, whatever they are worth. NaN is never better than a number.
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
    """One replicate's evaluations, its best one, and how it ended."""

    training: bool = True
    stopped: bool = False  # out of patience in a stage that is not the last
    best: Best = field(default_factory=Best)
    parts: dict[str, Best] = field(default_factory=dict)  # of parts that train as if alone
    last: float = math.nan  # the monitored metric at the last evaluation
    beaten: bool = False  # at a rung of halving, where its configuration was not among the best
    rung_at: int | None = None  # its last evaluation at a rung of halving
    seconds: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    finished: dict[str, Any] | None = None  # fields of `Finished`
    known: bool = False  # the driver has its result from an earlier start of the pack

    @property
    def state(self) -> str:
        """done, failed, pruned, or nothing yet."""
        return "" if self.finished is None else str(self.finished["state"])

    def value(self, select: str) -> float:
        """What the model would count with if it ended now."""
        return self.best.value if select == "best" else self.last

    @property
    def waited(self) -> int:
        """Evaluations without an improvement; of parts, of the one that improved last."""
        return min((part.waited for part in self.parts.values()), default=self.best.waited)

    def start_stage(self) -> None:
        """Patience and best epochs count within a stage."""
        self.best, self.parts, self.stopped = Best(), {}, False

    def row(self, evaluation: int) -> dict[str, float]:
        """Every column at one evaluation."""
        return {name: column[evaluation] for name, column in self.history.items()}

    def add(self, line: Mapping[str, float], monitor: str, *, higher: bool) -> bool:
        """Append one evaluation; whether its weights are the best so far."""
        for name, number in line.items():
            self.history.setdefault(name, []).append(number)
        self.last = line[monitor]
        return self.best.add(self.last, len(self.history[monitor]) - 1, higher=higher)

    def add_part(self, part: str, value: float, patience: int | None, *, higher: bool) -> bool:
        """Take in a part's monitored metric at the evaluation that `add` has just appended.

        A part that is out of patience has ended, as it would have alone.
        """
        best = self.parts.setdefault(part, Best())
        if patience is not None and best.waited >= patience:
            return False
        at = len(self.history["epoch"]) - 1
        return best.add(value, at, higher=higher)

    def chosen_at(self, select: str) -> int:
        """The evaluation whose weights count; with parts, the last of theirs."""
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
        """The replicate ends after its evaluation ``at``; the weights that count are those of the
        evaluation ``chosen``.
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

    def event(self, pack: str, replicate: str, weights: bytes | None) -> Finished:
        """The result sent to the driver for a finished replicate."""
        assert self.finished is not None
        return Finished(
            pack=pack,
            replicate=replicate,
            history=self.history,
            seconds=self.seconds,
            weights=weights,
            **self.finished,
        )

    def prune(self, reason: str, select: str) -> None:
        """Halving ends it, with the values of its last rung.

        (A worker may hear of it when it has trained on for an evaluation or two.)
        """
        at = -1 if self.rung_at is None else self.rung_at
        best = self.best.at
        # It may have had a better evaluation after the rung whose values count.
        chosen = at if select == "last" or best is None or best > at >= 0 else best
        self.close("pruned", reason, results(self.row(at)), at=at, chosen=chosen)


def results(line: dict[str, float]) -> dict[str, float]:
    """An evaluation without the columns that are no results."""
    return {name: value for name, value in line.items() if name not in ("epoch", "lr")}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung of halving that a pack has reached: its epoch over all stages, and by configuration
    the mean over replicates of their best value so far, NaN where one failed.
    """

    epoch: int
    values: Mapping[str, float]

    def losers(self, pack: Pack, *, higher_is_better: bool) -> dict[int, str]:
        """Positions of the models of all configurations but the best 1/η, with the reason."""
        eta = int(pack.replicates[0].training["halving"]["eta"])
        kept = survivors(self.values, eta, higher_is_better=higher_is_better)
        n = len(self.values)
        reason = f"not among the best {len(kept)} of {n} configurations after epoch {self.epoch}"
        pairs = enumerate(pack.replicates)
        return {i: reason for i, replicate in pairs if replicate.configuration not in kept}


def rung_of(
    pack: Pack, records: Sequence[Record], failing: Endings, epoch: int, select: str
) -> Rung:
    """What a pack has come to at a rung, without configurations that were beaten or pruned before.

    One that failed counts at the next rung, as the worst, and not again.
    """
    values: dict[str, list[float]] = {}
    for i, (replicate, record) in enumerate(zip(pack.replicates, records, strict=True)):
        if record.training and record.history:  # none: it diverged before its first evaluation
            record.rung_at = len(record.history["epoch"]) - 1
        state = record.state or failing.get(i, ("",))[0]
        if state != "pruned" and not record.beaten:
            best = math.nan if state == "failed" else record.value(select)
            values.setdefault(replicate.configuration, []).append(best)
    return Rung(
        epoch=epoch, values={configuration: mean(found) for configuration, found in values.items()}
    )
