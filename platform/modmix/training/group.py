"""Models trained together: a stack, its optimizer, best weights and running sums.

A pack is one group, or one group per model where training them one by one is faster; a group that
does not fit into memory is split in two. Shapes: K models (rows), S distinct seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from modmix.base.metrics import evaluate
from modmix.methods.base import Pass
from modmix.methods.model import derive_seed
from modmix.training.batches import Examples, Order
from modmix.training.device import (
    is_out_of_memory,
    like_gpu,
    own_generators,
    release,
    seed_generators,
)
from modmix.training.evaluation import metrics_of, packed, predictions_of, report_errors
from modmix.training.graphs import StepGraph
from modmix.training.optimizers import Optimizer, Training
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry
from modmix.training.weights import Part, Weights, pick

_KEPT_SNAPSHOT = 256 << 20  # the most bytes of memory that a group keeps for its next snapshot


@dataclass(frozen=True, kw_only=True)
class Member:
    """The model of a row: its position in the pack, seed and training settings."""

    index: int
    seed: int
    training: Training


class Evaluated(NamedTuple):
    """Models on a split: every metric, a mapping per model; predictions, by row of the group."""

    metrics: list[dict[str, float]]
    predictions: dict[int, bytes]


class Group:
    """Models that take their training steps together; ``members`` has an entry per row."""

    def __init__(self, members: Sequence[Member], stack: Stack) -> None:
        self.members = list(members)
        self.stack = stack
        self.settings = members[0].training  # for structural settings, equal in all models
        # Copies of earlier weights, only where they may be needed.
        self.best: Weights | None = None
        self.stopped: Weights | None = None  # of rows out of patience before the stage's end
        self.optimizers: list[Optimizer] = []  # one per turn of the stage
        self._turn_every, self._turn_epochs = "batch", 1
        self._graphs = False
        self._graph: StepGraph | None = None
        self._saved: dict[str, Tensor] = {}  # the memory of snapshots, see `snapshot`
        self.uncaptured: str | None = None  # the error of a step that cannot be captured
        self.loss_K = torch.zeros(len(members), dtype=torch.float64, device=self.device)
        self.wrong_K = torch.zeros_like(self.loss_K)
        self.parts: dict[str, Part] = {}
        self.rest: Part | None = None
        self.keeps_best = False
        self._read_seeds()
        # Set by start_epoch; initialised because a resumed group may lose rows before that.
        self._order_SN = torch.empty(len(self.seeds), 0, dtype=torch.int32)
        self._augment_S = torch.zeros(len(self.seeds), dtype=torch.int64, device=self.device)
        # Seeds of the models' own random numbers (dropout, ...) in this epoch; the step's number is
        # added to them.
        self._draws = [0] * len(members)
        self._draw_K = torch.zeros(len(members), dtype=torch.int64, device=self.device)

    def _read_seeds(self) -> None:
        seeds = [member.seed for member in self.members]
        self.seeds = list(dict.fromkeys(seeds))
        positions = [self.seeds.index(seed) for seed in seeds]
        # For each row, the index of its seed's batch; None if all seeds differ.
        self._seed_K: Tensor | None = None
        if len(self.seeds) < len(seeds):
            self._seed_K = torch.tensor(positions, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.stack.device

    def reset_sums(self) -> None:
        """Zero the running sums of loss and wrong predictions, at the start of an epoch."""
        self.loss_K.zero_()
        self.wrong_K.zero_()

    # ------------------------------------------------------------ training

    def start_stage(self, entry: StageEntry) -> None:
        """Enter a stage after another, from the last or best weights of that one."""
        if entry.from_best and self.best is not None:
            self._restore(self.best)
        self.enter_stage(entry)
        self.best = self.stopped = None

    def enter_stage(self, entry: StageEntry) -> None:
        """Set up a stage without changing weights: method, frozen parameters, optimizer."""
        self._graph = None
        stage, epochs = entry.stage, entry.epochs
        self.keeps_best = entry.keeps_best
        self.stack.template.method.enter(stage)
        self.stack.enter_stage(stage)
        self._turn_every, self._turn_epochs = stage.turn_every, stage.turn_epochs
        self.parts = self.stack.parts()
        self.rest = self._rest()
        before = self.optimizers if stage.optimizer == "kept" else []
        self.optimizers = [self._optimizer(turn, epochs) for turn in range(len(self.stack.turns))]
        for old, new in zip(before, self.optimizers):
            for name, value in new.state.items():
                value.copy_(old.state[name])
            new.resume(old.steps)

    def _optimizer(self, turn: int, epochs: int) -> Optimizer:
        """A fresh optimizer for what a turn of the stage trains."""
        decays_all = self.settings["decay"] == "all"
        decays_P = self.stack.columns(lambda _, shape: decays_all or len(shape) >= 2)
        trained_P = self.stack.trained(turn)
        return Optimizer(
            [member.training for member in self.members],
            self.stack.parameters_KP,
            decays_P.float(),
            None if trained_P is None else trained_P.float(),
            epochs=epochs,
            parts_QP=self._clip_parts(),
        )

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the current turn."""
        return self.optimizers[self.stack.turn]

    def _clip_parts(self) -> Tensor | None:
        """Masks (Q, P) of what is clipped together: each part, then all other parameters."""
        if self.rest is None:
            return None
        columns = [part.columns_P for part in (*self.parts.values(), self.rest)]
        return torch.stack(columns).float()

    def _rest(self) -> Part | None:
        """The columns and buffers that belong to no part; None if there are no parts."""
        if not self.parts:
            return None
        columns_P = ~torch.stack([part.columns_P for part in self.parts.values()]).any(0)
        of_parts = frozenset[str]().union(*(part.buffers for part in self.parts.values()))
        return Part(columns_P, frozenset(self.stack.buffers) - of_parts)

    def _restore(self, weights: Weights) -> None:
        rows_K = torch.ones(len(self.members), dtype=torch.bool, device=self.device)
        self.stack.weights().take(rows_K, weights)

    def start_epoch(self, epoch: int, order: Order, epochs_before: int) -> None:
        """Set an epoch's learning rates, its order of examples and its random seeds.

        ``epoch`` counts from 0 within the stage, for schedules; ``epochs_before`` counts over all
        stages, and every random number of the epoch depends on it.
        """
        for optimizer in self.optimizers:
            optimizer.start_epoch(epoch, order.steps)
        self.choose_turn(epoch)
        if "method.epoch" in self.stack.buffers:
            self.stack.buffers["method.epoch"].fill_(epoch)
        self._order_SN = order.epoch(self.seeds, epochs_before)
        self._augment_S.copy_(self._seeds_of("augmentation", epochs_before))
        self._draws = [derive_seed(m.seed, "draws", epochs_before) for m in self.members]
        self._draw_K = torch.tensor(self._draws, dtype=torch.int64, device=self.device)

    def choose_turn(self, epoch: int) -> None:
        """Switch to the turn with which this epoch of the stage begins."""
        turn = epoch // self._turn_epochs % len(self.stack.turns)
        self.stack.take_turn(turn if self._turn_every == "epoch" else 0)

    @property
    def turn_starts(self) -> Sequence[int]:
        """The first epoch of each turn of the stage; only 0 where every batch has all turns."""
        if self._turn_every == "batch":
            return [0]
        return [turn * self._turn_epochs for turn in range(len(self.stack.turns))]

    def _turns_of_batch(self) -> Sequence[int]:
        return range(len(self.stack.turns)) if self._turn_every == "batch" else (self.stack.turn,)

    def _seeds_of(self, use: str, epoch: int) -> Tensor:
        seeds = [derive_seed(seed, use, epoch) for seed in self.seeds]
        return torch.tensor(seeds, dtype=torch.int64, device=self.device)

    def run_pass(self, one: Pass, examples: Examples, size: int) -> None:
        """Run a method's pass over a split, ``size`` examples at a time; sets its buffers."""
        state = self.stack.start_pass(one)
        for inputs, target_B in examples.chunks(size):
            state = self.stack.step_pass(one, state, inputs, target_B)
        self.stack.finish_pass(one, state)

    def use_graphs(self, *, on: bool) -> None:
        """Turn CUDA graphs on or off; they are used only on a GPU that holds the examples."""
        self._graphs = on and like_gpu(self.device)
        self._graph = None
        if on:
            self.uncaptured = None

    def free(self) -> None:
        """Drop what can be made again, to free its memory: graph, gradient buffer, snapshot."""
        self._graph, self._saved = None, {}
        self.stack.forget_gradient()

    def train(self, examples: Examples, order: Order, start: int, stop: int) -> None:
        """Run training steps start, …, stop − 1 of the epoch."""
        rows = [order.step(self._order_SN, step) for step in range(start, stop)]
        recorded = self._graphs and examples.place == self.device and len(self.stack.turns) == 1
        with nullcontext() if self.stack.stacked else own_generators(self.device):
            if recorded:
                for step, index_SB in zip(range(start, stop), rows, strict=True):
                    self.optimizer.start_step(step)
                    self._replay(examples, index_SB, step)
                return
            for step, batch in zip(range(start, stop), examples.batches(rows), strict=True):
                self._step(examples, *batch, step=step, steps=order.steps)

    def _set_draws(self, step: int) -> None:
        """Seed the models' random numbers for a step.

        A model that is not stacked may also use torch's global generators (dropout in `nn.LSTM`,
        for example). They are seeded at every step, so that resuming gives the same numbers.
        """
        torch.add(self._draw_K, step, out=self.stack.draw_K)
        if not self.stack.stacked:
            seed_generators(self.device, self._draws[0] + step)

    def _step(
        self,
        examples: Examples,
        raw: Mapping[str, Tensor],
        target: Tensor,
        index_SB: Tensor,
        *,
        step: int | None = None,
        steps: int = 0,
    ) -> None:
        """A step per turn on one batch.

        ``step`` of the epoch's ``steps``; None if rates and random seeds of the step are set.
        """
        inputs = examples.prepare(raw, index_SB, self._augment_S)
        index = index_SB.long() if self.stack.uses_index else None
        if self._seed_K is not None:
            inputs = {name: x.index_select(0, self._seed_K) for name, x in inputs.items()}
            target = target.index_select(0, self._seed_K)
            index = None if index is None else index.index_select(0, self._seed_K)
        turns = self._turns_of_batch()
        for turn in turns:
            self.stack.take_turn(turn)
            if step is not None:
                self.optimizer.start_step(step)
                # Each turn draws different random numbers, as separate steps would.
                self._set_draws(step + steps * turns.index(turn))
            result = self.stack.loss_and_gradient(inputs, target, index)
            self.loss_K += result.loss_K
            if turn == turns[-1]:
                self.wrong_K += result.wrong_K
            self.optimizer.step(self.stack.parameters_KP, result.gradient_KP)

    def _replay(self, examples: Examples, index_SB: Tensor, step: int) -> None:
        if self._graph is None:
            self._record(examples, index_SB)
        self._set_draws(step)
        if self._graph is None:
            self._step(examples, *examples.take(index_SB))
            return
        steps = self.optimizer.steps
        self._graph.run(index_SB)
        self.optimizer.steps = steps + 1  # a replay does not run Python code

    def _record(self, examples: Examples, index_SB: Tensor) -> None:
        """Capture a step as a graph; if that fails, run eager steps from now on.

        A mistake in the model's own code is raised by the eager step.
        """
        saved = self.snapshot()

        def run(index_SB: Tensor) -> None:
            self._step(examples, *examples.take(index_SB))

        try:
            self._graph = StepGraph(run, index_SB, lambda: self.load(*saved))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                self.uncaptured = str(error)
        self.load(*saved)  # capture computes nothing, but increments `optimizer.steps`
        if self._graph is None:
            self._graphs = False
            release(self.device)

    # ------------------------------------------------------------ evaluation

    def evaluate(self, examples: Examples, size: int) -> dict[str, list[float]]:
        """Every metric of the current weights on a split, as a list with one value per row.

        Also the running sums ``loss`` and ``wrong``; ``finite``, 1 if scores, parameters and loss
        are finite, else 0; ``part/<name>``, the monitored metric of each part that has a best
        epoch of its own; and ``report/<name>/error`` of each reported predictor.
        """
        found = predictions_of(self.stack, examples, size, parts=self.judges_parts)
        values = metrics_of(found, examples.targets)
        monitor = self.settings["monitor"].rpartition("/")[2]
        for name, log_KNC in found.parts.items():
            part = evaluate(log_KNC, log_KNC, examples.targets, [monitor])[monitor]
            values[f"part/{name}"] = part
        errors = report_errors(found, examples.targets)
        values.update({f"report/{name}": error for name, error in errors.items()})
        # Minimum and maximum propagate NaN and infinity, without a mask of all elements.
        both = [found.scores.flatten(1), self.stack.parameters_KP]
        ends = [end for x in both for end in (x.amin(1), x.amax(1))]
        finite = [x.isfinite() for x in (*ends, self.loss_K)]
        values["finite"] = torch.stack(finite).all(0)
        values["loss"], values["wrong"] = self.loss_K, self.wrong_K
        table = torch.stack([v.double() for v in values.values()]).tolist()
        return dict(zip(values, table, strict=True))

    @property
    def judges_parts(self) -> bool:
        """Whether each part has a best epoch of its own."""
        return bool(self.parts) and self.keeps_best

    @property
    def best_parts(self) -> bool:
        """Whether the chosen weights may combine parts from different epochs."""
        return self.judges_parts and self.best is not None

    def evaluate_chosen(
        self, rows: Sequence[int], examples: Examples, size: int, keep: Collection[int] = ()
    ) -> Evaluated:
        """Every metric of the chosen weights (best or last) of these rows.

        Also the errors of reported predictors, as "<name>/error".

        ``keep``: the rows whose predictions are returned as well.
        """
        stack = self.stack.with_weights(self.chosen.select(rows))
        found = predictions_of(stack, examples, size)
        values = metrics_of(found, examples.targets) | report_errors(found, examples.targets)
        table = torch.stack([v.double() for v in values.values()]).T.tolist()
        kept = {
            row: packed(found, i, examples.targets) for i, row in enumerate(rows) if row in keep
        }
        return Evaluated([dict(zip(values, row, strict=True)) for row in table], kept)

    @property
    def chosen(self) -> Weights:
        """The weights that results are for: the best ones if they are kept, else the current."""
        return self.stack.weights() if self.best is None else self.best

    def prepare_best(self) -> None:
        """Allocate the copy of the best weights, if they are kept and not allocated yet."""
        if self.keeps_best and self.best is None:
            self.best = self.stack.weights().clone()

    def keep_best(
        self, improved: Sequence[bool], of_parts: Mapping[str, Sequence[bool]] | None = None
    ) -> None:
        """Copy the current weights of rows that improved into the best weights.

        ``of_parts``: for each part, the rows that improved; ``improved`` then applies only to
        parameters and buffers that belong to no part.
        """
        self.prepare_best()
        assert self.best is not None
        takes: list[tuple[Sequence[bool], Part | None]] = [
            (improved, self.rest if of_parts else None)
        ]
        takes += [(rows, self.parts[name]) for name, rows in (of_parts or {}).items()]
        for rows, part in takes:
            if any(rows):
                mask = torch.tensor(list(rows), device=self.device)
                self.best.take(mask, self.stack.weights(), part)

    def keep_stopped(self, indices: Collection[int]) -> None:
        """Save the current weights of models that stop early while others continue the stage.

        ``indices`` are positions in the pack.
        """
        rows = [member.index in indices for member in self.members]
        if not any(rows):
            return
        mask = torch.tensor(rows, device=self.device)
        if self.stopped is None:
            self.stopped = self.stack.weights().clone()
        else:
            self.stopped.take(mask, self.stack.weights())

    def go_back(self, rows: Sequence[int]) -> None:
        """Restore the saved weights of rows that stopped early."""
        assert self.stopped is not None
        mask = torch.zeros(len(self.members), dtype=torch.bool, device=self.device)
        mask[list(rows)] = True
        self.stack.weights().take(mask, self.stopped)

    def chosen_state(self, row: int) -> dict[str, Tensor]:
        """One row's chosen weights as a ``state_dict``."""
        return self.stack.with_weights(self.chosen).state_of(row)

    # ------------------------------------------------------------ rows

    def select(self, rows: Sequence[int]) -> Group:
        """A group of these rows, in this order, which replaces this one.

        It shares this one's memory if ``rows`` is a range, see `pick`. This group is unchanged, so
        that it can go on if memory is short.
        """
        new = copy.copy(self)
        new.stack = self.stack.with_weights(self.stack.weights().select(rows))
        new.best = None if self.best is None else self.best.select(rows)
        new.stopped = None if self.stopped is None else self.stopped.select(rows)
        new.optimizers = [copy.copy(optimizer) for optimizer in self.optimizers]
        for optimizer in new.optimizers:
            optimizer.select(rows)
        new.loss_K, new.wrong_K = pick(self.loss_K, rows), pick(self.wrong_K, rows)
        new._graph, new._saved = None, {}
        new.members = [self.members[row] for row in rows]
        new._read_seeds()
        kept = [self.seeds.index(seed) for seed in new.seeds]
        new._order_SN = pick(self._order_SN, kept)
        new._augment_S = pick(self._augment_S, kept)
        new._draw_K = pick(self._draw_K, rows)
        new._draws = [self._draws[row] for row in rows]
        return new

    def halves(self) -> tuple[Group, Group]:
        """Split into two groups, which replace this one; their weights need no further memory."""
        middle = len(self.members) // 2
        return self.select(range(middle)), self.select(range(middle, len(self.members)))

    # ------------------------------------------------------------ copies

    @torch.no_grad()
    def copy_row(self, row: int, other: Group, other_row: int) -> None:
        """Copy the weights (best ones, too), buffers and optimizer state of a row of any group.

        Both groups have taken the same number of steps.
        """
        theirs = other.state()
        for name, value in self.state().items():
            if name in theirs:
                value[row].copy_(theirs[name][other_row])

    @torch.no_grad()
    def change(self, row: int, training: Training, buffers: Mapping[str, Tensor]) -> None:
        """Give a row other training settings, from the next epoch on, and values of buffers."""
        self._graph = None
        self.members[row] = replace(self.members[row], training=training)
        for optimizer in self.optimizers:
            optimizer.change(row, training)
        for name, value in buffers.items():
            self.stack.buffers[name][row].copy_(value)

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        """All tensors that training changes, by name, with a row per model; not copied."""
        tensors = {"parameters": self.stack.parameters_KP}
        tensors.update({f"buffer.{n}": value for n, value in self.stack.buffers.items()})
        for kind, weights in (("best", self.best), ("stopped", self.stopped)):
            if weights is not None:
                tensors[kind] = weights.parameters_KP
                tensors.update({f"{kind}_buffer.{n}": v for n, v in weights.buffers.items()})
        for turn, optimizer in enumerate(self.optimizers):
            tensors.update({f"optimizer.{turn}.{n}": x for n, x in optimizer.state.items()})
        return {**tensors, "loss": self.loss_K, "wrong": self.wrong_K}

    @property
    def steps(self) -> list[int]:
        """The step count of each turn's optimizer."""
        return [optimizer.steps for optimizer in self.optimizers]

    def snapshot(self) -> tuple[dict[str, Tensor], list[int]]:
        """A copy of the state and the optimizers' step counts, for `load`.

        On a CPU the next one reuses its memory, if that is not much, so this one is valid only
        until then: new memory costs as much as the copy.
        """
        state = self.state()
        size = sum(value.nbytes for value in state.values())
        if like_gpu(self.device) or len(self.members) == 1 or size > _KEPT_SNAPSHOT:
            return {name: value.clone() for name, value in state.items()}, self.steps
        kept = {name: value for name, value in self._saved.items() if name in state}
        self._saved = {
            name: kept[name].copy_(value) if name in kept else value.clone()
            for name, value in state.items()
        }
        return dict(self._saved), self.steps

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: Sequence[int]) -> None:
        """Restore tensors as given by `state`, and the optimizers' step counts."""
        for kind in ("best", "stopped"):
            present = getattr(self, kind)
            if kind in tensors and present is None:
                setattr(self, kind, self.stack.weights().clone())
            elif kind not in tensors:
                setattr(self, kind, None)
        for name, value in self.state().items():
            value.copy_(tensors[name])
        for optimizer, count in zip(self.optimizers, steps, strict=True):
            optimizer.resume(count)
