"""Run an action on groups of models; split groups that run out of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from modmix.training.device import is_out_of_memory, release
from modmix.training.group import Group

T = TypeVar("T")


def on_groups(
    groups: Sequence[Group],
    action: Callable[[Group], T],
    too_large: Callable[[int], None],
) -> list[tuple[Group, T]]:
    """Run ``action`` on every group; return the groups there are afterwards, with its results.

    A group that runs out of memory is restored to its state before the action and split into two.
    A group of one model that does not fit is left out, and ``too_large`` is called with the
    model's position in the pack.
    """
    waiting = list(groups)
    done: list[tuple[Group, T]] = []
    while waiting:
        group = waiting.pop(0)
        saved: tuple[dict[str, Tensor], int] | None = None
        try:
            if len(group.members) > 1:
                saved = group.snapshot()
            done.append((group, action(group)))
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the exception's traceback keeps the tensors of its frames alive.
        for one in (group, *waiting, *(one for one, _ in done)):
            one.forget_graph()
        release(group.device)
        if len(group.members) == 1:
            too_large(group.members[0].index)
            continue
        if saved is not None:  # else the snapshot itself did not fit, and nothing was changed
            group.load(*saved)
            saved = None  # free its memory for the halves
        waiting[:0] = group.halves()
    return done


def too_large_reason(device: torch.device, others: int) -> str:
    """The failure message of a model that did not fit beside ``others`` of its pack."""
    beside = f"beside {others} others of its pack (resources: max_models limits those)"
    return (
        f"out of memory on {device}: this model does not fit {beside if others else 'even alone'}; "
        "a smaller batch_size, encoder or eval_batch_size may help"
    )
