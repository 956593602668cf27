"""Trusted multi-view classification against SciPy, example by example, and a plain loop."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from equations_confidence import dempster, divergence, trusted
from modmix.methods.model import build_model, derive_seed, model_spec, unpack_weights
from modmix.methods.tmc import (
    TMC,
    combined_evidence,
    divergence_from_uniform,
    expected_cross_entropy,
)
from plainloop import tensors
from toypack import is_stacked, make_data, make_replicates, train

DATA = make_data(rows=(96, 40, 30), widths=(6, 5, 4))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


def evidence(modalities: int, rows: int, classes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Evidence (M, B, C) from none to much."""
    generator = np.random.default_rng(0)
    return np.exp(generator.normal(0, 3, (modalities, rows, classes)))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("modalities", [2, 3])
def test_combination_is_dempsters_rule_applied_pairwise(modalities: int, classes: int) -> None:
    e = evidence(modalities, 20, classes)
    found = combined_evidence(torch.tensor(e)).numpy()
    for b in range(20):
        for order in itertools.permutations(range(modalities)):
            alpha = e[order[0], b] + 1
            for m in order[1:]:
                alpha = dempster(alpha, e[m, b] + 1)
            np.testing.assert_allclose(found[b], alpha - 1, rtol=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(("epoch", "weight"), [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)])
def test_loss_of_every_example(modalities: int, classes: int, epoch: int, weight: float) -> None:
    method = TMC({f"m{i}": 3 for i in range(modalities)}, classes, annealing_epochs=4).double()
    method.epoch.fill_(epoch)
    generator = np.random.default_rng(1)
    features = {m: torch.tensor(generator.normal(size=(12, 3))) for m in method.modalities}
    target = generator.integers(0, classes, 12)
    outputs = method(features)
    loss = method.loss(outputs, torch.tensor(target)).detach().numpy()
    for b, y in enumerate(target):
        alphas = list(outputs.evidence_MBC[:, b].detach().numpy() + 1)
        expected, combined = trusted(alphas, int(y), weight)
        assert loss[b] == pytest.approx(expected, rel=1e-8)
        log_p = method.log_probabilities(outputs)[b].detach().numpy()
        np.testing.assert_allclose(np.exp(log_p), combined / combined.sum(), rtol=1e-9)
        for m, name in enumerate(method.modalities):
            own = method.reports(outputs)[name][b].detach().numpy()
            np.testing.assert_allclose(np.exp(own), alphas[m] / alphas[m].sum(), rtol=1e-9)


def test_terms_of_the_loss_are_expectations_under_the_dirichlet_distribution() -> None:
    """By sampling: what ψ(S) − ψ(α^y) and the divergence mean."""
    e = np.array([3.0, 0.5, 0.0])
    p = np.random.default_rng(2).dirichlet(e + 1, 400_000)
    fit = expected_cross_entropy(torch.tensor(e)[None, None], torch.tensor([1])).item()
    assert fit == pytest.approx(-np.log(p[:, 1]).mean(), rel=0.01)
    # log density ratio: Γ(S)/ΠΓ(α)/Γ(C) Π p^e
    normaliser = math.lgamma(6.5) - math.lgamma(4) - math.lgamma(1.5) - math.lgamma(3)
    sampled = normaliser + (np.log(p) * e).sum(1).mean()
    found = divergence_from_uniform(torch.tensor(e)[None, None]).item()
    assert found == pytest.approx(sampled, rel=0.01)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 6.9, 7.1, 50.0, 1e4, 1e6])
