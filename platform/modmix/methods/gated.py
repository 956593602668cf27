"""Gated fusion: one modality gates the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.joint import Joint, conditioning
from modmix.methods.unimodal import Logits


class Gated(Joint):
    """Gated fusion (Kiela et al., AAAI 2018, arXiv 1802.02892).

    With c the gating modality, for every other modality m:

        h_m = σ(V_m f_c + v_m) ⊙ (U_m f_m + u_m)
        z = W [h_m for m ≠ c] + b

    Differs from the published method: it is defined there for two modalities, as used with a linear
    classifier by OGM-GE (CVPR 2022), gated by the first modality (audio). For two modalities this
    is the same; for more, each of the others has its own gate, and the results are concatenated.

    Args:
        condition: the modality c; None means the first.
        width: units of each h_m.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        condition: str | None = None,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        self.condition = conditioning(self.modalities, condition)
        self.others = tuple(name for name in self.modalities if name != self.condition)
        gating = features[self.condition]
        self.gates = nn.ModuleList(nn.Linear(gating, width) for _ in self.others)
        self.values = nn.ModuleList(nn.Linear(features[name], width) for name in self.others)
        self.classifier = nn.Linear(width * len(self.others), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        condition_BD = features[self.condition]
        layers = zip(self.others, self.gates, self.values, strict=True)
        gated = [gate(condition_BD).sigmoid() * u(features[name]) for name, gate, u in layers]
        return Logits(self.classifier(torch.cat(gated, dim=-1)))
