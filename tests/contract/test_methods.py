"""Every method of the table: its loss and scores against NumPy, its gradient, extreme inputs."""

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

import jointmethods
from equations_confidence import EQUATIONS
from modmix.base.errors import InputError
from modmix.methods.base import Method
from modmix.methods.entries_balanced import BALANCED
from modmix.methods.late import Late
from modmix.methods.model import (
    InputSpec,
    Model,
    ModelSpec,
    build_model,
    derive_seed,
    pack_weights,
    unpack_weights,
)
from modmix.methods.mulmix import MulMix
from modmix.methods.table import METHODS, problems, sources, subsets
from toypack import defaults

Matrix = NDArray[np.float64]

MLP = {"name": "mlp", "hidden": [4]}


# ---------------------------------------------------------------- the methods in NumPy, float64


def dense(layers: nn.Module, x: Matrix) -> Matrix:
    """A stack of linear layers and ReLUs."""
    for layer in layers.modules():
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
    return x


def log_softmax(z: Matrix) -> Matrix:
    z = z - z.max(-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))


def own(values: Matrix, target: NDArray[np.int64]) -> Matrix:
    return values[np.arange(len(target)), target]


def merged(merge: Any, parts: list[Matrix]) -> Matrix:
    if merge.project is not None:
        parts = [dense(g, part) for g, part in zip(merge.project, parts, strict=True)]
    if merge.merge == "concat":
        return np.concatenate(parts, axis=1)
    return np.asarray(sum(parts) / (len(parts) if merge.merge == "mean" else 1))


def multiplicative(
    method: Any, logits: list[Matrix], target: NDArray[np.int64], params: Mapping[str, Any]
) -> tuple[Matrix, Matrix]:
    """Eqs. 8 to 10 with the values that the study gave."""
    p = np.exp([log_softmax(z) for z in logits])
    weights = [(params["weights"] or {}).get(name, 1.0) for name in method.sources]
    count = len(logits)
    losses = np.zeros_like(p[0])
    for i, (b, k) in itertools.product(range(count), np.ndindex(*losses.shape)):
        others = math.prod(1 - p[j, b, k] for j in range(count) if j != i)
        q = others ** (params["beta"] / (count - 1)) * (1 - p[i, b, k]) ** params["alpha"]
        losses[b, k] -= weights[i] * q * math.log(p[i, b, k])
    loss = own(losses, target).copy()
    if params["margin"] is not None:
        for b, y in enumerate(target):
            if all(loss[b] + params["margin"] < x for k, x in enumerate(losses[b]) if k != y):
                loss[b] = 0
    return loss, -losses


def detached(
    method: Any, params: Mapping[str, Any], parts: list[Matrix], target: NDArray[np.int64]
) -> tuple[Matrix, Matrix]:
    """The loss of stage 1 and the final prediction; DUC is on all dimensions or off."""
    if method.project is not None:
        parts = [dense(g, x) for g, x in zip(method.project, parts, strict=True)]
    logits = [dense(g, x) for g, x in zip(method.classifiers, parts, strict=True)]
    loss = np.zeros(len(target))
    for z, x in zip(logits, parts, strict=True):
        loss -= own(log_softmax(z), target)
        loss -= params["shared_weight"] * own(log_softmax(dense(method.shared, x)), target)
    for t, u in itertools.combinations(range(len(parts)), 2):  # forward
        if not params["separate"]:
            log_p = log_softmax(parts[u] @ parts[t].T / params["tau"])
            loss -= params["duc_weight"] * np.diag(log_p)
    match params["head"]:
        case "concat":
            logits.append(dense(method.head, np.concatenate(parts, axis=1)))
        case "sum":
            layers = zip(method.head.inner, parts, strict=True)
            logits.append(np.asarray(sum(dense(g, x) for g, x in layers)))
        case "film":
            layers = zip(method.head.inner, parts[1:], strict=True)
            pairs = [(np.split(dense(g, parts[0]), 2, axis=1), x) for g, x in layers]
            u = sum(gamma * x + beta for (gamma, beta), x in pairs)
            logits.append(dense(method.head.out, np.asarray(u)))
        case "gated":
            first, *others = [dense(g, x) for g, x in zip(method.head.inner, parts, strict=True)]
            logits.append(dense(method.head.out, sum(others) / (1 + np.exp(-first))))
    certainty = np.array([np.exp(log_softmax(z)).max(-1) for z in logits]) / params["temperature"]
    if not params["weighting"]:
        certainty = np.zeros_like(certainty)
    weights = np.exp(log_softmax(certainty.T)).T
    return loss, np.asarray(sum(w[:, None] * z for w, z in zip(weights, logits, strict=True)))


