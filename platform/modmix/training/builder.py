"""Build groups of models from a pack's replicates, split where they do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from modmix.base.messages import Pack, Replicate
from modmix.methods.base import remembers
from modmix.methods.model import Model, build_model, model_spec
from modmix.tasks.data import Data
from modmix.training.device import is_out_of_memory, release
from modmix.training.group import Group, Member
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry


class Builder:
    """Builds groups of the models of one pack, initialised from their seeds.

    ``too_large`` is called with the position in the pack of a model that does not fit on its own.
    """

    def __init__(
        self, pack: Pack, data: Data, device: torch.device, too_large: Callable[[int], None]
    ) -> None:
        self.pack, self.data, self.device = pack, data, device
        self.settings = pack.replicates[0].training
        self.changed: dict[int, Replicate] = {}  # with hyperparameters changed by `pbt`
        self._too_large = too_large
        self.built = 0  # number of groups that `started` has made

    def replicate(self, index: int) -> Replicate:
        """The replicate at this position, with its present hyperparameters."""
        return self.changed.get(index, self.pack.replicates[index])

    def model(self, index: int) -> Model:
        """The freshly initialised model of the replicate at this position, on the host."""
        replicate = self.replicate(index)
        model = build_model(model_spec(replicate, self.data), replicate.seed)
        remembers(model.method, self.data.train.rows)
        return model

    def group(self, indices: Sequence[int], *, stacked: bool | None = None) -> Group:
        """A group of the replicates at these positions; by default stacked if more than one."""
        members = []
        for index in indices:
            r = self.replicate(index)
            members.append(Member(index=index, seed=r.seed, training=r.training))
        stack = Stack(
            [self.model(index) for index in indices],
            self.device,
            stacked=len(indices) > 1 if stacked is None else stacked,
            low_precision=self.settings["precision"] == "bf16",
        )
        return Group(members, stack)

    def started(
        self,
        indices: Sequence[int],
        entry: StageEntry,
        *,
        stacked: bool | None = None,
        state: tuple[Mapping[str, Tensor], Sequence[int]] | None = None,
    ) -> list[Group]:
        """Groups of these replicates, ready to train a stage: one, or several if memory is short.

        Args:
            indices: positions in the pack.
            entry: the stage they enter.
            stacked: as for `group`.
            state: from a checkpoint, tensors with a row for each of ``indices`` (may be on the
                host) and the optimizers' step counts; see `Group.load`.
        """
        try:
            group = self.group(indices, stacked=stacked)
            group.enter_stage(entry)
            if state is not None:
                group.load(*state)
            self.built += 1
            return [group]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the exception's traceback keeps the tensors of its frames alive.
        release(self.device)
        if len(indices) == 1:
            self._too_large(indices[0])
            return []
        middle = len(indices) // 2
        found = []
        for rows in (slice(None, middle), slice(middle, None)):
            part = None
            if state is not None:
                part = {name: value[rows] for name, value in state[0].items()}, state[1]
            found += self.started(indices[rows], entry, stacked=stacked, state=part)
        return found
