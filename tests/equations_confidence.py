"""Methods that weight by confidence or train in turns, from their definitions: slow, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


# ---------------------------------------------------------------- tmc


def dempster(first: Matrix, second: Matrix) -> Matrix:
    """Concentrations (C,) of two Dirichlet distributions combined, through beliefs."""
    count = len(first)
    (b_1, u_1), (b_2, u_2) = [((a - 1) / a.sum(), count / a.sum()) for a in (first, second)]
    conflict = sum(b_1[i] * b_2[j] for i in range(count) for j in range(count) if i != j)
    belief = (b_1 * b_2 + b_1 * u_2 + b_2 * u_1) / (1 - conflict)
    uncertainty = u_1 * u_2 / (1 - conflict)
    assert np.isclose(belief.sum() + uncertainty, 1)
    return np.asarray(belief * count / uncertainty + 1)


def divergence(alpha: Matrix) -> float:
    """KL(Dir(α) ‖ Dir(1)) of concentrations (C,)."""
    total = alpha.sum()
    gammas = gammaln(total) - gammaln(len(alpha)) - gammaln(alpha).sum()
    return float(gammas + ((alpha - 1) * (digamma(alpha) - digamma(total))).sum())


def trusted(alphas: Sequence[Matrix], y: int, weight: float) -> tuple[float, Matrix]:
    """Loss of one example and concentrations of the combination, from those of each modality."""
    combined = alphas[0]
    for alpha in alphas[1:]:
        combined = dempster(combined, alpha)
    loss = 0.0
    for alpha in (*alphas, combined):
        without = alpha.copy()
        without[y] = 1
        loss += digamma(alpha.sum()) - digamma(alpha[y]) + weight * divergence(without)
    return loss, combined


def tmc(
    _: Any, params: Mapping[str, Any], logits: Sequence[Matrix], target: Labels
) -> tuple[Matrix, Matrix]:
    """In the first epoch."""
    loss, scores = [], []
    for b, y in enumerate(target):
        alphas = [1 + np.logaddexp(0, z[b]) for z in logits]
        one, combined = trusted(alphas, int(y), 1 / params["annealing_epochs"])
        loss.append(one)
        scores.append(np.log(combined / combined.sum()))
    return np.array(loss), np.array(scores)


# ---------------------------------------------------------------- qmf


def log_softmax(z: Matrix) -> Matrix:
    z = z - z.max(-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))


def cross_entropies(z: Matrix, target: Labels) -> Matrix:
    return np.asarray(-log_softmax(z)[np.arange(len(target)), target])


def confidence(z: Matrix, params: Mapping[str, Any]) -> Matrix:
    """(B,) of logits (B, C)."""
    largest = z.max(-1)
    energy = largest + np.log(np.exp(z - largest[:, None]).sum(-1))
    return np.asarray(energy / params["temperature"])


def qmf(
    _: Any, params: Mapping[str, Any], logits: Sequence[Matrix], target: Labels
) -> tuple[Matrix, Matrix]:
    """Without a history, as in the first step."""
    fused = sum(confidence(z, params)[:, None] * z for z in logits)
    own = sum(cross_entropies(z, target) for z in logits)
    loss = cross_entropies(np.asarray(fused), target) + params["unimodal_weight"] * own
    return np.asarray(loss), np.asarray(fused)


# ---------------------------------------------------------------- mla, reconboost


def mla(
    _: Any, __: Mapping[str, Any], logits: Sequence[Matrix], target: Labels
) -> tuple[Matrix, Matrix]:
    """In the first modality's turn."""
    scores = np.zeros_like(logits[0])
    for b in range(len(target)):
        p = [np.exp(log_softmax(z[b])) for z in logits]
        entropies = [-sum(x * np.log(x) for x in one) for one in p]
        weights = np.exp(max(entropies) - np.array(entropies))
        for weight, z in zip(weights / weights.sum(), logits, strict=True):
            scores[b] += weight * z[b]
    return cross_entropies(logits[0], target), scores


def reconboost(
    _: Any, params: Mapping[str, Any], logits: Sequence[Matrix], target: Labels
) -> tuple[Matrix, Matrix]:
    """In the first modality's turn."""
    first, *others = logits
    total = np.asarray(sum(others))
    loss = []
    for b, y in enumerate(target):
        hot = np.eye(total.shape[1])[y]
        aim = hot - params["reconcile"] * hot * np.exp(log_softmax(total[b]))
        loss.append(-(aim * log_softmax(first[b])).sum())
    return np.array(loss), first + total


# Of methods with a head per modality, or a shared one: loss (B,) and scores (B, C) from logits.
EQUATIONS: dict[str, Callable[..., tuple[Matrix, Matrix]]] = {
    "tmc": tmc,
    "qmf": qmf,
    "mla": mla,
    "reconboost": reconboost,
}
