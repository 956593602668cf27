"""Work on groups of models that may be too large for the memory."""

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
    """Do something with every group; the groups that there are now, with the results.

    A group too large for the memory becomes two, which go on from where it was before. For a
    model that does not fit even alone, ``too_large`` is called with its position in the pack.
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
        # Only here, with the exception gone, is what its frames held free again.
        for one in (group, *waiting, *(one for one, _ in done)):
            one.forget_graph()
        release(group.device)
        if len(group.members) == 1:
            too_large(group.members[0].index)
            continue
        if saved is not None:  # else the copy itself did not fit, and nothing was changed
            group.load(*saved)
            saved = None  # it takes memory that the halves need
        waiting[:0] = group.halves()
    return done


def too_large_reason(device: torch.device, others: int) -> str:
    """Why a model failed that did not fit beside ``others`` of its pack."""
    beside = f"beside {others} others of its pack (resources: max_models limits those)"
    return (
        f"out of memory on {device}: this model does not fit {beside if others else 'even alone'}; "
        "a smaller batch_size, encoder or eval_batch_size may help"
    )
