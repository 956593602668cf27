"""Made-up results in place of training."""

from __future__ import annotations

import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress

EPOCHS = 20
METRICS = ("error", "auc", "nll", "ece", "f1")
_BANK = 64


def _invented() -> list[tuple[dict[str, list[float]], dict[str, float]]]:
    """Histories with every column, and metrics, of some models."""
    drawn, models = random.Random(0), []
    for _ in range(_BANK):
        columns = {"epoch": [float(epoch + 1) for epoch in range(EPOCHS)]}
        for name in ("train/loss", "train/error", *(f"val/{m}" for m in METRICS)):
            columns[name] = [drawn.uniform(0.1, 9.0) for _ in range(EPOCHS)]
        columns["lr"] = [0.001] * EPOCHS
        metrics = {name: column[-1] for name, column in columns.items() if "/" in name}
        metrics |= {f"test/{m}": drawn.uniform(0.1, 9.0) for m in METRICS}
        models.append((columns, metrics))
    return models


class Instant:
    """Stands where `modmix.execution.local.train` stands, which a runner calls for a pack's
    events.
    """

    def __init__(self) -> None:
        self._models = _invented()
        self.packs: list[Pack] = []

    def __call__(self, pack: Pack, **_: Any) -> Generator[Event, None, None]:
        self.packs.append(pack)
        yield PackStarted(
            pack=pack.id, models=len(pack.replicates), device="cpu", stacked=True, why="invented"
        )
        known = [self._models[int(r.key, 16) % _BANK] for r in pack.replicates]
        keys = [r.key for r in pack.replicates]
        for epoch in range(EPOCHS):
            yield Progress(
                pack=pack.id,
                epoch=epoch + 1,
                epochs=EPOCHS,
                active=len(keys),
                metrics={
                    key: {name: column[epoch] for name, column in columns.items() if "/" in name}
                    for key, (columns, _) in zip(keys, known)
                },
            )
        for key, (columns, metrics) in zip(keys, known):
            yield Finished(
                pack=pack.id,
                replicate=key,
                state="done",
                epochs=EPOCHS,
                best_epoch=float(EPOCHS),
                metrics=metrics,
                history=columns,
                seconds=0.01,
            )

    def install(self, slots: int = 1) -> None:
        """From now on the runner in this process gives these results, with so many slots."""
        from modmix.execution import local as runners

        assert callable(runners.train)
        runners.train = self
        runners.LocalRunner.slots = property(lambda _: slots)  # type: ignore[assignment]


def packs_of(study: Path, home: Path, slots: int) -> list[Pack]:
    """The packs that `modmix run` would hand out, with so many at a time."""
    from modmix import api

    instant = Instant()
    instant.install(slots)
    api.run(study, runner="local", home=home, mlflow=False)
    return instant.packs
