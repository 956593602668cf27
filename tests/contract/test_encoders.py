"""Both tables of networks agree with the classes they name; every encoder keeps its contract."""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any

import pytest
import torch

from modmix.encoders.mlp import MLP
from modmix.encoders.table import ENCODERS
from modmix.methods.table import METHODS

SHAPES: dict[str, tuple[int, ...]] = {"flat": (5,), "image": (8, 8, 3), "sequence": (6, 4)}


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
    assert {p.name for p in parameters} == {h.name for h in declared}
    for parameter in parameters:
        (hyperparameter,) = (h for h in declared if h.name == parameter.name)
        default = hyperparameter.default
        expected = tuple(default) if isinstance(default, list) else default
        assert parameter.default == expected, parameter.name
        assert hyperparameter.problem(default) is None
        assert hyperparameter.doc


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_map_a_batch_to_features(name: str) -> None:
    entry = ENCODERS[name]
    for kind, shape in SHAPES.items():
        if entry.inputs not in ("any", kind):
            continue
        encoder = load(entry.path)(shape, **{h.name: h.default for h in entry.hyperparameters})
        features = encoder(torch.randn(3, *shape))
        assert features.shape == (3, encoder.features)
        assert features.isfinite().all()


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
