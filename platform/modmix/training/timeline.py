"""Position in a pack's training: stages, epochs, parts of an epoch between evaluations. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modmix.base.errors import InputError
from modmix.base.settings import selection
from modmix.methods.base import Stage
from modmix.training.halving import rungs


@dataclass
class Position:
    """All before this part of this epoch of this stage is done."""

    stage: int = 0
    epoch: int = 0
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """A stage as a group of models enters it."""

    stage: Stage
    epochs: int
    from_best: bool  # start from the best weights of the stage before
    keeps_best: bool  # copy the weights of every best epoch


class Timeline:
    """The stages of a method under some training settings, and the position in them.

    ``steps`` is how many batches an epoch has; an evaluation follows each of its parts.
    """

    def __init__(self, stages: Sequence[Stage], settings: Mapping[str, Any], steps: int) -> None:
        self.stages = check_stages(stages)
        self.position = Position()
        self._settings = settings
        self._select = selection(settings)
        parts = min(settings["evaluations_per_epoch"], steps)
        self._bounds = [round(i * steps / parts) for i in range(parts + 1)]

    @property
    def stage(self) -> Stage:
        return self.stages[self.position.stage]

    @property
    def in_last_stage(self) -> bool:
        return self.position.stage == len(self.stages) - 1

    @property
    def next_stage(self) -> Stage | None:
        following = self.stages[self.position.stage + 1 :]
        return following[0] if following else None

    @property
    def steps(self) -> tuple[int, int]:
        """First step of the present part, and the first behind it."""
        part = self.position.part
        return self._bounds[part], self._bounds[part + 1]

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(self._epochs_of(stage) for stage in self.stages)

    @property
    def epochs_done(self) -> int:
        """Epochs before the present one. A stage that ended early counts in full, so that what is
        drawn for an epoch does not depend on other models.
        """
        before = self.stages[: self.position.stage]
        return sum(self._epochs_of(stage) for stage in before) + self.position.epoch

    def _epochs_of(self, stage: Stage) -> int:
        return int(self._settings["epochs"] if stage.epochs is None else stage.epochs)

    def entry(self) -> StageEntry:
        """The present stage as groups enter it."""
        following = self.next_stage
        return StageEntry(
            stage=self.stage,
            epochs=self._epochs_of(self.stage),
            from_best=self._begins_best(self.stage),
            # Of the last stage, the chosen weights; of another, those that the next starts from.
            keeps_best=self._begins_best(following) if following else self._select == "best",
        )

    def _begins_best(self, stage: Stage) -> bool:
        begin = self._select if stage.begin == "selected" else stage.begin
        return begin == "best"

    def advance(self, *, stage_is_over: bool) -> bool:
        """Move to the next part, epoch or stage; False when there is none.

        ``stage_is_over``: no model goes on in the present stage.
        """
        position = self.position
        position.part += 1
        if position.part == len(self._bounds) - 1:
            position.part = 0
            position.epoch += 1
        if position.epoch == self._epochs_of(self.stage) or stage_is_over:
            if self.in_last_stage:
                return False
            position.part = position.epoch = 0
            position.stage += 1
        return True

    @property
    def patience(self) -> int | None:
        """Evaluations without improvement after which a model stops here; None: it does not.

        A stage whose optimizer the next one keeps runs its full length: the models of a group share
        one count of steps.
        """
        following = self.next_stage
        if not self.stage.judged or (following is not None and following.optimizer == "kept"):
            return None
        patience: int | None = self._settings["patience"]
        return patience

    @property
    def rung(self) -> int | None:
        """The epoch, over all stages, of the rung of halving that this evaluation is, or None."""
        halving, last_part = self._settings["halving"], len(self._bounds) - 2
        if not halving or self.position.part != last_part or not self.stage.judged:
            return None
        epoch = self.epochs_done + 1
        found = rungs(int(halving["min_epochs"]), int(halving["eta"]), self.epochs)
        return epoch if epoch in found else None


def check_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """A method's stages, of which there must be one or more, each of an epoch or more.

    Raises:
        InputError: no stage, or one without an epoch.
    """
    for stage in stages:
        if stage.epochs is not None and stage.epochs < 1:
            raise InputError(
                f"a stage must have at least 1 epoch, stage {stage.name!r} has {stage.epochs}: "
                "leave it out of stages()"
            )
    if not stages:
        raise InputError("stages() must return at least one Stage, got none")
    return tuple(stages)


def check_parts(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse what parts that train as if alone cannot do.

    Raises:
        InputError: patience without best weights.
    """
    if parts and settings["patience"] is not None and selection(settings) == "last":
        raise InputError(
            "patience stops each unimodal classifier of late fusion at its own best epoch, which "
            "needs select: best, got select: last; leave one of the two out"
        )
