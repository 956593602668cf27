"""Small packs and data in memory for tests of the training core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modmix.base.messages import Finished, Pack, Progress, Replicate, TaskRef, pack_id
from modmix.base.settings import TRAINING
from modmix.methods.table import METHODS
from modmix.tasks.data import Data, Input, Split
from modmix.training.trainer import train_pack


def make_data(
    *,
    widths: Sequence[int] = (6, 5, 4),
    classes: int = 3,
    rows: tuple[int, int, int] = (200, 120, 90),
    noise: float = 1.5,
    seed: int = 0,
) -> Data:
    """Gaussian classes: modality i has ``widths[i]`` columns around a mean per class."""
    generator = np.random.default_rng(seed)
    means = [generator.normal(size=(classes, width)) for width in widths]

    def split(count: int) -> Split:
        labels = generator.integers(0, classes, count)
        labels[:classes] = range(classes)  # every class is present
        inputs = {
            f"m{i}": (mean[labels] + noise * generator.normal(size=(count, mean.shape[1]))).astype(
                np.float32
            )
            for i, mean in enumerate(means)
        }
        return Split(inputs=inputs, labels=labels.astype(np.int64))

    return Data(
        name="toy",
        inputs={f"m{i}": Input(name=f"m{i}", shape=(w,)) for i, w in enumerate(widths)},
        classes=classes,
        class_names=tuple(f"class {i}" for i in range(classes)),
        train=split(rows[0]),
        val=split(rows[1]),
        test=split(rows[2]),
        fingerprint="toy",
    )


def defaults(method: str) -> dict[str, Any]:
    return {h.name: h.default for h in METHODS[method].hyperparameters}


def make_replicates(
    method: str,
    configurations: Sequence[Mapping[str, Any]] = ({},),
    seeds: Sequence[int] = (0, 1),
    *,
    data: Data,
    encoder: Mapping[str, Any] | None = None,
    **training: Any,
) -> tuple[Replicate, ...]:
    """One replicate per configuration and seed; a configuration's ``training`` overrides the
    settings.
    """
    # What is probed depends on the machine; tests say how to train.
    settings = {name: h.default for name, h in TRAINING.items()}
    settings |= {"stack": "always", "compile": False, "select": "best", **training}
    replicates = []
    for i, values in enumerate(configurations):
        params = {k: v for k, v in values.items() if k != "training"}
        if method == "base":
            params.setdefault("modality", "m0")
        encoders = {m: dict(encoder or {"name": "mlp", "hidden": [8]}) for m in data.inputs}
        replicates += [
            Replicate(
                key=f"{method}-{i}-{seed}",
                configuration=f"{method}-{i}",
                seed=seed,
                method=method,
                params={**defaults(method), **params},
                training={**settings, **values.get("training", {})},
                encoders=encoders,
                structure="toy",
            )
            for seed in seeds
        ]
    return tuple(replicates)


def make_pack(replicates: Sequence[Replicate], **fields: Any) -> Pack:
    task = TaskRef(name="toy", options={}, fingerprint="toy")
    return Pack(
        id=pack_id(replicates), study="toy", task=task, replicates=tuple(replicates), **fields
    )


def finished(events: Iterable[Any]) -> dict[str, Finished]:
    """The `Finished` events by replicate; each replicate has one."""
    found: dict[str, Finished] = {}
    for event in events:
        if isinstance(event, Finished):
            assert event.replicate not in found, event.replicate
            found[event.replicate] = event
    return found


def train(replicates: Sequence[Replicate], data: Data, **fields: Any) -> dict[str, Finished]:
    return finished(train_pack(make_pack(replicates, **fields), data))


def progress(events: Iterable[Any]) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress)]
