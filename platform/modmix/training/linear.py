"""Fully connected layers of K models on a processor, and where gradients are collected.

`torch.func.vmap` would make one batched product of every model's layer; here it is one of
`modmix.training.products`, and weight gradients are written where the optimizer reads them while
they are still in the cache.

What is computed is what `torch.nn.functional.linear` computes.
Shapes: K models, B examples, I inputs and O outputs of a layer, P parameters of a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction, once_differentiable
from torch.nn import functional as F

from modmix.training.products import product


class Sink:
    """Gradients (K, P) of leaves that are views of parameters (K, P), filled in a backward pass."""

    def __init__(self, parameters_KP: Tensor, leaves: Iterable[Tensor]) -> None:
        self._storage = parameters_KP.untyped_storage().data_ptr()
        self._leaves = {_place_of(leaf) for leaf in leaves}
        self.gradient_KP = torch.zeros_like(parameters_KP, requires_grad=False)
        self._written: set[tuple[int, torch.Size]] = set()

    def begin(self) -> None:
        """A new backward pass: nothing is written yet."""
        self._written.clear()

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is one of the leaves, all of it."""
        same = tensor.untyped_storage().data_ptr() == self._storage
        return same and _place_of(tensor) in self._leaves

    def place(self, leaf: Tensor) -> tuple[Tensor, bool]:
        """Where the leaf's gradient belongs, and whether nothing is there yet."""
        offset = int(leaf.storage_offset())
        key = offset, leaf.shape  # one without elements lies where the next one does
        first = key not in self._written
        self._written.add(key)
        stride = (self.gradient_KP.stride(0), *leaf.stride()[1:])
        return self.gradient_KP.as_strided(leaf.shape, stride, offset), first

    def finish(self, leaves: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
        """Take what came by the ordinary way, and set to zero what nothing depended on."""
        places, new = [], []
        for leaf, gradient in zip(leaves, gradients, strict=True):
            place, first = self.place(leaf)
            if gradient is None:
                if first:
                    place.zero_()
            elif first:
                places.append(place)
                new.append(gradient)
            else:
                place.add_(gradient)
        if places:
            torch._foreach_copy_(places, new)


def _place_of(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Where a leaf lies in its row: the stride between rows says nothing when there is one."""
    return int(tensor.storage_offset()), tensor.shape, tensor.stride()[1:]


class Layers:
    """Takes over the fully connected layers in a module; ``sink`` is set before every pass.

    A ReLU that follows one in an `nn.Sequential` becomes part of it: one pass over memory less.
    ``stacked`` says whether the module is called under `vmap`.
    """

    def __init__(self, module: nn.Module, *, stacked: bool) -> None:
        self.sink: Sink | None = None
        self.active = True
        self._stacked = stacked
        for part in module.modules():
            if type(part) is nn.Linear:
                setattr(part, "forward", partial(self._layer, part))  # noqa: B010
            if type(part) is nn.Sequential and _has_pairs(part):
                setattr(part, "forward", partial(self._sequence, part))  # noqa: B010

    def _sequence(self, sequence: nn.Sequential, x: Tensor) -> Tensor:
        parts = list(sequence)
        rest = iter(zip(parts, [*parts[1:], None]))
        for part, following in rest:
            if type(part) is nn.Linear and _are_pair(part, following):
                x = self._layer(part, x, rectify=True)
                next(rest)
            else:
                x = part(x)
        return x

    def _layer(self, layer: nn.Linear, x: Tensor, *, rectify: bool = False) -> Tensor:
        if not self.active:
            return _ordinary(x, layer.weight, layer.bias, rectify=rectify)
        if self._stacked:
            return _under_vmap(x, layer.weight, layer.bias, self.sink, rectify=rectify)
        bias = None if layer.bias is None else layer.bias.unsqueeze(0)
        of_all = x.unsqueeze(0), layer.weight.unsqueeze(0), bias
        return _linear(*of_all, self.sink, rectify=rectify).squeeze(0)


def _has_pairs(sequence: nn.Sequential) -> bool:
    return any(_are_pair(*pair) for pair in pairwise(sequence))


def _are_pair(part: nn.Module, following: nn.Module | None) -> bool:
    """A layer and its ReLU, of whose calls nobody wants to know."""
    return (
        type(part) is nn.Linear
        and type(following) is nn.ReLU
        and not any(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            for module in (part, following)
        )
    )


def _ordinary(x: Tensor, weight: Tensor, bias: Tensor | None, *, rectify: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return y.relu() if rectify else y


def _linear(
    x: Tensor, weight_KOI: Tensor, bias_KO: Tensor | None, sink: Sink | None, *, rectify: bool
) -> Tensor:
    """The layer of K models on inputs (K, ..., I), (K, ..., O)."""
    x_KBI = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    y_KBO: Tensor
    if torch.is_grad_enabled():
        arguments = (x_KBI, weight_KOI, bias_KO, sink, rectify)
        y_KBO = _OfAllModels.apply(*arguments)  # type: ignore[attr-defined]
    else:
        y_KBO = _forward(x_KBI, weight_KOI, bias_KO, rectify=rectify)
    return y_KBO if x.dim() == 3 else y_KBO.view(*x.shape[:-1], y_KBO.shape[-1])


def _forward(x_KBI: Tensor, weight_KOI: Tensor, bias_KO: Tensor | None, *, rectify: bool) -> Tensor:
    y_KBO = product(x_KBI, weight_KOI.mT)
    if bias_KO is not None:
        y_KBO.add_(bias_KO.unsqueeze(1))
    return y_KBO.relu_() if rectify else y_KBO


def _under_vmap(
    x: Tensor, weight: Tensor, bias: Tensor | None, sink: Sink | None, *, rectify: bool
) -> Tensor:
    """The layer of all models, called by the one that `vmap` shows.

    What `vmap` has wrapped is unwrapped here, and the result wrapped again. A rule for `vmap` in an
    `autograd.Function` would do that, too, but costs 0.1 ms a call, more than many a product. In
    any other situation than a single `vmap` over the weights, `vmap` makes of the layer what it
    can.
    """
    level = functorch.maybe_get_level(weight)
    given = [x, weight] if bias is None else [x, weight, bias]
    rows = [_rows(value, level) for value in given]
    if level < 0 or rows[1] is None or any(value is None for value in rows):
        return _ordinary(x, weight, bias, rectify=rectify)
    models = len(rows[1])
    whole = [
        row.unsqueeze(0).expand(models, *row.shape) if row.dim() == value.dim() else row
        for row, value in zip(rows, given, strict=True)
        if row is not None
    ]
    of_all = whole[0], whole[1], whole[2] if bias is not None else None
    with torch._C._DisableFuncTorch(), enable_single_level_autograd_function():
        y = _linear(*of_all, sink, rectify=rectify)
    return functorch._add_batch_dim(y, 0, level)


def _rows(value: Tensor, level: int) -> Tensor | None:
    """The tensor of all models, their axis first, or itself where all share it; None: neither."""
    if not functorch.is_functorch_wrapped_tensor(value):
        return value
    if not functorch.is_batchedtensor(value) or functorch.maybe_get_level(value) != level:
        return None
    whole = functorch.get_unwrapped(value)
    if functorch.is_functorch_wrapped_tensor(whole):
        return None
    axis = functorch.maybe_get_bdim(value)
    return whole if axis == 0 else whole.movedim(axis, 0)


class _OfAllModels(_SingleLevelFunction):
    @staticmethod
    def forward(
        ctx: Any,
        x_KBI: Tensor,
        weight_KOI: Tensor,
        bias_KO: Tensor | None,
        sink: Sink | None,
        rectify: bool,
    ) -> Tensor:
        y_KBO = _forward(x_KBI, weight_KOI, bias_KO, rectify=rectify)
        ctx.save_for_backward(x_KBI, weight_KOI, y_KBO if rectify else None)
        ctx.sink = sink
        return y_KBO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_KBO: Tensor) -> Any:
        x_KBI, weight_KOI, y_KBO = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        sink: Sink | None = ctx.sink
        if y_KBO is not None:
            g_KBO = torch.ops.aten.threshold_backward(g_KBO, y_KBO, 0.0)
        gx = product(g_KBO, weight_KOI) if of_x else None
        gw = gb = None
        if of_weight and sink is not None and sink.holds(weight_KOI):
            _weight_gradient(sink, weight_KOI, g_KBO, x_KBI)
        elif of_weight:
            gw = product(g_KBO.mT, x_KBI)
        if of_bias:
            gb = g_KBO.sum(1)
        return gx, gw, gb, None, None


def _weight_gradient(sink: Sink, weight_KOI: Tensor, g_KBO: Tensor, x_KBI: Tensor) -> None:
    """gᵀx, in the order in which the weights lie, to its place."""
    place_KOI, first = sink.place(weight_KOI)
    factors, place = (g_KBO.mT, x_KBI), place_KOI
    if place.stride(-1) != 1:
        factors, place = (x_KBI.mT, g_KBO), place_KOI.mT
    if first:
        product(*factors, out=place)
    else:
        place.add_(product(*factors))
