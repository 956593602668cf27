"""Estimated cost of training a pack, from its structure alone: independent of the machine's speed.

The unit is one multiplication with one parameter for one example. A training step costs one unit
per parameter, example and model, plus a fixed overhead for launching operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modmix.base.errors import InputError
from modmix.base.messages import Replicate, TaskRef
from modmix.execution.packing import Cost

if TYPE_CHECKING:
    from modmix.study.plan import Plan
    from modmix.tasks.data import Data

# Overhead of a step on a CPU, and per parameter tensor; measured with stacks of small MLPs.
_STEP, _TENSOR = 5e6, 3e5
_GPU = 100  # a GPU has about the same overhead, and about 100 times the throughput
_EVALUATION = 1 / 3  # cost of evaluating an example, relative to training on it


class Costs:
    """Costs of a study's packs.

    Args:
        tasks: by structure; may grow later.
    """

    def __init__(self, plan: Plan, tasks: Mapping[str, TaskRef]) -> None:
        self._plan = plan
        self._tasks = tasks
        self._start = _GPU if plan.spec.resources.gpus else 1
        self._known: dict[str, Cost] = {}

    def of(self, replicate: Replicate) -> Cost:
        """The cost of packs of this replicate's structure."""
        structure = replicate.structure
        if structure not in self._known:
            data = self._plan.data_of(self._tasks[structure].options)
            self._known[structure] = self._estimate(replicate, data)
        return self._known[structure]

    def _estimate(self, replicate: Replicate, data: Data) -> Cost:
        settings = replicate.training
        rows = data.splits["train"].rows
        batch = min(settings["batch_size"], rows)
        steps = rows // batch
        evaluations = min(settings["evaluations_per_epoch"], steps)
        examples = steps * batch + evaluations * data.splits["val"].rows * _EVALUATION
        parameters, tensors = _size(replicate, data)
        fixed = (steps + evaluations) * (_STEP + _TENSOR * tensors) * self._start
        each = examples * max(1, parameters)
        if settings["stack"] == "never":
            fixed, each = 0.0, each + fixed
        return Cost(fixed=settings["epochs"] * fixed, each=settings["epochs"] * each)


def _size(replicate: Replicate, data: Any) -> tuple[int, int]:
    """Numbers of parameters and of parameter tensors of a model; zeros if it cannot be built."""
    import torch

    from modmix.methods.model import build_model

    try:
        with torch.device("meta"):  # shapes only
            model = build_model(
                replicate.method,
                replicate.params,
                replicate.encoders,
                data.shapes,
                data.classes,
                replicate.seed,
            )
    except InputError:
        return 0, 0  # the worker reports why
    sizes = [math.prod(parameter.shape) for parameter in model.parameters()]
    return sum(sizes), len(sizes)
