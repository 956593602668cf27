"""Packs that together take every branch of a GPU, for tests on a processor and for `gpu_check`.

Needs torch and numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modmix.base.messages import Finished, Replicate
from modmix.encoders.base import Encoder
from modmix.encoders.table import ENCODERS, EncoderEntry
from modmix.tasks.data import Augmentation, Data, Input, Split
from toypack import make_data, make_replicates

# 800 examples make 25 steps an epoch, 50 in two.
VECTORS = make_data(rows=(800, 120, 90), noise=2.5)

# Hyperparameters that may differ between stacked models, for the methods that have some.
CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "mul": [
        {"beta": 0.0},
        {"beta": 0.3, "margin": 0.2, "alpha": 0.5, "weights": {"m0": 0.3, "m2": 2.0}},
    ],
    "mulmix": [{"beta": 1.0}, {"beta": 2.0, "margin": 0.0, "weights": {"m0+m1": 0.5}}],
    "mmcosine": [{"scale": 3.0}, {"scale": 15.0}],
    "moddrop": [{"drop": 0.2}, {"drop": 0.6}],
    "centralnet": [{"weight": 0.0}, {"weight": 0.7}],
    # Of the default sizes, float32 rounding under Adam grows to 1e-4 of the loss in 50 steps.
    "tfn": [{"project": 4, "width": 8}, {"project": 4, "width": 8}],
}
# Everything that the optimizer can do, in three packs.
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {
        "optimizer": "sgd",
        "nesterov": True,
        "clip_norm": 1.0,
        "weight_decay": 1e-3,
        "schedule": "step",
        "milestones": [1],
        "decay_rate": 0.1,
    },
    "adam": {"optimizer": "adam", "clip_norm": 0.5, "schedule": "exponential", "decay_rate": 0.5},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "decay": "all", "schedule": "cosine"},
}


class Noisy(Encoder):
    """A layer with batch norm and dropout on the flattened input."""

    def __init__(self, shape: tuple[int, ...], *, units: int = 8, p: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(math.prod(shape), units, bias=False), nn.BatchNorm1d(units), nn.ReLU()
        )
        self.dropout = nn.Dropout(p)
        self.features = units

    def forward(self, inputs: Tensor) -> Tensor:
        features_BD: Tensor = self.dropout(self.layers(inputs.flatten(1)))
        return features_BD


class ReadingBack(Encoder):
    """Its input, by way of the host: such a step cannot be recorded."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(shape), 8)
        self.features = 8

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs.flatten(1)).relu()
        return found + 0 * found.detach().mean().cpu().to(found.device)


ENTRIES = {
    name: EncoderEntry(path=f"{__name__}:{kind}", doc="for tests")
    for name, kind in (("noisy", "Noisy"), ("reading_back", "ReadingBack"))
}


def add_encoders() -> None:
    """Put the encoders of this module into the table of this process."""
    ENCODERS.update(ENTRIES)


def images(*, rows: tuple[int, int, int] = (160, 60, 40), side: int = 6, seed: int = 0) -> Data:
    """Images of bytes, augmented in training, beside vectors; three classes."""
    generator = np.random.default_rng(seed)
    means = generator.uniform(60, 190, size=(3, side, side, 3))
    vectors = generator.normal(size=(3, 5))

    def split(count: int) -> Split:
        labels = generator.integers(0, 3, count)
        labels[:3] = range(3)
        pixels = means[labels] + generator.normal(0, 60, size=(count, side, side, 3))
        values = vectors[labels] + 2 * generator.normal(size=(count, 5))
        return Split(
            inputs={
                "picture": pixels.clip(0, 255).astype(np.uint8),
                "vector": values.astype(np.float32),
            },
            labels=labels.astype(np.int64),
        )

    picture = Input(
        name="picture",
        shape=(side, side, 3),
        kind="image",
        dtype="uint8",
        mean=np.full(3, 120, np.float32),
        scale=np.full(3, 60, np.float32),
    )
    return Data(
        name="pictures",
        inputs={"picture": picture, "vector": Input(name="vector", shape=(5,))},
        augmentation={
            "picture": Augmentation(pad=1, flip=True, crop=(0.3, 1.0), noise=0.1),
            "vector": Augmentation(noise=0.1),
        },
        classes=3,
        class_names=("a", "b", "c"),
        train=split(rows[0]),
        val=split(rows[1]),
        test=split(rows[2]),
        fingerprint="pictures",
    )


def texts(*, rows: tuple[int, int, int] = (96, 40, 30), length: int = 7, seed: int = 0) -> Data:
    """Rows of token ids, padded with zeros; the class is a token that occurs."""
    generator = np.random.default_rng(seed)

    def split(count: int) -> Split:
        labels = generator.integers(0, 3, count)
        labels[:3] = range(3)
        tokens = generator.integers(4, 12, size=(count, length))
        tokens[np.arange(count), generator.integers(0, 3, count)] = labels + 1
        ends = generator.integers(3, length + 1, size=(count, 1))
        tokens[np.arange(length) >= ends] = 0
        return Split(inputs={"text": tokens.astype(np.uint8)}, labels=labels.astype(np.int64))

    return Data(
        name="texts",
        inputs={
            "text": Input(name="text", shape=(length,), kind="tokens", dtype="uint8", vocabulary=12)
        },
        classes=3,
        class_names=("a", "b", "c"),
        train=split(rows[0]),
        val=split(rows[1]),
        test=split(rows[2]),
        fingerprint="texts",
    )


