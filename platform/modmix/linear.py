"""Large fully connected layers of K models on a processor, and where gradients are collected.

`torch.func.vmap` makes one batched product of every model's layer, which is as good as any for
small ones (written as a product: of ``linear`` it makes two more passes). Products of some hundred
rows and columns are done here, model by model, by oneDNN: it uses the whole vector width of every
x86 processor, and the library behind ``torch.bmm`` half of it on those that are not Intel's (85
and 170 GFLOP/s on a core of an AMD EPYC of 2024). Their weight gradients are written where the
optimizer reads them while still in the cache.

What is computed is what `torch.nn.functional.linear` computes.
Shapes: K models, B examples, I inputs and O outputs of a layer, P parameters of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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

    def place(self, leaf: Tensor) -> tuple[Tensor, bool]:
        """Where the leaf's gradient belongs, and whether nothing is there yet."""
        offset = int(leaf.storage_offset())
        first = offset not in self._written
        self._written.add(offset)
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

    ``stacked`` says whether the module is called under `vmap`.
    """

    def __init__(self, module: nn.Module, *, stacked: bool) -> None:
        self.sink: Sink | None = None
        self.active = True
        self._stacked = stacked
        for part in module.modules():
            if type(part) is nn.Linear:
                setattr(part, "forward", partial(self._forward, part))  # noqa: B010

    def _forward(self, layer: nn.Linear, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        large = _is_large(rows, layer.in_features, layer.out_features, x.dtype)
        if not (large and self.active):
            if not self._stacked or layer.bias is None:
                return F.linear(x, layer.weight, layer.bias)
            # vmap would make addmm of it, and multiply both sides by one first.
            return torch.matmul(x, layer.weight.mT).add_(layer.bias)
        if self._stacked:
            return _apply(_OfOneModel, x, layer.weight, layer.bias, self.sink)
        bias = None if layer.bias is None else layer.bias.unsqueeze(0)
        return _linear(x.unsqueeze(0), layer.weight.unsqueeze(0), bias, self.sink).squeeze(0)


def _is_large(rows: int, inner: int, columns: int, dtype: torch.dtype) -> bool:
    large = rows * inner * columns >= _LARGE and min(rows, inner, columns) >= _SHORTEST_SIDE
    return large and _onednn is not None and dtype == torch.float32


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
        ctx.save_for_backward(x_KBI, weight_KOI)
        ctx.sink = sink
        y_KBO = _product(x_KBI, weight_KOI.mT)
        return y_KBO if bias_KO is None else y_KBO.add_(bias_KO.unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_KBO: Tensor) -> Any:
        x_KBI, weight_KOI = ctx.saved_tensors
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
    if out is None:
        out = a_KMN.new_empty(models, rows, columns)
    if not _is_large(rows, inner, columns, a_KMN.dtype):
        return out.copy_(torch.bmm(a_KMN, b_KNR))
    assert _onednn is not None
    for a_MN, b_RN, y_MR in zip(a_KMN.unbind(), b_KNR.mT.unbind(), out.unbind(), strict=True):
        y_MR.copy_(_onednn(a_MN, b_RN, None, "none", [], ""))
    return out
