"""Multiplicative combination, eqs. 8-10: a source's loss shrinks where the others are right.

`class_losses` and `boosted` are the equations; `Mul` puts a classifier on every modality. Sources
are logits everywhere: probabilities of 0 and 1 would have lost what is needed.
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
    """Logits of every source and the loss that each class would have."""

    logits_SCB: Tensor
    losses_CB: Tensor


class Multiplicative(Method):
    """What `Mul` and `MulMix` share: sources with names, combined by eqs. 8-10.

    ``margin`` (δ of eq. 10) null is +∞: every example counts. ``weights`` by source name default
    to 1. With ``detach_weights`` no gradient flows through q and the focal factor.
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
        """Sources' logits, (B, C) each, become the loss of every class."""
        logits_SCB = torch.stack([logits_BC.mT for logits_BC in logits])
        losses_CB = class_losses(
            logits_SCB, self.beta, self.alpha, self.weights_S, detach=self.detach_weights
        )
        return MulOutputs(logits_SCB, losses_CB)

    def loss(self, outputs: MulOutputs, target_B: Tensor) -> Tensor:
        return boosted(outputs.losses_CB, target_B, self.margin)

    def scores(self, outputs: MulOutputs) -> Tensor:
        """−ℓ^k: the class with the smallest loss is predicted (eq. 7)."""
        return -outputs.losses_CB.mT.contiguous()

    def log_probabilities(self, outputs: MulOutputs) -> Tensor:
        """log softmax(−ℓ/Σw): S agreeing sources shall not sharpen the probabilities S-fold.

        The argmax is that of the scores. Where all weights are 0, so are all losses: uniform.
        """
        total = self.weights_S.sum()
        scale = torch.where(total > 0, total, torch.ones_like(total))
        return F.log_softmax(lift(-outputs.losses_CB) / scale, dim=0).mT.contiguous()


class Mul(Multiplicative):
    """Every modality is a source with its own classifier on its own features."""

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

    q_i^k = [∏_{j≠i} (1−p_j^k)]^{β/(S−1)} is exactly 1 at β = 0. Values and gradients are finite
    for logits up to ±1e4. Shorter types than float32 are lifted to it. Classes come before
    examples because sums over a short last axis are several times slower on a CPU.
    """
    with _without_autocast(logits_SCB.device.type):  # it would shorten the products
        sources = logits_SCB.shape[0]
        log_p_SCB = F.log_softmax(lift(logits_SCB), dim=1)
        log_rest_SCB = log_one_minus(
            log_p_SCB.detach() if detach else log_p_SCB, dim=1, constant=detach
        )
        # Both factors as one matrix: fewer passes over all classes and examples. A sum over the
        # others, not that of all less one's own, which would lose every digit of a large term.
        one_SS = torch.eye(sources, dtype=log_p_SCB.dtype, device=log_p_SCB.device)
        powers_SS = beta / (sources - 1) * (1.0 - one_SS) + alpha * one_SS
        exponents = exact_product(powers_SS, log_rest_SCB.flatten(1))
        q_SCB = exponents.exp().view_as(log_p_SCB)
        weights_1S = weights_S.to(log_p_SCB.dtype).unsqueeze(0)
        weighted = exact_product(weights_1S, (q_SCB * log_p_SCB).flatten(1))
        return -weighted.view(log_p_SCB.shape[1:])


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # "meta", where operations are counted, has no autocast that could be switched off.
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def exact_product(left_RS: Tensor, right_SN: Tensor) -> Tensor:
    """``left @ right`` (R, N) in full float32, also where a GPU's products are TF32.

    TF32 keeps 10 bits of a factor: an exponent of 100 would be wrong by 0.05, and q by 5 %. The sum
    is over S sources (few), so that a product of its own costs little.
    """
    if right_SN.device.type == "cpu":
        return left_RS @ right_SN
    return (left_RS.unsqueeze(-1) * right_SN).sum(1)


def log_one_minus(log_p: Tensor, dim: int, *, constant: bool = False) -> Tensor:
    """log(1 − p) from log-probabilities that sum to one over ``dim`` (two classes or more).

    Exact for a class whose p rounds to 1 too: there it is the log of the sum of all others. The
    gradient is bounded. With ``constant`` there is none, and it is faster: right to 2e-7, not to as
    much of a small value; for a factor like q, which is the exponential of it, that is the same.
    """
    # At most one class of a source can be above 0.502.
    likely = log_p > -0.69
    others = log_p.masked_fill(likely, -math.inf)
    of_likely = others.logsumexp(dim, keepdim=True)
    # The likely class is kept out of the logarithm, whose gradient at p = 1 would be infinite.
    p = others.exp()
    # torch.log1p takes twelve times as long as torch.log on a processor.
    return torch.where(likely, of_likely, (1.0 - p).log() if constant else torch.log1p(-p))


def boosted(losses_CB: Tensor, target_B: Tensor, margin: Tensor) -> Tensor:
    """Eq. 10, (B,): ℓ^y, but 0 where ℓ^y + δ is smaller than every other class's loss."""
    own_1B = losses_CB.gather(0, target_B.unsqueeze(0))
    classes_C1 = torch.arange(losses_CB.shape[0], device=losses_CB.device).unsqueeze(1)
    settled_B = ((own_1B + margin < losses_CB) | (classes_C1 == target_B)).all(0)
    return own_1B.squeeze(0).masked_fill(settled_B, 0.0)
