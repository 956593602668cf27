"""Gradient modulation of OGM-GE, AGM and MMPareto on given gradients, against slow NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modmix.methods.agm import AGM
from modmix.methods.balanced import Balanced, BalancedOutputs, ratios_to_others
from modmix.methods.dgl import DGL
from modmix.methods.gblending import GBlending
from modmix.methods.mmpareto import MMPareto
from modmix.methods.model import EncoderUse, Model
from modmix.methods.ogm_ge import OGMGE
from modmix.methods.pmr import PMR

Array = NDArray[np.float64]
Named = dict[str, Tensor]

# Two parameter tensors of each encoder; "encoders.1." is no prefix of "encoders.10.".
SHAPES = {"weight": (3, 4), "bias": (3,), "kernel": (2, 3, 3, 3), "scale": (1,)}


def made(kind: Any, modalities: int, classes: int = 3, **params: Any) -> Any:
    """A method in float64, as a model would own it, with encoders 0, 10, 20, ..."""
    method = kind({f"m{i}": 4 for i in range(modalities)}, classes, **params).double()
    method.encoder_prefixes = {m: f"encoders.{10 * i}." for i, m in enumerate(method.modalities)}
    return method


def gradients(modalities: int, seed: int = 0, size: float = 1.0) -> Named:
    generator = torch.Generator().manual_seed(seed)
    names = {f"encoders.{10 * i}.{n}": s for i in range(modalities) for n, s in SHAPES.items()}
    names["method.fusion.linear.weight"] = (3, 4 * modalities)
    return {
        name: size * torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in names.items()
    }


def outputs_of(own: Array) -> BalancedOutputs:
    return BalancedOutputs(torch.tensor(own.sum(0)), torch.tensor(own))


def probabilities(own: Array, target: list[int]) -> list[list[float]]:
    """p_m^y by modality and example."""
    found: list[list[float]] = []
    for logits in own:
        found.append([])
        for z, y in zip(logits, target, strict=True):
            powers = [math.exp(x - max(z)) for x in z]
            found[-1].append(powers[y] / sum(powers))
    return found


def logits(*leads: float, examples: int = 5) -> Array:
    """Logits (M, B, 3) of modalities that favour class 0 more or less."""
    noise = np.random.default_rng(1).normal(size=(examples, 3))
    return np.stack([noise + np.array([lead, 0, 0]) for lead in leads])


# What a batch can look like: logits by modality and classes.
BATCHES: dict[str, tuple[Array, list[int]]] = {
    "first leads": (logits(3.0, 0.5), [0, 0, 1, 0, 2]),
    "second leads": (logits(-2.0, 1.0), [0, 0, 0, 0, 2]),
    "equal": (logits(1.0, 1.0), [0, 1, 1, 0, 2]),
    "three": (logits(2.0, 1.0, -3.0), [0, 0, 1, 0, 2]),
    "four equal": (logits(0.0, 0.0, 0.0, 0.0), [0, 0, 1, 0, 2]),
    "one class": (logits(2.0, 1.0), [0, 0, 0, 0, 0]),
    "one example": (logits(2.0, 1.0, examples=1), [0]),
    "all wrong for sure": (1e4 * np.eye(3)[[[0, 0], [0, 0]]], [1, 2]),
    "right against wrong": (1e4 * np.eye(3)[[[1, 2], [0, 0]]], [1, 2]),
}


def assert_scaled(changed: Mapping[str, Tensor], given: Named, factors: list[float]) -> None:
    """Every encoder's gradients, and no others, are multiplied by its factor."""
    assert set(changed) == {name for name in given if name.startswith("encoders.")}
    for i, factor in enumerate(factors):
        for part in SHAPES:
            name = f"encoders.{10 * i}.{part}"
            assert changed[name].isfinite().all()
            np.testing.assert_allclose(changed[name], factor * given[name], rtol=1e-6, atol=1e-300)


# ---------------------------------------------------------------- OGM-GE


