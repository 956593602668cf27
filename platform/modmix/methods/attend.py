"""Additive combination with modality attention (Moon et al. 2018), Table 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modmix.methods.add import check_mergeable
from modmix.methods.base import Method, cross_entropy, head, hidden_units
from modmix.methods.unimodal import Logits


class Attend(Method):
    """Sum of features weighted by attention, classified by an MLP.

    a = σ(W [f_1; …; f_M] + b), one scalar per modality; α = softmax(a); u = Σ_m α_m f_m.

    Raises:
        InputError: features of unequal width without ``project``.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        project: int | None = None,
        depth: int = 1,
        width: int = 64,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__(features, classes)
        widths = list(features.values())
        self.project = None
        if project is not None:
            self.project = nn.ModuleList(
                nn.Sequential(nn.Linear(d, project), nn.ReLU()) for d in widths
            )
            widths = [project] * len(widths)
        check_mergeable(widths, "attention")
        self.attention = nn.Linear(sum(widths), len(widths))
        self.head = head(widths[0], hidden_units(depth, width, hidden), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = [features[m] for m in self.modalities]
        if self.project is not None:
            parts = [g(part) for g, part in zip(self.project, parts, strict=True)]
        alpha_BM = self.attention(torch.cat(parts, dim=-1)).sigmoid().softmax(dim=-1)
        merged_BD = (torch.stack(parts, dim=-1) * alpha_BM.unsqueeze(-2)).sum(-1)
        return Logits(self.head(merged_BD))

    def loss(self, outputs: Logits, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)
