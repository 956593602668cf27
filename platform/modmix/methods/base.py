"""The `Method` contract. Methods are written for one model and one batch.

A method maps the features of its modalities to outputs, a loss per example, and class scores.
The trainer adds the model axis with `torch.func.vmap`, so a method must not have data-dependent
control flow: no ``.item()``, boolean indexing, ``nonzero`` or Python ``if`` on a tensor. Models
of a method that breaks this are trained one after another. Hyperparameters that may differ between
stacked models (β, margins, loss weights) are buffers; all others are plain Python values.
Random numbers come from `modmix.methods.draws`.

Shapes: B batch, C classes, M modalities, S sources, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.base.errors import InputError

Outputs = Any  # a tensor, or a (named) tuple or dict of tensors; up to the method
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training stage: its length, frozen parameters, starting weights, optimizer and turns.

    The best epoch and patience are tracked per stage; the weights of the last stage are the
    result. Successive halving counts epochs over all stages. A stage whose optimizer is kept by
    the next one ignores patience and runs to its end.

    With ``turns``, parameters are trained in alternation. Each turn trains only the parameters
    whose names begin with one of its prefixes, with an optimizer of its own (moments and step
    count); modules outside these prefixes run in evaluation mode. With ``turn_every="batch"``
    every batch takes a step per turn, in order; the training loss is the sum over the turns, the
    training error that of the last one. With "epoch", the turns alternate in a
    cycle, each for ``turn_epochs`` epochs of the stage.
    `Method.turn` says which turn runs. Such a stage uses no CUDA graphs.
    """

    name: str
    epochs: int | None = None  # None: as the training setting `epochs`
    frozen: tuple[str, ...] = ()  # name prefixes of the model parameters that are not trained
    # Weights of the previous stage to start from; "selected": as the training setting `select`.
    begin: Literal["last", "best", "selected"] = "last"
    optimizer: Literal["fresh", "kept"] = "fresh"  # kept: moments and step count carry over
    judged: bool = True  # False: scores are not meaningful yet, so no halving and no patience
    turns: tuple[tuple[str, ...], ...] = ()  # prefixes of the parameters that each turn trains
    turn_every: Literal["batch", "epoch"] = "batch"
    turn_epochs: int = 1  # epochs of each turn with turn_every "epoch"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass over one split before an epoch, in evaluation mode: a fold in bounded memory.

    ``start()`` returns the initial state, ``step(state, features, target_B)`` updates it with one
    chunk of examples (features (B, D_m) by modality, never in half precision), and
    ``finish(state)`` returns new values for the method's buffers, by name. Like ``forward``, all
    three are written for one model.
    """

    start: Callable[[], State]
    step: Callable[[State, Mapping[str, Tensor], Tensor], State]
    finish: Callable[[State], Mapping[str, Tensor]]
    split: Literal["train", "val"] = "train"


class Method(nn.Module):
    """Base class of all methods for combining modalities.

    Subclasses define ``forward`` and ``loss``, and override the rest where the defaults do not
    fit. The constructor takes the feature width of each modality, in order, the number of classes,
    and the hyperparameters as keyword-only arguments.

    The attribute ``turn`` is the index of the running turn in a stage with turns. It is a plain
    number, so ``losses`` and ``modulate`` may use a Python ``if`` on it.
    The buffer ``epoch`` is the number of epochs completed in the current stage, for schedules.
    ``encoder_prefixes`` maps each modality to the name prefix of its encoder's parameters, such as
    "encoders.0."; it is set when the model is built. A method with several sets of encoders (class
    attribute ``encoder_sets``) gets the features and prefixes of a set "teacher/" under
    "teacher/audio" and so on; ``modalities`` and the constructor have the plain names only.

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

    # Whether the buffer ``index`` holds the batch's row numbers (B,) in the training split, from 0,
    # during training steps. It is empty at all other times.
    uses_index: ClassVar[bool] = False

    epoch: Tensor
    index: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__()
        self.modalities = tuple(features)
        self.classes = classes
        self.encoder_prefixes: Mapping[str, str] = {}
        self.turn = 0
        self.register_buffer("epoch", torch.zeros(()), persistent=False)
        if self.uses_index:
            self.register_buffer("index", torch.zeros(0, dtype=torch.int64), persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module finds layers through __getattr__: the class's function would shadow the layer.
        if isinstance(value, (nn.Module, Tensor)) and callable(Method.__dict__.get(name)):
            raise AttributeError(f"{name} is a function of every method: call the layer otherwise")
        super().__setattr__(name, value)

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        """Map features (B, D_m) by modality to logits (B, C), or to whatever ``loss`` needs."""
        raise NotImplementedError

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        """Per-example loss, (B,); training minimises its mean over the batch."""
        raise NotImplementedError

    def losses(self, outputs: Outputs, target_B: Tensor) -> Mapping[str, Tensor]:
        """Per-example losses by name, (B,) each.

        Training minimises the sum of their batch means; ``modulate`` gets the gradients of each.
        """
        return {"loss": self.loss(outputs, target_B)}

    def modulate(
        self,
        outputs: Outputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        """Change the gradients between the backward pass and the optimizer step.

        Args:
            outputs: outputs of this batch, detached.
            target_B: class indices.
            gradients: gradients of the batch mean of each of `losses`, by loss name, then by the
                model's parameter name ("encoders.0.layers.0.weight", "method.head.0.bias").

        Returns:
            The gradients to use, by parameter name. Parameters left out get the sum over losses.
        """
        raise NotImplementedError

    def scores(self, outputs: Outputs) -> Tensor:
        """Class scores (B, C); the argmax is the prediction.

        Raises:
            InputError: the outputs are no tensor and have no attribute ``logits_BC``.
        """
        if isinstance(outputs, Tensor):
            return outputs
        if not hasattr(outputs, "logits_BC"):
            raise InputError(
                f"method {type(self).__name__}: define `scores`, or give the outputs a "
                f"`logits_BC`: forward returns a {type(outputs).__name__} without one"
            )
        scores_BC: Tensor = outputs.logits_BC
        return scores_BC

    def ordered(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Features (B, D_m) in the order of the modalities."""
        return [features[name] for name in self.modalities]

    def log_probabilities(self, outputs: Outputs) -> Tensor:
        """Log-probabilities (B, C), from which NLL, ECE and AUC are computed."""
        return F.log_softmax(lift(self.scores(outputs)), dim=-1)

    def reports(self, outputs: Outputs) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Log-probabilities (B, C) of additional predictors by name, such as unimodal classifiers.

        Their errors are recorded at every evaluation as "val/<name>/error" and at the end as
        "test/<name>/error". By default there are none.
        """
        return {}

    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Parts of the model that train independently: part name -> parameter name prefixes.

        Each part is clipped by its own gradient norm and has its own best epoch, evaluated with
        `part_log_probabilities`. By default there are no parts.
        """
        return {}

    def part_log_probabilities(self, outputs: Outputs) -> Mapping[str, Tensor]:
        """Log-probabilities (B, C) of each part with its own best epoch.

        Parts left out follow the best epoch of the whole model.
        """
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """Training stages, in order."""
        return (Stage(name="train"),)

    def enter(self, stage: Stage) -> None:
        """Called before a stage starts, so that a method can store which one is running."""

    def remember(self, rows: int) -> None:
        """Called once before training with the number of training examples.

        Register buffers with an entry per example here, with ``persistent=False``: they are not
        part of a saved model. ``losses`` and ``modulate`` update them in place, at rows ``index``.
        """

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: ARG002
        """Passes over the data to run before this epoch (0-based, within the stage), in order."""
        return ()


def modulates(method: Method) -> bool:
    """Whether the method overrides `Method.modulate`."""
    return type(method).modulate is not Method.modulate


def remembers(method: Method, rows: int) -> None:
    """Call `Method.remember` and check what it has registered.

    Raises:
        InputError: a buffer that would be saved with the model.
    """
    before = set(method.state_dict())
    method.remember(rows)
    saved = sorted(set(method.state_dict()) - before)
    if saved:
        raise InputError(
            f"remember must register buffers with persistent=False, got {saved[0]!r}, which would "
            "be saved with every model"
        )


def head(features: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """An MLP classifier: a ReLU layer per entry of ``hidden``, then a linear layer to logits."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(features, units), nn.ReLU()]
        features = units
    return nn.Sequential(*layers, nn.Linear(features, classes))


def hidden_units(depth: int, width: int, hidden: Sequence[int] | None = None) -> list[int]:
    """Units of each hidden layer: ``hidden`` if given, else ``depth`` times ``width``."""
    return [width] * depth if hidden is None else list(hidden)


def cross_entropy(logits_BC: Tensor, target_B: Tensor) -> Tensor:
    """Per-example cross-entropy −log p^y, (B,); half precision is computed in float32."""
    return pick(F.log_softmax(lift(logits_BC), dim=-1), target_B).neg()


def pick(values_BC: Tensor, target_B: Tensor) -> Tensor:
    """The value at each example's target class, (B,)."""
    return values_BC.gather(-1, target_B.unsqueeze(-1)).squeeze(-1)


def lift(values: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 unchanged."""
    return values.float() if values.dtype.itemsize < 4 else values