def ogm_factors(own: Array, target: list[int], alpha: float) -> list[float]:
    sums = [max(sum(p), 1e-8) for p in probabilities(own, target)]
    factors = []
    for i, score in enumerate(sums):
        others = [s for j, s in enumerate(sums) if j != i]
        rho = score / (sum(others) / len(others))
        factors.append(1 - math.tanh(alpha * rho) if rho > 1 + 1e-12 else 1.0)
    return factors


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("name", BATCHES)
def test_ogm_factors(name: str, alpha: float) -> None:
    own, target = BATCHES[name]
    method = made(OGMGE, len(own), alpha=alpha, noise=0.0)
    given = gradients(len(own))
    changed = method.modulate(outputs_of(own), torch.tensor(target), {"loss": given})
    factors = ogm_factors(own, target, alpha)
    # Equal modalities: whether ρ is above 1 must not depend on rounding.
    if "equal" in name:
        assert factors == [1.0] * len(own)
    assert_scaled(changed, given, factors)


@pytest.mark.parametrize(("epoch", "on"), [(1, False), (2, True), (4, True), (5, False)])
def test_ogm_modulates_in_its_epochs_only(epoch: int, on: bool) -> None:
    own, target = BATCHES["first leads"]
    method = made(OGMGE, 2, first_epoch=2, last_epoch=4)
    method.epoch.fill_(epoch)
    given = gradients(2)
    changed = method.modulate(outputs_of(own), torch.tensor(target), {"loss": given})
    for name in set(changed) - {"encoders.10.scale"}:  # one element, and not slowed down
        assert torch.equal(changed[name], given[name]) == (not on), name


def test_ogm_noise_has_the_deviation_of_each_gradient() -> None:
    """Both encoders get noise; it is new in every tensor and step, and a function of the seed."""
    own, target = BATCHES["first leads"]
    method = made(OGMGE, 2, alpha=0.3, noise=0.5)
    generator = torch.Generator().manual_seed(3)
    sizes = {"encoders.0.a": 1.0, "encoders.0.b": 100.0, "encoders.10.a": 1e-6}
    given = {
        name: size * (2 + torch.randn(40_000, dtype=torch.float64, generator=generator))
        for name, size in sizes.items()
    }
    given["encoders.10.one"] = torch.tensor([3.0], dtype=torch.float64)

    def noise(seed: int) -> Named:
        method.draws.draw.fill_(seed)
        method.draws.calls = 0
        changed = method.modulate(outputs_of(own), torch.tensor(target), {"loss": given})
        factors = ogm_factors(own, target, 0.3)
        return {n: x - factors[n.startswith("encoders.10.")] * given[n] for n, x in changed.items()}

    first, again, other = noise(5), noise(5), noise(6)
    for name, size in sizes.items():
        assert first[name].std().item() == pytest.approx(0.5 * size, rel=0.02)
        assert abs(first[name].mean().item()) < 0.01 * size
        assert torch.equal(first[name], again[name])
        assert abs(np.corrcoef(first[name], other[name])[0, 1]) < 0.02
    for one, two in itertools.combinations(sizes, 2):
        assert abs(np.corrcoef(first[one], first[two])[0, 1]) < 0.02
    assert first["encoders.10.one"].abs().item() < 1e-6  # one element does not deviate


def test_ogm_changes_convolutions_only_if_asked() -> None:
    own, target = BATCHES["first leads"]
    method = made(OGMGE, 2, tensors="convolutions")
    changed = method.modulate(outputs_of(own), torch.tensor(target), {"loss": gradients(2)})
    assert set(changed) == {"encoders.0.kernel", "encoders.10.kernel"}


