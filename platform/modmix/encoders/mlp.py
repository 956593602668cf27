"""Multilayer perceptron on a flattened input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from modmix.encoders.base import Encoder

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


class MLP(Encoder):
    """Linear layers of ``hidden`` units, each followed by optional batch norm and an activation.

    Maps (B, *shape) to (B, hidden[-1]). Initialisation is that of `torch.nn.Linear`.

    Example:
        >>> import torch
        >>> MLP((4,), hidden=[8, 3])(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: Sequence[int] = (64,),
        activation: str = "relu",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = math.prod(shape)
        for units in hidden:
            # Batch norm cancels a bias, so its gradient would be rounding error only.
            layers.append(nn.Linear(width, units, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(_ACTIVATIONS[activation]())
            width = units
        self.layers = nn.Sequential(*layers)
        self.features = width

    def forward(self, inputs: Tensor) -> Tensor:
        features_BD: Tensor = self.layers(inputs.flatten(1))
        return features_BD
