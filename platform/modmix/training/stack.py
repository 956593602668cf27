"""K models of one structure as one; with `modmix.training.linear`, all that knows ``torch.func``.

Parameters of all models are one (K, P) tensor. The module sees views of it; `torch.func.vmap` adds
the model axis to its forward pass, and one ordinary backward pass gives all gradients, for a
model's loss depends on its own row alone. On a processor large fully connected layers are those
of `modmix.training.linear`, and gradients are collected where the optimizer reads them. Buffers
(hyperparameters, statistics of batch norm) are stacked name by name, and written in place by
modules that update them.

Shapes: K models, B batch, C classes, P parameters of a model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from modmix.methods.model import Model
from modmix.training.linear import Layers, Sink

Inputs = Mapping[str, Tensor]


class Step(NamedTuple):
    """What one pass over a batch gives: mean loss, number of wrong predictions, gradients."""

    loss_K: Tensor
    wrong_K: Tensor
    gradient_KP: Tensor


class Weights(NamedTuple):
    """Parameters and buffers of K models."""

    parameters_KP: Tensor
    buffers: Mapping[str, Tensor]

    def clone(self) -> Weights:
        buffers = {name: value.clone() for name, value in self.buffers.items()}
        return Weights(self.parameters_KP.detach().clone(), buffers)

    def select(self, rows: Sequence[int]) -> Weights:
        """These rows only, in this order."""
        index = torch.tensor(rows, device=self.parameters_KP.device)
        buffers = {name: value.index_select(0, index) for name, value in self.buffers.items()}
        return Weights(self.parameters_KP.detach().index_select(0, index), buffers)

    def replace(self, rows_K: Tensor, new: Weights) -> None:
        """Take over the rows of ``new`` where the mask is true."""
        pairs = [(self.parameters_KP, new.parameters_KP)]
        pairs += [(value, new.buffers[name]) for name, value in self.buffers.items()]
        for mine, theirs in pairs:
            mask = rows_K.view(-1, *[1] * (mine.dim() - 1))
            torch.where(mask, theirs.detach(), mine, out=mine)


class _Caller(nn.Module):
    """Lets `functional_call` reach more than ``forward``: it calls a function of the model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class _Places:
    """Where a module keeps its parameters and buffers: `functional_call` looks for them every time,
    which takes an eighth of a small model's step."""

    def __init__(self, model: nn.Module) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]
        names = {id(tensor): name for name, tensor in named}
        self._places: list[tuple[dict[str, Any], str, str]] = [
            (held, key, names[id(tensor)])  # a tensor in two places has one name
            for module in model.modules()
            for held in (cast(dict[str, Any], module._parameters), module._buffers)
            for key, tensor in held.items()
            if tensor is not None
        ]

    @contextmanager
    def holding(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Other tensors in their places, for a while."""
        before = [held[key] for held, key, _ in self._places]
        try:
            for held, key, name in self._places:
                held[key] = state[name]
            yield
        finally:
            for (held, key, _), tensor in zip(self._places, before, strict=True):
                held[key] = tensor


class Stack:
    """Models of one structure, their parameters side by side; rows are models.

    ``stacked=False`` runs a single row without `vmap`: any operation is then allowed, and
    convolutions keep their fast kernels. Modules may write their buffers in place only.
    """

    def __init__(
        self,
        models: Sequence[Model],
        device: torch.device,
        *,
        stacked: bool = True,
        low_precision: bool = False,
        own_layers: bool = True,
    ) -> None:
        # Matrices first: what weight decay acts on is then one piece of every row.
        named = dict(sorted(models[0].named_parameters(), key=lambda item: item[1].dim() < 2))
        self.names = list(named)
        self._shapes = [_turn(p).shape for p in named.values()]
        self._turned = [_turn(p) is not p for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        rows = [_flat(dict(m.named_parameters()), self.names) for m in models]
        self.parameters_KP = torch.stack(rows).to(device).requires_grad_()
        per_model = [dict(m.named_buffers()) for m in models]
        self.buffers = {
            name: torch.stack([buffers[name] for buffers in per_model]).to(device)
            for name in per_model[0]
        }
        self._caller = _Caller(models[0])
        self._places = _Places(models[0])
        self._mode: bool | None = None  # training or evaluation, as last set
        self.stacked = stacked
        self._low_precision = low_precision
        self._layers: Layers | None = None  # None: vmap's own, and one gradient of all parameters
        if own_layers and device.type == "cpu" and not low_precision:
            self._layers = Layers(models[0], stacked=stacked)
        self._compiled: Callable[..., Any] | None = None
        self._sink: Sink | None = None  # made when first needed, for these parameters
        self._leaves: dict[str, Tensor] = {}
        self.freeze(())

    @property
    def template(self) -> Model:
        """The model whose structure all share; its own weights are not used."""
        return self._caller.model

    @property
    def models(self) -> int:
        return self.parameters_KP.shape[0]

    def freeze(self, prefixes: tuple[str, ...]) -> None:
        """From now on, compute no gradients of parameters whose names begin so.

        Modules of such names run in evaluation mode, so that statistics stay too.
        """
        self._frozen = [bool(prefixes) and name.startswith(prefixes) for name in self.names]
        self._mode = None
        modules = self.template.named_modules()
        self._resting = [m for name, m in modules if prefixes and f"{name}.".startswith(prefixes)]
        self._sink = None

    def columns(self, test: Callable[[str, torch.Size], bool]) -> Tensor:
        """A mask (P,), 1.0 in the columns of parameters whose name and shape pass the test."""
        marks = [
            torch.full((size,), float(test(name, shape)))
            for name, shape, size in zip(self.names, self._shapes, self._sizes, strict=True)
        ]
        return torch.cat(marks).to(self.parameters_KP.device)

    # ------------------------------------------------------------ passes

    def loss_and_gradient(self, inputs: Inputs, target_KB: Tensor) -> Step:
        """Mean loss, wrong predictions and gradients on inputs (K, B, *shape)."""
        self._set_mode(training=True)
        if self._compiled is not None:
            return self._loss_compiled(dict(inputs), target_KB)
        if self._layers is not None:
            return self._loss_and_collected(dict(inputs), target_KB)
        loss_K, wrong_K = self._map(self._loss, dict(inputs), target_KB)
        (gradient_KP,) = torch.autograd.grad(loss_K.sum(), self.parameters_KP)
        return Step(loss_K.detach(), wrong_K, gradient_KP)

    def _set_mode(self, *, training: bool) -> None:
        if self._mode == training == self.template.training:
            return
        self._mode = training
        self.template.train(training)
        for module in self._resting:
            module.eval()

    def compile(self, *, on: bool = True) -> None:
        """From now on, let the step of this stack run as a program made for its shapes.

        It is made at the next step, or read from the cache that all processes share.
        """
        if self._layers is not None:
            self._layers.active = not on
        self._compiled = torch.compile(self._whole, dynamic=False, fullgraph=True) if on else None

    def _whole(
        self, parameters_KP: Tensor, buffers: dict[str, Tensor], inputs: Inputs, target_KB: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        views = self._views(parameters_KP)
        loss_K, wrong_K = self._map(self._loss, inputs, target_KB, views=views, buffers=buffers)
        return loss_K.sum(), loss_K, wrong_K

    def _loss_compiled(self, inputs: Inputs, target_KB: Tensor) -> Step:
        assert self._compiled is not None
        total, loss_K, wrong_K = self._compiled(
            self.parameters_KP, dict(self.buffers), inputs, target_KB
        )
        (gradient_KP,) = torch.autograd.grad(total, self.parameters_KP)
        return Step(loss_K.detach(), wrong_K, gradient_KP)

    def _loss_and_collected(self, inputs: Inputs, target_KB: Tensor) -> Step:
        """The same, with gradients in memory that every step uses again."""
        if self._sink is None:
            # Leaves of their own, not parts of one tensor: nothing is joined afterwards.
            self._leaves = {name: view.detach() for name, view in self._views().items()}
            self._sink = Sink(self.parameters_KP, self._leaves.values())
            for leaf, frozen in zip(self._leaves.values(), self._frozen, strict=True):
                leaf.requires_grad_(not frozen)
        sink = self._sink
        sink.begin()
        loss_K, wrong_K = self._map(self._loss, inputs, target_KB, views=self._leaves, sink=sink)
        trained = [leaf for leaf in self._leaves.values() if leaf.requires_grad]
        sink.finish(trained, torch.autograd.grad(loss_K.sum(), trained, allow_unused=True))
        return Step(loss_K.detach(), wrong_K, sink.gradient_KP)

    @torch.no_grad()
    def scores(self, inputs: Inputs) -> Tensor:
        """Scores (K, B, C) in evaluation mode; all models see the same inputs (B, *shape)."""
        self._set_mode(training=False)
        scores_KBC: Tensor = self._map(self._scores, shared=(dict(inputs),))
        return scores_KBC.float()

    @torch.no_grad()
    def features(self, inputs: Inputs) -> dict[str, Tensor]:
        """Features (K, B, D_m) in evaluation mode; all models see the same inputs."""
        self._set_mode(training=False)
        features: dict[str, Tensor] = self._map(self._features, shared=(dict(inputs),))
        return features

    @torch.no_grad()
    def refresh(self, features: Mapping[str, Tensor], target_N: Tensor) -> None:
        """Let the method make new buffers from all training features (K, N, D_m)."""
        new = self._map(self._refresh, dict(features), shared=(target_N,))
        for name, value in new.items():
            self.buffers[f"method.{name}"].copy_(value)

    def _map(
        self,
        function: Callable[..., Any],
        *mapped: Any,
        shared: tuple[Any, ...] = (),
        views: Mapping[str, Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        sink: Sink | None = None,
    ) -> Any:
        """Call ``function(model, *mapped, *shared)`` for every row; results get a model axis."""
        views = self._views() if views is None else views
        state = {**views, **(self.buffers if buffers is None else buffers)}

        def one(state: dict[str, Tensor], *mapped: Any) -> Any:
            if torch.compiler.is_compiling():  # it knows this one
                full = {f"model.{name}": value for name, value in state.items()}
                return functional_call(self._caller, full, (function, *mapped, *shared))
            with self._places.holding(state):
                return function(self.template, *mapped, *shared)

        if self._layers is not None:
            self._layers.sink = sink
        if self.stacked:
            return vmap(one, randomness="different")(state, *mapped)
        row = tree_map(lambda value: value[0], (state, *mapped))
        return tree_map(lambda value: value.unsqueeze(0), one(*row))

    def _views(self, parameters_KP: Tensor | None = None) -> dict[str, Tensor]:
        """Every parameter (K, *shape) as a view of the one tensor."""
        whole_KP = self.parameters_KP if parameters_KP is None else parameters_KP
        parts = whole_KP.split_with_sizes(self._sizes, dim=1)
        views = {}
        for i, name in enumerate(self.names):
            part = parts[i].detach() if self._frozen[i] else parts[i]
            view = part.view(-1, *self._shapes[i])
            views[name] = view.mT if self._turned[i] else view
        return views

    def _loss(self, model: Model, inputs: Inputs, target_B: Tensor) -> tuple[Tensor, Tensor]:
        with self._precision():
            outputs = model(inputs)
            loss = model.loss(outputs, target_B).mean()
            predicted_B = model.scores(outputs).detach().argmax(-1)
        return loss, (predicted_B != target_B).sum()

    def _scores(self, model: Model, inputs: Inputs) -> Tensor:
        with self._precision():
            return model.scores(model(inputs))

    def _features(self, model: Model, inputs: Inputs) -> dict[str, Tensor]:
        with self._precision():
            return model.features(inputs)

    def _refresh(self, model: Model, features: Inputs, target_N: Tensor) -> dict[str, Tensor]:
        return dict(model.method.refresh(features, target_N))

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._low_precision:
            return nullcontext()
        return torch.autocast(self.parameters_KP.device.type, dtype=torch.bfloat16)

    # ------------------------------------------------------------ rows and weights

    def weights(self) -> Weights:
        """The present weights themselves, not a copy."""
        return Weights(self.parameters_KP, self.buffers)

    def with_weights(self, weights: Weights) -> Stack:
        """A stack of the same structure with other weights; any number of rows."""
        other = copy.copy(self)
        other.parameters_KP = weights.parameters_KP.detach().requires_grad_()
        other._sink = other._compiled = None  # they are for the weights and rows of before
        other.buffers = dict(weights.buffers)
        return other

    @torch.no_grad()
    def state_of(self, row: int) -> dict[str, Tensor]:
        """One model's ``state_dict``."""
        state = {**self._views(), **self.buffers}
        return {name: state[name][row] for name in self.template.state_dict()}


# Outputs from which on a matrix lies with its inputs first: the forward pass is then a product of
# two matrices as they lie, the fastest kind. Narrow ones lie the other way, with longer rows.
_NARROW = 32


def _turn(parameter: Tensor) -> Tensor:
    """As it lies in memory: a wide layer's matrix turned, inputs by outputs."""
    turns = parameter.dim() == 2 and parameter.shape[0] >= _NARROW
    return parameter.mT if turns else parameter


def _flat(parameters: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """One model's parameters as a row (P,)."""
    return torch.cat([_turn(parameters[name].detach()).flatten() for name in names])
