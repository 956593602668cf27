"""Detached and interactive multimodal learning (DI-MML), a method with two stages.

Each modality is trained with a unimodal classifier (detached); a shared classifier and DUC, the
dimension-decoupled unidirectional contrastive loss, let the modalities interact. Then a head on the
frozen features is trained, and all classifiers are combined by their certainty.

Shapes: B batch, C classes, D features, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.methods.base import Method, Pass, Stage, State, cross_entropy, lift
from modmix.methods.dimml_parts import (
    FusionHead,
    above_mean,
    class_means,
    class_sums,
    contrast,
    count_correct,
    pairs,
    weighted,
)
from modmix.methods.patient import PatientStage

_DETACHED, _HEAD = "detached", "head"  # names of the stages


class DimmlOutputs(NamedTuple):
    """Features, and the logits of the unimodal classifiers, of the shared one and of the head."""

    features_MBD: Tensor
    own_MBC: Tensor
    shared_MBC: Tensor
    head_BC: Tensor | None


class Dimml(Method):
    """Fan et al. 2024, Detached and Interactive Multimodal Learning (ACM MM, arXiv 2407.19514).

    Stage 1, ``epochs`` epochs, minimises

        Σ_m CE(z_m, y) + w Σ_m CE(s_m, y) + λ DUC

    with z_m = W_m f_m (unimodal classifiers), s_m = W f_m (shared classifier). From epoch
    ``warmup`` (0-based) DUC sums `contrast` over the pairs of teacher t and student u, on the
    dimensions D_{t→u} that are effective for t and not for u. Before that epoch, one pass over the
    training split finds the class means of every dimension and another one how many examples each
    dimension alone assigns to the class of the nearest mean; it is effective if that count is
    strictly above the mean count of its modality's dimensions. Patience counts from that epoch on.

    Stage 2, ``head_epochs`` epochs, trains a head on the features with cross-entropy. It begins
    with the last weights of stage 1; all else is frozen and in evaluation mode. The prediction is
    Σ_k w_k z_k over unimodal classifiers and head, w = softmax_k(max softmax(z_k) / T).

    Every part can be switched off: ``shared_weight: 0``, ``duc_weight: 0``, ``directions``,
    ``separate: false`` (DUC acts on all dimensions from epoch ``warmup``, without passes),
    ``weighting: false`` (the mean of the logits) and ``head: none`` (no stage 2). w, λ, τ and T are
    searched. With w = λ = 0 every encoder trains as if alone (if ``clip_norm`` is null, because
    the gradient is clipped as a whole).

    Differs from the published code: λ is a hyperparameter (1 there); DUC is 0, not a constant,
    where D_{t→u} is empty; the passes read the inputs without augmentation; log-sum-exp instead
    of exponentials that overflow; any number of modalities (``film`` and ``gated`` let the first
    modulate the sum of the others). The result's epoch is chosen on validation data (``select``),
    where the code reports the best test epoch of stage 2.

    Raises:
        InputError: features of unequal width without ``project``.
    """

    shared_weight: Tensor
    duc_weight: Tensor
    tau: Tensor
    temperature: Tensor
    effective_MD: Tensor
    means_MCD: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        shared_weight: float = 1.0,
        duc_weight: float = 1.0,
        tau: float = 10.0,
        temperature: float = 1.0,
        warmup: int = 20,
        directions: str = "both",
        separate: bool = True,
        head: str = "concat",
        head_epochs: int = 20,
        weighting: bool = True,
        project: int | None = None,
    ) -> None:
        super().__init__(features, classes)
        self.project = None
        if project is not None:
            self.project = nn.ModuleList(
                nn.Sequential(nn.Linear(d, project), nn.ReLU()) for d in features.values()
            )
        count = len(features)
        width = project or _common_width(features)
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in features)
        self.shared = nn.Linear(width, classes)
        self.head = None if head == "none" else FusionHead(head, count, width, classes)
        self.pairs = pairs(count, directions)
        self.warmup, self.separate, self.weighting = warmup, separate, weighting
        self.head_epochs = head_epochs
        self.stage = ""  # outside of training, predictions are those of the finished model
        for name, value in {
            "shared_weight": shared_weight,
            "duc_weight": duc_weight,
            "tau": tau,
            "temperature": temperature,
        }.items():
            self.register_buffer(name, torch.tensor(float(value)))
        self.register_buffer("effective_MD", torch.zeros(count, width, dtype=torch.bool))
        means_MCD = torch.zeros(count, classes, width)
        self.register_buffer("means_MCD", means_MCD, persistent=False)

    def forward(self, features: Mapping[str, Tensor]) -> DimmlOutputs:
        parts = self._common(features)
        own = [g(f_BD) for g, f_BD in zip(self.classifiers, parts, strict=True)]
        shared = [self.shared(f_BD) for f_BD in parts]
        head_BC = None if self.head is None else self.head([f_BD.detach() for f_BD in parts])
        return DimmlOutputs(torch.stack(parts), torch.stack(own), torch.stack(shared), head_BC)

    def _common(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """The features of every modality in the common width, (B, D) each."""
        parts = self.ordered(features)
        if self.project is not None:
            parts = [g(f_BD) for g, f_BD in zip(self.project, parts, strict=True)]
        return parts

    # ------------------------------------------------------------ losses

    def loss(self, outputs: DimmlOutputs, target_B: Tensor) -> Tensor:
        """The loss of the current stage, (B,); that of stage 1 outside of training."""
        if self.stage == _HEAD:
            assert outputs.head_BC is not None
            return cross_entropy(outputs.head_BC, target_B)
        own_B, shared_B = (
            torch.stack([cross_entropy(z_BC, target_B) for z_BC in logits_MBC.unbind()]).sum(0)
            for logits_MBC in (outputs.own_MBC, outputs.shared_MBC)
        )
        return own_B + self.shared_weight * shared_B + self.duc_weight * self._duc(outputs)

    def _duc(self, outputs: DimmlOutputs) -> Tensor:
        """Σ over pairs of `contrast`, (B,); 0 before the warm-up is over."""
        parts = outputs.features_MBD.unbind()
        losses = [
            contrast(parts[u], parts[t], self.dimensions(t, u), self.tau) for t, u in self.pairs
        ]
        return torch.stack(losses).sum(0)

    def dimensions(self, teacher: int, student: int) -> Tensor:
        """D_{t→u} as a mask (D,); empty before the warm-up is over."""
        if self.separate:
            return self.effective_MD[teacher] & ~self.effective_MD[student]
        return torch.ones_like(self.effective_MD[teacher]) & (self.epoch >= self.warmup)

    # ------------------------------------------------------------ predictions

    def scores(self, outputs: DimmlOutputs) -> Tensor:
        """Combined logits (B, C) of the unimodal classifiers, from stage 2 on with the head."""
        logits_KBC = outputs.own_MBC
        if outputs.head_BC is not None and self.stage != _DETACHED:
            logits_KBC = torch.cat([logits_KBC, outputs.head_BC.unsqueeze(0)])
        if not self.weighting:
            return lift(logits_KBC).mean(0)
        return weighted(logits_KBC, self.temperature)

    def reports(self, outputs: DimmlOutputs) -> Mapping[str, Tensor]:
        """Log-probabilities (B, C) of each own classifier, and of the head (untrained at first).

        The head is called "head", or "fusion head" beside a modality of that name.
        """
        logits = dict(zip(self.modalities, outputs.own_MBC.unbind(), strict=True))
        if outputs.head_BC is not None:
            logits["fusion head" if "head" in logits else "head"] = outputs.head_BC
        return {name: F.log_softmax(lift(z_BC), dim=-1) for name, z_BC in logits.items()}

    # ------------------------------------------------------------ stages and passes

    def stages(self) -> tuple[Stage, ...]:
        if self.head is None:
            return (PatientStage(name=_DETACHED, patience_from=self.warmup),)
        # The head is frozen, because weight decay would shrink it.
        first = PatientStage(name=_DETACHED, frozen=("method.head.",), patience_from=self.warmup)
        frozen = ("encoders.", "method.project.", "method.classifiers.", "method.shared.")
        return first, Stage(name=_HEAD, epochs=self.head_epochs, frozen=frozen, begin="last")

    def enter(self, stage: Stage) -> None:
        self.stage = stage.name

    def passes(self, epoch: int) -> Sequence[Pass]:
        """Class means, then dimensions that are effective, once before epoch ``warmup``."""
        if self.stage != _DETACHED or epoch != self.warmup or not self.separate:
            return ()
        return (
            Pass(start=self._no_sums, step=self._add_sums, finish=self._set_means),
            Pass(start=self._no_counts, step=self._add_counts, finish=self._set_effective),
        )

    def _no_sums(self) -> State:
        sums_MCD = torch.zeros_like(self.means_MCD, dtype=torch.float64)
        return {"sums_MCD": sums_MCD, "counts_C": sums_MCD.new_zeros(self.classes)}

    def _add_sums(self, state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
        found = [class_sums(f_BD, target_B, self.classes) for f_BD in self._common(features)]
        sums_MCD = torch.stack([sums_CD for sums_CD, _ in found])
        return {
            "sums_MCD": state["sums_MCD"] + sums_MCD,
            "counts_C": state["counts_C"] + found[0][1],
        }

    def _set_means(self, state: State) -> Mapping[str, Tensor]:
        return {"means_MCD": class_means(state["sums_MCD"], state["counts_C"])}

    def _no_counts(self) -> State:
        return {"correct_MD": torch.zeros_like(self.effective_MD, dtype=torch.int64)}

    def _add_counts(self, state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
        parts = zip(self._common(features), self.means_MCD.unbind(), strict=True)
        correct = [count_correct(f_BD, means_CD, target_B) for f_BD, means_CD in parts]
        return {"correct_MD": state["correct_MD"] + torch.stack(correct)}

    def _set_effective(self, state: State) -> Mapping[str, Tensor]:
        return {"effective_MD": above_mean(state["correct_MD"])}


def _common_width(features: Mapping[str, int]) -> int:
    if len(set(features.values())) > 1:
        given = ", ".join(f"{name}: {width}" for name, width in features.items())
        raise InputError(
            "dimml needs features of equal width, because DUC pairs their dimensions, "
            f"got {given}; set project, or give the encoders equal widths"
        )
    return next(iter(features.values()))
