"""Gated multimodal unit (GMU)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class GMU(Joint):
    """Gated multimodal unit (Arevalo et al., ICLR 2017 workshop, arXiv 1702.01992).

        h_m = tanh(W_m f_m)                     u, the gates, from all modalities:
        M = 2: g = σ(V [f_1; f_2])              u = g ⊙ h_1 + (1 − g) ⊙ h_2
        M > 2: g_m = σ(V_m [f_1; …; f_M])       u = Σ_m g_m ⊙ h_m
        z = W u + b

    As published, there are no biases in the unit, and two modalities share one gate. Differs from
    the published method: the classifier is linear instead of a maxout network.

    Args:
        width: units of u.
    """

    def __init__(self, features: Mapping[str, int], classes: int, *, width: int = 64) -> None:
        super().__init__(features, classes)
        total, gates = sum(features.values()), 1 if len(features) == 2 else len(features)
        self.hidden = nn.ModuleList(nn.Linear(d, width, bias=False) for d in features.values())
        self.gates = nn.ModuleList(nn.Linear(total, width, bias=False) for _ in range(gates))
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = self.ordered(features)
        joined_BD = torch.cat(parts, dim=-1)
        gates = [gate(joined_BD).sigmoid() for gate in self.gates]
        if len(parts) == 2:
            gates = [gates[0], 1.0 - gates[0]]
        hidden = [layer(part).tanh() for layer, part in zip(self.hidden, parts, strict=True)]
        gated = [g * h for g, h in zip(gates, hidden, strict=True)]
        return Logits(self.classifier(torch.stack(gated).sum(0)))
