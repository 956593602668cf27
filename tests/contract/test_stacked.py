"""Models trained as one equal models trained alone by a plain loop, for every method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from modmix.base.messages import Finished, Replicate
from modmix.base.metrics import METRICS, evaluate
from modmix.methods.base import remembers
from modmix.methods.entries_staged import STAGED
from modmix.methods.model import build_model, model_spec, unpack_weights
from modmix.methods.table import METHODS
from modmix.tasks.data import Data
from modmix.training.group import Group, Member
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry
from plainloop import error_of, train_plainly
from toypack import is_stacked, make_data, make_replicates, train

# 800 examples make 25 steps an epoch, 50 in two.
DATA = make_data(rows=(800, 120, 90), noise=2.5)

# Configurations of one pack: what may differ between stacked models does.
CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "late": [{}, {}],
    "mul": [
        {"beta": 0.0},
        {"beta": 0.3, "margin": 0.2, "alpha": 0.5, "weights": {"m0": 0.3, "m2": 2.0}},
    ],
    "mulmix": [{"beta": 1.0}, {"beta": 2.0, "margin": 0.0, "weights": {"m0+m1": 0.5}}],
    "dimml": [  # in one stage without passes, which the plain loop does not have
        {"head": "none", "separate": False, "warmup": 0, "tau": 5.0, "duc_weight": 0.5},
        {"head": "none", "separate": False, "warmup": 0, "shared_weight": 0.2, "temperature": 0.5},
    ],
    "mmcosine": [{"scale": 3.0}, {"scale": 15.0}],
    "moddrop": [{"drop": 0.2}, {"drop": 0.6}],
    "centralnet": [{"weight": 0.0}, {"weight": 0.7}],
    "ogm_ge": [{"last_epoch": 0}, {"alpha": 0.1, "noise": 0.2, "first_epoch": 1}],
    "agm": [{}, {"alpha": 0.2}],
    "mmpareto": [{}, {"gamma": 1.0}],
    "pmr": [{}, {"alpha": 0.5, "keep": 0.9}],
    "gblending": [{"super_epoch": 1}, {"super_epoch": 1}],
    "dgl": [{}, {"alpha": 0.5}],
    "qmf": [{"rank_weight": 0.0}, {"rank_weight": 2.0, "unimodal_weight": 0.5, "temperature": 3.0}],
    "mla": [{"damping": 0.1}, {"damping": 0.01}],
    "reconboost": [{"reconcile": 0.0}, {"reconcile": 0.9}],
    "umt": [{"distillation": 0.0}, {"distillation": 3.0}],
    "tmc": [{"annealing_epochs": 0.0}, {"annealing_epochs": 3.0}],
    # Of the default sizes, float32 rounding under Adam grows to 1e-4 of the loss in 50 steps.
    "tfn": [{"project": 4, "width": 8}, {"project": 4, "width": 8}],
}
RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {
        "optimizer": "sgd",
        "nesterov": True,
        "clip_norm": 1.0,
        "weight_decay": 1e-3,
        "schedule": "step",
        "milestones": [0.48, 1],  # after 12 and 25 steps
        "decay_rate": 0.1,
    },
    "adam": {"optimizer": "adam", "clip_norm": 0.5, "schedule": "exponential", "decay_rate": 0.5},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "decay": "all", "schedule": "cosine"},
}
# Every method with one of the optimizers, and some with all, in turn with batch norm and without.
CASES = [
    pytest.param(method, recipe, bool((i + k) % 2), id=f"{method}-{recipe}-{(i + k) % 2}")
    for i, method in enumerate(m for m in METHODS if m not in STAGED)
    for k, recipe in enumerate(RECIPES)
    if i % len(RECIPES) == k or method in ("late", "mul", "mulmix")
]


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """All weights together to 1e-5 of their norm.

    Each alone to 1e-4: where rounding decides whether a ReLU passes one example, the few weights
    behind it move by that much.
    """
    assert list(found) == list(expected)
    pairs = [(name, found[name].double(), x.double()) for name, x in expected.items()]
    pairs = [p for p in pairs if p[0] != "method.margin"]  # may be infinite
    distance = sum((x - y).square().sum() for _, x, y in pairs)
    assert distance <= 1e-10 * sum(y.square().sum() for _, _, y in pairs)
    for name, x, y in pairs:
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=name)


def assert_equals_plain_loop(found: Finished, replicate: Replicate, data: Data) -> None:
    plain = train_plainly(replicate, data)
    assert found.state == "done"
    for name, column in plain.history.items():
        assert found.history[name] == pytest.approx(column, rel=1e-5), name
    assert found.weights is not None
    model, description = unpack_weights(found.weights)
    assert description["seed"] == replicate.seed
    best_state = {name: plain.best_state[name] for name in model.state_dict()}
    assert_same_weights(model.state_dict(), best_state)
    assert found.metrics["test/error"] == pytest.approx(error_of(model, data.test))
    if plain.parts:
        assert found.best_epoch == max(epoch for _, epoch in plain.parts.values())
        assert found.metrics["val/error"] == pytest.approx(error_of(model, data.val))
        return
    assert found.best_epoch == plain.best_epoch
    best = plain.history["epoch"].index(plain.best_epoch)
    assert found.metrics["val/error"] == pytest.approx(plain.history["val/error"][best])
    assert found.metrics["train/loss"] == pytest.approx(plain.history["train/loss"][best], rel=1e-5)


@pytest.mark.parametrize(("method", "recipe", "batch_norm"), CASES)
def test_stacked_models_equal_single_ones(method: str, recipe: str, batch_norm: bool) -> None:
    configurations = [
        {**configuration, "training": {"learning_rate": rate}}
        for configuration, rate in zip(
            CONFIGURATIONS.get(method, [{}, {}]), (3e-3, 1e-3), strict=True
        )
    ]
    encoder = {"name": "mlp", "hidden": [8], "batch_norm": batch_norm}
    replicates = make_replicates(
        method,
        configurations,
        data=DATA,
        encoder=encoder,
        epochs=2,
        batch_size=32,
        evaluations_per_epoch=2,
        **RECIPES[recipe],
    )
    assert is_stacked(replicates, DATA)
    found = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        assert_equals_plain_loop(found[replicate.key], replicate, DATA)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_other_structures(activation: str) -> None:
    encoder = {"name": "mlp", "hidden": [6, 5], "activation": activation}
    params = {"merge": "mean", "project": 4, "hidden": [6, 3]}
    replicates = make_replicates("mulmix", [params], data=DATA, encoder=encoder, epochs=1)
    found = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        assert_equals_plain_loop(found[replicate.key], replicate, DATA)


@pytest.mark.parametrize("method", ["add", "mul", *STAGED])
def test_one_after_another_equals_stacked(method: str) -> None:
    """Methods that train in stages or turns have hand-written loops in tests of their own."""
    encoder = {"name": "mlp", "hidden": [8], "batch_norm": True}
    fields: dict[str, Any] = {"data": DATA, "encoder": encoder, "epochs": 2, "clip_norm": 1.0}
    configurations = CONFIGURATIONS.get(method, [{}, {}])
    never = make_replicates(method, configurations, stack="never", **fields)
    always = make_replicates(method, configurations, stack="always", **fields)
    assert is_stacked(always, DATA)
    one, other = train(never, DATA, keep_weights=True), train(always, DATA, keep_weights=True)
    for key in one:
        found, expected = one[key].weights, other[key].weights
        assert found is not None
        assert expected is not None
        models = unpack_weights(found)[0], unpack_weights(expected)[0]
        assert_same_weights(models[0].state_dict(), models[1].state_dict())


def test_early_stopping_is_that_of_each_model_alone() -> None:
    data = make_data(rows=(96, 60, 30), noise=3.0)
    configurations = [{"training": {"learning_rate": rate}} for rate in (0.1, 0.03, 0.01, 0.003)]
    replicates = make_replicates(
        "mul", configurations, data=data, epochs=30, batch_size=32, patience=3
    )
    found = train(replicates, data, keep_weights=True)
    for replicate in replicates:
        assert_equals_plain_loop(found[replicate.key], replicate, data)
    assert len({event.epochs for event in found.values()}) > 3  # they did not stop together


@pytest.mark.parametrize("method", METHODS)
def test_everything_stays_on_one_device(method: str) -> None:
    """Tensors without content know their device and refuse to meet those of another."""
    replicates = make_replicates(method, data=DATA, clip_norm=1.0, weight_decay=0.1)
    encoder = {"name": "mlp", "hidden": [4], "batch_norm": True}
    encoders = dict.fromkeys(DATA.shapes, encoder)
    cuda = torch.device("cuda:0")
    with FakeTensorMode(), torch.no_grad():
        models = [
            build_model(model_spec(replace(r, encoders=encoders), DATA), r.seed) for r in replicates
        ]
        for model in models:
            remembers(model.method, DATA.train.rows)
        stack = Stack(models, cuda)
        training = replicates[0].training
        group = Group([Member(index=i, seed=i, training=training) for i in (0, 1)], stack)
        stage = models[0].method.stages()[0]
        group.start_stage(StageEntry(stage=stage, epochs=1, from_best=False, keeps_best=True))
        inputs = {name: torch.empty(2, 5, *s, device=cuda) for name, s in DATA.shapes.items()}
        target = torch.empty(2, 5, device=cuda, dtype=torch.long)
        # The backward pass would ask for a real device.
        buffers = stack._with_index(torch.empty(2, 5, device=cuda, dtype=torch.long))
        losses, wrong, _ = stack._map(stack._loss, inputs, target, buffers=buffers)
        assert all(loss.device == cuda for loss in (*losses.values(), wrong))
        group.optimizer.step(stack.parameters_KP, torch.empty_like(stack.parameters_KP))
        found = stack.predict({name: x[0] for name, x in inputs.items()}, parts=bool(group.parts))
        assert found.scores.shape == found.log_probabilities.shape == (2, 5, 3)
        assert all(x.shape == (2, 5, 3) and x.device == cuda for x in found.parts.values())
        values = evaluate(found.scores, found.log_probabilities, target[0], METRICS)
        for value in values.values():
            assert value.device == cuda
        group.keep_best([True, False])
        assert all(value.device == cuda for value in group.state().values())