def balanced(
    name: str,
    method: Any,
    params: Mapping[str, Any],
    parts: list[Matrix],
    target: NDArray[np.int64],
) -> tuple[Matrix, Matrix]:
    """A linear layer on the concatenated features, and losses of the modalities beside its own."""
    linear = method.fusion.linear
    fused_BC = dense(linear, np.concatenate(parts, axis=1))
    loss = -own(log_softmax(fused_BC), target)
    if name in ("mmpareto", "gblending"):
        logits = [dense(g, x) for g, x in zip(method.heads, parts, strict=True)]
    elif name == "dgl":
        logits = [
            dense(linear, np.concatenate([x * (i == j) for j, x in enumerate(parts)], axis=1))
            for i in range(len(parts))
        ]
    elif name == "pmr":  # before the first pass, all prototypes are 0
        logits = [-np.linalg.norm(x, axis=1, keepdims=True) * np.ones_like(fused_BC) for x in parts]
    else:
        return loss, fused_BC
    alone = [-own(log_softmax(z), target) for z in logits]
    if name == "gblending":
        return np.mean([loss, *alone], axis=0), fused_BC
    weight = params["alpha"] if name == "dgl" else 1.0 if name == "mmpareto" else 0.0
    return np.asarray(loss + weight * sum(alone)), fused_BC


