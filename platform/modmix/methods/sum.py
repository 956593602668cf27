"""A linear classifier per modality, logits summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class Sum(Joint):
    """z = Σ_m (W_m f_m + b_m), trained with the cross-entropy of the sum.

    The "sum" baseline of OGM-GE (Peng et al., CVPR 2022, arXiv 2203.15332). `Add` with
    ``merge="sum"`` sums features instead, which need equal widths, and classifies the sum with a
    network. The functions it can represent are those of `Concat`; initial weights differ (those of
    each layer are scaled by its fan-in) and so does the step of the bias, which is a sum of M.
    """

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.classifiers = nn.ModuleList(nn.Linear(d, classes) for d in features.values())

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = zip(self.classifiers, self.ordered(features), strict=True)
        return Logits(torch.stack([g(f_BD) for g, f_BD in parts]).sum(0))
