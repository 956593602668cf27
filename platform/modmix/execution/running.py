"""A pack in training, as the driver knows it."""

from __future__ import annotations

from dataclasses import dataclass

from modmix.base.messages import Pack, PackStarted, Progress


@dataclass
class RunningPack:
    """A pack that a worker trains, and what is known of it."""

    pack: Pack
    started: PackStarted | None = None
    progress: Progress | None = None

    @property
    def epoch(self) -> float:
        """The last epoch known to be trained, in this or earlier runs."""
        resumed = 0 if self.started is None else self.started.resumed_epoch
        return max(0.0 if self.progress is None else self.progress.epoch, resumed)

    @property
    def left(self) -> float:
        """The share of the epochs that is still to train."""
        return 1.0 if self.progress is None else 1 - self.progress.epoch / self.progress.epochs
