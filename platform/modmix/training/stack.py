"""K models of the same structure run as one; the only module that uses ``torch.func``.

The parameters of all models are one (K, P) tensor with a row per model; each parameter is a view
(K, *shape) of it. `torch.func.vmap` adds the model axis to a function of one model, and a single
ordinary backward pass gives all gradients, because each model's loss depends on its own row only.
Buffers (hyperparameters, batch-norm statistics) are stacked per name, and modules must update them
in place.

Shapes: K models, B batch, C classes, P parameters of a model.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from modmix.encoders.base import Encoder
from modmix.methods.base import Outputs, Pass, Stage, State, lift, modulates
from modmix.methods.draws import Draws
from modmix.methods.model import Model
from modmix.training.device import like_gpu
from modmix.training.turns import turns_of
from modmix.training.weights import Part, Predictions, Step, Weights

Inputs = Mapping[str, Tensor]
_DRAW = "draw"  # last component of the names of buffers that hold the step's seed
_INDEX = "method.index"  # the buffer that holds the step's row numbers


class _Caller(nn.Module):
    """Lets `functional_call` run any function of the model instead of only its ``forward``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class Stack:
    """K models of the same structure with stacked parameters and buffers, a row per model.

    ``stacked=False`` runs a single model without `vmap`, so that any operation is allowed and
    convolutions and LSTMs use their fast kernels. Modules may only modify buffers in place.
    ``low_precision`` runs models in bfloat16 autocast.
    """

    def __init__(
        self,
        models: Sequence[Model],
        device: torch.device,
        *,
        stacked: bool = True,
        low_precision: bool = False,
    ) -> None:
        # Matrices before vectors: the columns that weight decay applies to are then contiguous.
        named = dict(sorted(models[0].named_parameters(), key=lambda item: item[1].dim() < 2))
        self.names = list(named)
        self._shapes = [p.shape for p in named.values()]
        self._sizes = [p.numel() for p in named.values()]
        rows = [_flat(dict(m.named_parameters()), self.names) for m in models]
        self.parameters_KP = torch.stack(rows).to(device)
        per_model = [dict(m.named_buffers()) for m in models]
        self.draw_K = torch.zeros(len(models), dtype=torch.int64, device=device)
        self.buffers: dict[str, Tensor] = {}
        self._draws = [name for name in per_model[0] if name.rpartition(".")[2] == _DRAW]
        self.uses_index = models[0].method.uses_index
        for name in per_model[0]:
            if name not in (*self._draws, _INDEX):
                stacked_buffers = [buffers[name] for buffers in per_model]
                self.buffers[name] = torch.stack(stacked_buffers).to(device)
        self._caller = _Caller(models[0])
        self.stacked = stacked
        for module in self.template.modules():
            if isinstance(module, Encoder):
                module.stacked = stacked
            elif stacked and type(module) in _FORWARD:
                forward = _FORWARD[type(module)]
                if forward is not _linear or not like_gpu(device):
                    module.forward = types.MethodType(forward, module)
        self._sources = [m for m in self.template.modules() if isinstance(m, Draws)]
        self._low_precision = low_precision
        self._compile = False
        self._compiled: dict[int, Callable[..., Any]] = {}  # by turn
        self._bound: tuple[Tensor, dict[str, Tensor], Tensor, dict[str, Tensor]] | None = None
        self.enter_stage(Stage(name=""))

    @property
    def template(self) -> Model:
        """The model that defines the shared structure; its own weights are not used."""
        return self._caller.model

    @property
    def models(self) -> int:
        return self.parameters_KP.shape[0]

    @property
    def device(self) -> torch.device:
        return self.parameters_KP.device

    def enter_stage(self, stage: Stage) -> None:
        """Train the parameters of a stage from now on, beginning with its first turn.

        Frozen modules run in evaluation mode, which also keeps their statistics, and so do those
        outside the current turn.
        """
        self.turns = turns_of(self.template, stage)
        self.turn = 0
        self._bound = None
        self.template.eval()  # the next step wakes what rested in the stage before

    def take_turn(self, turn: int) -> None:
        """Train the parameters of this turn of the stage from now on."""
        if turn == self.turn:
            return
        self.turn = turn
        if self._bound is not None:
            _, leaves, gradient_KP, _ = self._bound
            self._mark_trained(leaves)
            gradient_KP.zero_()

    def trained(self, turn: int) -> Tensor | None:
        """A mask (P,) of the columns that a turn of the stage trains; None: all of them."""
        names = self.turns[turn].trained
        return None if len(names) == len(self.names) else self.columns(lambda n, _: n in names)

    def columns(self, test: Callable[[str, torch.Size], bool]) -> Tensor:
        """A mask (P,) over the columns: true for parameters whose name and shape pass the test."""
        marks = [
            torch.full((size,), test(name, shape))
            for name, shape, size in zip(self.names, self._shapes, self._sizes, strict=True)
        ]
        return torch.cat(marks).to(self.device)

    def parts(self) -> dict[str, Part]:
        """The parts of these models that train independently of each other, by name."""
        return {
            part: Part(
                self.columns(lambda name, _, begins=prefixes: name.startswith(begins)),  # type: ignore[misc]
                frozenset(name for name in self.buffers if name.startswith(prefixes)),
            )
            for part, prefixes in self.template.parts().items()
        }

    # ------------------------------------------------------------ training

    def loss_and_gradient(
        self, inputs: Inputs, target_KB: Tensor, index_KB: Tensor | None = None
    ) -> Step:
        """Mean loss, number of wrong predictions and gradient on training inputs (K, B, *shape).

        ``index_KB`` are the examples' row numbers, for methods that use them. The gradient is a
        buffer that the next call overwrites.
        """
        self._set_mode(training=True)
        buffers = self._with_index(index_KB)
        leaves, gradient_KP, views = self._bind()
        if self._compile and self.turn not in self._compiled:
            self._compiled[self.turn] = torch.compile(
                _copied(self._losses), dynamic=False, fullgraph=True
            )
        run: Callable[..., Any] = self._compiled.get(self.turn, self._losses)
        losses, wrong_K, outputs = run(leaves, buffers, dict(inputs), target_KB)
        trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        if modulates(self.template.method):
            self._modulated(losses, outputs, target_KB, trained, views, buffers)
        else:
            total = torch.stack(list(losses.values())).sum()
            found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
            _collect(views, dict(zip(trained, found, strict=True)))
        loss_K = torch.stack(list(losses.values())).detach().sum(0)
        return Step(loss_K, wrong_K, gradient_KP)

    def _with_index(self, index_KB: Tensor | None) -> dict[str, Tensor]:
        """The buffers, with the batch's row numbers for methods that use them."""
        if not self.uses_index:
            return dict(self.buffers)
        assert index_KB is not None
        return {**self.buffers, _INDEX: index_KB}

    def _losses(
        self, leaves: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Inputs, target: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Any]:
        found: tuple[dict[str, Tensor], Tensor, Any] = self._map(
            self._loss, inputs, target, leaves=leaves, buffers=buffers
        )
        return found

    def _loss(
        self, model: Model, inputs: Inputs, target_B: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Any]:
        with self._precision():
            outputs = model(inputs)
            losses = {n: x.mean() for n, x in model.method.losses(outputs, target_B).items()}
            predicted_B = model.scores(outputs).detach().argmax(-1)
        wrong = (predicted_B != target_B).sum()
        return losses, wrong, outputs if modulates(model.method) else ()

    @torch.no_grad()
    def _modulated(
        self,
        losses: Mapping[str, Tensor],
        outputs: Outputs,
        target_KB: Tensor,
        trained: Mapping[str, Tensor],
        views: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
    ) -> None:
        """Compute each loss's gradients, let the method modulate them, and collect the result."""
        gradients: dict[str, dict[str, Tensor]] = {}
        for name, loss_K in losses.items():
            found: tuple[Tensor | None, ...] = (None,) * len(trained)
            if loss_K.requires_grad:  # else it depends on frozen parameters only
                found = torch.autograd.grad(
                    loss_K,
                    list(trained.values()),
                    torch.ones_like(loss_K),
                    allow_unused=True,
                    retain_graph=True,
                )
            pairs = zip(trained.items(), found, strict=True)
            gradients[name] = {n: torch.zeros_like(x) if g is None else g for (n, x), g in pairs}
        summed = {n: torch.stack([g[n] for g in gradients.values()]).sum(0) for n in trained}
        changed = self._map(
            self._modulate, _detached(outputs), target_KB, gradients, buffers=buffers
        )
        _collect(views, {**summed, **changed})

    def _modulate(
        self, model: Model, outputs: Outputs, target_B: Tensor, gradients: Any
    ) -> dict[str, Tensor]:
        return dict(model.method.modulate(outputs, target_B, gradients))

    def _bind(self) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Leaf views of the parameters, the gradient buffer (K, P) and its views; cached."""
        if self._bound is None or self._bound[0] is not self.parameters_KP:
            leaves = self._views(self.parameters_KP.detach())
            self._mark_trained(leaves)
            gradient_KP = torch.zeros_like(self.parameters_KP)
            self._bound = self.parameters_KP, leaves, gradient_KP, self._views(gradient_KP)
        return self._bound[1:]

    def _mark_trained(self, leaves: Mapping[str, Tensor]) -> None:
        trained = self.turns[self.turn].trained
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in trained)

    def forget_gradient(self) -> None:
        """Drop the gradient buffer to free its memory; the next step allocates it again."""
        self._bound = None

    def compile(self, *, on: bool = True) -> None:
        """Turn `torch.compile` on or off for the forward and backward pass of training steps.

        Compilation happens at the next step. Stacks made by `with_weights` compile again.
        """
        self._compile, self._compiled = on, {}

    def _set_mode(self, *, training: bool) -> None:
        # The modules in evaluation mode may have changed with the turn.
        if self.template.training != training or len(self.turns) > 1:
            self.template.train(training)
        self.template.method.turn = self.turn
        for module in self.turns[self.turn].resting:
            module.eval()
        for source in self._sources:
            source.calls = 0

    # ------------------------------------------------------------ evaluation

    @torch.no_grad()
    def predict(self, inputs: Inputs, *, parts: bool = False) -> Predictions:
        """Predictions in evaluation mode; all models see the same inputs (B, *shape)."""
        self._set_mode(training=False)
        found = self._map(self._predict, shared=(dict(inputs), parts))
        scores, logs, of_parts, reports = found
        return Predictions(scores.float(), logs.float(), of_parts, reports)

    def _predict(
        self, model: Model, inputs: Inputs, parts: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        with self._precision():
            outputs = model(inputs)
            of_parts = model.method.part_log_probabilities(outputs) if parts else {}
            reports = {n: x.argmax(-1) for n, x in model.method.reports(outputs).items()}
            return model.scores(outputs), model.log_probabilities(outputs), dict(of_parts), reports

    @torch.no_grad()
    def start_pass(self, one: Pass) -> State:
        """The initial state of a pass, tensors (K, …)."""
        # `vmap` may return expanded tensors, which cannot be written in place.
        state: State = _each(self._map(lambda _: one.start()), Tensor.contiguous)
        return state

    @torch.no_grad()
    def step_pass(self, one: Pass, state: State, inputs: Inputs, target_B: Tensor) -> State:
        """Update a pass's state with a chunk of examples; all models see the same inputs."""
        self._set_mode(training=False)

        def step(model: Model, state: State, inputs: Inputs, target_B: Tensor) -> State:
            with self._precision():
                features = model.features(inputs)
            # The step runs outside autocast, where layers do not take half precision.
            features = {name: lift(f_BD) for name, f_BD in features.items()}
            return dict(one.step(state, features, target_B))

        new: State = self._map(step, state, shared=(dict(inputs), target_B))
        return new

    @torch.no_grad()
    def finish_pass(self, one: Pass, state: State) -> None:
        """Write a pass's result into the method's buffers."""
        for name, value in self._map(lambda _, state: dict(one.finish(state)), state).items():
            self.buffers[f"method.{name}"].copy_(value)

    def _map(
        self,
        function: Callable[..., Any],
        *mapped: Any,
        shared: tuple[Any, ...] = (),
        leaves: Mapping[str, Tensor] | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Call ``function(model, *mapped, *shared)`` for every row; results get a model axis.

        ``mapped`` tensors have a leading model axis; ``shared`` is the same for all models.
        """
        leaves = self._views(self.parameters_KP) if leaves is None else leaves
        state = {**leaves, **(self.buffers if buffers is None else buffers)}
        state.update(dict.fromkeys(self._draws, self.draw_K))
        if self.uses_index and _INDEX not in state:
            state[_INDEX] = self.draw_K.new_zeros(self.models, 0)
        state = {f"model.{name}": value for name, value in state.items()}

        def one(state: dict[str, Tensor], *mapped: Any) -> Any:
            return functional_call(self._caller, state, (function, *mapped, *shared))

        if self.stacked:
            return vmap(one, randomness="error")(state, *mapped)
        first = [_each(value, lambda x: x[0]) for value in (state, *mapped)]
        return _each(one(*first), lambda x: x.unsqueeze(0))

    def _views(self, whole_KP: Tensor) -> dict[str, Tensor]:
        """Views (K, *shape) of a (K, P) tensor, by parameter name."""
        parts = whole_KP.split_with_sizes(self._sizes, dim=1)
        named = zip(self.names, parts, self._shapes, strict=True)
        return {name: part.view(-1, *shape) for name, part, shape in named}

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._low_precision:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # ------------------------------------------------------------ rows and weights

    def weights(self) -> Weights:
        """The current weights, not copied."""
        return Weights(self.parameters_KP, self.buffers)

    def with_weights(self, weights: Weights) -> Stack:
        """A stack of the same structure with other weights, of any number of rows."""
        other = copy.copy(self)
        other.parameters_KP = weights.parameters_KP.detach()
        other.buffers = dict(weights.buffers)
        other.draw_K = other.draw_K.new_zeros(other.models)
        other._bound, other._compiled = None, {}  # both are specific to these rows
        return other

    @torch.no_grad()
    def state_of(self, row: int) -> dict[str, Tensor]:
        """One model's ``state_dict``."""
        state = {**self._views(self.parameters_KP), **self.buffers}
        return {name: state[name][row] for name in self.template.state_dict()}


def _batch_norm(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm's forward pass through `torch.native_batch_norm`, which `vmap` supports on GPUs.

    `torch.nn.functional.batch_norm` first queries the memory layout of its input to see whether
    cuDNN's kernel applies, which fails under `vmap`.

    Raises:
        RuntimeError: ``momentum=None`` (cumulative average), whose factor is read from a tensor.
    """
    if module.momentum is None:
        raise RuntimeError("batch norm with momentum=None cannot be stacked")
    if module.training and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
    mean, var = module.running_mean, module.running_var
    by_batch = module.training or mean is None
    # Keep statistics in float32 under bfloat16 autocast.
    whole = x if mean is None else x.to(mean.dtype)
    result: Tensor = torch.native_batch_norm(
        whole, module.weight, module.bias, mean, var, by_batch, module.momentum, module.eps
    )[0]
    return result.to(x.dtype)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer of a training batch (B, D), computed as (W·xᵀ)ᵀ.

    The batched products of its backward pass then give the weights' gradient in the weights' own
    memory layout. With `torch.nn.functional.linear` it comes transposed, which costs a CPU a slow
    copy, and slow products where there are few outputs: 15 % of a step of small networks.
    """
    if x.dim() != 2 or not layer.training:
        return functional.linear(x, layer.weight, layer.bias)
    y = torch.matmul(layer.weight, x.mT).mT
    return y if layer.bias is None else y + layer.bias


# Forward passes that suit `vmap` better than those of torch's own layers. Subclasses keep theirs.
_FORWARD: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.Linear: _linear,
}


def _flat(parameters: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """One model's parameters flattened to (P,)."""
    return torch.cat([parameters[name].detach().flatten() for name in names])


def _collect(views: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
    """Copy gradients into views of the gradient buffer; 0 for parameters that were not used."""
    for name, gradient in gradients.items():
        if gradient is None:
            views[name].zero_()
        else:
            views[name].copy_(gradient)


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to every tensor in nested dicts and (named) tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each(one, change) for name, one in value.items()}
    if isinstance(value, tuple):
        parts = [_each(one, change) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _copied(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with its own copy of the code object.

    `torch.compile` caches by code object and by default recompiles at most eight times for each:
    too few for all the packs, with varying numbers of rows, that a process may train.
    """
    assert isinstance(method, types.MethodType)
    whole = method.__func__
    assert isinstance(whole, types.FunctionType)
    code = whole.__code__.replace()
    function = types.FunctionType(
        code, whole.__globals__, whole.__name__, closure=whole.__closure__
    )
    return types.MethodType(function, method.__self__)


def _detached(outputs: Outputs) -> Outputs:
    return _each(outputs, Tensor.detach)
