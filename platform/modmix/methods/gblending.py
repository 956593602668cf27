"""Gradient blending (G-Blend).

W. Wang, D. Tran, M. Feiszli: What Makes Training Multi-modal Classification Networks Hard?, CVPR
2020, arXiv 1905.12681.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modmix.methods.balanced import BalancedOutputs, OwnHeads, own_cross_entropy
from modmix.methods.base import Pass, Stage, State, cross_entropy
from modmix.methods.patient import PatientStage

_LEAST_GAP = 1e-3  # nats, lower bound of changes of the gap


class GBlending(OwnHeads):
    """Losses of all classifiers, weighted by how they generalise and overfit.

    Classifiers k are the M unimodal ones, in order, and the fused one:

        loss = Σ_k w_k CE_k
        G_k = |V_k' − V_k|        O_k = (V_k' − T_k') − (V_k − T_k)        w_k ∝ G_k / O_k²

    with Σ w_k = 1. T and V are the mean losses on the training and validation examples, in
    evaluation mode, at the beginning of a *super-epoch* of ``super_epoch`` epochs, and T', V' those
    at its end. Weights are estimated at each of these ends and used in the next super-epoch; in the
    first one they are equal. |O| below 0.001 counts as 0.001; if all G are 0, weights are equal.
    Patience counts from the end of the first super-epoch on.

    Differs from the paper: it estimates a super-epoch's weights in advance, by training each
    classifier alone for that long from the current weights and discarding the result; here they are
    measured on the joint model in the previous super-epoch, with two passes over the data.
    G is an absolute value, as in re-implementations of the method.

    Validation examples influence the weights of the losses.
    """

    weights_K: Tensor
    train_K: Tensor
    val_K: Tensor
    train_now_K: Tensor

    def __init__(self, features: Mapping[str, int], classes: int, *, super_epoch: int = 10) -> None:
        super().__init__(features, classes)
        self.super_epoch = super_epoch
        count = len(features) + 1
        self.register_buffer("weights_K", torch.full((count,), 1 / count))
        # Changes of the gap between two means are small: float64 keeps rounding out of 1 / O².
        for name in ("train_K", "val_K", "train_now_K"):
            self.register_buffer(name, torch.zeros(count, dtype=torch.float64))

    def loss(self, outputs: BalancedOutputs, target_B: Tensor) -> Tensor:
        return (self.weights_K.unsqueeze(1) * _all_losses(outputs, target_B)).sum(0)

    def stages(self) -> tuple[Stage, ...]:
        return (PatientStage(name="train", patience_from=self.super_epoch),)

    def passes(self, epoch: int) -> Sequence[Pass]:
        if epoch % self.super_epoch:
            return ()

        def start() -> State:
            return {"sum_K": torch.zeros_like(self.val_K), "count": torch.zeros_like(self.epoch)}

        def step(state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
            losses_KB = _all_losses(self(features), target_B)
            return {
                "sum_K": state["sum_K"] + losses_KB.double().sum(1),
                "count": state["count"] + len(target_B),
            }

        def finish_train(state: State) -> Mapping[str, Tensor]:
            return {"train_now_K": state["sum_K"] / state["count"]}

        def finish_val(state: State) -> Mapping[str, Tensor]:
            val_K = state["sum_K"] / state["count"]
            new = {"train_K": self.train_now_K, "val_K": val_K}
            if epoch > 0:
                new["weights_K"] = weights(self.train_K, self.val_K, self.train_now_K, val_K)
            return new

        return (
            Pass(start=start, step=step, finish=finish_train),
            Pass(start=start, step=step, finish=finish_val, split="val"),
        )


def weights(train_K: Tensor, val_K: Tensor, train_now_K: Tensor, val_now_K: Tensor) -> Tensor:
    """w_k ∝ G_k / O_k² with Σ w_k = 1, (K,), from the losses before and after a super-epoch."""
    gain_K = (val_now_K - val_K).abs()
    gap_K = ((val_now_K - train_now_K) - (val_K - train_K)).abs().clamp_min(_LEAST_GAP)
    raw_K = gain_K / gap_K.square()
    total = raw_K.sum()
    equal_K = torch.full_like(raw_K, 1 / len(raw_K))
    return torch.where(total > 0, raw_K / torch.where(total > 0, total, 1.0), equal_K)


def _all_losses(outputs: BalancedOutputs, target_B: Tensor) -> Tensor:
    """Cross-entropy of the unimodal classifiers and, last, of the fused one, (M + 1, B)."""
    fused_B = cross_entropy(outputs.logits_BC, target_B)
    return torch.cat([own_cross_entropy(outputs.own_MBC, target_B), fused_B.unsqueeze(0)])
