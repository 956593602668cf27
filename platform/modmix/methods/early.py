"""Early fusion, eq. 1: p = h([v_1, …, v_M])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modmix.methods.base import Method, cross_entropy, head
from modmix.methods.unimodal import Logits


class Early(Method):
    """One MLP on the flattened and concatenated inputs, without encoders."""

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__(features, classes)
        self.head = head(sum(features.values()), hidden, classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        return Logits(self.head(torch.cat(self.ordered(features), dim=-1)))

    def loss(self, outputs: Logits, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)