def test_ogm_finds_the_convolutions_of_every_encoder() -> None:
    """Of one, two and three dimensions, among other weights of three."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Linear(2, 2), nn.Conv3d(1, 1, 2))
            self.recurrent = nn.LSTM(2, 3)
            self.product = nn.Bilinear(2, 2, 2)
            self.heads_HDD = nn.Parameter(torch.zeros(2, 3, 3))

    method = OGMGE({"words": 4, "image": 4}, 3, tensors="convolutions")
    uses = [EncoderUse(input=name, modalities={name: None}) for name in ("words", "image")]
    model = Model(uses, [Own(), nn.Conv2d(1, 2, 3)], method)
    given = {name: torch.ones_like(one) for name, one in model.named_parameters()}
    own, target = BATCHES["first leads"]
    changed = method.modulate(outputs_of(own), torch.tensor(target), {"loss": given})
    convolutions = ("0.layers.0.weight", "0.layers.2.weight", "1.weight")
    assert set(changed) == {f"encoders.{name}" for name in convolutions}


def test_ratios_do_not_cancel_in_float32() -> None:
    """A modality that is far ahead, modalities that are all wrong, equal ones."""
    found = ratios_to_others(torch.tensor([64.0, 1e-6]))
    np.testing.assert_allclose(found, [6.4e7, 1e-6 / 64], rtol=1e-6)
    for equal in ([0.0, 0.0, 0.0], [0.1] * 3, [0.7] * 5):
        assert ratios_to_others(torch.tensor(equal)).tolist() == [1.0] * len(equal)


# ---------------------------------------------------------------- AGM


def shapley(method: AGM, features: list[Array]) -> Array:
    """Shapley values (M, B, C) over all orders, by zeroing features; 0 for no modality."""
    weight, bias = (x.detach().numpy() for x in method.fusion.linear.parameters())
    count = len(features)

    def fused(present: set[int]) -> Array:
        if not present:
            return np.zeros((len(features[0]), len(bias)))
        kept = [x if i in present else np.zeros_like(x) for i, x in enumerate(features)]
        return np.asarray(np.concatenate(kept, axis=1) @ weight.T + bias)

    found = np.zeros((count, len(features[0]), len(bias)))
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        for place, m in enumerate(order):
            before = set(order[:place])
            found[m] += (fused(before | {m}) - fused(before)) / len(orders)
    return found


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_shares_are_shapley_values_of_zeroed_features(modalities: int) -> None:
    torch.manual_seed(0)
    method = made(AGM, modalities)
    features = list(np.random.default_rng(2).normal(size=(modalities, 6, 4)))
    found = method({f"m{i}": torch.tensor(x) for i, x in enumerate(features)})
    np.testing.assert_allclose(found.own_MBC.detach(), shapley(method, features), atol=1e-12)
    whole = method.fusion([torch.tensor(x) for x in features])
    np.testing.assert_allclose(found.logits_BC.detach(), whole.detach(), atol=1e-12)


def agm_scores(own: Array, target: list[int]) -> list[float]:
    return [
        sum(math.log(max(p, 1e-8)) for p in row) / len(row) for row in probabilities(own, target)
    ]


def leads(scores: list[float]) -> list[float]:
    count = len(scores)
    return [
        math.exp(sum(s - scores[j] for j in range(count) if j != i) / (count - 1))
        for i, s in enumerate(scores)
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 8.0])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_agm_factors_over_several_batches(modalities: int, alpha: float) -> None:
    batches = [b for b in BATCHES.values() if len(b[0]) == modalities] * 2
    method = made(AGM, modalities, alpha=alpha)
    history: list[list[float]] = []
    for step, (own, target) in enumerate(batches):
        given = gradients(modalities, seed=step)
        changed = method.modulate(outputs_of(own), torch.tensor(target), {"loss": given})
        now = agm_scores(own, target)
        usual = [0.0] * modalities
        if history:
            usual = [sum(column) / len(history) for column in zip(*history, strict=True)]
        pairs = zip(leads(usual), leads(now), strict=True)
        factors = [math.exp(alpha * min(best - lead, 10)) for best, lead in pairs]
        assert_scaled(changed, given, factors)
        history.append(now)
    means = np.mean(history, axis=0)
    np.testing.assert_allclose(method.mean_M, means, rtol=1e-9)


# ---------------------------------------------------------------- MMPareto


def pareto(joint: list[Array], own: list[Array], gamma: float) -> list[Array]:
    """One encoder's gradient; the minimum of the convex norm by a ternary search."""
    g, u = (np.concatenate([x.ravel() for x in y]) for y in (joint, own))

    def norm(weight: float) -> float:
        return float(np.linalg.norm(weight * g + (1 - weight) * u))

    weight = 0.5
    if g @ u <= 0:
        low, high = 0.001, 0.999
        for _ in range(100):
            third = (high - low) / 3
            if norm(low + third) < norm(high - third):
                high -= third
            else:
                low += third
        weight = low if norm(low) <= norm(high) else high
        if norm(weight) <= 1e-6 * (np.linalg.norm(g) + np.linalg.norm(u)):
            return [np.zeros_like(x) for x in joint]
    mixed = 2 * weight * g + 2 * (1 - weight) * u
    if (size := np.linalg.norm(mixed)) > 0:
        mixed *= gamma * max(1.0, np.linalg.norm(g + u) / size)
    ends = np.cumsum([x.size for x in joint])[:-1]
    return [x.reshape(y.shape) for x, y in zip(np.split(mixed, ends), joint, strict=True)]


