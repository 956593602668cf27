"""Predictions of a stack on a whole split, their metrics and their stored form."""

from __future__ import annotations

import torch
from torch import Tensor

from modmix.base.metrics import METRICS, evaluate
from modmix.base.predictions import ExamplePredictions
from modmix.training.batches import Examples
from modmix.training.device import is_out_of_memory
from modmix.training.stack import Stack
from modmix.training.weights import Predictions

# Number of scores per metric computation.
_METRIC_ELEMENTS = 1 << 22


def metrics_of(found: Predictions, target_N: Tensor) -> dict[str, Tensor]:
    """Every metric, (K,) each; a few models at a time, because sorting copies the scores."""
    models = max(1, _METRIC_ELEMENTS // found.scores[0].numel())
    pairs = zip(
        torch.split(found.scores, models),
        torch.split(found.log_probabilities, models),
        strict=True,
    )
    parts = [evaluate(scores, logs, target_N, METRICS) for scores, logs in pairs]
    return {name: torch.cat([part[name] for part in parts]) for name in METRICS}


def report_errors(found: Predictions, target_N: Tensor) -> dict[str, Tensor]:
    """The error in percent of each reported predictor, (K,) each, as "<name>/error"."""
    return {
        f"{name}/error": 100.0 * (classes_KN != target_N).sum(-1).double() / len(target_N)
        for name, classes_KN in found.reports.items()
    }


def packed(found: Predictions, row: int, target_N: Tensor) -> bytes:
    """One model's predictions in the form that the ledger stores; see `ExamplePredictions`."""
    log_NC = found.log_probabilities[row]
    p_true_N = log_NC.gather(1, target_N.unsqueeze(1)).squeeze(1).double().exp().half()
    classes_N = found.scores[row].argmax(-1)
    stored = ExamplePredictions(classes_N.cpu().numpy(), p_true_N.cpu().numpy())
    return stored.to_bytes(log_NC.shape[1])


def predictions_of(
    stack: Stack, examples: Examples, size: int, *, parts: bool = False
) -> Predictions:
    """Predictions (K, N, C) on all examples in chunks of ``size``, halved when out of memory."""
    while True:
        try:
            chunks = [stack.predict(inputs, parts=parts) for inputs, _ in examples.chunks(size)]
            break
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        size //= 2
    return Predictions(
        torch.cat([chunk.scores for chunk in chunks], dim=1),
        torch.cat([chunk.log_probabilities for chunk in chunks], dim=1),
        {name: torch.cat([c.parts[name] for c in chunks], dim=1) for name in chunks[0].parts},
        {name: torch.cat([c.reports[name] for c in chunks], dim=1) for name in chunks[0].reports},
    )
