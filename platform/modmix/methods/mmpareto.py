"""MMPareto: Pareto integration of multimodal and unimodal gradients.

Y. Wei, D. Hu: MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance, ICML 2024,
arXiv 2405.17730.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modmix.methods.balanced import BalancedOutputs, OwnHeads, own_cross_entropy
from modmix.methods.base import cross_entropy

_JOINT, _OWN = "joint", "own/"  # names of the losses; "own/" is followed by the modality
_LEAST_WEIGHT = 1e-3  # of either gradient, as in the published solver
_CANCELLED = 1e-6  # combined gradients below this fraction of the given ones are rounding errors

Gradients = Sequence[Tensor]


class MMPareto(OwnHeads):
    """Joint and unimodal losses; each encoder's update direction serves both of its losses.

        loss = CE(z) + Σ_m CE(h_m(f_m))          z the fused logits, h_m linear

    For encoder m, with gradients g of the joint loss and u of its own loss:

        w = 1/2 if g·u > 0, else the minimum of |w g + (1 − w) u| over 0.001 ≤ w ≤ 0.999
        h = 2 w g + 2 (1 − w) u
        new gradient = γ max(1, |g + u| / |h|) h

    With ``norm="encoder"`` norms are over all parameters of an encoder, with ``norm="tensor"``
    over each tensor, as in the published code. Where h vanishes (|h| ≤ 1e-6 (|g| + |u|), opposite
    gradients) no direction serves both, and the new gradient is 0. Any number of modalities: the
    definition treats each encoder by itself.
    """

    gamma: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        gamma: float = 1.5,
        norm: str = "encoder",
    ) -> None:
        super().__init__(features, classes)
        self.norm = norm
        self.register_buffer("gamma", torch.tensor(float(gamma)))

    def losses(self, outputs: BalancedOutputs, target_B: Tensor) -> Mapping[str, Tensor]:
        own_MB = own_cross_entropy(outputs.own_MBC, target_B)
        found = {_JOINT: cross_entropy(outputs.logits_BC, target_B)}
        for modality, own_B in zip(self.modalities, own_MB.unbind(), strict=True):
            found[f"{_OWN}{modality}"] = own_B
        return found

    def loss(self, outputs: BalancedOutputs, target_B: Tensor) -> Tensor:
        """The sum of all losses, (B,)."""
        return torch.stack(list(self.losses(outputs, target_B).values())).sum(0)

    def modulate(
        self,
        outputs: BalancedOutputs,  # noqa: ARG002
        target_B: Tensor,  # noqa: ARG002
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        changed: dict[str, Tensor] = {}
        for modality in self.modalities:
            names = self.of_encoder(gradients[_JOINT], modality)
            if names:  # none where the encoder is frozen
                joint = [gradients[_JOINT][name] for name in names]
                own = [gradients[f"{_OWN}{modality}"][name] for name in names]
                new = integrate(joint, own, self.gamma, by_tensor=self.norm == "tensor")
                changed.update(zip(names, new, strict=True))
        return changed


def integrate(joint: Gradients, own: Gradients, gamma: Tensor, *, by_tensor: bool) -> list[Tensor]:
    """The new gradient of one encoder, a tensor per parameter."""
    weight = joint_weight(_dot(joint, joint), _dot(joint, own), _dot(own, own))
    mixed = [2 * weight * g + 2 * (1 - weight) * u for g, u in zip(joint, own, strict=True)]
    if not by_tensor:
        factor = _factor(joint, own, mixed)
        return [gamma * factor * h for h in mixed]
    parts = zip(joint, own, mixed, strict=True)
    return [gamma * _factor([g], [u], [h]) * h for g, u, h in parts]


def joint_weight(gg: Tensor, gu: Tensor, uu: Tensor) -> Tensor:
    """The weight w of the joint gradient g from g·g, g·u and u·u."""
    # Where it is used, g·u ≤ 0 and the denominator is a sum of terms that are not negative.
    least_norm = (uu - gu) / (gg + uu - 2 * gu).clamp_min(torch.finfo(gg.dtype).tiny)
    least_norm = least_norm.clamp(_LEAST_WEIGHT, 1 - _LEAST_WEIGHT)
    return torch.where(gu > 0, torch.full_like(gu, 0.5), least_norm)


def _factor(joint: Gradients, own: Gradients, mixed: Gradients) -> Tensor:
    """max(1, |g + u| / |h|), or 0 where h vanishes."""
    summed = _norm([g + u for g, u in zip(joint, own, strict=True)])
    norm, given = _norm(mixed), _norm(joint) + _norm(own)
    factor = (summed / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_min(1.0)
    return torch.where(norm > _CANCELLED * given, factor, torch.zeros_like(factor))


def _dot(left: Gradients, right: Gradients) -> Tensor:
    products = [(x * y).sum() for x, y in zip(left, right, strict=True)]
    return torch.stack(products).sum()


def _norm(tensors: Gradients) -> Tensor:
    return _dot(tensors, tensors).sqrt()
