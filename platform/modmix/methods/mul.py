"""Multiplicative combination, eqs. 8-10: a source is down-weighted where the others are right.

`class_losses` (eqs. 8, 9) and `boosted` (eq. 10) are the equations; `Mul` has one classifier per
modality. Sources are given as logits, since log p and log(1 − p) cannot be recovered from
probabilities that round to 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, head, hidden_units, lift


class MulOutputs(NamedTuple):
    """Logits of each source, and the combined loss ℓ^k of each class."""

    logits_SCB: Tensor
    losses_CB: Tensor


class Multiplicative(Method):
    """Base class of `Mul` and `MulMix`: named sources, combined by eqs. 8-10.

    ``margin`` is δ of eq. 10; None means +∞, so that every example counts. ``weights`` is by source
    name, 1 by default. With ``detach_weights`` no gradient flows through q and the focal factor.
    """

    beta: Tensor
    margin: Tensor
    alpha: Tensor
    weights_S: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        sources: Sequence[str],
        *,
        beta: float,
        margin: float | None,
        detach_weights: bool,
        alpha: float,
        weights: Mapping[str, float] | None,
    ) -> None:
        super().__init__(features, classes)
        assert len(sources) > 1, sources
        assert set(weights or {}) <= set(sources), (sources, weights)
        self.sources = tuple(sources)
        self.detach_weights = detach_weights
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.register_buffer("margin", torch.tensor(math.inf if margin is None else float(margin)))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        by_name = weights or {}
        self.register_buffer("weights_S", torch.tensor([by_name.get(s, 1.0) for s in sources]))

    def combine(self, logits: Sequence[Tensor]) -> MulOutputs:
        """Combine the logits of the sources, (B, C) each, into a loss per class."""
        logits_SCB = torch.stack([logits_BC.mT for logits_BC in logits])
        losses_CB = class_losses(
            logits_SCB, self.beta, self.alpha, self.weights_S, detach=self.detach_weights
        )
        return MulOutputs(logits_SCB, losses_CB)

    def loss(self, outputs: MulOutputs, target_B: Tensor) -> Tensor:
        return boosted(outputs.losses_CB, target_B, self.margin)

    def scores(self, outputs: MulOutputs) -> Tensor:
        """−ℓ^k, (B, C): the class with the smallest loss is predicted (eq. 7)."""
        return -outputs.losses_CB.mT.contiguous()

    def log_probabilities(self, outputs: MulOutputs) -> Tensor:
        """log softmax(−ℓ / Σw), (B, C); uniform if all weights are 0.

        Dividing by Σw keeps S agreeing sources from sharpening the probabilities S-fold. The argmax
        is the same as that of the scores.
        """
        total = self.weights_S.sum()
        scale = torch.where(total > 0, total, torch.ones_like(total))
        return F.log_softmax(lift(-outputs.losses_CB) / scale, dim=0).mT.contiguous()


class Mul(Multiplicative):
    """One source per modality: a classifier on that modality's features."""

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        beta: float = 1.0,
        margin: float | None = None,
        detach_weights: bool = True,
        alpha: float = 0.0,
        weights: Mapping[str, float] | None = None,
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(
            features,
            classes,
            tuple(features),
            beta=beta,
            margin=margin,
            detach_weights=detach_weights,
            alpha=alpha,
            weights=weights,
        )
        hidden = hidden_units(depth, width)
        self.heads = nn.ModuleList(head(d, hidden, classes) for d in features.values())

    def forward(self, features: Mapping[str, Tensor]) -> MulOutputs:
        logits = [g(features[m]) for m, g in zip(self.modalities, self.heads, strict=True)]
        return self.combine(logits)


def class_losses(
    logits_SCB: Tensor, beta: Tensor, alpha: Tensor, weights_S: Tensor, *, detach: bool
) -> Tensor:
    """ℓ^k = −Σ_i w_i q_i^k (1−p_i^k)^α log p_i^k for every class k, (C, B); eqs. 8, 9.

    q_i^k = [∏_{j≠i} (1−p_j^k)]^{β/(S−1)}, which is exactly 1 at β = 0. Values and gradients are
    finite for logits up to ±1e4. Half precision is computed in float32. The class axis comes before
    the batch axis because reducing a short last axis is several times slower on a CPU.
    """
    with _without_autocast(logits_SCB.device.type):  # it would use half precision
        sources = logits_SCB.shape[0]
        log_p_SCB = F.log_softmax(lift(logits_SCB), dim=1)
        log_rest_SCB = log_one_minus(
            log_p_SCB.detach() if detach else log_p_SCB, dim=1, constant=detach
        )
        # One matrix product applies q and the focal factor, for fewer passes over (S, C, B). It
        # sums over j ≠ i: total minus own term would cancel catastrophically for large terms.
        one_SS = torch.eye(sources, dtype=log_p_SCB.dtype, device=log_p_SCB.device)
        powers_SS = beta / (sources - 1) * (1.0 - one_SS) + alpha * one_SS
        exponents = exact_product(powers_SS, log_rest_SCB.flatten(1))
        q_SCB = exponents.exp().view_as(log_p_SCB)
        weights_1S = weights_S.to(log_p_SCB.dtype).unsqueeze(0)
        weighted = exact_product(weights_1S, (q_SCB * log_p_SCB).flatten(1))
        return -weighted.view(log_p_SCB.shape[1:])


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # Autocast is not available on "meta", the device used for counting FLOPs.
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def exact_product(left_RS: Tensor, right_SN: Tensor) -> Tensor:
    """``left @ right``, (R, N), in full float32 even if TF32 is enabled on the GPU.

    TF32 has a 10-bit mantissa: an exponent of 100 would be off by 0.05, and q by 5 %. The sum is
    over a few sources S, so a broadcast product is cheap.
    """
    if right_SN.device.type == "cpu":
        return left_RS @ right_SN
    return (left_RS.unsqueeze(-1) * right_SN).sum(1)


def log_one_minus(log_p: Tensor, dim: int, *, constant: bool = False) -> Tensor:
    """log(1 − p) from log-probabilities over at least two classes along ``dim``.

    Also accurate for a class whose p rounds to 1: there it is the logsumexp of all other classes.
    The gradient is bounded. ``constant`` is for inputs that need no gradient: it is faster and has
    an absolute instead of a relative error of 2e-7, which is as good for q, its exponential.
    """
    # p > 0.502, which holds for at most one class.
    likely = log_p > -0.69
    others = log_p.masked_fill(likely, -math.inf)
    of_likely = others.logsumexp(dim, keepdim=True)
    # Here p = 0 for the likely class: log(1 − p) would have an infinite gradient at p = 1.
    p = others.exp()
    # torch.log1p takes twelve times as long as torch.log on a CPU.
    return torch.where(likely, of_likely, (1.0 - p).log() if constant else torch.log1p(-p))


def boosted(losses_CB: Tensor, target_B: Tensor, margin: Tensor) -> Tensor:
    """Boosted loss (eq. 10), (B,): ℓ^y, or 0 where ℓ^y + δ < ℓ^k for every other class k."""
    own_1B = losses_CB.gather(0, target_B.unsqueeze(0))
    classes_C1 = torch.arange(losses_CB.shape[0], device=losses_CB.device).unsqueeze(1)
    settled_B = ((own_1B + margin < losses_CB) | (classes_C1 == target_B)).all(0)
    return own_1B.squeeze(0).masked_fill(settled_B, 0.0)
