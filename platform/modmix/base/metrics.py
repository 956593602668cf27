"""Classification metrics, for one model or many at once.

Scores and log-probabilities are (..., B, C), targets (B,) or (..., B) in 0..C-1, results (...) in
float64; B is at least 1. The prediction is the argmax of the scores; error and F1 count
predictions exactly, so models with equally many errors get the same value on every machine. NLL,
ECE and AUC read log-probabilities, which still distinguish very confident predictions whose
probabilities have rounded to 0 and 1. NaN inputs give NaN or meaningless values, never an
exception.

The table `METRICS` can be read without torch installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

_ECE_BINS = 15
# Not a metric of one model: see `analysis.overlearning`. In percent.
OVER_LEARNING = "test/overlearning"


def error(scores: Tensor, targets: Tensor) -> Tensor:
    """Error rate in percent: 100 · wrong predictions / B."""
    wrong = (scores.argmax(-1) != targets).sum(-1)
    return 100.0 * wrong.double() / scores.shape[-2]


def auc(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Area under the ROC curve of the log-odds; ties count half.

    With two classes, examples are ranked by log p_1 − log p_0. With more, it is the mean of the
    one-vs-rest AUCs by `log_odds`, over classes with both positives and negatives. NaN exactly
    when all targets are of one class.
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

    The denominator is the sum over the other classes, not 1 − p_k, which is 0 where p_k rounds
    to 1.
    """
    import torch

    own = log_probabilities.double()
    top = own.argmax(-2, keepdim=True)
    rest_of_top = own.scatter(-2, top, -torch.inf).logsumexp(-2, keepdim=True)
    total = torch.logaddexp(own.gather(-2, top), rest_of_top)
    # Where k is not the top class, p_k is at most half of the total: no cancellation.
    rest = total + torch.log1p(-(own - total).exp().clamp_max(0.5))
    return own - rest.scatter(-2, top, rest_of_top)


def nll(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of the true class, in nats."""
    index = targets.expand(log_probabilities.shape[:-1]).unsqueeze(-1)
    return -log_probabilities.gather(-1, index).squeeze(-1).double().mean(-1)


def ece(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error: mean |accuracy − confidence| over 15 equal-width bins,
    weighted by bin size.

    The confidence is the largest probability; bins include their upper bound.
    """
    largest, predicted = _by_class(log_probabilities).max(-2)
    confidence = largest.double().exp()
    gap = (predicted == targets).double() - confidence
    bins = (confidence * _ECE_BINS).ceil().nan_to_num().long().clamp(1, _ECE_BINS) - 1
    sums = gap.new_zeros(*gap.shape[:-1], _ECE_BINS).scatter_add(-1, bins, gap)
    return sums.abs().sum(-1) / gap.shape[-1]


def f1(scores: Tensor, targets: Tensor) -> Tensor:
    """Macro-averaged F1; classes neither present nor predicted are left out."""
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
    """One metric: column name, direction, unit, and its function.

    ``reads`` is the function's first argument (scores or log-probabilities); the second is the
    targets.
    """

    name: str
    higher_is_better: bool
    unit: str
    doc: str
    reads: Literal["scores", "log_probabilities"]
    function: Callable[[Tensor, Tensor], Tensor]
    fewest_classes: int = 1  # NaN if the targets have fewer distinct classes


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

STAGE = "stage"  # a column of the histories of methods of several stages

# History columns that are not metrics on a split, with their units.
COLUMNS: dict[str, str] = {
    "epoch": "epochs trained, fractional between",
    "train/loss": "the method's own loss, running mean over the epoch so far",
    "train/error": "%, running mean over the epoch so far",
    "lr": "learning rate",
    STAGE: "of the method's training, from 1",
}


def higher_is_better(column: str) -> bool:
    """Whether larger values of a column such as "val/error" are better.

    Raises:
        KeyError: the column is neither a metric on a split nor a loss.
    """
    name = column.rpartition("/")[2]
    return False if name == "loss" else METRICS[name].higher_is_better


# By a metric's unit, the range of its values.
_RANGES = {"%": (0.0, 100.0), "0..1": (0.0, 1.0), "nats": (0.0, math.inf)}


def value_range(column: str) -> tuple[float, float]:
    """Smallest and largest possible value of a column such as "val/error"; infinite if unknown."""
    metric = METRICS.get(column.rpartition("/")[2])
    return (-math.inf, math.inf) if metric is None else _RANGES[metric.unit]


def evaluate(
    scores_KNC: Tensor, log_probabilities_KNC: Tensor, target_N: Tensor, names: Iterable[str]
) -> Mapping[str, Tensor]:
    """The named metrics, each (K,) in float64.

    Args:
        scores_KNC: of K models for N examples; the argmax over classes is the prediction.
        log_probabilities_KNC: the models' log-probabilities of the classes.
    """
    values = {"scores": scores_KNC, "log_probabilities": log_probabilities_KNC}
    found = {name: METRICS[name] for name in names}
    return {name: metric.function(values[metric.reads], target_N) for name, metric in found.items()}


def _binary_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """AUC over the last axis by mean ranks; NaN without positives or without negatives."""
    import torch

    ordered, positive = _sorted(scores, positive)
    position = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    differs = ordered[..., 1:] != ordered[..., :-1]
    edge = torch.ones_like(positive[..., :1])
    # Tied scores share the mean of the first and last rank of their run.
    first = torch.where(torch.cat([edge, differs], -1), position, 0).cummax(-1).values
    ends = torch.where(torch.cat([differs, edge], -1), position, scores.shape[-1])
    last = ends.flip(-1).cummin(-1).values.flip(-1)
    # Twice the mean rank is an integer, so the sums are exact.
    twice = ((first + last + 2) * positive).sum(-1)
    count = positive.sum(-1)
    pairs = count * (scores.shape[-1] - count)
    won = twice - count * (count + 1)
    return won.double() / (2 * pairs).double()


def _sorted(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Sort keys in ascending order of the scores (equal where scores are), and their labels."""
    import torch

    if scores.dtype == torch.float64:
        ordered, order = scores.sort(-1)
        return ordered, positive.gather(-1, order)
    # Pack score and label into one integer: sorting these is twenty times as fast as argsort. The
    # bit patterns of positive floats, read as integers, rise with the value, those of negative
    # floats fall.
    bits = (scores.float() + 0.0).view(torch.int32)  # −0.0 becomes 0.0
    keys = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 1) | positive
    if keys.device.type == "cpu":
        import numpy as np

        keys = torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    else:
        keys = keys.sort(-1).values
    return keys >> 1, (keys & 1).bool()


def _by_class(values: Tensor) -> Tensor:
    """Values as contiguous (..., C, B), several times faster for reductions over classes."""
    return values.mT.contiguous()


def _real(values: Tensor) -> torch.dtype:  # type: ignore[name-defined]  # noqa: F821
    import torch

    return values.dtype if values.dtype.itemsize >= 4 else torch.float32
