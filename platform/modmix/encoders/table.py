"""The encoders a study file can name, and their hyperparameters. Imports no torch.

What an encoder must be stands in `modmix.encoders.base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modmix.base.space import Hyperparameter

Inputs = Literal["dense", "image", "sequence", "tokens", "any"]


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One row of the table. ``modalities`` empty: one, named like the encoder's input."""

    path: str  # "module:Class"
    doc: str
    hyperparameters: tuple[Hyperparameter, ...] = ()
    inputs: tuple[Inputs, ...] = ("dense",)
    modalities: tuple[str, ...] = ()
    switch: str | None = None  # hyperparameter that must be true for them; null: always given


# Ids of tokens are no quantities: an encoder must say that it takes them.
_NUMBERS: tuple[Inputs, ...] = ("dense", "image", "sequence")

_EMBEDDING = Hyperparameter(
    name="embedding", kind="int", default=128, low=1, doc="length of each token's vector"
)

ENCODERS: dict[str, EncoderEntry] = {
    "identity": EncoderEntry(
        path="modmix.encoders.identity:Identity",
        doc="the input itself, flattened",
        inputs=_NUMBERS,
    ),
    "mlp": EncoderEntry(
        path="modmix.encoders.mlp:MLP",
        doc="fully connected layers on the flattened input",
        inputs=_NUMBERS,
        hyperparameters=(
            Hyperparameter(
                name="hidden",
                kind="ints",
                default=[64],
                low=1,
                doc="units of each layer; the last is the width of the features; [] passes the "
                "flattened input on",
            ),
            Hyperparameter(
                name="activation",
                kind="str",
                default="relu",
                choices=("relu", "tanh", "gelu"),
                doc="function after every layer",
            ),
            Hyperparameter(
                name="batch_norm",
                kind="bool",
                default=False,
                doc="normalise each layer before its activation",
            ),
        ),
    ),
    "resnet": EncoderEntry(
        path="modmix.encoders.resnet:ResNet",
        doc="pre-activation ResNet for small images (CIFAR), whose units may be modalities",
        inputs=("image",),
        modalities=("unit1", "unit2", "unit3"),
        switch="taps",
        hyperparameters=(
            Hyperparameter(
                name="depth",
                kind="int",
                default=32,
                low=8,
                doc="layers with weights, 6n + 2, counting a classifier: 8, 14, 20, 26, 32, …",
            ),
            Hyperparameter(
                name="width",
                kind="int",
                default=16,
                low=1,
                doc="channels of the first unit; the others have 2 and 4 times as many",
            ),
            Hyperparameter(
                name="taps",
                kind="bool",
                default=True,
                doc="whether the ends of the three units are modalities; false: one, the last end",
            ),
        ),
    ),
    "resnet18": EncoderEntry(
        path="modmix.encoders.resnet18:ResNet18",
        doc="ResNet-18 without its classifier, for images, spectrograms and optical flow",
        inputs=("image",),
        hyperparameters=(
            Hyperparameter(
                name="width",
                kind="int",
                default=64,
                low=1,
                doc="channels of the first layer; the features are 8 times as many",
            ),
        ),
    ),
    "char_lstm": EncoderEntry(
        path="modmix.encoders.char_lstm:CharLSTM",
        doc="LSTM over tokens, its state at the last one",
        inputs=("tokens",),
        hyperparameters=(
            _EMBEDDING,
            Hyperparameter(
                name="units", kind="int", default=512, low=1, doc="width of the LSTM's state"
            ),
            Hyperparameter(
                name="layers", kind="int", default=1, low=1, doc="LSTMs, one on top of the other"
            ),
        ),
    ),
    "char_cnn": EncoderEntry(
        path="modmix.encoders.char_cnn:CharCNN",
        doc="convolutions over tokens, the largest value of each filter",
        inputs=("tokens",),
        hyperparameters=(
            _EMBEDDING,
            Hyperparameter(
                name="widths",
                kind="ints",
                default=[3, 4, 5],
                low=1,
                doc="tokens that a filter sees, one convolution for each width",
            ),
            Hyperparameter(
                name="filters", kind="int", default=64, low=1, doc="filters of each width"
            ),
        ),
    ),
}


def given_modalities(encoder: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the modalities that an encoder with these values gives; (): one, like its input.

    Example:
        >>> given_modalities("resnet", {"depth": 20, "taps": True})
        ('unit1', 'unit2', 'unit3')
    """
    entry = ENCODERS[encoder]
    given = entry.switch is None or params[entry.switch]
    return entry.modalities if given else ()
