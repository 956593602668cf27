"""Boosting over modalities: each corrects the ensemble of the others.

Source: Hua, Xu, Bao, Yang and Huang, "ReconBoost: Boosting Can Achieve Modality Reconcilement",
ICML 2024, arXiv 2405.09321.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import (
    Method,
    Stage,
    cross_entropy,
    head,
    hidden_units,
    lift,
    pick,
)
from modmix.methods.patient import PatientStage


class ReconBoostOutputs(NamedTuple):
    """Logits of each modality, and of the ensemble, their sum."""

    own_MBC: Tensor
    logits_BC: Tensor


class ReconBoost(Method):
    """Modalities are trained in alternation, in turns of ``turn_epochs`` epochs, 2 M per cycle.

    In turn 2 m, encoder and head of modality m learn what the fixed ensemble of the others has not
    learned yet: with q = softmax(Σ_{j ≠ m} z_j), the target is y − λ y ⊙ q, which is a weighted
    cross-entropy,

        (1 − ``reconcile`` q^y) CE(softmax(z_m), y)

    In turn 2 m + 1, all modalities correct the ensemble jointly by CE(softmax(Σ_j z_j), y). With
    ``reconcile`` (λ) 0 the modalities are trained alone in their turns; it may differ between
    stacked models. Patience counts from the end of the first cycle on.

    Differs from the published code: its loss is (5 − q^y) CE / C, a constant factor apart from
    λ = 0.2; it has four epochs per turn, each turn with a fresh optimizer, while here turns keep
    their moments for the next cycle; its first turn has an empty ensemble or pretrained unimodal
    models; its heads share their layers and a learned factor scales the ensemble;
    modules that are not trained run in training mode there. Its agreement term has no gradient
    there and is left out.
    """

    reconcile: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        reconcile: float = 0.2,
        turn_epochs: int = 1,
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        hidden = hidden_units(depth, width)
        self.heads = nn.ModuleList(head(d, hidden, classes) for d in features.values())
        self.register_buffer("reconcile", torch.tensor(float(reconcile)))
        self.turn_epochs = turn_epochs

    def forward(self, features: Mapping[str, Tensor]) -> ReconBoostOutputs:
        logits = [g(features[m]) for m, g in zip(self.modalities, self.heads, strict=True)]
        own_MBC = lift(torch.stack(logits))
        return ReconBoostOutputs(own_MBC, own_MBC.sum(0))

    def loss(self, outputs: ReconBoostOutputs, target_B: Tensor) -> Tensor:
        """The loss of the modality whose turn it is, or of the ensemble, (B,)."""
        modality, correcting = divmod(self.turn, 2)
        if correcting:
            return cross_entropy(outputs.logits_BC, target_B)
        own = outputs.own_MBC.unbind()
        others_BC = torch.stack([z for j, z in enumerate(own) if j != modality]).sum(0).detach()
        q_B = pick(F.softmax(others_BC, dim=-1), target_B)
        return (1.0 - self.reconcile * q_B) * cross_entropy(own[modality], target_B)

    def reports(self, outputs: ReconBoostOutputs) -> Mapping[str, Tensor]:
        """Each modality's own prediction."""
        log_p_MBC = F.log_softmax(outputs.own_MBC, dim=-1)
        return dict(zip(self.modalities, log_p_MBC.unbind(), strict=True))

    def stages(self) -> tuple[Stage, ...]:
        alone = [
            (self.encoder_prefixes[name], f"method.heads.{i}.")
            for i, name in enumerate(self.modalities)
        ]
        everything = tuple(prefix for turn in alone for prefix in turn)
        turns = tuple(prefixes for turn in alone for prefixes in (turn, everything))
        epochs = self.turn_epochs
        return (
            PatientStage(
                name="boosting",
                turns=turns,
                turn_every="epoch",
                turn_epochs=epochs,
                patience_from=len(turns) * epochs,
            ),
        )
