"""Metrics of what models say about examples, for one model or many at once.

Scores and log-probabilities are (..., B, C), targets (B,) or (..., B) in 0..C-1, results (...) in
float64; B is at least 1. The largest score is the prediction: error and F1 count it, exactly, so
that models with as many errors have the same value on every machine. NLL, ECE and AUC read the
log-probabilities, which tell nearly certain predictions apart where probabilities have become 0
and 1. NaN gives NaN or meaningless values, never an exception.

The table can be read where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

_ECE_BINS = 15


def error(scores: Tensor, targets: Tensor) -> Tensor:
    """Percentage of examples whose largest score is not their class: 100 · wrong / B."""
    wrong = (scores.argmax(-1) != targets).sum(-1)
    return 100.0 * wrong.double() / scores.shape[-2]


def auc(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Area under the ROC curve of the log-odds, ties counted half.

    Two classes: of log p_1 − log p_0. More: mean over the classes, each against the rest, of
    `log_odds`; classes without examples, or without counterexamples, are left out. NaN when no
    class is left, and only then: when all targets are of one class.
    """
    import torch

    if log_probabilities.shape[-1] == 2:
        wide = log_probabilities.to(_real(log_probabilities))
        odds = wide[..., 1] - wide[..., 0]
        return _binary_auc(odds, targets.expand(odds.shape) == 1)
    odds = log_odds(_by_class(log_probabilities)).to(_real(log_probabilities))  # (..., C, B)
    classes = torch.arange(odds.shape[-2], device=odds.device)
    is_class = targets.unsqueeze(-2) == classes.unsqueeze(-1)
    return _binary_auc(odds, is_class.expand(odds.shape)).nanmean(-1)


def log_odds(log_probabilities: Tensor) -> Tensor:
    """log p_k − log Σ_{j≠k} p_j of log-probabilities (..., C, B), in float64.

    The others are summed without the class itself, not as 1 − p_k, which is 0 where p_k rounds
    to 1.
    """
    import torch

    own = log_probabilities.double()
    top = own.argmax(-2, keepdim=True)
    rest_of_top = own.scatter(-2, top, -torch.inf).logsumexp(-2, keepdim=True)
    total = torch.logaddexp(own.gather(-2, top), rest_of_top)
    # p_k is at most half of the total where k is not the top class: nothing cancels.
    rest = total + torch.log1p(-(own - total).exp().clamp_max(0.5))
    return own - rest.scatter(-2, top, rest_of_top)


def nll(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean −log p of the true class, in nats."""
    index = targets.expand(log_probabilities.shape[:-1]).unsqueeze(-1)
    return -log_probabilities.gather(-1, index).squeeze(-1).double().mean(-1)


def ece(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error: |accuracy − confidence| over 15 equal bins, weighted by size.

    The confidence is the largest probability; a bin holds its upper bound.
    """
    largest, predicted = _by_class(log_probabilities).max(-2)
    confidence = largest.double().exp()
    gap = (predicted == targets).double() - confidence
    bins = (confidence * _ECE_BINS).ceil().nan_to_num().long().clamp(1, _ECE_BINS) - 1
    sums = gap.new_zeros(*gap.shape[:-1], _ECE_BINS).scatter_add(-1, bins, gap)
    return sums.abs().sum(-1) / gap.shape[-1]


def f1(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over classes of F1; classes neither present nor predicted are left out."""
    predicted = scores.argmax(-1)
    targets = targets.expand(predicted.shape)
    zeros = predicted.new_zeros((*scores.shape[:-2], scores.shape[-1]))
    ones = predicted.new_ones(()).expand(predicted.shape)
    hits = zeros.scatter_add(-1, targets, (predicted == targets).long())
    seen = zeros.scatter_add(-1, targets, ones).scatter_add(-1, predicted, ones)
    each = (2 * hits).double() / seen.clamp_min(1)
    return each.sum(-1) / (seen > 0).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: its column name, direction, unit, and its function of what is read and targets.

    ``reads``: the scores, whose largest is the prediction, or the log-probabilities.
    """

    name: str
    higher_is_better: bool
    unit: str
    doc: str
    reads: Literal["scores", "log_probabilities"]
    function: Callable[[Tensor, Tensor], Tensor]
    fewest_classes: int = 1  # different ones among the targets, below which it is NaN


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="error",
            higher_is_better=False,
            unit="%",
            doc="percentage of wrong predictions",
            reads="scores",
            function=error,
        ),
        Metric(
            name="auc",
            higher_is_better=True,
            unit="0..1",
            doc="area under the ROC curve; more than two classes: mean of one against the rest",
            reads="log_probabilities",
            function=auc,
            fewest_classes=2,
        ),
        Metric(
            name="nll",
            higher_is_better=False,
            unit="nats",
            doc="mean negative log-likelihood of the true class",
            reads="log_probabilities",
            function=nll,
        ),
        Metric(
            name="ece",
            higher_is_better=False,
            unit="0..1",
            doc="expected calibration error over 15 equal bins of confidence",
            reads="log_probabilities",
            function=ece,
        ),
        Metric(
            name="f1",
            higher_is_better=True,
            unit="0..1",
            doc="F1 averaged over classes",
            reads="scores",
            function=f1,
        ),
    )
}

