"""Convert a pack's training state to tensors and JSON values for its checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from modmix.training.group import Group
from modmix.training.probe import Way
from modmix.training.record import Best, Record
from modmix.training.timeline import Position


@dataclass(frozen=True, kw_only=True)
class SavedGroup:
    """A group: its members' positions in the pack, its tensors and its optimizers' step counts."""

    indices: list[int]
    tensors: Mapping[str, Tensor]
    steps: list[int]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """All state needed to resume.

    ``weights`` and ``predictions`` are of finished replicates, by position in the pack.
    """

    position: Position
    way: Way
    records: list[Record]
    groups: list[SavedGroup]
    weights: dict[int, bytes]
    predictions: dict[int, bytes]


EARLY = 2.0  # seconds


class Saves:
    """When a pack's next checkpoint is due.

    2 seconds after the start, then after twice as long each time up to ``most``, so that a pack
    whose worker is killed again and again still advances. Once a model has ended since the last
    checkpoint, 2 seconds after it (longer where writing takes long: at most a tenth of the time).

    Args:
        now: a clock's seconds.
        most: seconds; 0: at every evaluation.
    """

    def __init__(self, now: float, most: float) -> None:
        self._most = most
        self._wait = min(EARLY, most)
        self._early = self._wait
        self._last = self._due_at = now
        self._ended = 0

    def due(self, now: float, ended: int) -> bool:
        """Whether to write one now; ``ended`` models of the pack have ended so far."""
        wait = self._early if ended > self._ended else self._wait
        self._due_at = now
        return now - self._last >= wait

    def done(self, now: float, ended: int) -> None:
        """One was written since the last call of `due`."""
        took = now - self._due_at
        self._early = min(self._most, max(EARLY, 10 * took))
        self._wait = min(self._most, 2 * max(self._wait, EARLY))
        self._last, self._ended = now, ended


def to_tensors(
    position: Position,
    way: Way,
    records: Sequence[Record],
    groups: Sequence[Group],
    *,
    weights: Mapping[int, bytes],
    predictions: Mapping[int, bytes],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and all other state as JSON values."""
    tensors = {
        f"{g}/{name}": value
        for g, group in enumerate(groups)
        for name, value in group.state().items()
    }
    for kind, blobs in (("weights", weights), ("predictions", predictions)):
        for index, blob in blobs.items():
            tensors[f"{kind}/{index}"] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    state = {
        "position": asdict(position),
        "records": [asdict(record) for record in records],
        "groups": [[member.index for member in group.members] for group in groups],
        "steps": [group.steps for group in groups],
        "way": asdict(way),
    }
    return tensors, state


def from_tensors(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Saved:
    """The inverse of `to_tensors`.

    Raises:
        KeyError, TypeError, ValueError: the layout is that of another version.
    """
    groups = []
    for g, (indices, steps) in enumerate(zip(state["groups"], state["steps"], strict=True)):
        mine = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{g}/")}
        groups.append(SavedGroup(indices=indices, tensors=mine, steps=steps))
    return Saved(
        position=Position(**state["position"]),
        way=Way(**state["way"]),
        records=[_record(**record) for record in state["records"]],
        groups=groups,
        weights=_blobs(tensors, "weights"),
        predictions=_blobs(tensors, "predictions"),
    )


def _blobs(tensors: Mapping[str, Tensor], kind: str) -> dict[int, bytes]:
    return {
        int(name.partition("/")[2]): blob.numpy().tobytes()
        for name, blob in tensors.items()
        if name.startswith(f"{kind}/")
    }


def _record(
    *, best: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], **fields: Any
) -> Record:
    """A record from the fields that `dataclasses.asdict` wrote."""
    own = {name: Best(**part) for name, part in parts.items()}
    return Record(best=Best(**best), parts=own, **fields)
