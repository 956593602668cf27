"""Population-based training of a pack: models continue as perturbed copies of better ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from modmix.base.messages import Pack
from modmix.training.builder import Builder
from modmix.training.group import Group
from modmix.training.pbt import PREFIX, Explorer, copies, with_values
from modmix.training.record import Record


class _Model(NamedTuple):
    """A model of the pack, and where it is trained."""

    place: int  # in the pack
    group: Group
    row: int


class Population:
    """A pack's configurations as a population; without ``pbt`` it does nothing."""

    def __init__(self, pack: Pack, builder: Builder, *, higher_is_better: bool) -> None:
        self._pack = pack
        self._builder = builder
        self._higher = higher_is_better
        self._explorer = Explorer(pack)

    def columns(self, index: int) -> dict[str, float]:
        """Columns of the history: hyperparameters that may change, with their present values."""
        if not self._pack.replicates[0].training["pbt"]:
            return {}
        values = self._explorer.values(self._builder.replicate(index))
        return {f"{PREFIX}{name}": float(value) for name, value in values.items()}

    def set_values(self, index: int, record: Record) -> None:
        """Let the builder know a model's present hyperparameters."""
        if record.values:
            replicate = self._pack.replicates[index]
            self._builder.changed[index] = with_values(replicate, record.values)

    def exchange(self, records: Sequence[Record], groups: Sequence[Group], epoch: int) -> None:
        """Let the worst configurations continue as perturbed copies of good ones, seed by seed.

        A configuration of which a model has ended takes no part.
        """
        members: dict[str, list[int]] = {}
        for index, replicate in enumerate(self._pack.replicates):
            members.setdefault(replicate.configuration, []).append(index)
        models = {
            m.index: _Model(m.index, group, row)
            for group in groups
            for row, m in enumerate(group.members)
        }
        # Only those with the same seeds are compared: after failures, a pack may hold what is left.
        alike: dict[frozenset[int], dict[str, list[float]]] = {}
        for configuration, own in members.items():
            if all(records[index].training for index in own):
                seeds = frozenset(self._pack.replicates[index].seed for index in own)
                values = [records[index].last for index in own]
                alike.setdefault(seeds, {})[configuration] = values
        found: dict[str, str] = {}
        for these in alike.values():
            found |= copies(these, self._pack, epoch, higher_is_better=self._higher)
        for configuration, source in found.items():
            by_seed = {self._pack.replicates[index].seed: index for index in members[source]}
            for index in members[configuration]:
                other = by_seed[self._pack.replicates[index].seed]
                self._copy(models[index], models[other], records, epoch)

    def _copy(self, model: _Model, other: _Model, records: Sequence[Record], epoch: int) -> None:
        """Continue a model as a perturbed copy of another one."""
        index, group, row = model
        before = self._explorer.values(self._builder.replicate(other.place))
        own = self._pack.replicates[index]
        values = self._explorer.perturbed(before, own.configuration, epoch)
        records[index].continue_as(records[other.place], values)
        self.set_values(index, records[index])
        group.copy_row(row, other.group, other.row)
        # Buffers that hold hyperparameters are those in which the two models differ from the start.
        old = dict(self._builder.model(other.place).named_buffers())
        new = dict(self._builder.model(index).named_buffers())
        changed = {
            name: value
            for name, value in new.items()
            if name in group.stack.buffers and not torch.equal(value, old[name])
        }
        group.change(row, self._builder.replicate(index).training, changed)
