"""Feature-wise linear modulation (FiLM): one modality scales and shifts the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.joint import Joint, conditioning
from modmix.methods.unimodal import Logits


class Film(Joint):
    """FiLM (Perez et al., AAAI 2018, arXiv 1709.07871) as a fusion of features.

    With c the conditioning modality, for every other modality m:

        [γ_m; β_m] = V_m f_c + v_m          h_m = γ_m ⊙ f_m + β_m
        z = W [h_m for m ≠ c] + b

    Differs from the published method: FiLM modulates the feature maps of an inner layer. OGM-GE
    (CVPR 2022) and work that builds on it modulate the final features, with a linear classifier
    on top, for two modalities of equal width, conditioned on the first (audio). For two modalities
    this is the same; more than two (each with its own γ and β, results concatenated) and unequal
    widths are defined here.

    Args:
        condition: the modality c; None means the first.
    """

    def __init__(
        self, features: Mapping[str, int], classes: int, *, condition: str | None = None
    ) -> None:
        super().__init__(features, classes)
        self.condition = conditioning(self.modalities, condition)
        self.others = tuple(name for name in self.modalities if name != self.condition)
        width, widths = features[self.condition], [features[name] for name in self.others]
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * d) for d in widths)
        self.classifier = nn.Linear(sum(widths), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        condition_BD = features[self.condition]
        modulated = []
        for name, modulation in zip(self.others, self.modulations, strict=True):
            gamma_BD, beta_BD = modulation(condition_BD).chunk(2, dim=-1)
            modulated.append(gamma_BD * features[name] + beta_BD)
        return Logits(self.classifier(torch.cat(modulated, dim=-1)))