def pairs_of_gradients() -> dict[str, tuple[Named, Named]]:
    g, u = gradients(1, seed=1), gradients(1, seed=2, size=0.4)
    mean = {n: (0.3 * g[n] + u[n]) for n in g}
    zero = {n: torch.zeros_like(x) for n, x in g.items()}
    against = {n: u[n] - 0.5 * g[n] for n in g}
    strongly = {n: 0.01 * u[n] - 3.0 * g[n] for n in g}
    return {
        "agreeing": (g, mean),
        "in conflict": (g, against),
        "in strong conflict": (g, strongly),
        "the joint one shorter": (against, {n: -3 * x for n, x in mean.items()}),
        "equal": (g, g),
        "opposite": (g, {n: -x for n, x in g.items()}),
        "opposite, unequal": (g, {n: -0.25 * x for n, x in g.items()}),
        "no own gradient": (g, zero),
        "no joint gradient": (zero, u),
        "both zero": (zero, zero),
    }


@pytest.mark.parametrize("gamma", [1.5, 0.7])
@pytest.mark.parametrize("norm", ["encoder", "tensor"])
@pytest.mark.parametrize("case", pairs_of_gradients())
def test_pareto_gradients(case: str, norm: str, gamma: float) -> None:
    """Each encoder by itself: the second one's gradients are always those of another case."""
    method = made(MMPareto, 3, gamma=gamma, norm=norm)
    cases = pairs_of_gradients()
    encoders = [cases[case], cases["in conflict"], cases["agreeing"]]
    given: dict[str, Named] = {"joint": {}, "own/m0": {}, "own/m1": {}, "own/m2": {}}
    for i, part in itertools.product(range(3), SHAPES):
        name = f"encoders.{10 * i}.{part}"
        given["joint"][name] = encoders[i][0][f"encoders.0.{part}"]
        for j in range(3):
            own = encoders[i][1][f"encoders.0.{part}"]
            given[f"own/m{j}"][name] = own if i == j else torch.zeros_like(own)
    outputs = outputs_of(logits(1.0, 2.0, 3.0))
    changed = method.modulate(outputs, torch.zeros(5, dtype=torch.long), given)
    assert set(changed) == set(given["joint"])
    for i, (joint, own_) in enumerate(encoders):
        parts = [f"encoders.0.{part}" for part in SHAPES]
        both = [[x[part].numpy() for part in parts] for x in (joint, own_)]
        expected = pareto(both[0], both[1], gamma)
        if norm == "tensor":
            expected = rescaled_by_tensor(both[0], both[1], expected, gamma)
        for part, value in zip(SHAPES, expected, strict=True):
            found = changed[f"encoders.{10 * i}.{part}"].numpy()
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


def rescaled_by_tensor(
    joint: list[Array], own: list[Array], whole: list[Array], gamma: float
) -> list[Array]:
    """The direction of each tensor of ``whole``, only lengthened to the summed gradients' norm."""
    size = np.linalg.norm(np.concatenate([x.ravel() for x in whole]))
    summed = [g + u for g, u in zip(joint, own, strict=True)]
    weight = weight_of(joint, own)
    found = []
    for g, u, s, x in zip(joint, own, summed, whole, strict=True):
        mixed = 2 * weight * g + 2 * (1 - weight) * u
        norm = np.linalg.norm(mixed)
        vanishes = size == 0 or norm == 0
        found.append(0 * x if vanishes else gamma * max(1.0, np.linalg.norm(s) / norm) * mixed)
    return found


