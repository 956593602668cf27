"""Identity encoder: flattens the input."""

from __future__ import annotations

import math

from torch import Tensor

from modmix.encoders.base import Encoder


class Identity(Encoder):
    """Flatten (B, *shape) to (B, features)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features = math.prod(shape)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)
