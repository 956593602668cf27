"""Concatenation and a linear classifier, the joint baseline of work on balanced learning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class Concat(Joint):
    """z = W [f_1; …; f_M] + b, trained with cross-entropy.

    The "concat" baseline of OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332) and of the work that
    builds on it. It equals `Add` with ``merge="concat", depth=0``.
    """

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.classifier = nn.Linear(sum(features.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        return Logits(self.classifier(torch.cat(self.ordered(features), dim=-1)))