def in_numpy(
    name: str,
    method: Any,
    params: Mapping[str, Any],
    parts: list[Matrix],
    target: NDArray[np.int64],
) -> tuple[Matrix, Matrix]:
    """Loss (B,) and scores (B, C) of a method from its weights and its equations."""
    if name in EQUATIONS:
        if getattr(method, "project", None) is not None:
            parts = [dense(g, part) for g, part in zip(method.project, parts, strict=True)]
        heads = [method.head] * len(parts) if name == "mla" else method.heads
        logits = [dense(g, part) for g, part in zip(heads, parts, strict=True)]
        return EQUATIONS[name](method, params, logits, target)
    if name in ("mul", "mulmix", "cldl"):
        if name == "cldl":
            *others, last = method.modalities
            weights = {**dict.fromkeys(others, 0.3), last: 1.0}
            params = {"beta": 1.0, "alpha": 0.0, "margin": None, "weights": weights}
        if name != "mulmix":
            logits = [dense(g, part) for g, part in zip(method.heads, parts, strict=True)]
        else:
            logits = []
            for i, subset in enumerate(method.subsets):
                chosen = [parts[method.modalities.index(m)] for m in subset]
                u = merged(method.merges[i], chosen) if len(chosen) > 1 else chosen[0]
                logits.append(dense(method.heads[i], u))
        return multiplicative(method, logits, target, params)
    if name == "late":
        log_p = [log_softmax(dense(g, x)) for g, x in zip(method.heads, parts, strict=True)]
        loss = -sum(own(x, target) for x in log_p)
        if params["combine"] == "mean":
            return loss, np.log(np.mean(np.exp(log_p), axis=0))
        return loss, dense(method.combine, np.concatenate(log_p, axis=1))
    if name == "dimml":
        return detached(method, params, parts, target)
    if name in {*jointmethods.LOGITS, "centralnet"}:
        return jointmethods.loss_and_logits(name, method, params, parts, target)
    if name in BALANCED:
        return balanced(name, method, params, parts, target)
    match name:
        case "umt":
            own_parts, theirs = parts[: len(parts) // 2], parts[len(parts) // 2 :]
            logits_BC = dense(method.head, np.concatenate(own_parts, axis=1))
            pairs = zip(own_parts, theirs, strict=True)
            distance = sum(((f - t) ** 2).mean(1) for f, t in pairs)
            loss = params["distillation"] * distance - own(log_softmax(logits_BC), target)
            return np.asarray(loss), logits_BC
        case "base":
            logits_BC = dense(method.head, parts[0])
        case "early":
            logits_BC = dense(method.head, np.concatenate(parts, axis=1))
        case "add":
            logits_BC = dense(method.head, merged(method.merge, parts))
        case "attend":
            if method.project is not None:
                parts = [dense(g, x) for g, x in zip(method.project, parts, strict=True)]
            if params["score"] == "joint":
                a = 1 / (1 + np.exp(-dense(method.attention, np.concatenate(parts, axis=1))))
            else:
                hidden = [np.tanh(dense(method.attention_hidden, x)) for x in parts]
                v = method.attention_out.weight.detach().numpy()
                a = np.concatenate([h @ v.T for h in hidden], axis=1)
            alpha = np.exp(log_softmax(a))
            u = sum(alpha[:, [m]] * x for m, x in enumerate(parts))
            if params["score"] == "tanh":
                u = u / len(parts)
            logits_BC = dense(method.head, np.asarray(u))
        case _:
            raise AssertionError(f"write the equations of {name} here")
    return -own(log_softmax(logits_BC), target), logits_BC


CASES: list[tuple[str, dict[str, Any]]] = [
    ("base", {}),
    ("base", {"depth": 2, "width": 3}),
    ("early", {}),
    ("early", {"hidden": []}),
    ("late", {}),
    ("late", {"depth": 1, "width": 5}),
    ("late", {"combine": "learned"}),
    ("add", {}),
    ("add", {"merge": "sum", "depth": 0}),
    ("add", {"merge": "mean", "project": 6, "hidden": [5, 3]}),
    ("attend", {}),
    ("attend", {"project": 5, "depth": 2, "width": 3}),
    ("attend", {"score": "tanh"}),
    ("attend", {"score": "tanh", "project": 5, "depth": 0}),
    ("mul", {}),
    ("mul", {"beta": 0.3, "margin": 0.5, "weights": {"m0": 0.3}}),
    ("mul", {"beta": 2.0, "alpha": 1.5, "depth": 1, "width": 5}),
    ("mul", {"beta": 0.0, "margin": 0.0}),
    ("mulmix", {}),
    ("mulmix", {"merge": "mean", "project": 5, "hidden": [4], "beta": 0.3, "margin": 0.1}),
    ("mulmix", {"merge": "sum", "depth": 0, "weights": {"m0+m1": 2.0, "m1": 0.5}, "alpha": 0.5}),
    ("mulmix", {"max_subset": 1, "beta": 2.0}),
    ("cldl", {}),
    ("cldl", {"depth": 1, "width": 5}),
    ("dimml", {}),
    ("dimml", {"head": "sum", "shared_weight": 0.5, "temperature": 0.25}),
    ("dimml", {"head": "film", "weighting": False}),
    ("dimml", {"head": "gated", "project": 5, "shared_weight": 0.0}),
    ("dimml", {"head": "none", "temperature": 2.0}),
    ("dimml", {"separate": False, "directions": "forward", "warmup": 0, "tau": 4.0}),
    *jointmethods.CASES,
    ("ogm_ge", {}),
    ("agm", {}),
    ("mmpareto", {}),
    ("pmr", {}),
    ("gblending", {}),
    ("dgl", {}),
    ("dgl", {"alpha": 0.5}),
    ("tmc", {}),
    ("tmc", {"annealing_epochs": 2.0, "depth": 1, "width": 5}),
    ("qmf", {}),
    ("qmf", {"temperature": 2.0, "unimodal_weight": 0.5, "depth": 1, "width": 5}),
    ("mla", {}),
    ("mla", {"project": 5}),
    ("reconboost", {}),
    ("reconboost", {"reconcile": 0.7, "depth": 1, "width": 5}),
    ("umt", {}),
    ("umt", {"distillation": 0.25, "depth": 1, "width": 5}),
]


def spec_of(
    method: str,
    params: Mapping[str, Any],
    encoders: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    classes: int = 2,
) -> ModelSpec:
    inputs = {name: InputSpec(shape=shape) for name, shape in shapes.items()}
    return ModelSpec(
        method=method, params=params, encoders=encoders, inputs=inputs, classes=classes
    )


def built(*what: Any, seed: int = 0) -> Model:
    return build_model(spec_of(*what), seed)


def make(name: str, params: Mapping[str, Any], modalities: int, classes: int) -> Method:
    """A method in float64 on features of width 4, in evaluation mode."""
    used = 1 if name == "base" else modalities
    shapes = {f"m{i}": (4,) for i in range(used)}
    values = {**defaults(name), **params}
    encoders = dict.fromkeys(shapes, MLP)
    return built(name, values, encoders, shapes, classes, seed=7).method.double().eval()


def feature_names(name: str, method: Method) -> list[str]:
    """Names of a method's features, of every encoder set."""
    return [f"{each}{m}" for each in METHODS[name].encoder_sets for m in method.modalities]


def test_every_method_of_the_table_has_cases() -> None:
    assert {name for name, _ in CASES} >= set(METHODS)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(("name", "params"), CASES)
def test_loss_and_scores_are_the_equations(
    name: str, params: dict[str, Any], modalities: int, classes: int
) -> None:
    method = make(name, params, modalities, classes)
    generator = np.random.default_rng(1)
    features = {m: 2 * generator.normal(size=(9, 4)) for m in feature_names(name, method)}
    target = generator.integers(0, classes, 9)
    values = {**defaults(name), **params}
    loss, scores = in_numpy(name, method, values, list(features.values()), target)
    outputs = method({m: torch.tensor(x) for m, x in features.items()})
    found = method.loss(outputs, torch.tensor(target))
    assert found.shape == (9,)
    # β = 0.3 and weights were buffers of float32 before they were lifted.
    np.testing.assert_allclose(found.detach().numpy(), loss, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(method.scores(outputs).detach().numpy(), scores, rtol=1e-6)


# Gradients of the learned combination, which has its own test below, of the q of CLDL, the teachers
# of DUC and UMT, the ensemble of ReconBoost, the losses of DGL and the weights of QMF are cut on
# purpose.
CUT = {"cldl", "dgl", "qmf", "reconboost", "umt"}
WHOLE = [
    (name, params)
    for name, params in CASES
    if params.get("combine") != "learned" and name not in CUT and "separate" not in params
]


@pytest.mark.parametrize(("name", "params"), WHOLE)
def test_gradients_are_those_of_the_loss(name: str, params: dict[str, Any]) -> None:
    if name.startswith("mul"):
        params = {**params, "detach_weights": False}
    method = make(name, params, 2, 3)
    names = feature_names(name, method)
    generator = torch.Generator().manual_seed(2)
    target = torch.tensor([0, 1, 2, 1])

    def features() -> Tensor:
        return torch.randn(4, 4, dtype=torch.float64, generator=generator).requires_grad_()

    def loss(*parts: Tensor) -> Tensor:
        return method.loss(method(dict(zip(names, parts, strict=True))), target)

    inputs = tuple(features() for _ in names)
    assert torch.autograd.gradcheck(loss, inputs)
    for parameter in method.parameters():
        assert torch.autograd.gradcheck(lambda _: loss(*inputs), parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "params"), CASES)
def test_extreme_features_give_finite_losses_and_gradients(
    name: str, params: dict[str, Any], dtype: torch.dtype
) -> None:
    method = make(name, params, 3, 3).to(dtype)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.sign_()  # logits of about ±1e4
    values = torch.tensor([-2500.0, 0.0, 2500.0], dtype=dtype)
    rows = torch.cartesian_prod(*[values] * 4)
    names = feature_names(name, method)
    features = {m: rows.roll(i, 0).requires_grad_() for i, m in enumerate(names)}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = method(features)
        for target in range(3):
            loss = method.loss(outputs, torch.full((len(rows),), target))
            assert loss.dtype == torch.float32
            assert loss.isfinite().all()
            every = [*features.values(), *method.parameters()]
            grads = torch.autograd.grad(loss.sum(), every, retain_graph=True, allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in grads)
    assert method.scores(outputs).isfinite().all()


# ---------------------------------------------------------------- one by one


def test_learned_combination_has_a_loss_of_its_own() -> None:
    """In the second stage it is trained with cross-entropy, and reaches no classifier."""
    torch.manual_seed(0)
    method = Late({"a": 3, "b": 2}, 4, combine="learned")
    first, second = method.stages()
    features = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    target = torch.tensor([0, 1, 2, 3, 0])
    assert method.combine is not None
    method.enter(first)
    method.loss(method(features), target).sum().backward()
    assert method.combine.weight.grad is None
    method.zero_grad()
    method.enter(second)
    outputs = method(features)
    loss_B = method.loss(outputs, target)
    expected_B = -own(log_softmax(outputs.logits_BC.detach().double().numpy()), target.numpy())
    np.testing.assert_allclose(loss_B.detach().numpy(), expected_B, rtol=1e-5)
    loss_B.sum().backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {"combine.weight", "combine.bias"}


def test_learned_combination_starts_as_the_mean_of_the_log_probabilities() -> None:
    torch.manual_seed(0)
    method = Late({"a": 3, "b": 2}, 4, combine="learned")
    outputs = method({"a": torch.randn(5, 3), "b": torch.randn(5, 2)})
    torch.testing.assert_close(method.scores(outputs), outputs.log_p_MBC.mean(0))


def test_mixtures_and_their_names() -> None:
    assert subsets("abc") == (
        *(("a",), ("b",), ("c",)),
        *(("a", "b"), ("a", "c"), ("b", "c")),
        ("a", "b", "c"),
    )
    assert len(subsets("abcdefg")) == 127
    assert sources("mulmix", ["x", "y"], {"max_subset": None}) == ("x", "y", "x+y")
    method = MulMix({"x": 3, "y": 3, "z": 3}, 2, max_subset=2, weights={"x+z": 0.5})
    assert method.sources == ("x", "y", "z", "x+y", "x+z", "y+z")
    assert method.weights_S.tolist() == [1, 1, 1, 1, 0.5, 1]
    assert len(method.heads) == 6


@pytest.mark.parametrize(
    ("method", "names", "params", "expected"),
    [
        ("mul", ["a"], {}, "needs at least 2 modalities, got a"),
        ("mulmix", ["a"], {}, "needs at least 2 modalities, got a"),
        ("mulmix", list("abcdefgh"), {}, "at most 127 mixtures can be combined, 8 modalities"),
        ("base", ["a", "b"], {"modality": "c"}, "modality must be one of a, b, got 'c'"),
        ("mul", ["a", "b"], {"weights": {"a+b": 1.0}}, "weights must name sources (a, b), got"),
        ("mulmix", ["a", "b"], {"weights": {"b+a": 1.0}}, "(a, b, a+b), got 'b+a'"),
        ("film", ["a"], {}, "needs at least 2 modalities, got a"),
        ("film", ["a", "b"], {"condition": "c"}, "condition must be one of a, b, got 'c'"),
        ("gated", ["a", "b"], {"condition": "c"}, "condition must be one of a, b, got 'c'"),
        (
            *("tfn", list("abcde"), {}),
            "must have at most 131072 elements, got 1419857 with 5 modalities and project: 16; set",
        ),
        ("tfn", ["a", "b"], {"project": 362}, "at most 131072 elements, got 131769 with 2"),
        ("late_transformer", ["a", "b"], {"heads": 5}, "a multiple of heads (5), got 64"),
    ],
)
def test_what_speaks_against_a_configuration(
    method: str, names: list[str], params: dict[str, Any], expected: str
) -> None:
    found = problems(method, names, {**defaults(method), **params})
    assert len(found) == 1
    assert expected in found[0]


def test_nothing_speaks_against_good_configurations() -> None:
    for name in METHODS:
        assert problems(name, ["a", "b"], defaults(name)) == []
    assert problems("mulmix", list("abcdefgh"), {**defaults("mulmix"), "max_subset": 2}) == []
    assert problems("mulmix", list("abcdefg"), defaults("mulmix")) == []
    assert problems("tfn", list("abcd"), defaults("tfn")) == []
    assert problems("tfn", ["a", "b"], {**defaults("tfn"), "project": 361}) == []
    assert problems("gated", ["a", "b"], {**defaults("gated"), "condition": "b"}) == []


@pytest.mark.parametrize("name", ["add", "mulmix"])
def test_unequal_widths_cannot_be_summed(name: str) -> None:
    params = {**defaults(name), "merge": "sum"}
    encoders = {"a": {"name": "mlp", "hidden": [4]}, "b": {"name": "mlp", "hidden": [5]}}
    shapes: dict[str, tuple[int, ...]] = {"a": (3,), "b": (3,)}
    with pytest.raises(InputError, match="merge: sum needs features of equal width, got 4, 5; set"):
        built(name, params, encoders, shapes)
    built(name, {**params, "project": 6}, encoders, shapes)


# ---------------------------------------------------------------- models


def test_initial_weights_depend_on_the_seed_alone() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (3,), "b": (2, 2)}
    encoders = dict.fromkeys(shapes, MLP)

    def weights(seed: int) -> Tensor:
        model = built("mul", defaults("mul"), encoders, shapes, seed=seed)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = weights(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)
    assert derive_seed(5, "weights") == 69102319113847197  # a change of it is a change of numerics
    assert derive_seed(5, "batches", 1) != derive_seed(5, "batches", 2)


