"""Disentangled gradient learning (DGL).

S. Wei, C. Luo, Y. Luo: Boosting Multimodal Learning via Disentangled Gradient Learning, ICCV 2025,
arXiv 2507.10213.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modmix.methods.balanced import Balanced, BalancedOutputs, own_cross_entropy
from modmix.methods.base import cross_entropy


class DGL(Balanced):
    """Unimodal losses train the encoders only, the fused loss trains the fusion only.

        z = W sg[f_1; …; f_M] + b        z_m = sg(W_m) f_m + sg(b)        (sg: stop-gradient)
        loss = CE(z) + α Σ_m CE(z_m)

    z_m are the fused logits with the features of all other modalities set to 0. So the gradient of
    the fused loss reaches no encoder, and the gradients of the unimodal losses do not reach the
    fusion. Any number of modalities: nothing in the definition is specific to two. Differs from the
    published code: the code also clips the gradient norm at 40 (training setting ``clip_norm``).
    """

    alpha: Tensor

    def __init__(self, features: Mapping[str, int], classes: int, *, alpha: float = 4.0) -> None:
        super().__init__(features, classes)
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def forward(self, features: Mapping[str, Tensor]) -> BalancedOutputs:
        parts = self.ordered(features)
        fused_BC = self.fusion([f_BD.detach() for f_BD in parts])
        return BalancedOutputs(fused_BC, self.fusion.alone(parts))

    def loss(self, outputs: BalancedOutputs, target_B: Tensor) -> Tensor:
        own_B = own_cross_entropy(outputs.own_MBC, target_B).sum(0)
        return cross_entropy(outputs.logits_BC, target_B) + self.alpha * own_B
