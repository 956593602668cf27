"""The methods of `entries_joint` in NumPy, float64: one example at a time, from their equations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

Vector = NDArray[np.float64]

# Small, for gradients by finite differences.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("concat", {}),
    ("sum", {}),
    ("film", {}),
    ("film", {"condition": "m1"}),
    ("gated", {"width": 3}),
    ("gated", {"condition": "m1", "width": 5}),
    ("mmcosine", {}),
    ("mmcosine", {"scale": 0.3}),
    ("gmu", {"width": 5}),
    ("moddrop", {"width": 5}),
    ("moddrop", {"drop": 0.7, "depth": 0}),
    ("tfn", {"project": 3, "width": 4}),
    ("tfn", {"project": 2, "depth": 0}),
    ("lmf", {"rank": 3, "width": 4}),
    ("lmf", {"rank": 1, "width": 3}),
    ("centralnet", {"width": 3}),
    ("centralnet", {"width": 4, "depth": 1, "weight": 0.3}),
    ("late_transformer", {"width": 4, "heads": 2, "feedforward": 3}),
    ("late_transformer", {"width": 3, "heads": 1, "feedforward": 5, "layers": 2, "pool": "mean"}),
]


def affine(layer: Any, x: Vector) -> Vector:
    """W x + b by loops."""
    weight = layer.weight.detach().numpy()
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
    return (
        np.array([math.fsum(w * v for w, v in zip(row, x, strict=True)) for row in weight]) + bias
    )


def network(layers: nn.Sequential, x: Vector) -> Vector:
    for layer in layers:
        x = np.maximum(x, 0) if isinstance(layer, nn.ReLU) else affine(layer, x)
    return x


def sigmoid(x: Vector) -> Vector:
    return np.array([1 / (1 + math.exp(-v)) for v in x])


def softmax(x: Sequence[float]) -> list[float]:
    exponentials = [math.exp(v - max(x)) for v in x]
    return [v / sum(exponentials) for v in exponentials]


def concat(method: Any, parts: list[Vector], _: Mapping[str, Any]) -> Vector:
    return affine(method.classifier, np.concatenate(parts))


def summed(method: Any, parts: list[Vector], _: Mapping[str, Any]) -> Vector:
    total = np.zeros(method.classes)
    for layer, part in zip(method.classifiers, parts, strict=True):
        total = total + affine(layer, part)
    return total


def conditioned(
    method: Any, parts: list[Vector], params: Mapping[str, Any]
) -> tuple[Vector, list[Vector]]:
    """The conditioning modality, and the others in their order."""
    at = 0 if params["condition"] is None else method.modalities.index(params["condition"])
    return parts[at], parts[:at] + parts[at + 1 :]


def film(method: Any, parts: list[Vector], params: Mapping[str, Any]) -> Vector:
    condition, others = conditioned(method, parts, params)
    found = []
    for layer, other in zip(method.modulations, others, strict=True):
        both = affine(layer, condition)
        found += [both[i] * value + both[i + len(other)] for i, value in enumerate(other)]
    return affine(method.classifier, np.array(found))


def gated(method: Any, parts: list[Vector], params: Mapping[str, Any]) -> Vector:
    condition, others = conditioned(method, parts, params)
    found: list[float] = []
    for gate, value, other in zip(method.gates, method.values, others, strict=True):
        found += list(sigmoid(affine(gate, condition)) * affine(value, other))
    assert len(found) == params["width"] * len(others)
    return affine(method.classifier, np.array(found))


def mmcosine(method: Any, parts: list[Vector], params: Mapping[str, Any]) -> Vector:
    logits = np.zeros(method.classes)
    for layer, part in zip(method.classifiers, parts, strict=True):
        for k, row in enumerate(layer.weight.detach().numpy()):
            lengths = math.sqrt(sum(row**2)) * math.sqrt(sum(part**2))
            logits[k] += params["scale"] * sum(row * part) / lengths
    return logits


def gmu(method: Any, parts: list[Vector], _: Mapping[str, Any]) -> Vector:
    joined = np.concatenate(parts)
    hidden = [np.tanh(affine(layer, x)) for layer, x in zip(method.hidden, parts, strict=True)]
    gates = [sigmoid(affine(gate, joined)) for gate in method.gates]
    if len(parts) == 2:
        (gate,) = gates
        fused = gate * hidden[0] + (1 - gate) * hidden[1]
    else:
        fused = np.sum([g * h for g, h in zip(gates, hidden, strict=True)], axis=0)
    return affine(method.classifier, fused)


def moddrop(method: Any, parts: list[Vector], _: Mapping[str, Any]) -> Vector:
    """In evaluation: nothing is dropped."""
    return network(method.head, np.concatenate(parts))


def tfn(method: Any, parts: list[Vector], params: Mapping[str, Any]) -> Vector:
    extended = []
    for layer, part in zip(method.project, parts, strict=True):
        extended.append([*np.maximum(affine(layer, part), 0), 1.0])
    product = np.array([math.prod(values) for values in itertools.product(*extended)])
    assert len(product) == (params["project"] + 1) ** len(parts)
    return network(method.head, product)


def lmf(method: Any, parts: list[Vector], params: Mapping[str, Any]) -> Vector:
    """The full tensor of rank R, contracted with the outer product of all [f; 1]."""
    rank, width = params["rank"], params["width"]
    # (R, width, D + 1) by modality
    factors = [
        np.concatenate(
            [f.weight.detach().numpy(), f.bias.detach().numpy()[:, None]], axis=1
        ).reshape(rank, width, -1)
        for f in method.factors
    ]
    extended = [np.append(part, 1.0) for part in parts]
    hidden = np.zeros(width)
    for index in itertools.product(*(range(len(x)) for x in extended)):
        element = math.prod(x[i] for x, i in zip(extended, index, strict=True))
        for r in range(rank):
            columns = [w[r, :, i] for w, i in zip(factors, index, strict=True)]
            hidden += element * np.prod(columns, axis=0)
    return affine(method.classifier, hidden)


def normed(layer: Any, x: Vector) -> Vector:
    scaled = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
    return np.asarray(scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy())


def attended(layer: Any, tokens: list[Vector]) -> list[Vector]:
    width = len(tokens[0])
    size = width // layer.heads
    projections = (layer.query, layer.key, layer.value)
    queries, keys, values = ([affine(p, token) for token in tokens] for p in projections)
    found = []
    for query in queries:
        mixed = np.zeros(width)
        for head in range(layer.heads):
            own = slice(head * size, (head + 1) * size)
            weights = softmax([float(query[own] @ k[own]) / math.sqrt(size) for k in keys])
            for weight, value in zip(weights, values, strict=True):
                mixed[own] += weight * value[own]
        found.append(affine(layer.out, mixed))
    return found


def late_transformer(method: Any, parts: list[Vector], params: Mapping[str, Any]) -> Vector:
    tokens = [affine(layer, x) for layer, x in zip(method.project, parts, strict=True)]
    if params["pool"] == "class":
        tokens = [method.token.detach().numpy()[0], *tokens]
    assert len(method.layers) == params["layers"]
    for layer in method.layers:
        mixed = attended(layer, tokens)
        tokens = [normed(layer.norms[0], x + y) for x, y in zip(tokens, mixed, strict=True)]
        up = [np.maximum(affine(layer.up, x), 0) for x in tokens]
        tokens = [
            normed(layer.norms[1], x + affine(layer.down, y))
            for x, y in zip(tokens, up, strict=True)
        ]
    chosen = tokens[0] if params["pool"] == "class" else sum(tokens) / len(tokens)
    return affine(method.classifier, np.asarray(chosen))


def centralnet(
    method: Any, parts: list[Vector], params: Mapping[str, Any]
) -> tuple[Vector, list[Vector]]:
    """Logits of the central network, and of those of the modalities."""
    hidden, joined = parts, np.zeros(params["width"])
    assert len(method.levels) == params["depth"]
    for i, level in enumerate(method.levels):
        central = np.maximum(affine(level.central, joined), 0) if i > 0 else np.zeros(0)
        hidden = [np.maximum(affine(g, x), 0) for g, x in zip(level.own, hidden, strict=True)]
        alphas = level.alpha.detach().numpy()
        assert len(alphas) == len(parts) + (i > 0)
        joined = np.zeros(params["width"])
        for alpha, x in zip(alphas, [*hidden, central], strict=i > 0):
            joined = joined + alpha * x
    own = [affine(g, x) for g, x in zip(method.classifiers, hidden, strict=True)]
    return affine(method.classifier, joined), own


LOGITS: dict[str, Callable[[Any, list[Vector], Mapping[str, Any]], Vector]] = {
    "concat": concat,
    "sum": summed,
    "film": film,
    "gated": gated,
    "mmcosine": mmcosine,
    "gmu": gmu,
    "moddrop": moddrop,
    "tfn": tfn,
    "lmf": lmf,
    "late_transformer": late_transformer,
}


def cross_entropy(logits: Vector, target: int) -> float:
    return -math.log(softmax(list(logits))[target])


def loss_and_logits(
    name: str,
    method: Any,
    params: Mapping[str, Any],
    parts: list[Vector],
    target: NDArray[np.int64],
) -> tuple[Vector, Vector]:
    """Loss (B,) and logits (B, C) in evaluation from features (B, D) of every modality."""
    losses, logits = [], []
    for row, y in zip(zip(*parts, strict=True), target, strict=True):
        if name == "centralnet":
            z, own = centralnet(method, list(row), params)
            side = sum(cross_entropy(x, y) for x in own)
            losses.append(cross_entropy(z, y) + params["weight"] * side)
        else:
            z = LOGITS[name](method, list(row), params)
            losses.append(cross_entropy(z, y))
        logits.append(z)
    return np.array(losses), np.array(logits)
