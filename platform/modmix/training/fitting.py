"""Run an action on groups of models, split those that run out of memory, and remove rows."""

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
    *,
    undo: bool = True,
) -> list[tuple[Group, T]]:
    """Run ``action`` on every group; return the groups there are afterwards, with its results.

    A group that runs out of memory is restored to its state before the action and split into two.
    A group of one model that does not fit is left out, and ``too_large`` is called with the
    model's position in the pack. Without ``undo`` nothing is restored, which saves a copy of the
    state, for actions that may be repeated after they failed halfway.
    """
    waiting = list(groups)
    done: list[tuple[Group, T]] = []
    while waiting:
        group = waiting.pop(0)
        saved: tuple[dict[str, Tensor], list[int]] | None = None
        try:
            if undo and len(group.members) > 1:
                saved = group.snapshot()
            done.append((group, action(group)))
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler: the exception's traceback keeps the tensors of its frames alive.
        for one in (group, *waiting, *(one for one, _ in done)):
            one.free()
        release(group.device)
        if len(group.members) == 1:
            too_large(group.members[0].index)
            continue
        if saved is not None:  # else there is nothing to undo, or the snapshot did not fit
            group.load(*saved)
            saved = None  # free its memory for the halves
        waiting[:0] = group.halves()
    return done


def smaller(group: Group, rows: Sequence[int]) -> Group:
    """The group with these rows only; as it is if memory for their copies is short."""
    group.free()
    try:
        return group.select(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release(group.device)
    return group


def too_large_reason(device: torch.device, others: int) -> str:
    """The failure message of a model that did not fit beside ``others`` of its pack."""
    beside = f"beside {others} others of its pack (resources: max_models limits those)"
    return (
        f"out of memory on {device}: this model does not fit {beside if others else 'even alone'}; "
        "a smaller batch_size, encoder or eval_batch_size may help"
    )
