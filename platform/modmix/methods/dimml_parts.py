"""The parts of `dimml` as functions of tensors: DUC, dimension selection, weighting, heads.

Shapes: B batch, C classes, D features, M modalities, K classifiers. Everything may run under
`torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from modmix.methods.base import lift

# ---------------------------------------------------------------- DUC


def contrast(student_BD: Tensor, teacher_BD: Tensor, chosen_D: Tensor, tau: Tensor) -> Tensor:
    """Unidirectional contrastive loss of every student on the chosen dimensions, (B,).

    Cross-entropy over the batch of the dot products f_u[D]·f_t[D] / τ, with the example's own
    partner as the target. The teacher gets no gradient. 0 if no dimension is chosen, and for a
    batch of one example. Half precision is computed in float32.

    Args:
        student_BD: features f_u of the modality that learns.
        teacher_BD: features f_t of the modality that it learns from.
        chosen_D: mask D_{t→u} of the dimensions that take part.
        tau: temperature, a scalar.
    """
    with _without_autocast(student_BD.device.type):  # it would use half precision
        student_BD, teacher_BD = lift(student_BD), lift(teacher_BD.detach())
        logits_BB = (student_BD * chosen_D) @ teacher_BD.mT / tau
        loss_B = logits_BB.logsumexp(-1) - logits_BB.diagonal(dim1=-2, dim2=-1)
        return torch.where(chosen_D.any(), loss_B, torch.zeros_like(loss_B))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # Autocast is not available on "meta", the device used for counting FLOPs.
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def pairs(modalities: int, directions: str) -> list[tuple[int, int]]:
    """The (teacher, student) pairs of modality indices.

    ``directions``: "both", or "forward" if only earlier modalities teach later ones, or "backward"
    if only later ones teach earlier ones.
    """
    every = [(t, u) for t in range(modalities) for u in range(modalities) if t != u]
    if directions == "both":
        return every
    return [(t, u) for t, u in every if (t < u) == (directions == "forward")]


# ---------------------------------------------------------------- dimension selection


def class_sums(features_BD: Tensor, target_B: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums of the features by class (C, D) and examples by class (C,), in float64."""
    labels_C = torch.arange(classes, device=target_B.device)
    member_CB = (labels_C.unsqueeze(1) == target_B).double()
    return member_CB @ features_BD.double(), member_CB.sum(1)


def class_means(sums_MCD: Tensor, counts_C: Tensor) -> Tensor:
    """Means by class (M, C, D); infinite for classes without examples, so that none is near."""
    counts_C1 = counts_C.unsqueeze(1)
    return torch.where(counts_C1 > 0, sums_MCD / counts_C1.clamp(min=1), math.inf)


def count_correct(features_BD: Tensor, means_CD: Tensor, target_B: Tensor) -> Tensor:
    """How many examples each dimension alone classifies correctly, (D,) int64.

    Dimension d predicts the class whose mean is nearest to the example's value, the first of
    several that are equally near. One class at a time, in O(B D) memory.
    """
    features_BD = lift(features_BD)
    means_CD = means_CD.to(features_BD.dtype)
    nearest_BD = torch.full_like(features_BD, math.inf)
    right_BD = torch.zeros_like(features_BD, dtype=torch.bool)
    for label, means_D in enumerate(means_CD.unbind()):
        distance_BD = (features_BD - means_D).abs()
        right_BD = torch.where(distance_BD < nearest_BD, (target_B == label)[:, None], right_BD)
        nearest_BD = torch.minimum(nearest_BD, distance_BD)
    return right_BD.sum(0)


def above_mean(correct_MD: Tensor) -> Tensor:
    """Which counts are strictly above their modality's mean, compared in integers; (M, D)."""
    return correct_MD * correct_MD.shape[-1] > correct_MD.sum(-1, keepdim=True)


# ---------------------------------------------------------------- predictions


def weighted(logits_KBC: Tensor, temperature: Tensor) -> Tensor:
    """Σ_k w_k z_k with w = softmax over k of (max softmax(z_k) / T), (B, C)."""
    logits_KBC = lift(logits_KBC)
    certainty_KB = logits_KBC.softmax(-1).amax(-1)
    weights_KB = (certainty_KB / temperature).softmax(0)
    return (weights_KB.unsqueeze(-1) * logits_KBC).sum(0)


class FusionHead(nn.Module):
    """Maps the modalities' features, (B, D) each, to logits (B, C).

    ``concat``: W [f_1; …; f_M]. ``sum``: Σ_m W_m f_m. In ``film`` and ``gated`` the first modality
    modulates the others: W Σ_{m>1} (γ_m ⊙ f_m + β_m) with [γ_m; β_m] = U_m f_1, and
    W (σ(U_1 f_1) ⊙ Σ_{m>1} U_m f_m). All layers have biases, initialised to 0; the
    initialisation of the weights is Xavier normal.
    """

    def __init__(self, kind: str, modalities: int, width: int, classes: int) -> None:
        super().__init__()
        self.kind = kind
        inner = {
            "concat": [],
            "sum": [classes] * modalities,
            "film": [2 * width] * (modalities - 1),
            "gated": [width] * modalities,
        }[kind]
        self.inner = nn.ModuleList(nn.Linear(width, units) for units in inner)
        merged = width * modalities if kind == "concat" else width
        self.out = None if kind == "sum" else nn.Linear(merged, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        merged: Tensor = getattr(self, f"_{self.kind}")(features)
        return merged if self.out is None else self.out(merged)

    def _concat(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(features), dim=-1)

    def _sum(self, features: Sequence[Tensor]) -> Tensor:
        parts = [layer(f_BD) for layer, f_BD in zip(self.inner, features, strict=True)]
        return torch.stack(parts).sum(0)

    def _film(self, features: Sequence[Tensor]) -> Tensor:
        first_BD, *others = features
        parts = []
        for layer, f_BD in zip(self.inner, others, strict=True):
            gamma_BD, beta_BD = layer(first_BD).chunk(2, dim=-1)
            parts.append(gamma_BD * f_BD + beta_BD)
        return torch.stack(parts).sum(0)

    def _gated(self, features: Sequence[Tensor]) -> Tensor:
        first_BD, *others = [layer(f_BD) for layer, f_BD in zip(self.inner, features, strict=True)]
        gated_BD: Tensor = first_BD.sigmoid() * torch.stack(others).sum(0)
        return gated_BD
