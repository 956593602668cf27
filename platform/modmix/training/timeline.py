"""Stages, epochs and parts of an epoch (up to an evaluation), and the position in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modmix.base.errors import InputError
from modmix.base.settings import selection
from modmix.methods.base import Stage
from modmix.methods.patient import PatientStage
from modmix.training.halving import rungs


@dataclass
class Position:
    """What runs next: indices of a stage, of an epoch in it, and of a part of that epoch."""

    stage: int = 0
    epoch: int = 0
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """What a group of models needs to enter a stage."""

    stage: Stage
    epochs: int
    from_best: bool  # start from the best weights of the previous stage
    keeps_best: bool  # keep a copy of the best evaluation's weights


class Timeline:
    """A method's stages under the given training settings, and the position in them.

    ``steps`` is the number of batches in an epoch. An evaluation follows each part of an epoch.
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
        """Start and stop (exclusive) of the current part, in steps of the epoch."""
        part = self.position.part
        return self._bounds[part], self._bounds[part + 1]

    @property
    def epochs(self) -> int:
        """Number of epochs of all stages."""
        return sum(self._epochs_of(stage) for stage in self.stages)

    @property
    def epochs_done(self) -> int:
        """Epochs before the current one, over all stages. A stage that ended early counts in full,
        so that an epoch's random numbers do not depend on which other models are in the pack.
        """
        before = self.stages[: self.position.stage]
        return sum(self._epochs_of(stage) for stage in before) + self.position.epoch

    def _epochs_of(self, stage: Stage) -> int:
        return int(self._settings["epochs"] if stage.epochs is None else stage.epochs)

    def entry(self) -> StageEntry:
        """The current stage, for groups that enter it."""
        return self.entries()[self.position.stage]

    def entries(self) -> tuple[StageEntry, ...]:
        """All stages, in order."""
        followers = (*self.stages[1:], None)
        return tuple(self._entry(*pair) for pair in zip(self.stages, followers, strict=True))

    def _entry(self, stage: Stage, following: Stage | None) -> StageEntry:
        return StageEntry(
            stage=stage,
            epochs=self._epochs_of(stage),
            from_best=self._begins_best(stage),
            # Selected at the end of the last stage; in earlier ones, the next stage's start.
            keeps_best=self._begins_best(following) if following else self._select == "best",
        )

    def _begins_best(self, stage: Stage) -> bool:
        begin = self._select if stage.begin == "selected" else stage.begin
        return begin == "best"

    def advance(self, *, stage_is_over: bool) -> bool:
        """Move to the next part, epoch or stage; return False at the end of the last stage.

        ``stage_is_over``: no model continues in the current stage.
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
        """Evaluations without improvement after which a model stops in this stage; None: never.

        There is no early stopping in a stage whose optimizer the next one keeps, because the models
        of a group share one step count. None also while a `PatientStage` has counted fewer
        evaluations than the patience.
        """
        following = self.next_stage
        if not self.stage.judged or (following is not None and following.optimizer == "kept"):
            return None
        patience: int | None = self._settings["patience"]
        if patience is not None and isinstance(self.stage, PatientStage):
            first = self.stage.patience_from
            first = first if first < self._epochs_of(self.stage) else 0
            parts = len(self._bounds) - 1
            counted = (self.position.epoch - first) * parts + self.position.part + 1
            if counted < patience:
                return None
        return patience

    @property
    def rung(self) -> int | None:
        """If the current evaluation is a halving rung, its epoch over all stages, else None."""
        halving, last_part = self._settings["halving"], len(self._bounds) - 2
        if not halving or self.position.part != last_part or not self.stage.judged:
            return None
        epoch = self.epochs_done + 1
        found = rungs(int(halving["min_epochs"]), int(halving["eta"]), self.epochs)
        return epoch if epoch in found else None

    @property
    def exchange(self) -> int | None:
        """If models are copied after the current evaluation (`pbt`), its epoch, else None."""
        pbt, last_part = self._settings["pbt"], len(self._bounds) - 2
        if not pbt or self.position.part != last_part or not self.stage.judged:
            return None
        epoch = self.epochs_done + 1
        return epoch if epoch % int(pbt["every"]) == 0 and epoch < self.epochs else None


def check_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Check that there is at least one stage and each has at least one epoch; return the stages.

    Raises:
        InputError: no stage, or one of less than an epoch.
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
    """Check the settings of models whose parts train independently.

    Raises:
        InputError: ``patience`` is set, but the last weights are selected.
    """
    if parts and settings["patience"] is not None and selection(settings) == "last":
        raise InputError(
            "patience stops each part that trains independently (the classifiers of late, the "
            "teachers of umt) at its own best epoch, which needs select: best, got select: last; "
            "leave one of the two out"
        )
