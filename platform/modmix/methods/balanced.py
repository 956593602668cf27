"""Shared by the balanced methods: concatenation fusion and unimodal predictions.

The fusion is one linear layer on the concatenated features, z = Σ_m W_m f_m + b, so each modality
has a *share* of the fused logits, z_m = W_m f_m + b/M, and z = Σ_m z_m.

Shapes: B batch, C classes, M modalities, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, cross_entropy, lift, pick


class BalancedOutputs(NamedTuple):
    """Fused logits, and logits of each modality alone."""

    logits_BC: Tensor
    own_MBC: Tensor


class Concatenation(nn.Module):
    """One linear layer on [f_1; …; f_M], and its parts by modality."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.linear = nn.Linear(sum(widths), classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """z = W [f_1; …; f_M] + b, (B, C)."""
        logits_BC: Tensor = self.linear(torch.cat(list(features), dim=-1))
        return logits_BC

    def shares(self, features: Sequence[Tensor]) -> Tensor:
        """z_m = W_m f_m + b/M, (M, B, C); their sum is ``forward``."""
        bias_C = self.linear.bias / len(self.widths)
        return lift(torch.stack(self.apart(features, self.linear.weight, bias_C)))

    def alone(self, features: Sequence[Tensor]) -> Tensor:
        """W_m f_m + b, (M, B, C): ``forward`` with all other features 0; W and b are constants."""
        weight_CD, bias_C = self.linear.weight.detach(), self.linear.bias.detach()
        return lift(torch.stack(self.apart(features, weight_CD, bias_C)))

    def apart(self, features: Sequence[Tensor], weight_CD: Tensor, bias_C: Tensor) -> list[Tensor]:
        blocks = weight_CD.split_with_sizes(self.widths, dim=1)
        return [F.linear(f_BD, w_CD, bias_C) for f_BD, w_CD in zip(features, blocks, strict=True)]


class Balanced(Method):
    """Base class: concatenation fusion; unimodal logits are the shares of the fused logits."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.fusion = Concatenation(list(features.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> BalancedOutputs:
        own_MBC = self.fusion.shares(self.ordered(features))
        return BalancedOutputs(own_MBC.sum(0), own_MBC)

    def loss(self, outputs: BalancedOutputs, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)

    def reports(self, outputs: BalancedOutputs) -> Mapping[str, Tensor]:
        """Log-probabilities (B, C) of each modality alone."""
        log_p_MBC = F.log_softmax(lift(outputs.own_MBC), dim=-1)
        return dict(zip(self.modalities, log_p_MBC.unbind(), strict=True))

    def of_encoder(self, names: Iterable[str], modality: str) -> list[str]:
        """The names of the parameters of a modality's encoder, in alphabetical order."""
        prefix = self.encoder_prefixes[modality]
        return sorted(name for name in names if name.startswith(prefix))


class OwnHeads(Balanced):
    """Base class: concatenation fusion and a linear classifier per modality."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.heads = nn.ModuleList(nn.Linear(d, classes) for d in features.values())

    def forward(self, features: Mapping[str, Tensor]) -> BalancedOutputs:
        parts = self.ordered(features)
        own = [g(f_BD) for g, f_BD in zip(self.heads, parts, strict=True)]
        return BalancedOutputs(self.fusion(parts), torch.stack(own))


def own_cross_entropy(own_MBC: Tensor, target_B: Tensor) -> Tensor:
    """Cross-entropy of each modality alone, (M, B)."""
    return torch.stack([cross_entropy(own_BC, target_B) for own_BC in own_MBC.unbind()])


def true_class_sums(own_MBC: Tensor, target_B: Tensor) -> Tensor:
    """Σ_B p_m^y, (M,): how well each modality alone predicts the batch."""
    p_MBC = lift(own_MBC).softmax(-1)
    return torch.stack([pick(p_BC, target_B).sum() for p_BC in p_MBC.unbind()])


def ratios_to_others(scores_M: Tensor) -> Tensor:
    """ρ_m = s_m / mean of the other modalities' s, (M,).

    With two modalities this is the ratio of the two. Scores below 1e-8 count as 1e-8, so ρ is
    finite, and 1 where all scores vanish.
    """
    safe_M = scores_M.clamp_min(1e-8)
    count = len(safe_M)
    # A sum over the others: subtracting a large score from the total would cancel digits.
    others_MM = 1 - torch.eye(count, dtype=safe_M.dtype, device=safe_M.device)
    return safe_M / ((others_MM * safe_M).sum(1) / (count - 1))
