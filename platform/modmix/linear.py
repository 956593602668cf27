"""Fully connected layers of K models on a processor, instead of what `vmap` makes of them.

Every model's layer is the same product, so K of them are one batched product and its two gradients.
What is computed is what `torch.nn.functional.linear` computes; three things make it faster:

* one operation each way, where `vmap` needs a dozen to line the models up;
* large products go model by model to oneDNN, which uses the whole vector width of every x86
  processor; the library behind ``torch.bmm`` uses half of it on those that are not Intel's;
* the gradient of a weight is copied to where the optimizer reads it while it is still in the cache,
  not joined with all others at the end.

Shapes: K models, B examples, I inputs and O outputs of a layer, P parameters of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Multiplications of one model's product from which on oneDNN pays; below, one call for all models
# costs less than K calls. Measured on shapes between 32 x 64 x 64 and 128 x 500 x 500.
_LARGE = 1 << 21
_SHORTEST_SIDE = 64

_onednn: Callable[..., Tensor] | None = None
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Sink:
    """Gradients (K, P) of leaves that are views of parameters (K, P), filled in a backward pass."""

    def __init__(self, parameters_KP: Tensor, leaves: Iterable[Tensor]) -> None:
        self._storage = parameters_KP.untyped_storage().data_ptr()
        self._leaves = {_place_of(leaf) for leaf in leaves}
        self.gradient_KP = torch.zeros_like(parameters_KP, requires_grad=False)
        self._written: set[int] = set()

    def begin(self) -> None:
        """A new backward pass: nothing is written yet."""
        self._written.clear()

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is one of the leaves, all of it."""
        same = tensor.untyped_storage().data_ptr() == self._storage
        return same and _place_of(tensor) in self._leaves

    def add(self, leaf: Tensor, gradient: Tensor) -> None:
        """Take a gradient of this leaf."""
        place, first = self.place(leaf)
        if first:
            place.copy_(gradient)
        else:
            place.add_(gradient)

    def place(self, leaf: Tensor) -> tuple[Tensor, bool]:
        """Where the leaf's gradient belongs, and whether nothing is there yet."""
        offset = int(leaf.storage_offset())
        first = offset not in self._written
        self._written.add(offset)
        stride = (self.gradient_KP.stride(0), *leaf.stride()[1:])
        return self.gradient_KP.as_strided(leaf.shape, stride, offset), first

    def finish(self, leaves: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
        """Take what came by the ordinary way, and set to zero what nothing depended on."""
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                self.add(leaf, gradient)
            elif leaf.storage_offset() not in self._written:
                self.place(leaf)[0].zero_()


def _place_of(tensor: Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    """Where a leaf lies in its row: the stride between rows says nothing when there is one."""
    return int(tensor.storage_offset()), tensor.shape, tensor.stride()[1:]


class Layers(TorchFunctionMode):
    """While entered, ``linear`` is this module's; ``stacked`` says whether `vmap` is at work."""

    def __init__(self, sink: Sink | None, *, stacked: bool) -> None:
        super().__init__()
        self._sink = sink
        self._stacked = stacked

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        with torch._C.DisableTorchFunction():
            if self._stacked:
                return _apply(_OfOneModel, input, weight, bias, self._sink)
            offset = None if bias is None else bias.unsqueeze(0)
            return _linear(input.unsqueeze(0), weight.unsqueeze(0), offset, self._sink).squeeze(0)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


def _linear(x: Tensor, weight_KOI: Tensor, bias_KO: Tensor | None, sink: Sink | None) -> Tensor:
    """The layer of K models on inputs (K, ..., I), (K, ..., O)."""
    x_KBI = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    y_KBO = _apply(_OfAllModels, x_KBI, weight_KOI, bias_KO, sink)
    return y_KBO if x.dim() == 3 else y_KBO.view(*x.shape[:-1], y_KBO.shape[-1])


class _OfOneModel(torch.autograd.Function):
    """The layer as a model calls it; under `vmap` it becomes the one of all models."""

    @staticmethod
    def forward(*_: Any) -> Tensor:
        raise AssertionError("only ever called under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: the gradients are those of the layer of all models."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sink: Sink | None,
    ) -> tuple[Tensor, int]:
        def rows(value: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return value.unsqueeze(0).expand(info.batch_size, *value.shape)
            return value if dim == 0 else value.movedim(dim, 0)

        of_all = rows(x, in_dims[0]), rows(weight, in_dims[1])
        return _linear(*of_all, None if bias is None else rows(bias, in_dims[2]), sink), 0


class _OfAllModels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_KBI: Tensor, weight_KOI: Tensor, bias_KO: Tensor | None, sink: Sink | None
    ) -> Tensor:
        ctx.save_for_backward(x_KBI, weight_KOI, bias_KO)
        ctx.sink = sink
        y_KBO = _product(x_KBI, weight_KOI.mT)
        return y_KBO if bias_KO is None else y_KBO.add_(bias_KO.unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_KBO: Tensor) -> Any:
        x_KBI, weight_KOI, bias_KO = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        sink: Sink | None = ctx.sink
        gx = _product(g_KBO, weight_KOI) if of_x else None
        gw = gb = None
        if of_weight and sink is not None and sink.holds(weight_KOI):
            _weight_gradient(sink, weight_KOI, g_KBO, x_KBI)
        elif of_weight:
            gw = _product(g_KBO.mT, x_KBI)
        if of_bias:
            gb = g_KBO.sum(1)
            if sink is not None and sink.holds(bias_KO):
                sink.add(bias_KO, gb)
                gb = None
        return gx, gw, gb, None


def _weight_gradient(sink: Sink, weight_KOI: Tensor, g_KBO: Tensor, x_KBI: Tensor) -> None:
    """gᵀx, in the order in which the weights lie, to its place."""
    place_KOI, first = sink.place(weight_KOI)
    factors, place = (g_KBO.mT, x_KBI), place_KOI
    if place.stride(-1) != 1:
        factors, place = (x_KBI.mT, g_KBO), place_KOI.mT
    if first:
        _product(*factors, out=place)
    else:
        place.add_(_product(*factors))


def _product(a_KMN: Tensor, b_KNR: Tensor, out: Tensor | None = None) -> Tensor:
    """K products, (K, M, R), in the memory of ``out`` where that is given."""
    models, rows, inner = a_KMN.shape
    columns = b_KNR.shape[2]
    large = (
        _onednn is not None
        and a_KMN.dtype == torch.float32
        and rows * inner * columns >= _LARGE
        and min(rows, inner, columns) >= _SHORTEST_SIDE
    )
    if not large:
        if out is None:
            return torch.bmm(a_KMN, b_KNR)
        return out.copy_(torch.bmm(a_KMN, b_KNR))
    assert _onednn is not None
    if out is None:
        out = a_KMN.new_empty(models, rows, columns)
    for a_MN, b_RN, y_MR in zip(a_KMN.unbind(), b_KNR.mT.unbind(), out.unbind(), strict=True):
        y_MR.copy_(_onednn(a_MN, b_RN, None, "none", [], ""))
    return out