def every_setting(method: str, recipe: str, **training: Any) -> tuple[Replicate, ...]:
    """Two configurations with two seeds each on `VECTORS`, 50 steps."""
    configurations = [
        {**configuration, "training": {"learning_rate": rate}}
        for configuration, rate in zip(
            CONFIGURATIONS.get(method, [{}, {}]), (3e-3, 1e-3), strict=True
        )
    ]
    settings = {"epochs": 2, "batch_size": 32, "evaluations_per_epoch": 2, **RECIPES[recipe]}
    return make_replicates(
        method,
        configurations,
        data=VECTORS,
        encoder={"name": "mlp", "hidden": [8], "batch_norm": True},
        **{**settings, **training},
    )


def many_ends(**training: Any) -> tuple[Replicate, ...]:
    """Eight models on `images` with dropout: halving, patience and batches shared by seeds."""
    configurations = [
        {"training": {"learning_rate": rate, "clip_norm": clip}}
        for rate, clip in ((1e-2, None), (3e-3, 1.0), (1e-3, None), (1e-5, 0.5))
    ]
    settings: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 16,
        "evaluations_per_epoch": 2,
        "patience": 6,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "cosine",
        "halving": {"eta": 2, "min_epochs": 2},
    }
    return make_replicates(
        "mul", configurations, data=images(), encoder={"name": "noisy"}, **{**settings, **training}
    )


# Small encoders of tokens, by name.
TOKEN_ENCODERS: dict[str, dict[str, Any]] = {
    "char_cnn": {"name": "char_cnn", "embedding": 3, "widths": [2], "filters": 4},
    "char_lstm": {"name": "char_lstm", "embedding": 3, "units": 4},
    "transformer": {
        "name": "transformer",
        "width": 4,
        "layers": 1,
        "heads": 2,
        "feedforward": 4,
        "dropout": 0.0,
    },
}


def on_tokens(encoder: Mapping[str, Any], **training: Any) -> tuple[Replicate, ...]:
    """Two seeds of an encoder of tokens on `texts`."""
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 16}
    return make_replicates(
        "add",
        data=texts(),
        encoder={**encoder, "vocabulary": 12},
        **{**settings, **training},
    )


def on_images(**training: Any) -> tuple[Replicate, ...]:
    """A small ResNet beside an MLP on `images` of eight pixels, two seeds, one epoch."""
    resnet = {"name": "resnet", "depth": 8, "taps": False}
    encoders = {"picture": resnet, "vector": {"name": "mlp", "hidden": [64]}}
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-4}
    data = images(rows=(24, 12, 12), side=8)
    found = make_replicates("add", data=data, **{**settings, **training})
    return tuple(replace(replicate, encoders=encoders) for replicate in found)


def reading_back(**training: Any) -> tuple[Replicate, ...]:
    """Models with an encoder that brings its input to the host and back."""
    return make_replicates(
        "add", data=VECTORS, encoder={"name": "reading_back"}, epochs=1, **training
    )


# What a step of the eight models of `wide` does not fit into, while their weights do.
WIDE_BYTES = 600 << 20


def wide(units: int = 4096, **training: Any) -> tuple[Replicate, ...]:
    """Eight models, three steps; 4096 units have activations of some 100 MB a model."""
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 800, "learning_rate": 1e-4}
    return make_replicates(
        "add",
        seeds=range(8),
        data=VECTORS,
        encoder={"name": "mlp", "hidden": [16, units]},
        **{**settings, **training},
    )


def retimed(ends: Mapping[str, Finished]) -> dict[str, Finished]:
    """Without the seconds that it took."""
    return {key: replace(end, seconds=0.0) for key, end in ends.items()}


def differences(found: Mapping[str, Finished], expected: Mapping[str, Finished]) -> float:
    """The largest distance of a model's learning curves of losses, relative to their size.

    Curves of errors and the like jump where one example changes sides; they are left out.

    Raises:
        AssertionError: models ended in other ways or after other numbers of epochs.
    """
    assert found.keys() == expected.keys()
    largest = 0.0
    for key, other in expected.items():
        one = found[key]
        assert (one.state, one.epochs) == (other.state, other.epochs), (key, one, other)
        for column in ("train/loss", "val/nll"):
            mine, theirs = np.array(one.history[column]), np.array(other.history[column])
            largest = max(largest, float(np.abs(mine - theirs).max() / np.abs(theirs).max()))
    return largest


def weights_of(end: Finished) -> dict[str, Tensor]:
    """The weights that a model has sent back."""
    from safetensors.torch import load

    assert end.weights is not None
    found: dict[str, Tensor] = load(end.weights)
    return found


def distance(found: Finished, expected: Finished) -> float:
    """Of the weights of two models, relative to their norm; infinite margins are left out."""
    one, other = weights_of(found), weights_of(expected)
    assert one.keys() == other.keys()
    finite = [name for name, x in other.items() if x.isfinite().all()]
    squares = [(one[n].double() - other[n].double()).square().sum() for n in finite]
    sizes = [other[n].double().square().sum() for n in finite]
    return float((torch.stack(squares).sum() / torch.stack(sizes).sum()).sqrt())
