"""The encoders a study file can name, and their hyperparameters. Imports no torch.

An encoder is a module built as ``Encoder(shape, **hyperparameters)`` with an attribute
``features``, mapping a batch (B, *shape) to (B, features). It is written for one model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modmix.base.space import Hyperparameter

Inputs = Literal["flat", "image", "sequence", "any"]


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """One row of the table."""

    path: str  # "module:Class"
    doc: str
    hyperparameters: tuple[Hyperparameter, ...] = ()
    inputs: Inputs = "flat"


ENCODERS: dict[str, EncoderEntry] = {
    "identity": EncoderEntry(
        path="modmix.encoders.identity:Identity",
        doc="the input itself, flattened",
        inputs="any",
    ),
    "mlp": EncoderEntry(
        path="modmix.encoders.mlp:MLP",
        doc="fully connected layers on the flattened input",
        inputs="any",
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
}
