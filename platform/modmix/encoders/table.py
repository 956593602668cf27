"""Table of encoders: hyperparameters and accepted kinds of input. Does not import torch.

The contract is in `modmix.encoders.base`. User-defined encoders are named by references (see
`modmix.base.sources`); `encoder_entry` returns entries for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from modmix.base import sources as own
from modmix.base.errors import InputError
from modmix.base.signature import hyperparameters, summary
from modmix.base.space import Hyperparameter

Inputs = Literal["dense", "image", "sequence", "tokens", "video", "any"]


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One encoder of the table.

    ``modalities`` are the names of several outputs; () means one, named after the input.
    """

    path: str  # "module:Class", or the reference of a user-defined class
    doc: str
    hyperparameters: tuple[Hyperparameter, ...] = ()
    inputs: tuple[Inputs, ...] = ("dense",)
    modalities: tuple[str, ...] = ()
    switch: str | None = None  # bool hyperparameter that turns ``modalities`` on; None: always on


# Token ids are not numeric values: an encoder must accept them explicitly.
_NUMBERS: tuple[Inputs, ...] = ("dense", "image", "sequence", "video")

_EMBEDDING = Hyperparameter(
    name="embedding", kind="int", default=128, low=1, doc="embedding dimension of a token"
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
        doc="pre-activation ResNet for small images (CIFAR); its units can be modalities",
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
                doc="whether each unit's output is a modality; false: the final output only",
            ),
        ),
    ),
    "resnet18": EncoderEntry(
        path="modmix.encoders.resnet18:ResNet18",
        doc="ResNet-18 without its classifier, for images, spectrograms, optical flow and video",
        inputs=("image", "video"),
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
        doc="LSTM over tokens; its hidden state at the last token",
        inputs=("tokens",),
        hyperparameters=(
            _EMBEDDING,
            Hyperparameter(
                name="units", kind="int", default=512, low=1, doc="size of the LSTM's hidden state"
            ),
            Hyperparameter(name="layers", kind="int", default=1, low=1, doc="stacked LSTM layers"),
        ),
    ),
    "char_cnn": EncoderEntry(
        path="modmix.encoders.char_cnn:CharCNN",
        doc="convolutions over tokens, max-pooled over positions",
        inputs=("tokens",),
        hyperparameters=(
            _EMBEDDING,
            Hyperparameter(
                name="widths",
                kind="ints",
                default=[3, 4, 5],
                low=1,
                doc="kernel widths in tokens, one convolution each",
            ),
            Hyperparameter(
                name="filters", kind="int", default=64, low=1, doc="filters of each width"
            ),
        ),
    ),
    "transformer": EncoderEntry(
        path="modmix.encoders.transformer:Transformer",
        doc="Transformer over tokens or frames of a sequence; mean over positions without padding",
        inputs=("tokens", "sequence"),
        hyperparameters=(
            Hyperparameter(
                name="width",
                kind="int",
                default=64,
                low=1,
                doc="width of every position and of the features; a multiple of heads",
            ),
            Hyperparameter(name="layers", kind="int", default=2, low=1, doc="Transformer layers"),
            Hyperparameter(
                name="heads", kind="int", default=4, low=1, doc="attention heads of each layer"
            ),
            Hyperparameter(
                name="feedforward",
                kind="int",
                default=128,
                low=1,
                doc="hidden units of each layer's feed-forward network",
            ),
            Hyperparameter(
                name="dropout",
                kind="float",
                default=0.1,
                low=0.0,
                high=0.99,
                doc="dropout probability",
            ),
        ),
    ),
}


def encoder_entry(name: str) -> EncoderEntry:
    """The entry of an encoder, built-in or user-defined.

    A user-defined class may have the class attributes ``inputs``, the kinds of input it accepts
    (default: any), and ``modalities``, the names of its outputs if there are several.

    Raises:
        InputError: the class is missing, is not an `Encoder`, or has an unsupported signature.
    """
    return ENCODERS[name] if name in ENCODERS else _own_entry(name)


@cache
def _own_entry(name: str) -> EncoderEntry:
    from modmix.encoders.base import Encoder

    found, where = own.load_subclass(name, Encoder, "modmix.Encoder"), own.place(name)
    declared = hyperparameters(found, where, reserved={"name", "class"}, without=("vocabulary",))
    inputs: tuple[Inputs, ...] = tuple(getattr(found, "inputs", ("any",)))
    if not inputs or not set(inputs) <= set(get_args(Inputs)):
        raise InputError(
            f"{where}: inputs must be kinds of input ({', '.join(get_args(Inputs))}), "
            f"got {inputs!r}"
        )
    names = getattr(found, "modalities", ())
    if not isinstance(names, tuple) or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"{where}: modalities must be a tuple of names, got {names!r}")
    return EncoderEntry(
        path=name, doc=summary(found), hyperparameters=declared, inputs=inputs, modalities=names
    )


def modality_inputs(
    encoders: Mapping[str, Mapping[str, Any]], *, prefixed: bool
) -> dict[str, tuple[str, str | None]]:
    """Modality -> its input and the encoder's name for it (None if it has one output), in order.

    Args:
        encoders: name and hyperparameters of the encoder, by input.
        prefixed: whether to prefix the names of several outputs with that of the input; true for
            tasks with several inputs.

    Example:
        >>> tapped = {"name": "resnet", "taps": True}
        >>> list(modality_inputs({"a": {"name": "mlp"}, "b": tapped}, prefixed=True))
        ['a', 'b.unit1', 'b.unit2', 'b.unit3']
    """
    found: dict[str, tuple[str, str | None]] = {}
    for name, spec in encoders.items():
        given = given_modalities(spec["name"], spec)
        if not given:
            found[name] = (name, None)
        for each in given:
            found[f"{name}.{each}" if prefixed else each] = (name, each)
    return found


def given_modalities(encoder: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Modalities of an encoder with these hyperparameters; () means one, named after its input.

    Example:
        >>> given_modalities("resnet", {"depth": 20, "taps": True})
        ('unit1', 'unit2', 'unit3')
    """
    entry = encoder_entry(encoder)
    given = entry.switch is None or params[entry.switch]
    return entry.modalities if given else ()
