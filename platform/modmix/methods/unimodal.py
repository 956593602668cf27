"""Single-modality baseline: the "Base" rows of the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from modmix.methods.base import Method, cross_entropy, head, hidden_units


class Logits(NamedTuple):
    """Outputs of methods with one classifier."""

    logits_BC: Tensor


class Unimodal(Method):
    """A classifier on the features of one modality, trained with cross-entropy."""

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        modality: str | None = None,
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        assert len(features) == 1, features
        assert modality in (None, *features), modality
        self.head = head(features[self.modalities[0]], hidden_units(depth, width), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        return Logits(self.head(features[self.modalities[0]]))

    def loss(self, outputs: Logits, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)
