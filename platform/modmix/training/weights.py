"""Parameters and buffers of K models, and the results of a stack of models.

Shapes: K models, B batch, C classes, P parameters of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """Forward and backward pass on a batch: mean loss, number of wrong predictions, gradient."""

    loss_K: Tensor
    wrong_K: Tensor
    gradient_KP: Tensor


class Predictions(NamedTuple):
    """Scores and log-probabilities (K, B, C), of separately judged parts log-probabilities as well,
    and the classes (K, B) that reported predictors predict, by name.
    """

    scores: Tensor
    log_probabilities: Tensor
    parts: Mapping[str, Tensor]
    reports: Mapping[str, Tensor]


class Weights(NamedTuple):
    """Parameters and buffers of K models."""

    parameters_KP: Tensor
    buffers: Mapping[str, Tensor]

    def clone(self) -> Weights:
        buffers = {name: value.clone() for name, value in self.buffers.items()}
        return Weights(self.parameters_KP.detach().clone(), buffers)

    def select(self, rows: Sequence[int]) -> Weights:
        """These rows only, in this order; see `pick`."""
        buffers = {name: pick(value, rows) for name, value in self.buffers.items()}
        return Weights(pick(self.parameters_KP.detach(), rows), buffers)

    @torch.no_grad()
    def take(self, rows_K: Tensor, new: Weights, part: Part | None = None) -> None:
        """Copy, in place, rows of ``new`` where the mask is true; only one part's, if given."""
        mask_KP = rows_K.unsqueeze(1) if part is None else rows_K.unsqueeze(1) & part.columns_P
        mine = self.parameters_KP
        torch.where(mask_KP, new.parameters_KP.detach(), mine, out=mine)
        for name, value in self.buffers.items():
            if part is None or name in part.buffers:
                mask = rows_K.view(-1, *[1] * (value.dim() - 1))
                torch.where(mask, new.buffers[name], value, out=value)


def pick(value: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows of a tensor, in this order: a view if ``rows`` is a range, else a copy."""
    if isinstance(rows, range):
        return value[rows.start : rows.stop : rows.step]
    return value.index_select(0, torch.tensor(rows, device=value.device))


class Part(NamedTuple):
    """An independently trained part of a model: a mask (P,) of its columns, and its buffers."""

    columns_P: Tensor
    buffers: frozenset[str]
