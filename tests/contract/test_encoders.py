"""Both tables of networks agree with the classes they name; every encoder keeps its contract."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from modmix.encoders.base import Encoder
from modmix.encoders.mlp import MLP
from modmix.encoders.table import ENCODERS, given_modalities
from modmix.methods.table import METHODS

SHAPES: dict[str, tuple[int, ...]] = {
    "dense": (5,),
    "image": (8, 8, 3),
    "sequence": (6, 4),
    "tokens": (7,),
    "video": (2, 8, 8, 3),
}
VOCABULARY = 11
# Small ones, each with what its defaults leave out.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "identity": [{}],
    "mlp": [{"hidden": [6, 4], "batch_norm": True}, {"hidden": []}],
    "resnet": [{"depth": 8, "width": 4}, {"depth": 14, "width": 2, "taps": False}],
    "resnet18": [{"width": 2}],
    "char_lstm": [{"embedding": 4, "units": 5}, {"embedding": 3, "units": 4, "layers": 2}],
    "transformer": [
        {"width": 6, "layers": 2, "heads": 3, "feedforward": 5, "dropout": 0.0},
        {"width": 4, "layers": 1, "heads": 1, "feedforward": 7, "dropout": 0.0},
    ],
    "char_cnn": [{"embedding": 4, "widths": [1, 2, 9], "filters": 3}],
}


def load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    ("path", "declared", "skip"),
    [(e.path, e.hyperparameters, 1) for e in ENCODERS.values()]
    + [(m.path, m.hyperparameters, 2) for m in METHODS.values()],
)
def test_tables_declare_what_constructors_take(path: str, declared: Any, skip: int) -> None:
    parameters = list(inspect.signature(load(path)).parameters.values())[skip:]
    if parameters and parameters[0].name == "vocabulary":  # the data's, not the study's
        entry = next(e for e in ENCODERS.values() if e.path == path)
        needed = entry.inputs == ("tokens",)
        assert parameters.pop(0).default is (inspect.Parameter.empty if needed else None)
    assert {p.name for p in parameters} == {h.name for h in declared}
    for parameter in parameters:
        (hyperparameter,) = (h for h in declared if h.name == parameter.name)
        default = hyperparameter.default
        expected = tuple(default) if isinstance(default, list) else default
        assert parameter.default == expected, parameter.name
        assert hyperparameter.problem(default) is None
        assert hyperparameter.doc


def build(name: str, kind: str, params: Mapping[str, Any]) -> Encoder:
    more = {"vocabulary": VOCABULARY} if kind == "tokens" else {}
    encoder = load(ENCODERS[name].path)(SHAPES[kind], **more, **params)
    assert isinstance(encoder, Encoder)
    return encoder


def values(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {**{h.name: h.default for h in ENCODERS[name].hyperparameters}, **params}


def batch(kind: str, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs of a kind; tokens of lengths 0 to all."""
    shape = (*leading, *SHAPES[kind])
    if kind != "tokens":
        return torch.randn(shape, dtype=dtype)
    lengths = torch.arange(math.prod(leading)).view(*leading, 1) % (SHAPES[kind][0] + 1)
    tokens = torch.randint(1, VOCABULARY, shape)
    return tokens.masked_fill(torch.arange(SHAPES[kind][0]) >= lengths, 0)


def variants() -> Iterator[Any]:
    for name, entry in ENCODERS.items():
        kinds = SHAPES if "any" in entry.inputs else entry.inputs
        for kind in kinds:
            for params in VARIANTS[name]:
                yield pytest.param(name, kind, params, id=f"{name}-{kind}-{params}")


