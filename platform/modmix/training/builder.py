"""From a pack's replicates to groups of models on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modmix.base.messages import Pack
from modmix.methods.model import build_model, model_spec
from modmix.tasks.data import Data
from modmix.training.group import Group, Member
from modmix.training.stack import Stack


class Builder:
    """Makes groups of the models of one pack, freshly initialised from their seeds."""

    def __init__(self, pack: Pack, data: Data, device: torch.device) -> None:
        self.pack, self.data, self.device = pack, data, device
        self.settings = pack.replicates[0].training

    def group(self, indices: Sequence[int], *, stacked: bool | None = None) -> Group:
        """The replicates at these positions; stacked unless there is one (or as said)."""
        members, models = [], []
        for index in indices:
            r = self.pack.replicates[index]
            members.append(Member(index=index, seed=r.seed, training=r.training))
            models.append(build_model(model_spec(r, self.data), r.seed))
        stack = Stack(
            models,
            self.device,
            stacked=len(indices) > 1 if stacked is None else stacked,
            low_precision=self.settings["precision"] == "bf16",
        )
        return Group(members, stack)
