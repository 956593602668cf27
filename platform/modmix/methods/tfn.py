"""Tensor fusion network (TFN): the outer product of all modalities."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import head, hidden_units
from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class TFN(Joint):
    """Tensor fusion network (Zadeh et al., EMNLP 2017, arXiv 1707.07250).

        a_m = ReLU(W_m f_m + b_m)
        z = g(vec([a_1; 1] ⊗ … ⊗ [a_M; 1]))

    The outer product has (``project`` + 1)^M elements: all products of units of different
    modalities, of any number of them.

    Differs from the published method: projections a_m of equal width replace the modalities'
    networks, which are encoders here; any number of modalities; no dropout.

    Args:
        project: units of each a_m.
        depth: hidden layers of g.
        width: units of each.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        project: int = 16,
        depth: int = 2,
        width: int = 128,
    ) -> None:
        super().__init__(features, classes)
        self.project = nn.ModuleList(nn.Linear(d, project) for d in features.values())
        size = (project + 1) ** len(features)
        self.head = head(size, hidden_units(depth, width), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = zip(self.project, self.ordered(features), strict=True)
        first_BD, *rest = [F.pad(g(f_BD).relu(), (0, 1), value=1.0) for g, f_BD in parts]
        product_BN = first_BD
        for part_BD in rest:
            product_BN = (product_BN.unsqueeze(-1) * part_BD.unsqueeze(-2)).flatten(1)
        return Logits(self.head(product_BN))
