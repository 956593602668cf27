"""What workers note in a common file: which pack was trained where and when."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from modmix.base.messages import Pack


@dataclass(frozen=True)
class Note:
    """``what``: begins, ends or failed. ``at`` is time.time()."""

    at: float
    what: str
    study: str
    pack: str
    node: str
    process: int


@dataclass(frozen=True)
class Stay:
    """A pack on a worker. ``what``: how it ended; "lost" with its node."""

    study: str
    pack: str
    node: str
    begins: float
    ends: float
    what: str


def note(what: str, pack: Pack) -> None:
    """Append a line to MODMIX_BENCH_TRACE; whole lines also when processes write at once."""
    node = os.environ.get("MODMIX_BENCH_NODE", "")
    line = Note(time.time(), what, pack.study, pack.id, node, os.getpid())
    with open(os.environ["MODMIX_BENCH_TRACE"], "a") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def read(path: Path) -> list[Note]:
    try:
        lines = path.read_text().split("\n")[:-1]  # a line without its end is still being written
    except FileNotFoundError:
        return []
    return [Note(**json.loads(line)) for line in lines]


def stays(notes: Iterable[Note], lost: Mapping[str, float]) -> list[Stay]:
    """Every pack on every worker, in the order of their beginnings.

    Args:
        lost: when nodes were lost, by name; what was on them ended then.
    """
    begun: dict[tuple[str, int, str], Note] = {}
    found = []
    for one in sorted(notes, key=lambda one: one.at):
        where = (one.node, one.process, one.pack)
        if one.what == "begins":
            begun[where] = one
        elif (first := begun.pop(where, None)) is not None:
            found.append(Stay(one.study, one.pack, one.node, first.at, one.at, one.what))
    found += [
        Stay(first.study, first.pack, first.node, first.at, lost[first.node], "lost")
        for first in begun.values()
        if first.node in lost
    ]
    return sorted(found, key=lambda stay: stay.begins)


def held(stays: Sequence[Stay], at: float, study: str = "") -> int:
    """How many packs (of this study) were being trained at that time."""
    return sum(s.begins <= at < s.ends and study in ("", s.study) for s in stays)


def again(stays: Sequence[Stay]) -> int:
    """How many packs were begun more than once."""
    return sum(count > 1 for count in Counter(stay.pack for stay in stays).values())


def ended(stays: Sequence[Stay]) -> Counter[str]:
    """How often each pack was trained to its end."""
    return Counter(stay.pack for stay in stays if stay.what == "ends")