def test_early_and_base_use_what_they_should() -> None:
    shapes: dict[str, tuple[int, ...]] = {"face.left": (3,), "values": (2, 2)}
    encoders = dict.fromkeys(shapes, MLP)
    early = built("early", defaults("early"), encoders, shapes)
    inputs = {"face.left": torch.randn(5, 3), "values": torch.randn(5, 2, 2)}
    assert early.features(inputs)["values"].shape == (5, 4)
    params = {**defaults("base"), "modality": "values"}
    base = built("base", params, encoders, shapes)
    assert base.modalities == ("values",)
    assert base.scores(base({"values": inputs["values"]})).shape == (5, 2)


def test_weights_survive_as_bytes() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (3,), "b": (2,)}
    encoders = {m: {"name": "mlp", "hidden": [4], "batch_norm": True} for m in shapes}
    params = {**defaults("mulmix"), "beta": 0.3, "margin": 0.2}
    spec = spec_of("mulmix", params, encoders, shapes)
    model = build_model(spec, 3)
    inputs = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    model(inputs)  # moves the statistics of batch norm
    again, found = unpack_weights(
        pack_weights(model.state_dict(), spec, {"class_names": ["no", "yes"]})
    )
    assert found["class_names"] == ["no", "yes"]
    model.eval()
    assert torch.equal(again.scores(again(inputs)), model.scores(model(inputs)))


@pytest.mark.parametrize("blob", [b"", b"not a model", b"\x10" + b"\0" * 7 + b"{}"])
def test_bytes_that_are_no_model(blob: bytes) -> None:
    with pytest.raises(InputError, match="a model must be safetensors written by modmix"):
        unpack_weights(blob)


@pytest.mark.parametrize("name", ["parts", "stages", "losses", "passes"])
def test_a_layer_may_not_hide_a_function(name: str) -> None:
    method = Late({"a": 2, "b": 2}, 3)
    with pytest.raises(AttributeError, match=f"{name} is a function of every method"):
        setattr(method, name, torch.nn.Linear(2, 2))


def test_the_example_of_a_method_runs() -> None:
    import doctest

    from modmix.methods import base

    assert doctest.testmod(base) == (0, 2)
