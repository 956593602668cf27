"""On-the-fly gradient modulation with generalisation enhancement (OGM-GE).

X. Peng, Y. Wei, A. Deng, D. Wang, D. Hu: Balanced Multimodal Learning via On-the-fly Gradient
Modulation, CVPR 2022, arXiv 2203.15332.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modmix.methods.balanced import Balanced, BalancedOutputs, ratios_to_others, true_class_sums
from modmix.methods.draws import Draws


class OGMGE(Balanced):
    """The gradients of a leading modality's encoder are scaled down; all get noise.

    With z_m a modality's share of the fused logits, p_m = softmax(z_m) and sums over the batch,

        s_m = Σ p_m^y        ρ_m = s_m / mean of the other modalities' s
        k_m = 1 − tanh(α ρ_m) if ρ_m > 1, else 1
        g  ->  k_m g + ε,   ε ~ N(0, (noise · std(g))²)

    for the gradient g of every parameter tensor of encoder m, in epochs ``first_epoch`` to
    ``last_epoch`` (from 0, both included). ``noise=0`` is OGM without the enhancement.
    ``tensors="convolutions"`` changes only the weights of convolution layers and other parameters
    of four dimensions; the published code changes only parameters of four dimensions.

    Generalised: the paper has two modalities, where ρ is the ratio of the two sums. A sum below
    1e-8 counts as 1e-8; a tensor of one element has the standard deviation 0. Differs from the
    published code: no 1e-8 is added to the standard deviation.
    """

    alpha: Tensor
    noise: Tensor
    first_epoch: Tensor
    last_epoch: Tensor

    convolution_weights: frozenset[str] = frozenset()  # names, set when the model is built

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        alpha: float = 0.3,
        noise: float = 1.0,
        first_epoch: int = 0,
        last_epoch: int = 50,
        tensors: str = "all",
    ) -> None:
        super().__init__(features, classes)
        self.tensors = tensors
        self.draws = Draws()
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("noise", torch.tensor(float(noise)))
        for name, epoch in (("first_epoch", first_epoch), ("last_epoch", last_epoch)):
            self.register_buffer(name, torch.tensor(float(epoch)), persistent=False)

    def modulate(
        self,
        outputs: BalancedOutputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        given = gradients["loss"]
        on = (self.epoch >= self.first_epoch) & (self.epoch <= self.last_epoch)
        factors_M = factors(true_class_sums(outputs.own_MBC, target_B), self.alpha)
        factors_M = torch.where(on, factors_M, torch.ones_like(factors_M))
        changed: dict[str, Tensor] = {}
        for modality, factor in zip(self.modalities, factors_M.unbind(), strict=True):
            for name in self.of_encoder(given, modality):
                convolves = name in self.convolution_weights or given[name].dim() == 4
                if self.tensors == "all" or convolves:
                    size = on * self.noise * _std(given[name])
                    noise = size * self.draws.normal(*given[name].shape)
                    changed[name] = factor * given[name] + noise
        return changed


def factors(sums_M: Tensor, alpha: Tensor) -> Tensor:
    """k_m of eq. 10, (M,), from the modalities' summed probabilities of the true class."""
    rho_M = ratios_to_others(sums_M)
    return torch.where(rho_M > 1, 1 - torch.tanh(alpha * rho_M), torch.ones_like(rho_M))


def _std(gradient: Tensor) -> Tensor:
    return gradient.flatten().std() if gradient.numel() > 1 else torch.zeros_like(gradient.sum())
