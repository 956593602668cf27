"""One training step of a pack against the least time this machine could take for it.

    python -m tests.benchmarks.step DATA.json

One process, one thread. The packs are those that `modmix run` hands out, trained by `train_pack`
itself; only `Group.train` is watched. The least time is the larger of operations over the best rate
of matrix products, and bytes over the best rate of copies, both measured here and now.

DATA.json: [{"name": …, "study": path, "method": … or null, "seconds": …}, …]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from modmix.base.messages import Pack, Replicate
from modmix.methods.model import build_model, model_spec
from modmix.tasks.base import load_task
from modmix.tasks.data import Data
from modmix.training.device import arithmetic
from tests.benchmarks.harness import cpu_count
from tests.benchmarks.instant import packs_of

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Measured:
    """One pack. Seconds are of one step of all its models."""

    name: str
    models: int
    groups: int  # in how many parts the trainer trains them
    batch: int
    parameters: int  # of one model
    operations: float
    bytes: float
    seconds: float
    processor: float  # the same in CPU time: what others at work take does not count
    spread: tuple[float, float]
    matrix_rate: float  # operations a second
    copy_rate: float  # bytes a second

    @property
    def floor(self) -> float:
        return max(self.operations / self.matrix_rate, self.bytes / self.copy_rate)


# ---------------------------------------------------------------- what a step must do


def operations(replicate: Replicate, data: Data) -> float:
    """Multiplications and additions of one model's step.

    2·B·in·out for every layer forward; as much for its weights' gradient; as much for its input's
    gradient, but where the input is the data.
    """
    model = _model(replicate, data)
    total = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        assert isinstance(layer, nn.Linear)
        nonlocal total
        once = 2.0 * inputs[0].numel() * layer.out_features
        total += once * (3 if inputs[0].requires_grad else 2)

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    batch = batch_of(replicate, data)
    inputs = {n: torch.zeros(batch, *data.shapes[n]) for n in model.inputs}
    model(inputs)
    return total


def moved(replicate: Replicate, parameters: int) -> float:
    """Bytes that one model's update reads and writes at least.

    Parameters and each of the optimizer's states are read and written, the gradient is written
    and read.
    """
    settings = replicate.training
    states = 2 if settings["optimizer"] != "sgd" else int(bool(settings["momentum"]))
    return FLOAT * parameters * (2 + 2 * states + 2.0)


def _model(replicate: Replicate, data: Data) -> Any:
    return build_model(model_spec(replicate, data), replicate.seed)


def batch_of(replicate: Replicate, data: Data) -> int:
    return min(int(replicate.training["batch_size"]), data.train.rows)


# ---------------------------------------------------------------- what the machine can do


def best_rate(amount: float, function: Callable[[], object], seconds: float = 0.5) -> float:
    """``amount`` a second, in the fastest of many calls."""
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begun)
    return amount / best


def matrix_rate(pack: Pack, data: Data) -> float:
    """The best of large products and products of the pack's own shapes, float32."""
    found = []
    for n in (512, 1024, 2048):
        a, b, out = (torch.rand(n, n) for _ in range(3))
        found.append(best_rate(2.0 * n**3, partial(torch.mm, a, b, out=out)))
    replicate, models = pack.replicates[0], len(pack.replicates)
    batch = batch_of(replicate, data)
    layers = [m for m in _model(replicate, data).modules() if isinstance(m, nn.Linear)]
    for width_in, width_out in {(m.in_features, m.out_features) for m in layers}:
        for k in (1, models):
            x, w = torch.rand(k, batch, width_in), torch.rand(k, width_in, width_out)
            y = torch.empty(k, batch, width_out)
            size = 2.0 * k * batch * width_in * width_out
            found.append(best_rate(size, partial(torch.bmm, x, w, out=y), 0.1))
    return max(found)


def copy_rate() -> float:
    """The best of a copy and of a = b + c, on arrays that no cache holds."""
    a, b, c = (torch.ones(1 << 26) for _ in range(3))
    size = float(a.numel() * FLOAT)
    copied = best_rate(2 * size, lambda: a.copy_(b), 1.0)
    return max(copied, best_rate(3 * size, lambda: torch.add(b, c, out=a), 1.0))


# ---------------------------------------------------------------- what it does


def endless(pack: Pack) -> Pack:
    """The same pack, trained for long and evaluated ten times an epoch."""
    more = {"epochs": 1000, "evaluations_per_epoch": 10, "patience": None, "halving": None}
    replicates = tuple(replace(r, training={**r.training, **more}) for r in pack.replicates)
    return replace(pack, replicates=replicates, checkpoint=None)


@dataclass
class Lap:
    """A part of an epoch of the whole pack: seconds per step, and the groups that took them."""

    wall: float = 0.0
    processor: float = 0.0
    groups: int = 0


def time_steps(pack: Pack, data: Data, seconds: float) -> list[Lap]:
    """Train a pack for so long and watch its steps; the first parts of its first epoch left out."""
    from modmix.training.group import Group
    from modmix.training.trainer import train_pack

    original = Group.train
    lap, laps = Lap(), []

    def watched(group: Group, examples: Any, order: Any, start: int, stop: int) -> None:
        begun, used = time.perf_counter(), time.process_time()
        original(group, examples, order, start, stop)
        lap.wall += (time.perf_counter() - begun) / (stop - start)
        lap.processor += (time.process_time() - used) / (stop - start)
        lap.groups += 1

    Group.train = watched  # type: ignore[method-assign, assignment]
    try:
        end = time.perf_counter() + seconds
        for _ in train_pack(endless(pack), data, threads=1):
            if lap.groups:
                laps.append(lap)
                lap = Lap()
            if time.perf_counter() > end and len(laps) > 5:
                break
    finally:
        Group.train = original  # type: ignore[method-assign]
    return laps[2:]


def measure(name: str, pack: Pack, seconds: float) -> Measured:
    data = load_task(pack.task.name, pack.task.options)
    replicate, models = pack.replicates[0], len(pack.replicates)
    parameters = sum(p.numel() for p in _model(replicate, data).parameters())
    with arithmetic(replicate.training["precision"], "cpu"):  # as in training
        before = matrix_rate(pack, data), copy_rate()
    steps = time_steps(pack, data, seconds)
    with arithmetic(replicate.training["precision"], "cpu"):
        after = matrix_rate(pack, data), copy_rate()
    return Measured(
        name=name,
        models=models,
        groups=steps[-1].groups,
        batch=batch_of(replicate, data),
        parameters=parameters,
        operations=models * operations(replicate, data),
        bytes=models * moved(replicate, parameters),
        seconds=median(one.wall for one in steps),
        processor=median(one.processor for one in steps),
        spread=(min(one.wall for one in steps), max(one.wall for one in steps)),
        matrix_rate=max(before[0], after[0]),
        copy_rate=max(before[1], after[1]),
    )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for i, wanted in enumerate(json.loads(Path(sys.argv[1]).read_text())):
            packs = packs_of(Path(wanted["study"]), Path(folder) / str(i), cpu_count())
            mine = [p for p in packs if wanted["method"] in (None, p.method)]
            largest = max(mine, key=lambda pack: len(pack.replicates))
            found = measure(wanted["name"], largest, wanted["seconds"])
            print(json.dumps({**asdict(found), "floor": found.floor}), flush=True)


if __name__ == "__main__":
    main()
