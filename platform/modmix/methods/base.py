"""What a method is: one model, one batch; the model axis is added outside.

A method gets the features of its modalities and returns outputs, a loss per example, and scores.
It is stacked with its equals by `torch.func`, so it may not look into tensors: no ``.item()``, no
boolean indexing, no ``nonzero``, no Python ``if`` on a tensor. Hyperparameters that may differ
between stacked models (β, margins, weights of losses) are buffers; all others are Python values.

Shapes: B batch, C classes, M modalities, S sources, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

Outputs = Any  # a NamedTuple of tensors, each method's own


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training: how long, and what it leaves alone.

    A stage starts with a fresh optimizer and schedule, from the last weights of the one before.
    Early stopping and best-epoch weights count within a stage; those of the last are the result.
    """

    name: str
    epochs: int | None = None  # None: the training setting `epochs`
    frozen: tuple[str, ...] = ()  # beginnings of the model's parameter names that are not trained


class Method(nn.Module):
    """A way to combine modalities.

    Subclasses define ``forward`` and ``loss``, and override the rest where the defaults do not
    fit. The constructor takes the width of each modality's features, in order, the number of
    classes, and the hyperparameters that the table declares.
    """

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = tuple(features)
        self.classes = classes

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        """Outputs for features (B, D_m) by modality."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        """The loss of each example, (B,); training minimises its mean over the batch."""
        raise NotImplementedError

    def scores(self, outputs: Outputs) -> Tensor:
        """(B, C): the largest is the prediction, their softmax the probabilities of metrics."""
        scores_BC: Tensor = outputs.logits_BC
        return scores_BC

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(name="train"),)

    def enter(self, stage: Stage) -> None:
        """Called before a stage starts; a method may note in a Python value which one it is."""

    def refreshes(self, epoch: int) -> bool:  # noqa: ARG002
        """Whether ``refresh`` is called before this epoch (from 0, within a stage)."""
        return False

    def refresh(
        self,
        features: Mapping[str, Tensor],  # noqa: ARG002
        target_N: Tensor,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """New values of this method's buffers, from the features of the whole training split."""
        return {}


def head(features: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """A classifier: ReLU layers of ``hidden`` units (none: linear), then one logit per class."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(features, units), nn.ReLU()]
        features = units
    return nn.Sequential(*layers, nn.Linear(features, classes))


def hidden_units(depth: int, width: int, hidden: Sequence[int] | None = None) -> list[int]:
    """``depth`` layers of ``width`` units, unless ``hidden`` lists them."""
    return [width] * depth if hidden is None else list(hidden)


def cross_entropy(logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """−log p^y per example, (B,), from logits; computed in float32 where they are shorter."""
    return pick(F.log_softmax(lift(logits_BC), dim=-1), target_B).neg()


def pick(values_BC: Tensor, target_B: Tensor) -> Tensor:
    """The value of each example's own class, (B,)."""
    return values_BC.gather(-1, target_B.unsqueeze(-1)).squeeze(-1)


def lift(values: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return values.float() if values.dtype.itemsize < 4 else values
