"""Alternating unimodal adaptation: modalities take turns through one shared head.

Source: Zhang, Yoon, Bansal and Yao, "Multimodal Representation Learning by Alternating Unimodal
Adaptation", CVPR 2024, arXiv 2311.10707.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.methods.base import Method, Stage, cross_entropy, lift


class MLAOutputs(NamedTuple):
    """Inputs of the shared head and its logits, for each modality."""

    features_MBD: Tensor
    logits_MBC: Tensor


class MLA(Method):
    """Every batch takes one step per modality, with the cross-entropy of that modality alone.

    The step of modality m trains its encoder (and projection) and the shared linear head. To keep
    the head from forgetting the other modalities, the gradient G (C, D) of its weight is replaced
    by G Pᵀ, where P (D, D) suppresses the directions of earlier mean features. P is initialised to
    the identity and is updated in every step, before it is used, with the batch's mean feature h of
    modality m and α = ``damping`` (recursive least squares):

        k = P h        P ← P − k kᵀ / (α + hᵀ k)        P ← P / ‖P‖_F

    Predictions weight the modalities' logits by exp(H_max − H_m), H_m the entropy of
    softmax(z_m), normalised: softmax(−H) over modalities. ``damping`` may differ between stacked
    models.

    Differs from the published code: there α falls from 0.1 to 0.01 within each epoch, the
    denominator is the matrix α + k hᵀ instead of the recursion's scalar, the very first step is
    not projected, and entropies are of the softmax over a batch's examples instead of over
    classes. One optimizer is shared by the turns there; here each turn has its own moments of the
    head, and encoders of other modalities run in evaluation mode.
    """

    damping: Tensor
    projection_DD: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        damping: float = 0.1,
        project: int | None = None,
    ) -> None:
        super().__init__(features, classes)
        widths = set(features.values()) if project is None else {project}
        if len(widths) > 1:
            raise InputError(
                "the shared head of mla needs features of equal width, got "
                f"{', '.join(map(str, features.values()))}; set project, or give the encoders "
                "equal widths"
            )
        (width,) = widths
        self.project = None
        if project is not None:
            self.project = nn.ModuleList(
                nn.Sequential(nn.Linear(d, width), nn.ReLU()) for d in features.values()
            )
        self.head = nn.Linear(width, classes)
        self.register_buffer("damping", torch.tensor(float(damping)))
        self.register_buffer("projection_DD", torch.eye(width), persistent=False)

    def forward(self, features: Mapping[str, Tensor]) -> MLAOutputs:
        taken = self.ordered(features)
        if self.project is not None:
            taken = [g(f_BD) for g, f_BD in zip(self.project, taken, strict=True)]
        features_MBD = torch.stack(taken)
        return MLAOutputs(features_MBD, lift(self.head(features_MBD)))

    def loss(self, outputs: MLAOutputs, target_B: Tensor) -> Tensor:
        """Cross-entropy of the modality whose turn it is, (B,)."""
        return cross_entropy(outputs.logits_MBC[self.turn], target_B)

    def modulate(
        self,
        outputs: MLAOutputs,
        target_B: Tensor,  # noqa: ARG002
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        mean_D = lift(outputs.features_MBD[self.turn]).mean(0)
        new_DD = deflated(self.projection_DD, mean_D, self.damping)
        self.projection_DD.copy_(new_DD)
        name = "method.head.weight"
        return {name: gradients["loss"][name] @ new_DD.mT}

    def scores(self, outputs: MLAOutputs) -> Tensor:
        """Logits (B, C), weighted by the certainty of each modality."""
        log_p_MBC = F.log_softmax(outputs.logits_MBC, dim=-1)
        entropy_MB = -(log_p_MBC.exp() * log_p_MBC).sum(-1)
        weights_MB = torch.softmax(-entropy_MB, dim=0)
        return (weights_MB.unsqueeze(-1) * outputs.logits_MBC).sum(0)

    def reports(self, outputs: MLAOutputs) -> Mapping[str, Tensor]:
        """Each modality's own prediction."""
        log_p_MBC = F.log_softmax(outputs.logits_MBC, dim=-1)
        return dict(zip(self.modalities, log_p_MBC.unbind(), strict=True))

    def stages(self) -> tuple[Stage, ...]:
        turns = tuple(
            (self.encoder_prefixes[name], f"method.project.{i}.", "method.head.")
            for i, name in enumerate(self.modalities)
        )
        return (Stage(name="alternating", turns=turns, turn_every="batch"),)


def deflated(projection_DD: Tensor, mean_D: Tensor, damping: Tensor) -> Tensor:
    """P − k kᵀ / (α + hᵀ k) with k = P h, scaled to Frobenius norm 1."""
    k_D = projection_DD @ mean_D
    # P is positive semidefinite, so hᵀ P h is negative by rounding only.
    scale = damping + (mean_D * k_D).sum().clamp(min=0.0)
    new_DD = projection_DD - k_D.unsqueeze(1) * (k_D / scale)
    norm: Tensor = torch.linalg.matrix_norm(new_DD)
    return new_DD / norm.clamp(min=torch.finfo(new_DD.dtype).tiny)
