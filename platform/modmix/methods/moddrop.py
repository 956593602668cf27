"""ModDrop: whole modalities are dropped at random in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modmix.methods.base import head, hidden_units
from modmix.methods.draws import Draws
from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class ModDrop(Joint):
    """ModDrop (Neverova et al., TPAMI 2016, arXiv 1501.00102).

        z = g([δ_1 f_1; …; δ_M f_M])        δ_m ~ Bernoulli(1 − drop), for every example

    In evaluation all δ are 1, and nothing is rescaled. With ``drop=0`` it equals `Add`.

    Differs from the published method: features are zeroed rather than inputs of the encoders; all
    modalities have the same probability; if all would be dropped, one of them, chosen at random,
    is kept; encoders are not pretrained.

    Args:
        drop: probability that a modality is dropped.
        depth: hidden layers of g.
        width: units of each.
    """

    drop: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        drop: float = 0.2,
        depth: int = 1,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        self.register_buffer("drop", torch.tensor(float(drop)))
        self.draws = Draws()
        self.head = head(sum(features.values()), hidden_units(depth, width), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = self.ordered(features)
        if self.training:
            kept = self.kept(len(parts[0])).unbind(-1)
            parts = [f_BD * k_B.unsqueeze(-1) for f_BD, k_B in zip(parts, kept, strict=True)]
        return Logits(self.head(torch.cat(parts, dim=-1)))

    def kept(self, examples: int) -> Tensor:
        """δ, whether a modality is kept, (B, M); at least one in each row."""
        count = len(self.modalities)
        random_BM = self.draws.uniform(examples, count)
        # Uniform as well, independent of which are dropped.
        last_B1 = (self.draws.uniform(examples, 1) * count).long()
        only_BM = last_B1 == torch.arange(count, device=random_BM.device)
        kept_BM = random_BM >= self.drop
        return kept_BM | (only_BM & ~kept_BM.any(-1, keepdim=True))
