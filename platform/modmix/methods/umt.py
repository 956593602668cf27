"""Unimodal teachers: joint training whose features follow those of unimodal models.

Source: Du, Teng, Li, Liu, Yuan, Wang, Yuan and Zhao, "On Uni-Modal Feature Learning in Supervised
Multi-Modal Learning", ICML 2023, arXiv 2305.01233.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, Stage, cross_entropy, head, hidden_units, lift, pick


class UMTOutputs(NamedTuple):
    """Joint logits, the teachers' log-probabilities, and distances to the teachers' features."""

    logits_BC: Tensor
    teacher_log_p_MBC: Tensor
    distances_MB: Tensor


class UMT(Method):
    """A teacher per modality is trained first; then the joint model, with distillation.

    Stage "teachers": an encoder and a head for each modality alone, Σ_m CE(teacher_m). They share
    no parameters, gradient clipping or best epoch, so that each is trained as it would be alone.

    Stage "students": a second set of encoders with features f_m, and one head on their
    concatenation, while the teachers' features t_m are fixed:

        CE(head([f_1, …, f_M]), y) + ``distillation`` Σ_m mean over dimensions of (f_m − t_m)²

    ``distillation`` (λ) may differ between stacked models; ``teacher_epochs`` is structural.

    The paper fuses late by a linear layer on concatenated features, as here with ``depth`` 0, and
    trains its teachers in separate runs; here both stages are one replicate with the same training
    settings. The default of λ is not the paper's, which sets it per data set.
    """

    distillation: Tensor

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        distillation: float = 1.0,
        teacher_epochs: int | None = None,
        depth: int = 0,
        width: int = 64,
    ) -> None:
        super().__init__(features, classes)
        hidden = hidden_units(depth, width)
        self.teachers = nn.ModuleList(head(d, hidden, classes) for d in features.values())
        self.head = head(sum(features.values()), hidden, classes)
        self.register_buffer("distillation", torch.tensor(float(distillation)))
        self.teacher_epochs = teacher_epochs
        self.teaching = False  # whether the teachers are being trained

    def forward(self, features: Mapping[str, Tensor]) -> UMTOutputs:
        own = self.ordered(features)
        theirs = [features[f"teacher/{m}"] for m in self.modalities]
        logits = [g(f_BD) for g, f_BD in zip(self.teachers, theirs, strict=True)]
        pairs = zip(own, theirs, strict=True)
        distances = [(lift(f_BD) - lift(t_BD).detach()).square().mean(-1) for f_BD, t_BD in pairs]
        return UMTOutputs(
            self.head(torch.cat(own, dim=-1)),
            F.log_softmax(lift(torch.stack(logits)), dim=-1),
            torch.stack(distances),
        )

    def loss(self, outputs: UMTOutputs, target_B: Tensor) -> Tensor:
        if self.teaching:
            log_p_MBC = outputs.teacher_log_p_MBC
            return -pick(log_p_MBC, target_B.expand(log_p_MBC.shape[:-1])).sum(0)
        distance_B = outputs.distances_MB.sum(0)
        return cross_entropy(outputs.logits_BC, target_B) + self.distillation * distance_B

    def scores(self, outputs: UMTOutputs) -> Tensor:
        """The joint logits; while the teachers are trained, log of their mean probability."""
        if self.teaching:
            return outputs.teacher_log_p_MBC.logsumexp(0) - math.log(len(self.modalities))
        return outputs.logits_BC

    def reports(self, outputs: UMTOutputs) -> Mapping[str, Tensor]:
        """The teachers' predictions."""
        names = (f"teacher/{m}" for m in self.modalities)
        return dict(zip(names, outputs.teacher_log_p_MBC.unbind(), strict=True))

    def parts(self) -> Mapping[str, tuple[str, ...]]:
        return {
            name: (self.encoder_prefixes[f"teacher/{name}"], f"method.teachers.{i}.")
            for i, name in enumerate(self.modalities)
        }

    def part_log_probabilities(self, outputs: UMTOutputs) -> Mapping[str, Tensor]:
        if not self.teaching:
            return {}
        return dict(zip(self.modalities, outputs.teacher_log_p_MBC.unbind(), strict=True))

    def stages(self) -> tuple[Stage, ...]:
        students = tuple(self.encoder_prefixes[m] for m in self.modalities)
        teachers = tuple(prefix for part in self.parts().values() for prefix in part)
        return (
            Stage(
                name="teachers",
                epochs=self.teacher_epochs,
                frozen=(*students, "method.head."),
                judged=False,  # teachers do not depend on λ
            ),
            Stage(name="students", frozen=teachers, begin="selected"),
        )

    def enter(self, stage: Stage) -> None:
        self.teaching = stage.name == "teachers"
