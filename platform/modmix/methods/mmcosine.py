"""MMCosine: summed cosines between each modality's features and its class weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.base import lift
from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class MMCosine(Joint):
    """z^k = s Σ_m cos(W_m^k, f_m), trained with cross-entropy.

    Multi-Modal Cosine loss (Xu et al., ICASSP 2023, arXiv 2303.05338). As in the authors' code the
    same logits are used in evaluation, and there are no biases. The scale s should be searched; the
    default is that of the authors' code (for CREMA-D and VoxCeleb2).

    Differs from the published code: a feature vector of zeros, which has no direction, has cosine
    0 and no gradient (the code divides by at least 1e-12, for gradients of up to 1e12).
    """

    scale: Tensor

    def __init__(self, features: Mapping[str, int], classes: int, *, scale: float = 10.0) -> None:
        super().__init__(features, classes)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.classifiers = nn.ModuleList(Cosines(d, classes) for d in features.values())

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = zip(self.classifiers, self.ordered(features), strict=True)
        return Logits(self.scale * torch.stack([g(f_BD) for g, f_BD in parts]).sum(0))


class Cosines(nn.Linear):
    """Cosines between features (B, D) and the weights of every class, (B, C)."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, bias=False)

    def forward(self, features_BD: Tensor) -> Tensor:
        return unit(features_BD) @ unit(self.weight).mT


def unit(vectors_ND: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 at least; rows of zeros stay zero, without a gradient."""
    vectors_ND = lift(vectors_ND)
    squared_N1 = vectors_ND.square().sum(-1, keepdim=True)
    present_N1 = squared_N1 > 0
    # At 0 the gradient of the square root is infinite.
    lengths_N1 = torch.where(present_N1, squared_N1, torch.ones_like(squared_N1)).sqrt()
    return torch.where(present_N1, vectors_ND, torch.zeros_like(vectors_ND)) / lengths_N1
