"""Predictions of a stack on a whole split, and their metrics, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from modmix.base.metrics import METRICS, evaluate
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
    )
