"""Additive combination, eqs. 3-5: merge the features, then classify with one network g."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from modmix.base.errors import InputError
from modmix.methods.base import Method, cross_entropy, head, hidden_units
from modmix.methods.unimodal import Logits


class Merge(nn.Module):
    """Merge features by sum, Σ_m f_m (eq. 3), concatenation, [f_1, …, f_M] (eq. 4), or mean.

    With ``project``, a linear layer with ReLU first maps each modality to that width. Maps a list
    of (B, D_m) to (B, ``features``).

    Raises:
        InputError: sum or mean over unequal widths without ``project``.
    """

    def __init__(self, widths: Sequence[int], *, merge: str, project: int | None) -> None:
        super().__init__()
        self.project = None
        if project is not None:
            self.project = nn.ModuleList(
                nn.Sequential(nn.Linear(width, project), nn.ReLU()) for width in widths
            )
            widths = [project] * len(widths)
        check_mergeable(widths, merge)
        self.merge = merge
        self.features = sum(widths) if merge == "concat" else widths[0]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        if self.project is not None:
            features = [g(f_BD) for g, f_BD in zip(self.project, features, strict=True)]
        if self.merge == "concat":
            return torch.cat(list(features), dim=-1)
        total = torch.stack(list(features)).sum(0)
        return total / len(features) if self.merge == "mean" else total


class Add(Method):
    """Merge the features, then classify with an MLP of ``depth`` hidden layers."""

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        merge: str = "concat",
        project: int | None = None,
        depth: int = 1,
        width: int = 64,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__(features, classes)
        self.merge = Merge(list(features.values()), merge=merge, project=project)
        self.head = head(self.merge.features, hidden_units(depth, width, hidden), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        return Logits(self.head(self.merge(self.ordered(features))))

    def loss(self, outputs: Logits, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)


def check_mergeable(widths: Sequence[int], merge: str) -> None:
    if merge != "concat" and len(set(widths)) > 1:
        raise InputError(
            f"merge: {merge} needs features of equal width, got {', '.join(map(str, widths))}; "
            "set project, or give the encoders equal widths"
        )