@pytest.mark.parametrize(("name", "kind", "params"), list(variants()))
def test_encoders_give_what_they_declare(name: str, kind: str, params: dict[str, Any]) -> None:
    encoder = build(name, kind, params)
    outputs = encoder(batch(kind, 3))
    declared = given_modalities(name, values(name, params))
    assert isinstance(outputs, dict) == isinstance(encoder.features, Mapping) == bool(declared)
    if not isinstance(outputs, dict):
        outputs, widths = {"": outputs}, {"": encoder.features}
    else:
        assert tuple(outputs) == declared
        widths = dict(encoder.features)  # type: ignore[arg-type]
        assert tuple(widths) == declared
    for modality, features in outputs.items():
        assert features.shape == (3, widths[modality])
        assert features.dtype == torch.float32
        assert features.isfinite().all()


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_work_with_their_defaults(name: str) -> None:
    kind = "dense" if "any" in ENCODERS[name].inputs else ENCODERS[name].inputs[0]
    params = values(name, {})
    outputs = build(name, kind, params)(batch(kind, 2))
    assert tuple(outputs if isinstance(outputs, dict) else ()) == given_modalities(name, params)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "kind", "params"), list(variants()))
def test_stacked_encoders_equal_single_ones(
    name: str, kind: str, params: dict[str, Any], training: bool
) -> None:
    """Features, gradients and statistics of three models under `vmap` and one by one.

    Each model has its own batch in training, all share one in evaluation.
    """
    torch.manual_seed(0)
    singles = [build(name, kind, params).double().train(training) for _ in range(3)]
    inputs = batch(kind, 3, 8, dtype=torch.float64)
    parameters, buffers = stack_module_state(singles)
    buffers = {key: value.clone() for key, value in buffers.items()}
    shared = bool(parameters) and not training
    if shared:
        inputs = inputs[:1].expand_as(inputs)
    template = build(name, kind, params).double().train(training)
    template.stacked = True

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return flat(functional_call(template, (parameters, buffers), (x,)))

    in_dims = (0, 0, None if shared else 0)
    found = vmap(one, in_dims=in_dims)(parameters, buffers, inputs[0] if shared else inputs)
    weights = torch.randn_like(found)
    if parameters:
        gradients = torch.autograd.grad((found * weights).sum(), list(parameters.values()))
        stacked = dict(zip(parameters, gradients, strict=True))
    for k, single in enumerate(singles):
        expected = flat(single(inputs[k]))
        torch.testing.assert_close(found[k], expected, rtol=1e-10, atol=1e-12)
        if parameters:
            (expected * weights[k]).sum().backward()
        for key, parameter in single.named_parameters():
            torch.testing.assert_close(stacked[key][k], parameter.grad, rtol=1e-8, atol=1e-10)
        for key, buffer in single.named_buffers():
            torch.testing.assert_close(buffers[key][k], buffer, rtol=1e-10, atol=1e-12)


def flat(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    """Features of all modalities side by side."""
    return torch.cat(list(outputs.values()), 1) if isinstance(outputs, dict) else outputs


@pytest.mark.parametrize(("name", "kind", "params"), list(variants()))
def test_encoders_work_in_short_precision(name: str, kind: str, params: dict[str, Any]) -> None:
    for stacked in (False, True):
        encoder = build(name, kind, params)
        encoder.stacked = stacked
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = flat(encoder(batch(kind, 4)))
        assert outputs.isfinite().all()
        if outputs.requires_grad:
            outputs.float().sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_mlp_by_hand() -> None:
    torch.manual_seed(0)
    encoder = MLP((2, 3), hidden=[4, 2], activation="tanh")
    x = torch.randn(5, 2, 3)
    first, second = encoder.layers[0], encoder.layers[2]
    hidden = torch.tanh(x.reshape(5, 6) @ first.weight.T + first.bias)  # type: ignore[operator,union-attr]
    expected = torch.tanh(hidden @ second.weight.T + second.bias)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(encoder(x), expected)
    assert encoder.features == 2
    assert MLP((2, 3), hidden=[]).features == math.prod((2, 3))


def test_mlp_with_batch_norm_has_no_bias_that_it_would_cancel() -> None:
    encoder = MLP((3,), hidden=[4], batch_norm=True)
    assert [type(layer).__name__ for layer in encoder.layers] == ["Linear", "BatchNorm1d", "ReLU"]
    assert encoder.layers[0].bias is None
