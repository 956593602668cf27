"""Prototypical modal rebalance (PMR).

Y. Fan, W. Xu, H. Wang, J. Wang, S. Guo: PMR: Prototypical Modal Rebalance for Multimodal Learning,
CVPR 2023, arXiv 2211.07089.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modmix.methods.balanced import (
    Balanced,
    own_cross_entropy,
    ratios_to_others,
    true_class_sums,
)
from modmix.methods.base import Pass, State, cross_entropy, lift


class PMROutputs(NamedTuple):
    """Fused logits, each modality's share of them, and its prototype classifier's logits."""

    logits_BC: Tensor
    own_MBC: Tensor
    prototypes_MBC: Tensor


class PMR(Balanced):
    """Slower modalities are also trained to be close to the prototype of their class.

    The prototype c_m^k is the mean feature of modality m over the training examples of class k. A
    classifier by prototypes has the logits −|f_m − c_m^k|; with its probabilities p_m,

        s_m = Σ p_m^y        ρ_m = s_m / mean of the other modalities' s         (over the batch)
        loss = CE(z) + α Σ_m [ρ_m < 1] CE(−|f_m − c_m|)

    The prototypes are computed before every epoch, in evaluation mode, and from the second epoch on
    averaged with the old ones: c ← (1 − keep) c_new + keep c. A class without examples has the
    prototype 0. The gradient of the distance is 0 at distance 0.

    Generalised: the paper and its code have two modalities, where ρ is the ratio of the two sums
    and one modality is the slower one. Differs from the published code: prototypes are means over
    all training examples (there: over a tenth of the batches), averaging starts one epoch
    earlier, and the loss has this form in all epochs. As in that code, there is no entropy
    regularisation in early epochs, and the slower modality's weight is α.
    """

    alpha: Tensor
    keep: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        alpha: float = 1.0,
        keep: float = 0.2,
    ) -> None:
        super().__init__(features, classes)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("keep", torch.tensor(float(keep)))
        for i, width in enumerate(features.values()):
            self.register_buffer(_buffer(i), torch.zeros(classes, width))

    def forward(self, features: Mapping[str, Tensor]) -> PMROutputs:  # type: ignore[override]
        outputs = super().forward(features)
        near = [
            -_distances(lift(f_BD), self.get_buffer(_buffer(i)))
            for i, f_BD in enumerate(self.ordered(features))
        ]
        return PMROutputs(outputs.logits_BC, outputs.own_MBC, torch.stack(near))

    def loss(self, outputs: PMROutputs, target_B: Tensor) -> Tensor:  # type: ignore[override]
        near_MB = own_cross_entropy(outputs.prototypes_MBC, target_B)
        sums_M = true_class_sums(outputs.prototypes_MBC.detach(), target_B)
        slower_M = (ratios_to_others(sums_M) < 1).to(near_MB.dtype)
        extra_B = (slower_M.unsqueeze(1) * near_MB).sum(0)
        return cross_entropy(outputs.logits_BC, target_B) + self.alpha * extra_B

    def passes(self, epoch: int) -> Sequence[Pass]:
        def start() -> State:
            sums = {_buffer(i): torch.zeros_like(old) for i, old in enumerate(self._prototypes())}
            return {**sums, "count_C": torch.zeros_like(sums[_buffer(0)][:, 0])}

        def step(state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
            classes_C = torch.arange(self.classes, device=target_B.device)
            is_class_CB = (classes_C.unsqueeze(1) == target_B).to(state["count_C"].dtype)
            new = {"count_C": state["count_C"] + is_class_CB.sum(1)}
            for i, f_BD in enumerate(self.ordered(features)):
                new[_buffer(i)] = state[_buffer(i)] + is_class_CB @ lift(f_BD)
            return new

        def finish(state: State) -> Mapping[str, Tensor]:
            count_C1 = state["count_C"].clamp_min(1).unsqueeze(1)
            kept = self.keep if epoch > 0 else torch.zeros_like(self.keep)
            return {
                _buffer(i): (1 - kept) * state[_buffer(i)] / count_C1 + kept * old_CD
                for i, old_CD in enumerate(self._prototypes())
            }

        return (Pass(start=start, step=step, finish=finish),)

    def _prototypes(self) -> list[Tensor]:
        return [self.get_buffer(_buffer(i)) for i in range(len(self.modalities))]


def _buffer(index: int) -> str:
    return f"prototypes{index}_CD"


def _distances(x_BD: Tensor, y_CD: Tensor) -> Tensor:
    """Euclidean distances (B, C), without the cancellation of |x|² + |y|² − 2 x·y."""
    return torch.cdist(x_BD, y_CD.to(x_BD.dtype), compute_mode="donot_use_mm_for_euclid_dist")