def test_divergence_in_float32(size: float) -> None:
    """Where the textbook formula loses all digits, too."""
    e = np.array([size, size / 3, 0.0, 2.0])
    found = divergence_from_uniform(torch.tensor(e, dtype=torch.float32)[None, None]).item()
    assert found == pytest.approx(divergence(e + 1), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("modalities", [2, 3, 9])
def test_total_conflict(modalities: int) -> None:
    """Each modality is certain, of another class: values and gradients are finite, p is shared."""
    classes = modalities
    logits = torch.full((modalities, 1, classes), -1e4)
    for m in range(modalities):
        logits[m, 0, m] = 1e4
    logits.requires_grad_()
    method = TMC({f"m{i}": classes for i in range(modalities)}, classes, annealing_epochs=1)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(torch.eye(classes) if "weight" in name else torch.zeros(classes))
    outputs = method({f"m{i}": z for i, z in enumerate(logits.unbind())})
    p = method.log_probabilities(outputs).exp()
    torch.testing.assert_close(p, torch.full_like(p, 1 / classes))
    for y in range(classes):
        loss = method.loss(outputs, torch.tensor([y]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


def test_gradient_at_much_evidence_is_that_of_float64() -> None:
    evidences = [[1e4, 0.0, 1e4], [0.0, 0.0, 0.0], [1e9, 3.0, 0.0], [1e16, 1e12, 1e4]]
    for row in evidences:
        gradients = []
        for dtype in (torch.float32, torch.float64):
            e = torch.tensor([[row]], dtype=dtype, requires_grad=True)
            total = divergence_from_uniform(e) + expected_cross_entropy(e, torch.tensor([1]))
            (gradient,) = torch.autograd.grad(total.sum(), e)
            gradients.append(gradient.double() * (1 + e.detach().double()))
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- whole training


def textbook_loss(evidences: list[Tensor], y: Tensor, weight: float) -> Tensor:
    """The loss of a batch with torch's own functions, combined through beliefs."""
    combined = evidences[0]
    for second in evidences[1:]:
        (b_1, u_1), (b_2, u_2) = [
            (e / (e + 1).sum(1, keepdim=True), 3 / (e + 1).sum(1, keepdim=True))
            for e in (combined, second)
        ]
        combined = 3 * (b_1 * b_2 + b_1 * u_2 + b_2 * u_1) / (u_1 * u_2)
    total = torch.zeros(len(y))
    hot = F.one_hot(y, 3)
    for e in (*evidences, combined):
        alpha = e + 1
        fit = alpha.sum(1).digamma() - (hot * alpha.digamma()).sum(1)
        uniform = torch.distributions.Dirichlet(torch.ones(3))
        without = torch.distributions.Dirichlet(1 + e * (1 - hot))
        total = total + fit + weight * torch.distributions.kl_divergence(without, uniform)
    return total.mean()


def by_hand(replicate: Any) -> tuple[dict[str, Tensor], list[float]]:
    t, seed = replicate.training, replicate.seed
    model = build_model(model_spec(replicate, DATA), seed)
    inputs, labels = tensors(DATA.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=t["learning_rate"])
    means = []
    for epoch in range(t["epochs"]):
        annealing = replicate.params["annealing_epochs"]
        weight = min(1.0, (epoch + 1) / annealing) if annealing else 1.0
        generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
        losses = []
        for rows in torch.randperm(96, generator=generator).split(16):
            features = model.features({name: x[rows] for name, x in inputs.items()})
            heads = model.method.heads
            evidences = [F.softplus(g(features[f"m{i}"])) for i, g in enumerate(heads)]  # type: ignore[arg-type, operator]
            loss = textbook_loss(evidences, labels[rows], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return model.state_dict(), means


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
def test_training_is_that_of_a_hand_written_loop(stack: str) -> None:
    replicates = make_replicates(
        "tmc", [{"annealing_epochs": a} for a in (0.0, 2.0, 50.0)], data=DATA, encoder=ENCODER,
        epochs=3, batch_size=16, optimizer="adam", learning_rate=0.01, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    curves = set()
    for replicate in replicates:
        end = ends[replicate.key]
        state, losses = by_hand(replicate)
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-5)
        curves.add(tuple(losses))
        assert end.weights is not None
        for name, value in unpack_weights(end.weights)[0].state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4, msg=name)
    assert len(curves) == len(replicates)
