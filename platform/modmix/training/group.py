"""Models trained together: a stack, its optimizer, its best weights and its running sums.

A pack is one group, or one group per model where a device trains them faster one after another;
a group that does not fit into memory becomes two. Shapes: K models (rows), S distinct seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modmix.base.metrics import METRICS, evaluate
from modmix.methods.base import Stage
from modmix.training.batches import Examples, Order
from modmix.training.graphs import StepGraph
from modmix.training.optimizers import Optimizer, Training
from modmix.training.stack import Stack

# Scores whose metrics are computed at a time.
_METRIC_ELEMENTS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Member:
    """One row's model: its position in the pack, its seed and its training settings."""

    index: int
    seed: int
    training: Training


class Group:
    """See the module. ``members`` has one entry per row of the stack."""

    def __init__(self, members: Sequence[Member], stack: Stack) -> None:
        self.members = list(members)
        self.stack = stack
        self.best = stack.weights().clone()
        self.optimizer: Optimizer  # from start_stage on
        self._graphs = False
        self._graph: StepGraph | None = None
        self.loss_K = torch.zeros(len(members), dtype=torch.float64, device=self.device)
        self.wrong_K = torch.zeros_like(self.loss_K)
        self._read_seeds()
        # From start_epoch on; a resumed group may be made smaller before that.
        self._order_SN = torch.empty(len(self.seeds), 0, dtype=torch.int32)

    def _read_seeds(self) -> None:
        seeds = [member.seed for member in self.members]
        self.seeds = list(dict.fromkeys(seeds))
        positions = [self.seeds.index(seed) for seed in seeds]
        # Models of one seed share its batch, which is gathered once; None: all seeds differ.
        self._seed_K: Tensor | None = None
        if len(self.seeds) < len(seeds):
            self._seed_K = torch.tensor(positions, device=self.device)

    @property
    def device(self) -> torch.device:
        return self.stack.parameters_KP.device

    def reset_sums(self) -> None:
        """Forget the running sums of loss and wrong predictions: an epoch begins."""
        self.loss_K.zero_()
        self.wrong_K.zero_()

    # ------------------------------------------------------------ training

    def start_stage(self, stage: Stage, epochs: int) -> None:
        """Tell the method, and make a fresh optimizer for what this stage trains."""
        self._graph = None
        self.stack.template.method.enter(stage)
        self.stack.freeze(stage.frozen)
        decays_all = self.members[0].training["decay"] == "all"
        decays_P = self.stack.columns(lambda _, shape: decays_all or len(shape) >= 2)
        trained_P = None
        if stage.frozen:
            trained_P = self.stack.columns(lambda name, _: not name.startswith(stage.frozen))
        self.optimizer = Optimizer(
            [member.training for member in self.members],
            self.stack.parameters_KP.detach(),
            decays_P,
            trained_P,
            epochs=epochs,
        )

    def start_epoch(self, epoch: int, order: Order, shuffle_epoch: int) -> None:
        """Set learning rates for an epoch of the stage; draw the order of the examples."""
        self.optimizer.start_epoch(epoch)
        self._order_SN = order.epoch(self.seeds, shuffle_epoch)

    def refresh(self, examples: Examples, size: int) -> None:
        """Let the method look at the features of all training examples."""
        chunks = [self.stack.features(inputs) for inputs in examples.chunks(size)]
        features = {name: torch.cat([c[name] for c in chunks], dim=1) for name in chunks[0]}
        self.stack.refresh(features, examples.targets)

    def use_graphs(self, *, on: bool) -> None:
        """On a GPU that holds the examples, record steps as graphs."""
        self._graphs = on and self.device.type == "cuda"

    def train(self, examples: Examples, order: Order, start: int, stop: int) -> None:
        """Take the steps start, …, stop−1 of the epoch."""
        for step in range(start, stop):
            index_SB = order.step(self._order_SN, step)
            if self._graphs and examples.place.type == "cuda":
                self._replay(examples, index_SB)
            else:
                self._step(examples, index_SB)

    def _step(self, examples: Examples, index_SB: Tensor) -> None:
        inputs, target = examples.take(index_SB)
        if self._seed_K is not None:
            inputs = {name: x.index_select(0, self._seed_K) for name, x in inputs.items()}
            target = target.index_select(0, self._seed_K)
        result = self.stack.loss_and_gradient(inputs, target)
        self.loss_K += result.loss_K
        self.wrong_K += result.wrong_K
        self.optimizer.step(self.stack.parameters_KP, result.gradient_KP)

    def _replay(self, examples: Examples, index_SB: Tensor) -> None:
        graph = self._graph
        if graph is None:
            saved = self.snapshot()
            graph = StepGraph(
                lambda index: self._step(examples, index), index_SB, lambda: self.load(*saved)
            )
            self.load(*saved)  # the recording ran nothing, but it was counted
            self._graph = graph
        graph.run(index_SB)
        self.optimizer.steps += 1

    # ------------------------------------------------------------ evaluation

    def evaluate(self, examples: Examples, size: int) -> dict[str, list[float]]:
        """Every metric of the present weights, and ``finite``: one number per row each."""
        scores_KNC = _scores(self.stack, examples, size)
        values = _metrics(scores_KNC, examples.targets)
        # The largest magnitude shows every NaN and infinity without a mask of all elements.
        largest = [scores_KNC.flatten(1), self.stack.parameters_KP.detach()]
        finite = [x.abs().amax(1).isfinite() for x in largest] + [self.loss_K.isfinite()]
        values["finite"] = torch.stack(finite).all(0)
        values["loss"], values["wrong"] = self.loss_K, self.wrong_K
        table = torch.stack([v.double() for v in values.values()]).tolist()
        return dict(zip(values, table, strict=True))

    def evaluate_best(
        self, rows: Sequence[int], examples: Examples, size: int
    ) -> list[dict[str, float]]:
        """Every metric of these rows' best weights, a mapping per row."""
        best = self.stack.with_weights(self.best.select(rows))
        values = _metrics(_scores(best, examples, size), examples.targets)
        table = torch.stack([v.double() for v in values.values()]).T.tolist()
        return [dict(zip(values, row, strict=True)) for row in table]

    def keep_best(self, improved: Sequence[bool]) -> None:
        """Take over the present weights of the rows that improved."""
        if all(improved):
            self.best = self.stack.weights().clone()
        elif any(improved):
            mask = torch.tensor(improved, device=self.device)
            self.best.replace(mask, self.stack.weights())

    def best_state(self, row: int) -> dict[str, Tensor]:
        """One row's best weights as a ``state_dict``."""
        return self.stack.with_weights(self.best).state_of(row)

    # ------------------------------------------------------------ rows

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self.stack = self.stack.with_weights(self.stack.weights().select(rows))
        self.best = self.best.select(rows)
        self.optimizer.select(rows)
        index = torch.tensor(rows, device=self.device)
        self.loss_K, self.wrong_K = self.loss_K[index], self.wrong_K[index]
        self._graph = None
        seeds = self.seeds
        self.members = [self.members[row] for row in rows]
        self._read_seeds()
        kept = torch.tensor(
            [seeds.index(seed) for seed in self.seeds], device=self._order_SN.device
        )
        self._order_SN = self._order_SN[kept]

    def halves(self) -> tuple[Group, Group]:
        """Two groups in place of this one."""
        middle = len(self.members) // 2
        first, second = copy.copy(self), copy.copy(self)
        second.optimizer = copy.copy(self.optimizer)
        first.select(range(middle))
        second.select(range(middle, len(self.members)))
        return first, second

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        """All tensors that training changes, by name; themselves, not copies."""
        tensors = {
            "parameters": self.stack.parameters_KP.detach(),
            "best": self.best.parameters_KP,
        }
        tensors.update({f"buffer.{n}": value for n, value in self.stack.buffers.items()})
        tensors.update({f"best_buffer.{n}": value for n, value in self.best.buffers.items()})
        tensors.update({f"optimizer.{n}": value for n, value in self.optimizer.state.items()})
        return {**tensors, "loss": self.loss_K, "wrong": self.wrong_K}

    def snapshot(self) -> tuple[dict[str, Tensor], int]:
        """A copy of the state, for `load`."""
        return {name: value.clone() for name, value in self.state().items()}, self.optimizer.steps

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take over what `state` gave, and the optimizer's number of steps."""
        for name, value in self.state().items():
            value.copy_(tensors[name])
        self.optimizer.resume(steps)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the host was too small."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _metrics(scores_KNC: Tensor, target_N: Tensor) -> dict[str, Tensor]:
    """Every metric (K,), a few models at a time: sorting makes several copies of the scores."""
    models = max(1, _METRIC_ELEMENTS // scores_KNC[0].numel())
    parts = [
        evaluate(part, torch.log_softmax(part, -1), target_N, METRICS)
        for part in torch.split(scores_KNC, models)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in METRICS}


def _scores(stack: Stack, examples: Examples, size: int) -> Tensor:
    """Scores (K, N, C) of all examples, in smaller chunks where memory does not suffice."""
    while True:
        try:
            return torch.cat([stack.scores(inputs) for inputs in examples.chunks(size)], dim=1)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        size //= 2
