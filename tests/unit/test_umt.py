"""Unimodal teachers: each is a model trained alone, and fixed while the joint model follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modmix.base.messages import Replicate
from modmix.methods.model import Model, build_model, derive_seed, model_spec, unpack_weights
from plainloop import tensors, train_plainly
from toypack import defaults, is_stacked, make_data, make_replicates, train

DATA = make_data(rows=(96, 80, 60), noise=2.0)
EPOCHS, TEACHER_EPOCHS, RATE, CLIP = 3, 4, 0.02, 0.5
FIELDS: dict[str, Any] = {
    "data": DATA, "batch_size": 16, "learning_rate": RATE, "clip_norm": CLIP, "epochs": EPOCHS,
    "encoder": {"name": "mlp", "hidden": [6], "batch_norm": True},
}  # fmt: skip


def initial(replicate: Replicate) -> Model:
    return build_model(model_spec(replicate, DATA), replicate.seed)


def trained(replicates: Any) -> dict[str, Any]:
    return train(replicates, DATA, keep_weights=True)


def model_of(end: Any) -> Model:
    assert end.weights is not None
    return unpack_weights(end.weights)[0]


def lone_teacher(replicate: Replicate, i: int) -> Mapping[str, Tensor]:
    """A unimodal model trained alone from the teacher's initial weights, under its names."""
    umt: Any = initial(replicate)
    params = {**defaults("base"), "modality": f"m{i}"}
    training = {**replicate.training, "epochs": TEACHER_EPOCHS}
    alone = replace(replicate, method="base", params=params, training=training)
    model: Any = initial(alone)
    model.encoders[0].load_state_dict(umt.encoders[3 + i].state_dict())
    model.method.head.load_state_dict(umt.method.teachers[i].state_dict())
    plain = train_plainly(alone, DATA, model)
    last = replicate.training["select"] == "last"
    assert plain.model is not None
    state = plain.model.state_dict() if last else plain.best_state
    names = {"encoders.0.": f"encoders.{3 + i}.", "method.head.": f"method.teachers.{i}."}
    return {
        new + name.removeprefix(old): value
        for name, value in state.items()
        for old, new in names.items()
        if name.startswith(old)
    }


@pytest.mark.slow
@pytest.mark.parametrize(("select", "patience"), [("last", None), ("best", None), ("best", 1)])
@pytest.mark.parametrize("stack", ["always", "never"])
def test_teachers_are_unimodal_models_trained_alone(
    stack: str, select: str, patience: int | None
) -> None:
    """After both stages: the second one does not change them."""
    replicates = make_replicates(
        "umt", [{"teacher_epochs": TEACHER_EPOCHS}], stack=stack, select=select,
        patience=patience, **FIELDS,
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = trained(replicates)
    for replicate in replicates:
        state = model_of(ends[replicate.key]).state_dict()
        for i in range(3):
            expected = lone_teacher(replicate, i)
            assert len(expected) > 4
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_teachers_have_initial_weights_of_their_own() -> None:
    (replicate,) = make_replicates("umt", seeds=[0], **FIELDS)
    model: Any = initial(replicate)
    weights = [e.layers[0].weight for e in model.encoders]
    assert len(weights) == 6
    assert all(not torch.equal(weights[i], weights[3 + i]) for i in range(3))


def test_no_gradient_reaches_the_teachers_in_the_second_stage() -> None:
    (replicate,) = make_replicates("umt", seeds=[0], **FIELDS)
    model = initial(replicate)
    inputs, labels = tensors(DATA.train)
    model.loss(model(inputs), labels).mean().backward()
    teachers = tuple(prefix for part in model.parts().values() for prefix in part)
    reached = {n: p.grad is not None for n, p in model.named_parameters()}
    assert any(reached.values())
    for name, is_reached in reached.items():
        assert is_reached != name.startswith(teachers), name


def second_stage(replicate: Replicate, after: Model) -> tuple[dict[str, Tensor], list[float]]:
    """The joint model by hand, from the trained teachers: last weights, mean losses of epochs."""
    model: Any = initial(replicate)
    for i in range(3):
        model.encoders[3 + i].load_state_dict(after.encoders[3 + i].state_dict())
    model.eval()
    inputs, labels = tensors(DATA.train)
    with torch.no_grad():
        fixed = [model.encoders[3 + i](inputs[f"m{i}"]) for i in range(3)]
    students = list(model.encoders[:3])
    parameters = [p for e in students for p in e.parameters()]
    parameters += list(model.method.head.parameters())
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    means = []
    for epoch in range(EPOCHS):
        model.train()
        seed = derive_seed(replicate.seed, "batches", TEACHER_EPOCHS + epoch)
        order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        losses = []
        for rows in order.split(16):
            features = [e(inputs[f"m{i}"][rows]) for i, e in enumerate(students)]
            loss = F.cross_entropy(model.method.head(torch.cat(features, 1)), labels[rows])
            for f, t in zip(features, fixed, strict=True):
                loss = loss + replicate.params["distillation"] * F.mse_loss(f, t[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return model.state_dict(), means


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
def test_second_stage_is_a_hand_written_loop(stack: str) -> None:
    configurations = [
        {"distillation": value, "teacher_epochs": TEACHER_EPOCHS} for value in (0.0, 1.0, 20.0)
    ]
    replicates = make_replicates("umt", configurations, stack=stack, select="last", **FIELDS)
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = trained(replicates)
    curves = set()
    for replicate in replicates:
        end = ends[replicate.key]
        after = model_of(end)
        state, losses = second_stage(replicate, after)
        assert list(end.history["train/loss"][TEACHER_EPOCHS:]) == pytest.approx(losses, rel=1e-4)
        curves.add(tuple(losses))
        for name, value in after.state_dict().items():
            if name.startswith(("encoders.0.", "encoders.1.", "encoders.2.", "method.head.")):
                torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4, msg=name)
    assert len(curves) == len(replicates)


@pytest.mark.slow
def test_distillation_moves_the_features_towards_the_teachers() -> None:
    configurations = [{"distillation": value} for value in (0.0, 100.0)]
    replicates = make_replicates("umt", configurations, seeds=[0], **{**FIELDS, "epochs": 8})
    inputs, _ = tensors(DATA.train)
    distances = []
    for end in trained(replicates).values():
        with torch.no_grad():
            distances.append(model_of(end)(inputs).distances_MB.mean().item())
    assert distances[1] < 0.5 * distances[0]
