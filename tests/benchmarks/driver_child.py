"""`modmix run` with training replaced by results made at once; everything else is real.

    python -m tests.benchmarks.driver_child STUDY.yaml RESULT.json

The command line, planning, ledger, packs, recording, telling, figures and the MLflow mirror run as
they do for a person; only `modmix.execution.local.train`, which a runner calls for a pack's events,
gives invented ones. RESULT.json gets wall and processor seconds by phase, and resident memory after
each pack.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from modmix.base.messages import Event, Pack
from tests.benchmarks.instant import Instant


class Watched(Instant):
    """Looks at the clocks and the memory as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.last = (0.0, 0.0)  # wall and processor clock
        # Replicates so far; resident bytes of this process, and of its children.
        self.memory: list[tuple[int, int, int]] = []
        self._replicates = 0

    def __call__(self, pack: Pack, **how: Any) -> Generator[Event, None, None]:
        if not self.memory:
            self.first = clocks()
        yield from super().__call__(pack, **how)
        self._replicates += len(pack.replicates)
        self.memory.append((self._replicates, resident(), sum(map(resident, children()))))
        self.last = clocks()


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def of_others() -> float:
    """Processor seconds of the children that have ended: a mirror in a process of its own, say."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(process: str = "self") -> int:
    """Resident memory of a process, in bytes; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def children() -> list[str]:
    """The processes that this one has started and that still run."""
    found: list[str] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += file.read_text().split()
    return found


def type_in(*words: str) -> None:
    """Run `modmix …` in this process."""
    from modmix.cli.main import main

    sys.argv = ["modmix", *words]
    with contextlib.suppress(SystemExit):
        main()


def note_waits() -> list[tuple[float, float]]:
    """A list that gets the clocks' state when the command begins to wait for the mirror."""
    from modmix.tracking.mirror import Mirror

    begun: list[tuple[float, float]] = []
    close = Mirror.close

    def noted(self: Mirror, *arguments: Any, **named: Any) -> bool:
        begun.append(clocks())
        return close(self, *arguments, **named)

    Mirror.close = noted  # type: ignore[method-assign]
    return begun


def main() -> None:
    study, target = map(Path, sys.argv[1:])
    begun = clocks()
    from modmix import api

    instant = Watched()
    instant.install()
    waits = note_waits()
    type_in("run", str(study), "--local")
    ran = clocks()
    name = study.stem
    behind = not _mirrored(name)
    if behind:
        type_in("sync", name)
    ended = clocks()
    if not _mirrored(name):
        sys.exit("the mirror holds less than the ledger")
    found = api.status(_ledger(), name)
    marks = [begun, instant.first, instant.last, waits[0], ran, ended]
    names = ("start and plan", "packs", "figures and report", "wait for MLflow", "sync")
    phases = {name: [b[0] - a[0], b[1] - a[1]] for name, a, b in zip(names, marks, marks[1:])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {
        "configurations": found["configurations"]["done"],
        "wall": ended[0] - begun[0],
        "cpu": ended[1] - begun[1],
        "others": of_others(),
        "phases": phases,
        "memory": instant.memory,
        "peak": peak,
    }
    target.write_text(json.dumps(told))


def _ledger() -> Any:
    from modmix.base.home import Home
    from modmix.ledger.ledger import Ledger

    return Ledger(Home.from_environment().ledger_url)


def _mirrored(study: str) -> bool:
    """Whether the ledger says of every configuration that MLflow holds it."""
    ledger = _ledger()
    return all(configuration.mirrored for configuration in ledger.configurations(study))


if __name__ == "__main__":
    main()
