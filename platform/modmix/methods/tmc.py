"""Trusted multi-view classification: evidence per modality, combined by Dempster's rule.

Source: Han, Zhang, Fu and Zhou, "Trusted Multi-View Classification", ICLR 2021, arXiv 2102.02051.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, head, hidden_units, lift, pick

# Largest log(1 + e/C) of the combined evidence. Larger evidence would overflow float32 in the
# gradients; only four or more modalities with logits in the thousands reach it.
_LARGEST_LOG = 40.0
_SERIES_FROM = 8.0  # from here on Stirling's series is accurate to 3e-10


class TMCOutputs(NamedTuple):
    """Evidence of each modality and of their combination, ≥ 0."""

    evidence_MBC: Tensor
    combined_BC: Tensor


class TMC(Method):
    """A Dirichlet distribution over class probabilities per modality, and their combination.

    A head gives logits z_m, and e_m = softplus(z_m) is the evidence for each class. It defines
    the Dirichlet distribution with concentration α_m = e_m + 1 and strength S_m = Σ_k α_m^k,
    the beliefs b_m^k = e_m^k / S_m and the uncertainty u_m = C / S_m. Dempster's rule combines
    the beliefs of all modalities, see `combined_evidence`. The loss is, over the M modalities and
    the combination,

        Σ_v  ψ(S_v) − ψ(α_v^y) + λ KL(Dir(α̃_v) ‖ Dir(1)),     α̃_v = 1 + e_v without class y,

    λ = min(1, t / ``annealing_epochs``) in epoch t = 1, 2, …. Predictions are the mean α / S of
    the combined distribution. ``annealing_epochs`` may differ between stacked models.

    Equals the published code, which combines modalities one after another and divides by
    1 − conflict; here the division cancels, so that total conflict is defined.
    """

    annealing_epochs: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        annealing_epochs: float = 50.0,
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        hidden = hidden_units(depth, width)
        self.heads = nn.ModuleList(head(d, hidden, classes) for d in features.values())
        self.register_buffer("annealing_epochs", torch.tensor(float(annealing_epochs)))

    def forward(self, features: Mapping[str, Tensor]) -> TMCOutputs:
        logits = [g(features[m]) for m, g in zip(self.modalities, self.heads, strict=True)]
        evidence_MBC = F.softplus(lift(torch.stack(logits)))
        return TMCOutputs(evidence_MBC, combined_evidence(evidence_MBC))

    def loss(self, outputs: TMCOutputs, target_B: Tensor) -> Tensor:
        # 1 from the start with annealing_epochs = 0: x / 0 is infinite.
        weight = ((self.epoch + 1) / self.annealing_epochs).clamp(max=1.0)
        evidence_VBC = torch.cat([outputs.evidence_MBC, outputs.combined_BC.unsqueeze(0)])
        others_BC = torch.arange(self.classes, device=target_B.device) != target_B.unsqueeze(-1)
        fit_VB = expected_cross_entropy(evidence_VBC, target_B)
        return (fit_VB + weight * divergence_from_uniform(evidence_VBC * others_BC)).sum(0)

    def scores(self, outputs: TMCOutputs) -> Tensor:
        """Logarithm of the mean α / S of the combined Dirichlet distribution, (B, C)."""
        return log_mean(outputs.combined_BC)

    def log_probabilities(self, outputs: TMCOutputs) -> Tensor:
        return self.scores(outputs)

    def reports(self, outputs: TMCOutputs) -> Mapping[str, Tensor]:
        """Each modality's own prediction, the mean of its Dirichlet distribution."""
        means = (log_mean(evidence_BC) for evidence_BC in outputs.evidence_MBC.unbind())
        return dict(zip(self.modalities, means, strict=True))


def combined_evidence(evidence_MBC: Tensor) -> Tensor:
    """Evidence of all modalities by Dempster's rule (eqs. 4, 5 of the paper), (B, C).

    For two modalities b = (b_1 b_2 + b_1 u_2 + b_2 u_1) / (1 − conflict) for each class and
    u = u_1 u_2 / (1 − conflict). With e / C = b / u the denominator cancels, which leaves
    1 + e / C = Π_m (1 + e_m / C) in any order of the modalities.
    """
    classes = evidence_MBC.shape[-1]
    log_BC = torch.log1p(evidence_MBC / classes).sum(0).clamp(max=_LARGEST_LOG)
    return classes * torch.expm1(log_BC)


def log_mean(evidence_BC: Tensor) -> Tensor:
    """Logarithm of the mean of the Dirichlet distribution with this evidence, (B, C)."""
    return F.log_softmax(torch.log1p(evidence_BC), dim=-1)


def expected_cross_entropy(evidence_VBC: Tensor, target_B: Tensor) -> Tensor:
    """E[−log p^y] = ψ(S) − ψ(α^y) for p of the Dirichlet distribution with α = e + 1, (V, B)."""
    alpha_VBC = evidence_VBC + 1.0
    target_VB = target_B.expand(alpha_VBC.shape[:-1])
    own_VB = pick(alpha_VBC, target_VB)
    classes_C = torch.arange(alpha_VBC.shape[-1], device=target_B.device)
    others_VB = (alpha_VBC * (classes_C != target_B.unsqueeze(-1))).sum(-1)
    of_total = _residues(own_VB + others_VB)[1]
    return torch.log1p(others_VB / own_VB) + of_total - _residues(own_VB)[1]


def divergence_from_uniform(evidence_VBC: Tensor) -> Tensor:
    """KL(Dir(e + 1) ‖ Dir(1)), (V, B).

    The textbook formula log Γ(S) − log Γ(C) − Σ log Γ(α) + Σ e (ψ(α) − ψ(S)) is a difference of
    terms of size S log S, so in float32 its error exceeds 1 from S = 10⁶ on. Subtracting Stirling's
    approximations analytically leaves terms of size log S.
    """
    classes = evidence_VBC.shape[-1]
    alpha_VBC = evidence_VBC + 1.0
    total_VB = alpha_VBC.sum(-1)
    gamma_VBC, digamma_VBC = _residues(alpha_VBC)
    gamma_VB, digamma_VB = _residues(total_VB)
    constant = 0.5 * (1 - classes) * math.log(2 * math.pi) - math.lgamma(classes)
    logs_VB = (classes - 0.5) * total_VB.log() - 0.5 * alpha_VBC.log().sum(-1)
    of_classes_VB = (evidence_VBC * digamma_VBC - gamma_VBC).sum(-1)
    return constant + logs_VB + of_classes_VB + gamma_VB - evidence_VBC.sum(-1) * digamma_VB


def _residues(x: Tensor) -> tuple[Tensor, Tensor]:
    """Remainders of Stirling's approximations of log Γ and ψ, for x ≥ 1:

    log Γ(x) − [(x − ½) log x − x + ½ log 2π] and ψ(x) − log x.
    """
    small, inverse = x.clamp(max=_SERIES_FROM), 1.0 / x.clamp(min=_SERIES_FROM)
    main = (small - 0.5) * small.log() - small + 0.5 * math.log(2 * math.pi)
    square = inverse * inverse
    gamma = inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    digamma = -inverse * (0.5 + inverse * (1 / 12 - square * (1 / 120 - square / 252)))
    near = x < _SERIES_FROM
    return (
        torch.where(near, torch.lgamma(small) - main, gamma),
        torch.where(near, torch.digamma(small) - small.log(), digamma),
    )
