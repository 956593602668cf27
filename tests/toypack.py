"""Small packs and data in memory for tests of the training core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from modmix.base.messages import Finished, Pack, PackStarted, Progress, Replicate, TaskRef, pack_id
from modmix.base.settings import TRAINING
from modmix.encoders.table import ENCODERS, EncoderEntry
from modmix.methods.base import Method, cross_entropy
from modmix.methods.entry import MethodEntry
from modmix.methods.table import METHODS
from modmix.tasks.data import Data, Input, Split
from modmix.training.trainer import train_pack

if TYPE_CHECKING:
    import pytest


class Dropping(Method):
    """Dropout on all features, then a linear layer."""

    def __init__(self, features: Mapping[str, int], classes: int, *, p: float = 0.4) -> None:
        super().__init__(features, classes)
        self.dropout = nn.Dropout(p)
        self.head = nn.Linear(sum(features.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        merged = torch.cat([features[m] for m in self.modalities], dim=-1)
        logits_BC: Tensor = self.head(self.dropout(merged))
        return logits_BC

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)


def add_method(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Method], **fields: Any
) -> None:
    """Put a class of a test's own on the table of methods; ``fields`` are of its `MethodEntry`."""
    path = f"{kind.__module__}:{kind.__name__}"
    monkeypatch.setitem(METHODS, name, MethodEntry(path=path, doc="", **fields))


def add_encoder(monkeypatch: pytest.MonkeyPatch, name: str, kind: type[nn.Module]) -> None:
    """Put a class of a test's own on the table of encoders."""
    path = f"{kind.__module__}:{kind.__name__}"
    monkeypatch.setitem(ENCODERS, name, EncoderEntry(path=path, doc="", inputs=("any",)))


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


def is_stacked(replicates: Sequence[Replicate], data: Data) -> bool:
    """Whether these would be trained stacked; not being so is a fallback, not an error."""
    event = next(train_pack(make_pack(replicates), data))
    assert isinstance(event, PackStarted)
    return event.stacked


def progress(events: Iterable[Any]) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress)]


def same(found: dict[str, Finished], expected: dict[str, Finished], rel: float = 0.0) -> None:
    """Assert equality of all but the seconds that it took."""
    assert found.keys() == expected.keys()
    for key, other in expected.items():
        one = found[key]
        for name in ("state", "reason", "epochs", "best_epoch"):
            assert getattr(one, name) == getattr(other, name), (key, name)
        for name in ("metrics", "history"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert list(mine) == list(theirs)
            for column, value in theirs.items():
                np.testing.assert_allclose(mine[column], value, rtol=rel, err_msg=column)
        if rel == 0.0:
            assert one.weights == other.weights
