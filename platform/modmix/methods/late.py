"""Late fusion, eq. 2: p = F(h_1(v_1), …, h_M(v_M)).

The unimodal classifiers share no parameters, loss, gradient clipping or best epoch. They run in one
training loop, but each is trained exactly as it would be alone (`Method.parts`). The initial
weights of the heads are drawn one after another: only the first one's are those of `base`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, Stage, cross_entropy, head, hidden_units, lift, pick


class LateOutputs(NamedTuple):
    """Log-probabilities of each modality's classifier, and logits of their combination."""

    log_p_MBC: Tensor
    logits_BC: Tensor


class Late(Method):
    """Independent unimodal classifiers with combined predictions.

    ``combine="mean"`` averages the probabilities. ``combine="learned"`` is a linear layer on the
    concatenated log-probabilities, initialised to their average and trained in a second stage of
    `epochs` epochs with the classifiers frozen.
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        combine: str = "mean",
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        hidden = hidden_units(depth, width)
        self.heads = nn.ModuleList(head(d, hidden, classes) for d in features.values())
        self.combine = _averaging_layer(len(features), classes) if combine == "learned" else None
        self.combining = False

    def forward(self, features: Mapping[str, Tensor]) -> LateOutputs:
        logits = [g(features[m]) for m, g in zip(self.modalities, self.heads, strict=True)]
        log_p_MBC = F.log_softmax(lift(torch.stack(logits)), dim=-1)
        if self.combine is None:
            return LateOutputs(log_p_MBC, log_p_MBC.logsumexp(0) - math.log(len(logits)))
        inputs = log_p_MBC.detach().movedim(0, 1).flatten(1)
        return LateOutputs(log_p_MBC, self.combine(inputs))

    def loss(self, outputs: LateOutputs, target_B: Tensor) -> Tensor:
        """Σ_m −log p_m^y, (B,); in the second stage, cross-entropy of the learned combination."""
        if self.combining:
            return cross_entropy(outputs.logits_BC, target_B)
        own_B = sum(pick(log_p_BC, target_B).neg() for log_p_BC in outputs.log_p_MBC.unbind())
        assert isinstance(own_B, Tensor)
        return own_B

    def parts(self) -> Mapping[str, tuple[str, ...]]:
        return {
            name: (self.encoder_prefixes[name], f"method.heads.{i}.")
            for i, name in enumerate(self.modalities)
        }

    def part_log_probabilities(self, outputs: LateOutputs) -> Mapping[str, Tensor]:
        if self.combining:
            return {}
        return dict(zip(self.modalities, outputs.log_p_MBC.unbind(), strict=True))

    def stages(self) -> tuple[Stage, ...]:
        if self.combine is None:
            return (Stage(name="unimodal"),)
        return (
            Stage(name="unimodal", frozen=("method.combine.",)),  # else weight decay shrinks it
            Stage(name="combination", frozen=("encoders.", "method.heads."), begin="selected"),
        )

    def enter(self, stage: Stage) -> None:
        self.combining = stage.name == "combination"


def _averaging_layer(modalities: int, classes: int) -> nn.Linear:
    layer = nn.Linear(modalities * classes, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(classes).repeat(1, modalities) / modalities)
        layer.bias.zero_()
    return layer
