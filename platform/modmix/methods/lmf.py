"""Low-rank multimodal fusion (LMF): tensor fusion without the tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class LMF(Joint):
    """Low-rank multimodal fusion (Liu et al., ACL 2018, arXiv 1806.00064).

        h = Σ_r ⊙_m W_m^r [f_m; 1]          z = W h + b

    A linear map of the outer product ⊗_m [f_m; 1] of `TFN` whose weight tensor has rank ``rank``.

    Differs from the published code: the terms r are summed unweighted (the factors W_m^r can absorb
    the weights); the factors are initialised as by `torch.nn.Linear` instead of Xavier; the
    modalities' networks are encoders here.

    Args:
        rank: number of terms r.
        width: units of h.
    """

    def __init__(
        self, features: Mapping[str, int], classes: int, *, rank: int = 4, width: int = 64
    ) -> None:
        super().__init__(features, classes)
        self.shape = (rank, width)
        # The bias of each layer is the column of W_m^r that belongs to the 1.
        self.factors = nn.ModuleList(nn.Linear(d, rank * width) for d in features.values())
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = zip(self.factors, self.ordered(features), strict=True)
        first_BN, *rest = [factor(f_BD) for factor, f_BD in parts]
        product_BN = first_BN
        for part_BN in rest:
            product_BN = product_BN * part_BN
        hidden_BD = torch.unflatten(product_BN, -1, self.shape).sum(-2)
        return Logits(self.classifier(hidden_BD))
