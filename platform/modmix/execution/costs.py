"""Estimated cost of training a pack, from its structure alone: independent of the machine's speed.

One training step of one model is counted (`modmix.training.counting`) and converted to seconds by
constants measured once, on one core; only ratios matter. `tests/benchmarks/costs.py` compares
estimates with measured steps. MLPs, multiplicative methods and ResNets come out at 0.9 to 1.2 times
the measured time alone, and at 0.6 to 1.1 stacked; an LSTM alone, whose kernel starts fewer
operations than are counted, at 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from modmix.base.errors import InputError
from modmix.base.messages import Replicate, TaskRef
from modmix.execution.packing import Cost

if TYPE_CHECKING:
    from modmix.study.tasks_plan import StudyPlan
    from modmix.tasks.data import Data
    from modmix.training.counting import StepCount

# Seconds on one core, fitted to the steps of that benchmark: models alone, and eight stacked MLPs.
_PER_FLOP, _PER_BYTE = 6.0e-12, 1.0e-10
_PER_STEP, _PER_OPERATION = 3.5e-4, 1.3e-5
# Throughput of a GPU relative to a core; starting an operation takes about as long. Not measured.
_GPU = 100
# Cost of evaluating an example, relative to training on it with nothing frozen.
_EVALUATION = 1 / 3
# Cost of a model that cannot be built: its worker fails at once.
_NOTHING = Cost(fixed=0.0, each=1e-6)


class Costs:
    """Costs of a study's packs.

    Args:
        tasks: by structure; may grow later.
    """

    def __init__(self, plan: StudyPlan, tasks: Mapping[str, TaskRef]) -> None:
        self._plan = plan
        self._tasks = tasks
        self._known: dict[str, Cost] = {}

    def of(self, replicate: Replicate) -> Cost:
        """The cost of packs of this replicate's structure, in seconds.

        All epochs of all stages with their evaluations and passes, and the test split once. Early
        stopping and halving are left out.
        """
        structure = replicate.structure
        if structure not in self._known:
            data = self._plan.data_for(self._tasks[structure])
            self._known[structure] = self._estimate(replicate, data)
        return self._known[structure]

    def _estimate(self, replicate: Replicate, data: Data) -> Cost:
        settings = replicate.training
        batch = min(settings["batch_size"], data.train.rows)
        steps = data.train.rows // batch
        counted, reads = _counted(replicate, data, batch)
        gpu = self._plan.gpus_of(replicate.method) > 0
        stages = [(epochs, step_cost(step, gpu=gpu)) for epochs, step in counted]
        if not stages:
            return _NOTHING
        evaluations = sum(epochs for epochs, _ in stages) * min(
            settings["evaluations_per_epoch"], steps
        )
        reads = {**reads, "val": evaluations + reads.get("val", 0), "test": 1}
        size, rows = settings["eval_batch_size"], {s: x.rows for s, x in data.splits.items()}
        chunks = sum(count * math.ceil(rows[split] / size) for split, count in reads.items())
        batches = sum(count * rows[split] for split, count in reads.items()) / batch
        fixed = sum(epochs * steps * step.fixed for epochs, step in stages)
        fixed += _EVALUATION * chunks * max(step.fixed for _, step in stages)
        each = sum(epochs * steps * step.each for epochs, step in stages)
        each += _EVALUATION * batches * max(step.each for _, step in stages)
        if settings["stack"] == "never":
            return Cost(fixed=0.0, each=each + fixed)
        return Cost(fixed=fixed, each=each)


def step_cost(step: StepCount, *, gpu: bool = False) -> Cost:
    """Seconds of a training step of n models: for starting its operations, and for each model."""
    return Cost(
        fixed=_PER_STEP + _PER_OPERATION * step.operations,
        each=(_PER_FLOP * step.flops + _PER_BYTE * step.bytes) / (_GPU if gpu else 1),
    )


def _counted(
    replicate: Replicate, data: Data, batch: int
) -> tuple[list[tuple[int, StepCount]], dict[str, int]]:
    """Each stage's epochs and step, and how often passes read each split.

    Nothing for a model that cannot be built.
    """
    from modmix.methods.model import Model, build_model, model_spec
    from modmix.training.counting import count_passes, count_stages

    spec = model_spec(replicate, data)

    def build() -> Model:
        return build_model(spec, replicate.seed)

    try:
        stages = count_stages(build, data.inputs, batch)
    except InputError:
        return [], {}  # its worker says why
    default = int(replicate.training["epochs"])
    steps = [(default if stage.epochs is None else stage.epochs, step) for stage, step in stages]
    return steps, count_passes(build, default)
