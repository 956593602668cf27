"""What training a pack costs: an estimate from its structure alone, so that packs do not depend on
how fast a machine happened to be.

The unit is a multiplication with one parameter for one example. A step of a pack costs that for
every model, and a fixed part for starting its operations, however many models they are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from modmix.base.errors import InputError
from modmix.base.messages import Replicate, TaskRef
from modmix.execution.packing import Cost

if TYPE_CHECKING:
    from modmix.study.plan import Plan
    from modmix.tasks.data import Data

# Of a step on a processor, measured with stacks of small MLPs: some operations for the step and
# some for every tensor of parameters.
_STEP, _TENSOR = 5e6, 3e5
# On a GPU the same takes about as long, and the arithmetic is some hundred times as fast.
_GPU = 100
# Scores of an example without its gradient, as a share of an example in training.
_EVALUATION = 1 / 3


class Costs:
    """Costs of a study's packs.

    Args:
        tasks: by structure, the task that its models are trained on; may grow.
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


def _size(replicate: Replicate, data: Data) -> tuple[int, int]:
    """Parameters of one model, and in how many tensors; zero for one that cannot be built."""
    from modmix.methods.model import model_spec
    from modmix.study.dry_run import build_without_memory

    try:
        model = build_without_memory(model_spec(replicate, data))
    except InputError:
        return 0, 0  # its worker says why
    sizes = [math.prod(parameter.shape) for parameter in model.parameters()]
    return sum(sizes), len(sizes)
