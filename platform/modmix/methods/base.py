"""What a method is: one model, one batch; the model axis is added outside.

A method gets the features of its modalities and returns outputs, a loss per example, and scores.
It is stacked with its equals by `torch.func`, so it may not look into tensors: no ``.item()``, no
boolean indexing, no ``nonzero``, no Python ``if`` on a tensor. (One that does is trained one model
after another.) Hyperparameters that may differ between stacked models (β, margins, weights of
losses) are buffers; all others are Python values. Random numbers come from `modmix.methods.draws`.

Shapes: B batch, C classes, M modalities, S sources, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Outputs = Any  # a tensor, or a (named) tuple or dict of tensors: each method's own
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training: how long, what it leaves alone, and from where it starts.

    Best-epoch weights and patience count within a stage; those of the last are the result.
    Halving counts the epochs of all stages. A stage whose optimizer the next one keeps runs to its
    end, whatever the patience.
    """

    name: str
    epochs: int | None = None  # None: the training setting `epochs`
    frozen: tuple[str, ...] = ()  # beginnings of the model's parameter names that are not trained
    begin: Literal["last", "best", "selected"] = "last"  # from which weights of the one before
    # ("selected": as the training setting `select` says)
    optimizer: Literal["fresh", "kept"] = "fresh"  # its moments and step count
    judged: bool = True  # whether scores mean something yet: else no halving, no patience


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass over one split in evaluation mode between epochs, as a fold in bounded memory.

    ``start()`` makes the first state; ``step(state, features, target_B)`` takes in one chunk of
    examples, features (B, D_m) by modality; ``finish(state)`` gives new values of the method's
    buffers by name. All three are called for one model, like ``forward``.
    """

    start: Callable[[], State]
    step: Callable[[State, Mapping[str, Tensor], Tensor], State]
    finish: Callable[[State], Mapping[str, Tensor]]
    split: Literal["train", "val"] = "train"


class Method(nn.Module):
    """A way to combine modalities.

    Subclasses define ``forward`` and ``loss``, and override the rest where the defaults do not
    fit. The constructor takes the width of each modality's features, in order, the number of
    classes, and the hyperparameters as keywords.

    ``epoch`` (a buffer) is how many epochs of the present stage are done, for schedules.

    Example:
        >>> class Sum(Method):
        ...     def __init__(self, features, classes, *, width: int = 8):
        ...         super().__init__(features, classes)
        ...         self.layers = nn.ModuleList(nn.Linear(d, width) for d in features.values())
        ...         self.head = nn.Linear(width, classes)
        ...     def forward(self, features):
        ...         pairs = zip(self.modalities, self.layers)
        ...         return self.head(sum(layer(features[m]) for m, layer in pairs))
        ...     def loss(self, outputs, target_B):
        ...         return cross_entropy(outputs, target_B)
        >>> Sum({"a": 3, "b": 2}, 4)({"a": torch.ones(5, 3), "b": torch.ones(5, 2)}).shape
        torch.Size([5, 4])
    """

    epoch: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = tuple(features)
        self.classes = classes
        self.register_buffer("epoch", torch.zeros(()), persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        # A layer of such a name would never be found: Python looks at the class first.
        if isinstance(value, (nn.Module, Tensor)) and callable(Method.__dict__.get(name)):
            raise AttributeError(f"{name} is a function of every method: call the layer otherwise")
        super().__setattr__(name, value)

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        """Outputs for features (B, D_m) by modality: logits (B, C), or whatever ``loss`` needs."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        """The loss of each example, (B,); training minimises its mean over the batch."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, target_B: Tensor) -> Mapping[str, Tensor]:
        """Several losses by name, (B,) each; their sum is minimised. ``modulate`` sees each one's
        gradients.
        """
        return {"loss": self.loss(outputs, target_B)}

    def modulate(
        self,
        outputs: Outputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        """Change gradients between the backward pass and the update.

        Args:
            outputs: of this batch, without gradient.
            target_B: its classes.
            gradients: of the batch means of `losses`, by loss and parameter name (of the model:
                "encoders.0.layers.0.weight", "method.head.0.bias").

        Returns:
            The gradient to use, by parameter name; the sum over losses where a name is missing.
        """
        raise NotImplementedError

    def scores(self, outputs: Outputs) -> Tensor:
        """(B, C): the largest is the prediction."""
        scores_BC: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits_BC
        return scores_BC

    def log_probabilities(self, outputs: Outputs) -> Tensor:
        """(B, C): logarithms of class probabilities, of which NLL, ECE and AUC are computed."""
        return F.log_softmax(lift(self.scores(outputs)), dim=-1)

    def parts(self, encoders: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002
        """Parts that train as if each were alone: name -> beginnings of its parameter names.

        Each part is clipped by the norm of its own gradient and keeps its own best epoch, judged by
        `part_log_probabilities`. None by default: the model is one. ``encoders`` says by modality
        how the names of its encoder's parameters begin.
        """
        return {}

    def part_log_probabilities(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """(B, C) for every part that is judged by itself; the others follow the whole model."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(name="train"),)

    def enter(self, stage: Stage) -> None:
        """Called before a stage starts; a method may note in a Python value which one it is."""

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: ARG002
        """Passes over the data before this epoch (from 0, within a stage), in order."""
        return ()


def modulates(method: Method) -> bool:
    """Whether the method changes gradients."""
    return type(method).modulate is not Method.modulate


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
