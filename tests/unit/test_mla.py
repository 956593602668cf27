"""Alternating unimodal adaptation: the projection in NumPy, and whole training by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.methods.mla import MLA
from modmix.methods.model import build_model, derive_seed, model_spec, unpack_weights
from plainloop import error_of, tensors
from toypack import is_stacked, make_data, make_replicates, train

DATA = make_data(rows=(96, 40, 30), noise=2.0)
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


def test_projection_over_several_batches() -> None:
    """The recursion in NumPy, and the gradient of the head that each step uses."""
    method = MLA({"a": 4, "b": 4, "c": 4}, 3, damping=0.0625).double()
    generator = np.random.default_rng(0)
    p = np.eye(4)
    for step in range(9):
        method.turn = step % 3
        features = {m: torch.tensor(generator.normal(0.5, 2, (6, 4))) for m in "abc"}
        outputs = method(features)
        gradient = generator.normal(size=(3, 4))
        gradients = {"loss": {"method.head.weight": torch.tensor(gradient)}}
        target = torch.zeros(6, dtype=torch.int64)
        with torch.no_grad():
            changed = method.modulate(outputs, target, gradients)
        h = features["abc"[step % 3]].numpy().mean(0, keepdims=True).T
        p = p - (p @ h) @ (h.T @ p) / (0.0625 + (h.T @ p @ h).item())
        p = p / np.sqrt((p**2).sum())
        np.testing.assert_allclose(method.projection_DD.numpy(), p, rtol=1e-9, atol=1e-12)
        assert list(changed) == ["method.head.weight"]
        np.testing.assert_allclose(changed["method.head.weight"].numpy(), gradient @ p.T, rtol=1e-9)


def test_projection_suppresses_what_has_been_seen() -> None:
    """A gradient along the mean feature of a modality hardly passes after its turn."""
    method = MLA({"a": 3, "b": 3}, 2, damping=1e-3)
    features = {m: torch.tensor([[1.0, 2.0, 0.0]]) for m in "ab"}
    along, across = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[2.0, -1.0, 0.0]])
    gradient = torch.cat([along, across])
    found = method.modulate(
        method(features), torch.tensor([0]), {"loss": {"method.head.weight": gradient}}
    )["method.head.weight"].detach()
    assert found[0].norm() < 1e-3 * found[1].norm()
    torch.testing.assert_close(F.cosine_similarity(found[1:], across), torch.ones(1))


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e4])
def test_projection_stays_finite(size: float) -> None:
    """Features of any size, and the same ones again and again."""
    method = MLA({"a": 3, "b": 3}, 2)
    features = {m: torch.full((2, 3), size) for m in "ab"}
    gradients = {"loss": {"method.head.weight": torch.ones(2, 3)}}
    for step in range(50):
        method.turn = step % 2
        with torch.no_grad():
            found = method.modulate(method(features), torch.zeros(2).long(), gradients)
        assert found["method.head.weight"].isfinite().all()
        assert method.projection_DD.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_certain_modalities_weigh_more() -> None:
    method = MLA({"a": 2, "b": 2}, 2)
    own_MBC = torch.tensor([[[8.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    outputs = method(dict.fromkeys("ab", torch.zeros(2, 2)))._replace(logits_MBC=own_MBC)
    p = own_MBC.double().softmax(-1)
    entropy = -(p * p.log()).sum(-1).numpy()
    for b in range(2):
        w = np.exp(entropy[:, b].max() - entropy[:, b])
        expected = (w / w.sum()) @ own_MBC[:, b].double().numpy()
        np.testing.assert_allclose(method.scores(outputs)[b].numpy(), expected, rtol=1e-5)
    reports = method.reports(outputs)
    torch.testing.assert_close(reports["b"], own_MBC[1].log_softmax(-1))


def test_unequal_widths_need_a_projection() -> None:
    with pytest.raises(InputError, match="needs features of equal width, got 3, 2; set project"):
        MLA({"a": 3, "b": 2}, 2)
    assert MLA({"a": 3, "b": 2}, 2, project=4).head.in_features == 4


# ---------------------------------------------------------------- whole training


def by_hand(replicate: Any) -> tuple[dict[str, Tensor], list[float]]:
    """One model with torch.optim; P in NumPy. Each turn has an optimizer of its own."""
    t = replicate.training
    model: Any = build_model(model_spec(replicate, DATA), replicate.seed)
    method = model.method
    inputs, labels = tensors(DATA.train)
    turns = []
    for i in range(3):
        parameters = [*model.encoders[i].parameters(), *method.head.parameters()]
        if method.project is not None:
            parameters += list(method.project[i].parameters())
        turns.append((parameters, torch.optim.Adam(parameters, lr=t["learning_rate"])))
    width = method.head.in_features
    p = np.eye(width)
    means = []
    for epoch in range(t["epochs"]):
        seed = derive_seed(replicate.seed, "batches", epoch)
        order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        losses = []
        for rows in order.split(16):
            summed = 0.0
            for i, (parameters, optimizer) in enumerate(turns):
                model.train()
                features = model.encoders[i](inputs[f"m{i}"][rows])
                if method.project is not None:
                    features = method.project[i](features)
                loss = F.cross_entropy(method.head(features), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                h = features.detach().double().numpy().mean(0)
                k = p @ h
                p = p - np.outer(k, k) / (replicate.params["damping"] + h @ k)
                p = p / np.linalg.norm(p)
                gradient = method.head.weight.grad
                gradient.copy_(torch.tensor(gradient.double().numpy() @ p.T))
                torch.nn.utils.clip_grad_norm_(parameters, t["clip_norm"])
                optimizer.step()
                summed += loss.item()
            losses.append(summed)
        means.append(float(np.mean(losses)))
    return model.state_dict(), means


@pytest.mark.slow
@pytest.mark.parametrize("project", [None, 4])
@pytest.mark.parametrize("stack", ["always", "never"])
def test_training_is_that_of_a_hand_written_loop(stack: str, project: int | None) -> None:
    configurations = [{"damping": value, "project": project} for value in (0.1, 2.0)]
    replicates = make_replicates(
        "mla", configurations, data=DATA, encoder=ENCODER, epochs=3, batch_size=16,
        optimizer="adam", learning_rate=0.01, clip_norm=0.5, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    curves = set()
    for replicate in replicates:
        end = ends[replicate.key]
        state, losses = by_hand(replicate)
        curves.add(tuple(losses))
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-4)
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=2e-4, msg=name)
        assert end.metrics["test/error"] == pytest.approx(error_of(model, DATA.test))
        assert {f"test/m{i}/error" for i in range(3)} < set(end.metrics)
    assert len(curves) == len(replicates)
