"""Choose how to train a pack on this device: how many models at a time, stacked or one by one.

A training step of one model gives its memory, and so the number of models that fit. Then a few real
steps are timed, stacked and one by one, and their effects undone. Alternatives (one by one instead
of stacked, CUDA graphs instead of eager steps) must be faster by a clear margin, so that noise
rarely changes the choice and equal packs are trained the same way. Models with an operation that
`vmap` cannot stack are trained one by one, which is not an error.

The choice affects results only by floating-point rounding.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.device import available, is_out_of_memory, like_gpu, release
from modmix.training.group import Group
from modmix.training.timeline import StageEntry

_STEPS = 5  # timed steps, after one warm-up step
_TRIED = 8  # examples used to check whether evaluation can be stacked
_CACHED = 1 << 14  # examples × models evaluated at a time on a CPU
# On a CPU: bytes of weights that are stacked together, and at least so many models. On a processor
# with 32 MB of cache, 138 models of 0.6 MB take 12 % less time in three stacks than in one.
_CACHED_WEIGHTS, _FEWEST = 32 << 20, 8
_CLEARLY = 0.8  # an alternative must take less than this fraction of the default's time
# Start of the warning that `vmap` gives when it falls back to a loop over the models.
_LOOPS = "There is a performance drop because we have not yet implemented the batching rule"


@dataclass(kw_only=True)
class Way:
    """How a pack is trained, why, and measured times (seconds per step of all its models)."""

    stacked: bool = False
    compiled: bool = False
    graphs: bool = False
    eval_rows: int = 1  # evaluation batch size
    why: str = ""
    measured: dict[str, float] = field(default_factory=dict)


class Probe:
    """Chooses how to train models of a pack.

    ``share`` is the fraction of the host's (or the device's) memory that this process may use.
    """

    def __init__(
        self, builder: Builder, train: Examples, order: Order, *, share: float = 1.0
    ) -> None:
        self._builder = builder
        self._train, self._order = train, order
        self._share = share
        self._settings = builder.settings
        self._device = builder.device

    def choose(
        self, indices: Sequence[int], entries: Sequence[StageEntry]
    ) -> tuple[Way, list[Group]]:
        """How to train the replicates at these positions, and their groups, ready for the first
        of the stages.
        """
        way, groups = self._stacked_or_not(indices, entries)
        if self._settings["compile"] and groups:
            self._compile(way, groups[0])
        if groups:
            self._choose_graphs(way, groups[0])
        return way, groups

    def _stacked_or_not(
        self, indices: Sequence[int], entries: Sequence[StageEntry]
    ) -> tuple[Way, list[Group]]:
        setting, entry = self._settings["stack"], entries[0]
        way = Way(eval_rows=self._settings["eval_batch_size"])
        single = self._builder.started(indices[:1], entry)
        measured = self._bytes(single[0]) if single else None
        if measured is None:  # the first model does not fit; others may, e.g. with fewer inputs
            way.why = "memory for less than one model at a time"
            return way, [*single, *self._one_by_one(indices[1:], entry)]
        per_model, per_example = measured
        free = available(self._device, self._share)
        way.eval_rows = max(1, min(way.eval_rows, int(0.2 * free / per_example)))
        most = max(1, int(0.6 * free / per_model))
        if reason := self._alone(len(indices), setting, most):
            way.why = reason
            return way, [*single, *self._one_by_one(indices[1:], entry)]
        together = most if like_gpu(self._device) else min(most, _held_by_cache(single[0]))
        parts = _evenly(indices, together)
        groups = [group for part in parts for group in self._builder.started(part, entry)]
        if not groups:
            return way, groups
        way.stacked = True
        way.why = "stack: always" if setting == "always" else "one stacked model"
        if len(groups) > 1:
            way.why = f"{len(groups)} stacked models, memory for {most} models at a time"
            if together < most:
                way.why = f"{len(groups)} stacked models, cache for {together} models at a time"
        largest = max(len(group.members) for group in groups)
        way.eval_rows = max(1, min(way.eval_rows, int(0.2 * free / (per_example * largest))))
        if not like_gpu(self._device):  # keep activations in the CPU's cache
            way.eval_rows = min(way.eval_rows, max(512, _CACHED // largest))
        if reason := self._better_alone(way, groups[0], single[0], len(indices), entries):
            del groups
            release(self._device)
            way.stacked, way.why = False, reason
            return way, [*single, *self._one_by_one(indices[1:], entry)]
        return way, groups

    def _one_by_one(self, indices: Sequence[int], entry: StageEntry) -> list[Group]:
        return [group for i in indices for group in self._builder.started([i], entry)]

    @staticmethod
    def _alone(models: int, setting: str, most: int) -> str:
        """Why models are trained one by one without timing anything, or ""."""
        if models == 1:
            return "one model"
        if setting == "never":
            return "stack: never"
        return "memory for one model at a time" if most == 1 else ""

    def _compile(self, way: Way, group: Group) -> None:
        """Compile the stacked step; if that fails or does not apply, ``way.why`` says so."""
        if not way.stacked:
            way.why += "; compile: true has no effect on models that are not stacked"
            return
        group.stack.compile()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about untraceable code; the error repeats them
                self._seconds(group, 1)
        except Exception as error:
            way.why += f"; cannot be compiled: {_first_sentence(error)}"
        else:
            way.compiled = True
        group.stack.compile(on=way.compiled)

    # ------------------------------------------------------------ memory

    def _bytes(self, single: Group) -> tuple[int, int] | None:
        """Estimated bytes of one model in training, and per example in evaluation.

        None if a training step of one model runs out of memory.
        """
        held: dict[int, int] = {}
        buffers = list(single.stack.buffers.values())
        kept = [single.stack.parameters_KP, *buffers]
        own = {value.untyped_storage().data_ptr() for value in kept}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        def step(start: int) -> None:
            single.choose_turn(start)
            with saved_tensors_hooks(note, lambda tensor: tensor):
                single.train(self._train, self._order, 0, 1)

        activations = 0
        for start in single.turn_starts:
            held.clear()
            if not self._undone(single, partial(step, start)):
                return None
            activations = max(activations, sum(held.values()))
        parameters = single.stack.parameters_KP.numel() * 4
        # Present and best weights, gradient (as computed and as copied for the optimizer), the
        # optimizers' state; then the snapshot of weights and state that `on_groups` takes.
        moments = sum(len(optimizer.state) for optimizer in single.optimizers)
        tensors = 4 + moments + 2 + moments
        # Twice the tensors saved for backward: their gradients and temporaries take as much again.
        # Of the buffers: present and best ones, and the snapshot of both.
        per_model = tensors * parameters + 2 * activations
        per_model += 4 * sum(value.numel() * value.element_size() for value in buffers)
        # Scores and log-probabilities of a whole split, in chunks and joined, in float32.
        data = self._builder.data
        rows = max(data.val.rows, data.test.rows)
        per_model += 2 * 2 * 4 * rows * len(data.class_names)
        return per_model, max(1, activations // self._order.batch)

    def _undone(
        self, group: Group, action: Callable[[], None], entry: StageEntry | None = None
    ) -> bool:
        """Run an action and restore the group's state; False if it ran out of memory.

        ``entry``: the group's stage, if the action leaves it.
        """
        saved: tuple[dict[str, Tensor], list[int]] | None = None
        try:
            saved = group.snapshot()
            group.start_epoch(0, self._order, 0)
            action()
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            if entry is not None:
                group.free()
                self._enter(group, entry)
            if saved is not None:
                group.load(*saved)
        release(self._device)
        return False

    # ------------------------------------------------------------ speed

    def _better_alone(
        self, way: Way, group: Group, single: Group, models: int, entries: Sequence[StageEntry]
    ) -> str:
        """Why the models are better trained one by one, or "". Sets measured times and graphs."""
        setting = self._settings["stack"]
        alone = None if setting == "always" else self._seconds(single, _STEPS)
        enough = 0.0 if alone is None or self._can_record() else alone * len(group.members)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=_LOOPS)
                self._try_rest(group, min(way.eval_rows, _TRIED), entries)
                stacked = self._seconds(group, 1 if setting == "always" else _STEPS, enough)
        except Exception as error:
            # Not a bug of the method: that would have raised in `_bytes`, with a single model.
            return f"cannot be stacked: {_first_sentence(error)}"
        if alone is None or stacked is None:
            return ""  # always, or out of memory after all: training will split the group
        per_step = models / len(group.members)
        stacked, stacked_recorded = self._recorded_too(group, stacked)
        alone, alone_recorded = self._recorded_too(single, alone)
        stacked, alone = stacked * per_step, alone * models
        way.measured = {"stacked": stacked, "one by one": alone}
        way.graphs = stacked_recorded
        if alone < _CLEARLY * stacked:
            way.graphs = alone_recorded
            return f"{stacked / alone:.1f} times faster one after another"
        return ""

    def _recorded_too(self, group: Group, plain: float) -> tuple[float, bool]:
        """Seconds per step with or without a CUDA graph, and whether to use one."""
        setting = self._settings["cuda_graphs"]
        if not self._can_record() or setting == "never":
            return plain, False
        recorded = self._seconds_recorded(group, _STEPS)
        if recorded is not None and (setting == "always" or recorded < _CLEARLY * plain):
            return recorded, True
        return plain, False

    def _try_rest(self, group: Group, rows: int, entries: Sequence[StageEntry]) -> None:
        """Run what a method does beside the timed steps on a few examples, then undo it."""

        def run() -> None:
            for i, entry in enumerate(entries):
                if i > 0:
                    self._enter(group, entry)
                # The first turn of the first stage is timed.
                self._try_stage(group, rows, entry.epochs, group.turn_starts[i == 0 :])

        self._undone(group, run, entries[0] if len(entries) > 1 else None)

    def _enter(self, group: Group, entry: StageEntry) -> None:
        """Enter a stage without room for the optimizers of two."""
        group.optimizers = []
        group.enter_stage(entry)

    def _try_stage(self, group: Group, rows: int, epochs: int, turn_starts: Sequence[int]) -> None:
        """A step of these turns, an evaluation, and each number of passes that an epoch has."""
        chunk = next(iter(self._train.chunks(rows)))
        for start in turn_starts:
            group.choose_turn(start)
            group.train(self._train, self._order, 0, 1)
        group.stack.predict(chunk[0], parts=group.judges_parts)
        tried: set[int] = set()
        for epoch in range(epochs):
            passes = group.stack.template.method.passes(epoch)
            for one in passes if len(passes) not in tried else ():
                state = group.stack.start_pass(one)
                group.stack.finish_pass(one, group.stack.step_pass(one, state, *chunk))
            tried.add(len(passes))

    def _seconds(self, group: Group, steps: int, enough: float = 0.0) -> float | None:
        """Seconds of the fastest of some training steps, then undone; None if out of memory.

        Stops once an alternative of ``enough`` seconds cannot clearly beat a step.
        """
        times: list[float] = []

        def run() -> None:
            group.train(self._train, self._order, 0, 1)
            for step in range(min(steps, self._order.steps)):
                self._wait()
                started = time.perf_counter()
                group.train(self._train, self._order, step, step + 1)
                self._wait()
                times.append(time.perf_counter() - started)
                if _CLEARLY * times[-1] <= enough:
                    break

        return min(times) if self._undone(group, run) else None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _can_record(self) -> bool:
        return like_gpu(self._device) and self._train.place == self._device

    def _choose_graphs(self, way: Way, group: Group) -> None:
        """Set whether to use CUDA graphs: as ``cuda_graphs`` says; with "auto", if clearly faster.

        With "always", ``way.why`` says if the step cannot be captured.
        """
        setting = self._settings["cuda_graphs"]
        if setting == "never" or not self._can_record():
            way.graphs = False
        elif setting == "always":
            self._seconds_recorded(group, 1)
            way.graphs = group.uncaptured is None
            if group.uncaptured is not None:
                reason = _first_sentence(group.uncaptured)
                way.why += f"; steps cannot be captured as CUDA graphs: {reason}"
        elif way.compiled or not way.measured:
            plain = self._seconds(group, _STEPS)
            way.graphs = plain is not None and self._recorded_too(group, plain)[1]

    def _seconds_recorded(self, group: Group, steps: int) -> float | None:
        """As `_seconds` with CUDA graphs; None also if the step cannot be captured.

        ``group.uncaptured`` then says why.
        """
        group.use_graphs(on=True)
        seconds = self._seconds(group, steps)
        group.use_graphs(on=False)
        return seconds if group.uncaptured is None else None


def _first_sentence(error: BaseException | str) -> str:
    """An error's first sentence, at most 200 characters: torch appends long advice."""
    text = " ".join(str(error).split())
    return text.partition(". ")[0].removesuffix(".")[:200]


def _held_by_cache(single: Group) -> int:
    """How many models like this one are stacked together on a CPU."""
    return max(_FEWEST, _CACHED_WEIGHTS // (4 * single.stack.parameters_KP.numel()))


def _evenly(indices: Sequence[int], most: int) -> list[list[int]]:
    """Split into the fewest parts of at most ``most``, of nearly equal size."""
    parts = -(-len(indices) // most)
    bounds = [round(i * len(indices) / parts) for i in range(parts + 1)]
    return [list(indices[a:b]) for a, b in pairwise(bounds)]
