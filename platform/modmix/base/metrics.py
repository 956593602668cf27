"""Metrics of scores and targets, for one model or many at once.

Scores are (..., B, C), the largest is the prediction and their softmax the probabilities; targets
are (B,) or (..., B) in 0..C-1; results are (...). B is at least 1. The table can be read where
torch is not installed. NaN scores give NaN or meaningless values, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ECE_BINS = 15


def error(scores: Tensor, targets: Tensor) -> Tensor:
    """Percentage of examples whose largest score is not their class."""
    return 100.0 * (scores.argmax(-1) != targets).to(_real(scores)).mean(-1)


def auc(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the ROC curve, ties counted half.

    Two classes: of score[1] − score[0]. More: mean over the classes, each against the rest, of
    their probability; classes without examples, or without counterexamples, are left out. NaN
    when no class is left.
    """
    import torch

    if scores.shape[-1] == 2:
        return _binary_auc(scores[..., 1] - scores[..., 0], targets.expand(scores.shape[:-1]) == 1)
    probabilities = _by_class(scores).softmax(-2)  # (..., C, B)
    classes = torch.arange(scores.shape[-1], device=scores.device)
    is_class = targets.unsqueeze(-2) == classes.unsqueeze(-1)
    return _binary_auc(probabilities, is_class.expand(probabilities.shape)).nanmean(-1)


def nll(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean −log softmax(scores) of the true class, in nats."""
    own = scores.gather(-1, targets.expand(scores.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return (_by_class(scores).logsumexp(-2) - own).mean(-1)


def ece(scores: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error: |accuracy − confidence| over 15 equal bins, weighted by size.

    The confidence is the largest probability; a bin holds its upper bound.
    """
    confidence, predicted = _by_class(scores).softmax(-2).max(-2)
    gap = (predicted == targets).to(_real(scores)) - confidence
    bins = (confidence * _ECE_BINS).ceil().long().clamp(1, _ECE_BINS) - 1
    sums = gap.new_zeros(*gap.shape[:-1], _ECE_BINS).scatter_add(-1, bins, gap)
    return sums.abs().sum(-1) / gap.shape[-1]


def f1(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over classes of F1; classes neither present nor predicted are left out."""
    predicted = scores.argmax(-1)
    targets = targets.expand(predicted.shape)
    ones = scores.new_ones((), dtype=_real(scores)).expand(predicted.shape)
    zeros = scores.new_zeros((*scores.shape[:-2], scores.shape[-1]), dtype=_real(scores))
    hits = zeros.scatter_add(-1, targets, (predicted == targets).to(zeros.dtype))
    seen = zeros.scatter_add(-1, targets, ones).scatter_add(-1, predicted, ones)
    present = seen > 0
    return (2 * hits / seen.clamp_min(1)).sum(-1) / present.sum(-1)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: its column name, direction, unit and function."""

    name: str
    higher_is_better: bool
    unit: str
    doc: str
    function: Callable[[Tensor, Tensor], Tensor]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="error",
            higher_is_better=False,
            unit="%",
            doc="percentage of wrong predictions",
            function=error,
        ),
        Metric(
            name="auc",
            higher_is_better=True,
            unit="0..1",
            doc="area under the ROC curve; more than two classes: mean of one against the rest",
            function=auc,
        ),
        Metric(
            name="nll",
            higher_is_better=False,
            unit="nats",
            doc="mean negative log-likelihood of the softmax of the scores",
            function=nll,
        ),
        Metric(
            name="ece",
            higher_is_better=False,
            unit="0..1",
            doc="expected calibration error over 15 equal bins of confidence",
            function=ece,
        ),
        Metric(
            name="f1",
            higher_is_better=True,
            unit="0..1",
            doc="F1 averaged over classes",
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
    scores: Tensor, log_probabilities: Tensor, targets: Tensor, names: Iterable[str]
) -> Mapping[str, Tensor]:
    """The named metrics, each (...)."""
    of_scores = ("error", "f1")
    return {
        name: METRICS[name].function(scores if name in of_scores else log_probabilities, targets)
        for name in names
    }


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
    return (won.double() / (2 * pairs).double()).to(_real(scores))


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


def _by_class(scores: Tensor) -> Tensor:
    """Scores (..., C, B): sums over the few classes are then several times as fast."""
    return scores.mT.contiguous()


def _real(scores: Tensor) -> torch.dtype:  # type: ignore[name-defined]  # noqa: F821
    import torch

    return scores.dtype if scores.dtype.itemsize >= 4 else torch.float32
