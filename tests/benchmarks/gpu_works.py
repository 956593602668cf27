"""What `gpu.py` trains: models, data in memory in the shapes of real tasks, and packs of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modmix.base.messages import Pack, Replicate, TaskRef, pack_id
from modmix.base.settings import training_defaults
from modmix.methods.table import METHODS
from modmix.tasks.data import Augmentation, Data, Input, Split


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of model: data of these inputs, a method, and settings.

    ``sizes`` are numbers of models that are stacked.
    """

    name: str
    inputs: Mapping[str, Input]
    classes: int
    rows: tuple[int, int]  # training; validation and testing
    method: str
    encoders: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    sizes: tuple[int, ...]
    augmentation: Mapping[str, Augmentation] = field(default_factory=dict)


def _vectors(widths: Mapping[str, int]) -> dict[str, Input]:
    return {name: Input(name=name, shape=(width,)) for name, width in widths.items()}


def _mlps(hidden: Mapping[str, list[int]]) -> dict[str, dict[str, Any]]:
    return {name: {"name": "mlp", "hidden": units} for name, units in hidden.items()}


_DIGITS = {"left": 32, "right": 32, "profile": 16, "fourier": 64}


def _digits(method: str) -> Work:
    return Work(
        name=f"digits, {method}",
        inputs=_vectors(_DIGITS),
        classes=10,
        rows=(300, 359),
        method=method,
        encoders=_mlps({name: [64] for name in _DIGITS}),
        training={"epochs": 8, "batch_size": 32, "learning_rate": 0.003},
        sizes=(16, 64, 256),
    )


def _higgs() -> Work:
    return Work(
        name="HIGGS, mul 300x4 and 300x2",
        inputs=_vectors({"low": 21, "high": 7}),
        classes=2,
        rows=(18_000, 5_000),
        method="mul",
        encoders=_mlps({"low": [300] * 4, "high": [300] * 2}),
        training={
            "epochs": 3,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "weight_decay": 2e-5,
            "clip_norm": 10.0,
        },
        sizes=(16, 64, 128),
    )


def _resnet(depth: int) -> Work:
    """With the outputs of its three units as modalities."""
    picture = Input(
        name="picture",
        shape=(32, 32, 3),
        kind="image",
        dtype="uint8",
        mean=np.full(3, 128, np.float32),
        scale=np.full(3, 64, np.float32),
    )
    encoder: dict[str, Any] = {"name": "resnet", "depth": depth, "taps": True}
    method, title = "mulmix", f"ResNet-{depth} with taps"
    return Work(
        name=f"{title}, {method}",
        inputs={"picture": picture},
        classes=10,
        rows=(3_000 if depth < 100 else 800, 200),
        method=method,
        encoders={"picture": encoder},
        training={
            "epochs": 3,
            "batch_size": 100,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "eval_batch_size": 500,
        },
        sizes=(4, 16),
        augmentation={"picture": Augmentation(pad=4, flip=True)},
    )


def _texts(length: int = 15, units: int = 512) -> Work:
    text = Input(name="text", shape=(length,), kind="tokens", dtype="uint8", vocabulary=70)
    return Work(
        name=f"char_lstm of {units} units on {length} characters beside an mlp, mul",
        inputs={"text": text, "numbers": Input(name="numbers", shape=(20,))},
        classes=4,
        rows=(2_560, 500),
        method="mul",
        encoders={
            "text": {"name": "char_lstm", "units": units},
            "numbers": {"name": "mlp", "hidden": [units]},
        },
        training={"epochs": 3, "batch_size": 128},
        sizes=(4, 16, 32),
    )


def works(*, quick: bool = False) -> list[Work]:
    """All of them, or small ones."""
    if quick:
        return [_digits("mul"), _resnet(8), _texts(8, 16)]
    many = [_resnet(20), _resnet(32), _resnet(110), _texts()]
    return [_digits("mul"), _digits("mulmix"), _higgs(), *many]


def make_data(work: Work, *, rows: tuple[int, int] | None = None) -> Data:
    """Random examples around a mean per class, in the shapes of the real task."""
    drawn = np.random.default_rng(0)
    train, others = rows or work.rows
    means = {
        name: drawn.normal(size=(work.classes, *one.shape)).astype(np.float32)
        for name, one in work.inputs.items()
    }

    def values(one: Input, labels: Any) -> Any:
        if one.kind == "tokens":
            assert one.vocabulary is not None
            return drawn.integers(1, one.vocabulary, (len(labels), *one.shape)).astype(one.dtype)
        noise = drawn.standard_normal((len(labels), *one.shape), dtype=np.float32)
        found = means[one.name][labels] + 2 * noise
        if one.dtype == "uint8":
            found = (128 + 30 * found).clip(0, 255)
        return found.astype(one.dtype)

    def split(count: int) -> Split:
        labels = drawn.integers(0, work.classes, count)
        labels[: work.classes] = range(work.classes)
        inputs = {name: values(one, labels) for name, one in work.inputs.items()}
        return Split(inputs=inputs, labels=labels.astype(np.int64))

    return Data(
        name="benchmark",
        inputs=work.inputs,
        augmentation=work.augmentation,
        classes=work.classes,
        class_names=tuple(f"class {i}" for i in range(work.classes)),
        train=split(train),
        val=split(others),
        test=split(others),
        fingerprint="benchmark",
    )


def make_pack(work: Work, models: int, **settings: Any) -> Pack:
    """So many models of β from 0 to 1 where the method has one, five seeds each."""
    declared = _defaults(work.method)
    training = {**training_defaults(), **work.training, "schedule": "constant", **settings}

    def params(i: int) -> dict[str, Any]:
        beta = {"beta": round(i / max(1, models - 1), 4)}
        return {**declared, **(beta if "beta" in declared else {})}

    replicates = tuple(
        Replicate(
            key=f"{i:032x}",
            configuration=f"{i // 5:032x}",
            seed=i % 5,
            method=work.method,
            params=params(i),
            training=training,
            encoders=work.encoders,
            structure="benchmark",
        )
        for i in range(models)
    )
    task = TaskRef(name="benchmark", options={}, fingerprint="benchmark")
    return Pack(id=pack_id(replicates), study="benchmark", task=task, replicates=replicates)


def _defaults(method: str) -> dict[str, Any]:
    return {h.name: h.default for h in METHODS[method].hyperparameters}
