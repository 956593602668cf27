"""Adaptive gradient modulation (AGM).

H. Li, X. Li, P. Hu, Y. Lei, C. Li, Y. Zhou: Boosting Multi-modal Model Performance with Adaptive
Gradient Modulation, ICCV 2023, arXiv 2308.07686.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modmix.methods.balanced import Balanced, BalancedOutputs, own_cross_entropy

_LARGEST = 10.0  # upper bound of r* − r, as in the published code
_LEAST = 1e-8  # lower bound of probabilities, as in the published code


class AGM(Balanced):
    """Each encoder's gradient is scaled by how its modality's lead differs from its usual lead.

    A modality's response φ_m is its Shapley value: the mean change of the fused logits when its
    features replace zeros, over all orders of the modalities, with 0 for no modality at all. For
    the linear fusion used here it is φ_m = W_m f_m + b/M. Then

        s_m = mean over the batch of log p_m^y,  p_m = softmax(φ_m), p ≥ 1e-8
        r_m = exp( mean over j ≠ m of (s_m − s_j) ),  r*_m the same of the running means of s
        g  ->  exp(α min(r*_m − r_m, 10)) g

    for the gradients of encoder m. The running means are over all earlier batches; before the first
    one r* is 1.

    Generalised: for two modalities the definition is the published code's. Differs from that code:
    features are set to zero instead of inputs, in training mode, so batch norm sees a batch once;
    the factor scales the gradients of the encoder's parameters (there, the gradient at φ_m); all
    epochs are modulated.
    """

    alpha: Tensor
    mean_M: Tensor
    batches: Tensor

    def __init__(self, features: Mapping[str, int], classes: int, *, alpha: float = 1.0) -> None:
        super().__init__(features, classes)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("mean_M", torch.zeros(len(features)))
        self.register_buffer("batches", torch.zeros(()))

    def modulate(
        self,
        outputs: BalancedOutputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        log_p_MB = -own_cross_entropy(outputs.own_MBC, target_B)
        scores_M = log_p_MB.clamp_min(math.log(_LEAST)).mean(-1)
        factors_M = factors(scores_M, self.mean_M, self.alpha)
        self.batches.add_(1)
        self.mean_M.add_((scores_M - self.mean_M) / self.batches)
        given = gradients["loss"]
        return {
            name: factor * given[name]
            for modality, factor in zip(self.modalities, factors_M.unbind(), strict=True)
            for name in self.of_encoder(given, modality)
        }


def factors(scores_M: Tensor, mean_M: Tensor, alpha: Tensor) -> Tensor:
    """exp(α min(r* − r, 10)), (M,), from this batch's scores and their running means."""
    return (alpha * (_leads(mean_M) - _leads(scores_M)).clamp_max(_LARGEST)).exp()


def _leads(scores_M: Tensor) -> Tensor:
    """r_m = exp(mean over j ≠ m of (s_m − s_j)), (M,)."""
    count = len(scores_M)
    return (count / (count - 1) * (scores_M - scores_M.mean())).exp()
