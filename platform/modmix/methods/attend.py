"""Additive combination with modality attention (Moon et al. 2018), Table 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modmix.methods.add import check_mergeable
from modmix.methods.base import Method, cross_entropy, head, hidden_units
from modmix.methods.unimodal import Logits


class Attend(Method):
    """Features weighted by attention over modalities, merged, and classified by an MLP.

    ``score="joint"`` (Moon et al. 2018): a = σ(W [f_1; …; f_M] + b), one scalar per modality;
    α = softmax(a); merged Σ_m α_m f_m. ``score="tanh"`` (code of "Learn to Combine Modalities"):
    a_m = v · tanh(W f_m + b) with W, b, v shared by the modalities; α = softmax(a); merged
    1/M Σ_m α_m f_m.

    Raises:
        InputError: features of unequal width without ``project``.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        score: str = "joint",
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
        self.score = score
        if score == "joint":
            self.attention = nn.Linear(sum(widths), len(widths))
        else:
            self.attention_hidden = nn.Linear(widths[0], widths[0])
            self.attention_out = nn.Linear(widths[0], 1, bias=False)
        self.head = head(widths[0], hidden_units(depth, width, hidden), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = self.ordered(features)
        if self.project is not None:
            parts = [g(part) for g, part in zip(self.project, parts, strict=True)]
        if self.score == "joint":
            alpha_BM = self.attention(torch.cat(parts, dim=-1)).sigmoid().softmax(dim=-1)
            return Logits(self.head(_weighted(parts, alpha_BM).sum(-1)))
        scores = [self.attention_out(self.attention_hidden(part).tanh()) for part in parts]
        alpha_BM = torch.cat(scores, dim=-1).softmax(dim=-1)
        return Logits(self.head(_weighted(parts, alpha_BM).mean(-1)))

    def loss(self, outputs: Logits, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)


def _weighted(parts: Sequence[Tensor], alpha_BM: Tensor) -> Tensor:
    """Features (B, D) of every modality times its weight, as (B, D, M)."""
    return torch.stack(tuple(parts), dim=-1) * alpha_BM.unsqueeze(-2)
