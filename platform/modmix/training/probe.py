"""How a pack is trained on this device: how many models at a time, on how many threads, compiled.

Memory is asked first, speed second. One model's step tells how much memory a model takes, and so
how many fit. Then a few real steps are timed, stacked and one model after another, on all threads
and on one, and, where training will take long, compiled; everything is put back afterwards. The
fastest way is kept; the plain one (stacked, all threads, not compiled) has to be beaten clearly,
so that noise does not decide and equal packs are trained equally.

What is chosen changes how sums are rounded, nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from modmix.methods.base import Stage
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.group import Group, is_out_of_memory
from modmix.training.memory import available

_STEPS = 5  # timed, after one that is not
_CACHED = 1 << 14  # rows of all models that a processor evaluates at a time
_CLEARLY = 0.8  # of the plain way's time: what another way must stay under
# Compiling takes half a minute and more; a pack must be that long for it to be tried unasked.
_WORTH_COMPILING = {"cpu": 1800.0, "cuda": 120.0}


@dataclass(kw_only=True)
class Way:
    """How a pack is trained, why, and what was measured (seconds a step of all its models)."""

    stacked: bool = False
    threads: int = 1
    compiled: bool = False
    eval_rows: int = 1  # examples evaluated at a time
    why: str = ""
    measured: dict[str, float] = field(default_factory=dict)


class Probe:
    """Tries ways to train ``indices`` of a pack.

    ``share`` is the part of the machine's (or the device's) memory that this process may use.
    """

    def __init__(
        self, builder: Builder, train: Examples, order: Order, *, threads: int, share: float = 1.0
    ) -> None:
        self._builder = builder
        self._train, self._order = train, order
        self._threads = threads
        self._share = share
        self._settings = builder.settings
        self._device = builder.device

    def choose(self, indices: Sequence[int]) -> tuple[Way, list[Group]]:
        """The way to train these, and their groups, ready for the first stage."""
        setting = self._settings["stack"]
        single = self._builder.group(indices[:1])
        stages = single.stack.template.method.stages()
        per_model, per_example = self._bytes(single, stages[0])
        free = available(self._device, self._share)
        rows = max(1, min(self._settings["eval_batch_size"], int(0.2 * free / per_example)))
        most = max(1, int(0.6 * free / per_model))
        way = Way(threads=self._threads, eval_rows=rows)
        if len(indices) == 1:
            way.why = "one model"
        elif setting == "never":
            way.why = "stack: never"
        elif most == 1:
            way.why = "memory for one model at a time"
        else:
            way.stacked = True
            way.why = "stack: always" if setting == "always" else "one stacked model"
        if not way.stacked:
            return way, [single, *(self._builder.group([index]) for index in indices[1:])]
        parts = _evenly(indices, most)
        if len(parts) > 1:
            way.why = f"{len(parts)} stacked models, memory for {most} models at a time"
        way.eval_rows = max(1, min(rows, int(0.2 * free / (per_example * len(parts[0])))))
        if self._device.type == "cpu":  # what a layer makes of them should stay in the cache
            way.eval_rows = min(way.eval_rows, max(512, _CACHED // len(parts[0])))
        groups = [self._builder.group(part) for part in parts]
        if setting == "auto":
            groups = self._faster(way, groups, indices, single, stages[0])
        self._compiled(way, groups, stages[0])
        return way, groups

    # ------------------------------------------------------------ memory

    def _bytes(self, single: Group, stage: Stage) -> tuple[int, int]:
        """Memory of one model in training, and of one of its examples in evaluation."""
        self._begin(single, stage)
        held: dict[int, int] = {}
        own = {single.stack.parameters_KP.untyped_storage().data_ptr()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        saved = single.snapshot()
        with saved_tensors_hooks(note, lambda tensor: tensor):
            single.train(self._train, self._order, 0, 1)
        single.load(*saved)
        activations = sum(held.values())
        parameters = single.stack.parameters_KP.numel() * 4
        # Present and best weights, gradient; the optimizer's state; a copy of all but the gradient.
        tensors = 3 + len(single.optimizer.state) + 2 + len(single.optimizer.state)
        # As much again as what is kept for the backward pass: gradients and intermediate values.
        per_model = tensors * parameters + 2 * activations
        return per_model, max(1, activations // self._order.batch)

    # ------------------------------------------------------------ speed

    def _begin(self, group: Group, stage: Stage) -> None:
        group.start_stage(stage, int(self._settings["epochs"]))
        group.start_epoch(0, self._order, 0)

    def _seconds(self, group: Group) -> float | None:
        """One step; None when the memory does not suffice. The group is as it was afterwards."""
        saved = group.snapshot()
        steps = min(_STEPS, self._order.steps)
        try:
            group.train(self._train, self._order, 0, 1)
            times = []
            for step in range(steps):
                self._wait()
                started = time.perf_counter()
                group.train(self._train, self._order, step, step + 1)
                self._wait()
                times.append(time.perf_counter() - started)
            return min(times)  # what else the machine does only adds to it
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            group.load(*saved)
        return None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _faster(
        self,
        way: Way,
        groups: list[Group],
        indices: Sequence[int],
        single: Group,
        stage: Stage,
    ) -> list[Group]:
        """Stacked on all threads against one model after another, and against one thread."""
        self._begin(groups[0], stage)
        stacked, alone = self._seconds(groups[0]), self._seconds(single)
        if stacked is None or alone is None:
            return groups  # too large for the estimate: halved when training comes to it
        best = stacked * len(indices) / len(groups[0].members)
        way.measured = {"stacked": best, "one by one": alone * len(indices)}
        if way.measured["one by one"] < _CLEARLY * best:
            way.why = f"{best / way.measured['one by one']:.1f} times faster one after another"
            way.stacked, best = False, way.measured["one by one"]
            groups = [single, *(self._builder.group([index]) for index in indices[1:])]
        if self._threads > 1:
            torch.set_num_threads(1)
            fewer = self._seconds(groups[0])
            if fewer is not None:
                fewer *= len(indices) / len(groups[0].members)
                way.measured["one thread"] = fewer
                if fewer < _CLEARLY * best:
                    way.threads = 1
                    way.why += f", {best / fewer:.1f} times faster on one thread"
            torch.set_num_threads(way.threads)
        return groups

    def _compiled(self, way: Way, groups: list[Group], stage: Stage) -> None:
        """Compile the stacked step when asked to, or when it is faster and training takes long."""
        setting = self._settings["compile"]
        if setting == "never" or not way.stacked:
            return
        self._begin(groups[0], stage)
        eager = self._seconds(groups[0])
        if eager is None:
            return
        scale = sum(len(group.members) for group in groups) / len(groups[0].members)
        expected = eager * scale * self._order.steps * int(self._settings["epochs"])
        if setting == "auto" and expected < _WORTH_COMPILING.get(self._device.type, math.inf):
            return
        started = time.perf_counter()
        groups[0].stack.compile()
        try:
            faster = self._seconds(groups[0])
        except Exception as error:  # no compiler on this machine, or it cannot do this model
            groups[0].stack.compile(on=False)
            if setting == "always":
                raise
            way.why += f"; not compiled ({type(error).__name__})"
            return
        way.measured["compiling"] = time.perf_counter() - started
        way.measured["eager"] = eager * scale
        if faster is not None:
            way.measured["compiled"] = faster * scale
        if setting == "auto" and (faster is None or faster > _CLEARLY * eager):
            groups[0].stack.compile(on=False)
            way.why += "; compiled it is no faster"
            return
        way.compiled = True
        way.why += "; compiled"


def _evenly(indices: Sequence[int], most: int) -> list[list[int]]:
    """As few parts as hold at most ``most`` each, of nearly equal size."""
    parts = -(-len(indices) // most)
    bounds = [round(i * len(indices) / parts) for i in range(parts + 1)]
    return [list(indices[a:b]) for a, b in pairwise(bounds)]
