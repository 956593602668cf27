"""Every method on every encoder, and with every optimizer: stacked models equal single ones.

In float64 and below the trainer: `Stack` and `Optimizer` against one module after another under
`torch.optim`. (In float32 the rounding of convolutions grows to a percent within 20 steps, whoever
computes them.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modmix.methods.base import Stage, remembers
from modmix.methods.draws import Draws
from modmix.methods.entries_combine import COMBINE
from modmix.methods.model import InputSpec, Model, ModelSpec, build_model
from modmix.methods.table import METHODS
from modmix.training.optimizers import Optimizer
from modmix.training.stack import Stack
from modmix.training.turns import turns_of
from plainloop import make_optimizer, set_gradients
from toypack import Dropping, add_method, defaults, make_data, make_replicates

pytestmark = pytest.mark.slow

# Batch norm over fewer examples than these is so unstable that float64's last digit decides.
BATCH, CLASSES, MODELS = 16, 3, 2
# Differences would grow from step to step: the methods of the first paper show how far.
STEPS = {"dropping": 30, **{method: 30 if method in COMBINE else 15 for method in METHODS}}
ROWS = 40  # of the training split that batches are said to come from
TOKENS = InputSpec(shape=(5,), kind="tokens", vocabulary=7)
MLP = {"name": "mlp", "hidden": [4], "activation": "tanh", "batch_norm": True}
BESIDE = ("dense", MLP, InputSpec(shape=(3,)))
# Encoder -> inputs with their encoders; a ResNet's three taps are three modalities of one image.
ENCODERS: dict[str, list[tuple[str, dict[str, Any], InputSpec]]] = {
    "taps": [
        (
            "image",
            {"name": "resnet", "depth": 8, "width": 2, "taps": True},
            InputSpec(shape=(6, 6, 2), kind="image"),
        )
    ],
    "resnet18": [
        ("image", {"name": "resnet18", "width": 2}, InputSpec(shape=(12, 12, 2), kind="image")),
        BESIDE,
    ],
    "char_lstm": [
        ("text", {"name": "char_lstm", "embedding": 3, "units": 4, "layers": 1}, TOKENS),
        BESIDE,
    ],
    "char_cnn": [
        ("text", {"name": "char_cnn", "embedding": 3, "filters": 2, "widths": [2, 3]}, TOKENS),
        BESIDE,
    ],
    "transformer": [
        (
            "text",
            {
                "name": "transformer",
                "width": 4,
                "layers": 1,
                "heads": 2,
                "feedforward": 4,
                "dropout": 0.25,
            },
            TOKENS,
        ),
        BESIDE,
    ],
    "mlp": [("wide", MLP, InputSpec(shape=(5,))), BESIDE],
}
# The trainer keeps these numbers in float32: powers of two have no rounding to be amplified.
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {
        "optimizer": "sgd",
        "learning_rate": 2**-7,
        "momentum": 0.875,
        "weight_decay": 2**-10,
        "nesterov": True,
    },
    "adam": {"optimizer": "adam", "learning_rate": 2**-10, "weight_decay": 2**-10},
    "adamw": {"optimizer": "adamw", "learning_rate": 2**-10, "weight_decay": 0.125},
}
# Every method meets every encoder, and over the encoders every optimizer: an optimizer does not see
# which method its gradients are from.
CASES = [
    (method, encoder, list(RECIPES)[(i + j) % len(RECIPES)])
    for i, method in enumerate((*METHODS, "dropping"))
    for j, encoder in enumerate(ENCODERS)
    # `early` reads raw inputs: it has no encoder to vary.
    if method != "early" or encoder == "mlp"
]


# Of weights of about 0.1, after 30 steps that amplify the last digits of float64.
ATOL = 1e-7


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make these small operations a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def models_of(method: str, encoder: str) -> list[Model]:
    inputs = ENCODERS[encoder]
    params = {} if method == "dropping" else defaults(method)
    if method == "base":
        params["modality"] = "unit2" if encoder == "taps" else inputs[0][0]
    if method in ("attend", "dimml", "mla"):  # their features must be of one width
        params["project"] = 4
    if method == "umt":  # stronger, it amplifies float64's last digits in 30 steps of SGD
        params["distillation"] = 0.125
    if method == "dimml":  # else weight decay shrinks a head that the first stage does not train
        params["head"] = "none"
    whole = ModelSpec(
        method=method,
        params=params,
        encoders={name: spec for name, spec, _ in inputs},
        inputs={name: given for name, _, given in inputs},
        classes=CLASSES,
    )
    models = [build_model(whole, seed) for seed in range(1, MODELS + 1)]
    for model in models:
        remembers(model.method, ROWS)
    return [model.double() for model in models]


def enter_last_stage(model: Model) -> Stage:
    """Enter a method's last stage and its first turn, with what that trains."""
    stage = model.method.stages()[-1]
    model.method.enter(stage)
    turn = turns_of(model, stage)[0]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in turn.trained)
    for module in turn.resting:
        module.eval()
    return stage


def batches(encoder: str, steps: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Other examples for each model, (MODELS, B, *shape)."""
    drawn = np.random.default_rng(0)
    for _ in range(steps):
        made = {}
        for name, _spec, given in ENCODERS[encoder]:
            size = (MODELS, BATCH, *given.shape)
            if given.kind == "tokens":
                made[name] = torch.from_numpy(drawn.integers(0, given.vocabulary or 0, size))
            else:
                made[name] = torch.from_numpy(drawn.normal(size=size))
        yield made, torch.from_numpy(drawn.integers(0, CLASSES, (MODELS, BATCH)))


@pytest.mark.parametrize(("method", "encoder", "recipe"), CASES)
def test_stacked_equals_single(
    method: str, encoder: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_method(monkeypatch, "dropping", Dropping)
    data = make_data(widths=(2, 2), rows=(9, 9, 9))
    (replicate,) = make_replicates("mul", seeds=[0], data=data, **RECIPES[recipe])
    training = replicate.training
    alone = models_of(method, encoder)
    stages = [enter_last_stage(model) for model in alone]
    stack = Stack(models_of(method, encoder), torch.device("cpu"))
    stack.template.method.enter(stages[0])
    stack.enter_stage(stages[0])
    decays_P = stack.columns(lambda _, shape: len(shape) >= 2).double()
    trained_P = stack.columns(lambda name, _: name in stack.turns[0].trained).double()
    rows = [training] * MODELS
    optimizer = Optimizer(rows, stack.parameters_KP, decays_P, trained_P, epochs=1)
    singles = [make_optimizer(model, training) for model in alone]
    for step, (batch, target) in enumerate(batches(encoder, STEPS[method])):
        read = {name: batch[name] for name in stack.template.inputs}
        stack.draw_K.copy_(torch.arange(MODELS) + 10 * step)
        index_B = (torch.arange(BATCH) + 7 * step) % ROWS
        found = stack.loss_and_gradient(read, target, index_B.expand(MODELS, -1))
        optimizer.step(stack.parameters_KP, found.gradient_KP)
        for row, (model, single) in enumerate(zip(alone, singles, strict=True)):
            for source in (m for m in model.modules() if isinstance(m, Draws)):
                source.draw.fill_(row + 10 * step)
                source.calls = 0
            if model.method.uses_index:
                model.method.index = index_B
            single.zero_grad()
            outputs = model({name: x[row] for name, x in read.items()})
            loss = set_gradients(model, outputs, target[row])
            single.step()
            assert found.loss_K[row].item() == pytest.approx(loss.item(), rel=1e-5)
    for row, model in enumerate(alone):
        for name, value in stack.state_of(row).items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=ATOL)
