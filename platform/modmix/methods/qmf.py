"""Quality-aware multimodal fusion: logits weighted by an energy-based confidence.

Source: Zhang, Wu, Zhang, Hu, Fu, Zhou and Peng, "Provable Dynamic Fusion for Low-Quality Multimodal
Data", ICML 2023, arXiv 2306.02050.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, cross_entropy, head, hidden_units, lift, pick


class QMFOutputs(NamedTuple):
    """Logits and confidence of each modality, and the fused logits."""

    own_MBC: Tensor
    confidence_MB: Tensor
    logits_BC: Tensor


class QMF(Method):
    """A head per modality; the logits are added, each weighted by its confidence.

    With z_m the logits of modality m, T = ``temperature`` and no gradient through the weights,

        c_m = logsumexp(z_m) / T             z = Σ_m c_m z_m

    The loss of an example is CE(z) + ``unimodal_weight`` Σ_m CE(z_m) + ``rank_weight`` Σ_m r_m.
    The rank loss r_m asks for less confidence in examples with a larger loss so far. κ is the sum
    of CE(z_m) of an example over the training steps before this one, scaled to [0, 1] over the
    training set; j is the next example of the batch (the first one after the last):

        r_m = max(0, sign(κ_i − κ_j) (c_i − c_j) − |κ_i − κ_j|)

    All three hyperparameters may differ between stacked models.

    Agrees with the published code in the order of steps (the rank loss comes before the update of
    κ, as in its scripts for RGB and depth) and in the sign of the margin. Differs from it where all
    κ are equal, as in the first step: here r is 0; the code divides by 0.
    """

    uses_index = True
    temperature: Tensor
    unimodal_weight: Tensor
    rank_weight: Tensor
    history_MN: Tensor  # sum of CE(z_m) of each training example

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        temperature: float = 10.0,
        unimodal_weight: float = 1.0,
        rank_weight: float = 0.1,
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        hidden = hidden_units(depth, width)
        self.heads = nn.ModuleList(head(d, hidden, classes) for d in features.values())
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.register_buffer("unimodal_weight", torch.tensor(float(unimodal_weight)))
        self.register_buffer("rank_weight", torch.tensor(float(rank_weight)))

    def remember(self, rows: int) -> None:
        self.register_buffer("history_MN", torch.zeros(len(self.heads), rows), persistent=False)

    def forward(self, features: Mapping[str, Tensor]) -> QMFOutputs:
        logits = [g(features[m]) for m, g in zip(self.modalities, self.heads, strict=True)]
        own_MBC = lift(torch.stack(logits))
        confidence_MB = own_MBC.logsumexp(-1) / self.temperature
        fused_BC = (confidence_MB.detach().unsqueeze(-1) * own_MBC).sum(0)
        return QMFOutputs(own_MBC, confidence_MB, fused_BC)

    def loss(self, outputs: QMFOutputs, target_B: Tensor) -> Tensor:
        log_p_MBC = F.log_softmax(outputs.own_MBC, dim=-1)
        own_MB = -pick(log_p_MBC, target_B.expand(log_p_MBC.shape[:-1]))
        loss_B = cross_entropy(outputs.logits_BC, target_B) + self.unimodal_weight * own_MB.sum(0)
        if len(self.index) == 0:  # not in a training step
            return loss_B
        rank_MB = rank_loss(outputs.confidence_MB, self._hardness())
        # Under vmap, index_add_ would copy the whole history at every step.
        index_MB = self.index.expand(len(own_MB), -1)
        self.history_MN.scatter_add_(1, index_MB, own_MB.detach().to(self.history_MN.dtype))
        return loss_B + self.rank_weight * rank_MB.sum(0)

    def _hardness(self) -> Tensor:
        """κ of the batch's examples, (M, B) in [0, 1]; 0 if all have the same history."""
        least_M1 = self.history_MN.amin(1, keepdim=True)
        span_M1 = self.history_MN.amax(1, keepdim=True) - least_M1
        own_MB = self.history_MN[:, self.index]
        return (own_MB - least_M1) / torch.where(span_M1 > 0, span_M1, 1.0)

    def reports(self, outputs: QMFOutputs) -> Mapping[str, Tensor]:
        """Each modality's own prediction."""
        log_p_MBC = F.log_softmax(outputs.own_MBC, dim=-1)
        return dict(zip(self.modalities, log_p_MBC.unbind(), strict=True))


def rank_loss(confidence_MB: Tensor, hardness_MB: Tensor) -> Tensor:
    """max(0, sign(κ_i − κ_j) (c_i − c_j) − |κ_i − κ_j|) with j the next example, (M, B)."""
    gap_MB = hardness_MB - hardness_MB.roll(-1, dims=1)
    difference_MB = confidence_MB - confidence_MB.roll(-1, dims=1)
    return F.relu(gap_MB.sign() * difference_MB - gap_MB.abs())