def weight_of(joint: list[Array], own: list[Array]) -> float:
    g, u = (np.concatenate([x.ravel() for x in y]) for y in (joint, own))
    if g @ u > 0 or not (g - u).any():
        return 0.5
    return float(np.clip((u @ (u - g)) / ((g - u) @ (g - u)), 0.001, 0.999))


def test_a_pareto_gradient_lowers_both_losses() -> None:
    """In conflict, the new gradient has a positive product with both, and the summed norm."""
    g, u = pairs_of_gradients()["in conflict"]
    names = [name for name in g if name.startswith("encoders.")]
    method = made(MMPareto, 2)
    zero = {n: torch.zeros_like(x) for n, x in g.items()}
    given = {"joint": g, "own/m0": u, "own/m1": zero}
    target = torch.zeros(5, dtype=torch.long)
    changed = method.modulate(outputs_of(logits(1.0, 2.0)), target, given)
    assert set(changed) == set(names)
    assert sum((g[n] * u[n]).sum() for n in names) < 0
    for one in (g, u):
        assert sum((changed[n] * one[n]).sum() for n in names) > 0
    norms = [
        math.sqrt(sum(x.square().sum().item() for x in values))
        for values in (changed.values(), [g[n] + u[n] for n in names])
    ]
    assert norms[0] == pytest.approx(1.5 * norms[1])


# ---------------------------------------------------------------- gradients that are cut


def test_no_gradient_of_the_fused_loss_reaches_an_encoder() -> None:
    """DGL: encoders learn from the unimodal losses alone, the fusion from the fused loss alone."""
    torch.manual_seed(0)
    method = made(DGL, 3, alpha=2.0)
    features = {m: torch.randn(5, 4, dtype=torch.float64).requires_grad_() for m in ("m0", "m1")}
    features["m2"] = torch.zeros(5, 4, dtype=torch.float64).requires_grad_()
    target = torch.tensor([0, 1, 2, 0, 0])
    parameters = list(method.parameters())

    def found(loss: Tensor) -> list[Tensor | None]:
        every = [*features.values(), *parameters]
        return list(torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True))

    outputs = method(features)
    fused = torch.nn.functional.cross_entropy(outputs.logits_BC, target, reduction="sum")
    of_fused, whole = found(fused), found(method.loss(outputs, target).sum())
    assert of_fused[:3] == [None] * 3
    weight = parameters[0].detach()
    for i in range(3):
        f_BD = features[f"m{i}"].detach().requires_grad_()
        z_BC = f_BD @ weight[:, 4 * i : 4 * i + 4].T + parameters[1].detach()
        own = 2.0 * torch.nn.functional.cross_entropy(z_BC, target, reduction="sum")
        torch.testing.assert_close(whole[i], torch.autograd.grad(own, f_BD)[0])
    for one, other in zip(whole[3:], of_fused[3:], strict=True):
        torch.testing.assert_close(one, other)


# ---------------------------------------------------------------- unimodal predictions


@pytest.mark.parametrize("kind", [OGMGE, AGM, MMPareto, PMR, GBlending, DGL])
def test_reports_are_predictions_of_each_modality_alone(kind: type[Balanced]) -> None:
    torch.manual_seed(1)
    method = made(kind, 3)
    features = {f"m{i}": torch.randn(5, 4, dtype=torch.float64) for i in range(3)}
    before = method.reports(method(features))
    assert list(before) == ["m0", "m1", "m2"]
    after = method.reports(method({**features, "m1": torch.ones(5, 4, dtype=torch.float64)}))
    for name, log_p_BC in before.items():
        assert log_p_BC.shape == (5, 3)
        torch.testing.assert_close(log_p_BC.exp().sum(-1), torch.ones(5, dtype=torch.float64))
        assert torch.equal(log_p_BC, after[name]) == (name != "m1")