# Columns of a history that are no metric of a split, with their units.
COLUMNS: dict[str, str] = {
    "epoch": "epochs trained, fractional between",
    "train/loss": "the method's own loss, running mean over the epoch so far",
    "train/error": "%, running mean over the epoch so far",
    "lr": "learning rate",
}


def higher_is_better(column: str) -> bool:
    """Whether larger values of a column such as "val/error" are better.

    Raises:
        KeyError: a column that is neither a metric of a split nor a loss.
    """
    name = column.rpartition("/")[2]
    return False if name == "loss" else METRICS[name].higher_is_better


def evaluate(
    scores_KNC: Tensor, log_probabilities_KNC: Tensor, target_N: Tensor, names: Iterable[str]
) -> Mapping[str, Tensor]:
    """The named metrics, each (K,) in float64.

    Args:
        scores_KNC: of K models for N examples; their largest is the prediction.
        log_probabilities_KNC: what the models take the classes' probabilities for.
    """
    values = {"scores": scores_KNC, "log_probabilities": log_probabilities_KNC}
    found = {name: METRICS[name] for name in names}
    return {name: metric.function(values[metric.reads], target_N) for name, metric in found.items()}


def _binary_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """AUC over the last axis from mean ranks; NaN without positives or without negatives."""
    import torch

    ordered, positive = _sorted(scores, positive)
    position = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    differs = ordered[..., 1:] != ordered[..., :-1]
    edge = torch.ones_like(positive[..., :1])
    # The mean rank of a run of equal scores is that of its ends.
    first = torch.where(torch.cat([edge, differs], -1), position, 0).cummax(-1).values
    ends = torch.where(torch.cat([differs, edge], -1), position, scores.shape[-1])
    last = ends.flip(-1).cummin(-1).values.flip(-1)
    # Twice the rank is a whole number, so that sums stay exact.
    twice = ((first + last + 2) * positive).sum(-1)
    count = positive.sum(-1)
    pairs = count * (scores.shape[-1] - count)
    won = twice - count * (count + 1)
    return won.double() / (2 * pairs).double()


def _sorted(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in the order of the scores, equal where these are, and which of them are positive."""
    import torch

    if scores.dtype == torch.float64:
        ordered, order = scores.sort(-1)
        return ordered, positive.gather(-1, order)
    # One integer holds score and label: to sort these alone is twenty times as fast as to find
    # their order. The bits of a positive float grow with it, those of a negative one fall.
    bits = (scores.float() + 0.0).view(torch.int32)  # −0 is 0
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 1) | positive
    if keys.device.type == "cpu":
        import numpy as np

        keys = torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    else:
        keys = keys.sort(-1).values
    return keys >> 1, (keys & 1).bool()


def _by_class(values: Tensor) -> Tensor:
    """Values (..., C, B): sums over the few classes are then several times as fast."""
    return values.mT.contiguous()


def _real(values: Tensor) -> torch.dtype:  # type: ignore[name-defined]  # noqa: F821
    import torch

    return values.dtype if values.dtype.itemsize >= 4 else torch.float32
