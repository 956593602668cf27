"""What the ledger and the trace say while a study runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modmix.base.errors import ModmixError
from modmix.base.home import sqlite_path
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED
from tests.faults.conftest import Place
from tests.faults.random_faults.scene import MODELS, Command

RECENT = 0.15  # seconds after a result in which a fault counts as one while recording

# proposing: the driver has the study, and nothing is in training; ending: all models have results.
PHASES = ("starting", "proposing", "training", "recording", "ending")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A line of the trace."""

    time: float  # seconds since 1970
    process: int
    epoch: float
    replicates: tuple[str, ...]


def trace(folder: Path) -> Iterator[Evaluation]:
    """The evaluations of a study so far; lines that a kill has cut are left out."""
    path = folder / "trace"
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            noted: dict[str, Any] = json.loads(line)
            noted["replicates"] = tuple(noted["replicates"])
            yield Evaluation(**noted)


class Watch:
    """Reads a study's ledger through a connection of its own."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ledger: Ledger | None = None

    def _open(self) -> Ledger | None:
        """The ledger, once the study is in it."""
        path = sqlite_path(self._place.ledger_url)
        if self._ledger is None and (path is None or path.exists()):
            with suppress(ModmixError):
                self._ledger = Ledger(self._place.ledger_url)
        found = self._ledger
        return found if found is not None and found.has_study("fragile") else None

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def results(self) -> int:
        """How many models have a result."""
        ledger = self._open()
        states = {} if ledger is None else ledger.replicate_states("fragile")
        return sum(state in ENDED for state in states.values())

    def holder(self) -> int | None:
        """The process that holds the study's lease."""
        ledger = self._open()
        found = None if ledger is None else ledger.holder("fragile")
        return None if found is None else found[1]

    def phase(self, command: Command) -> str:
        """What the command does now; one of `PHASES`."""
        ledger = self._open()
        if ledger is None:
            return "starting"
        study = ledger.study("fragile")
        if self.holder() != command.pid:  # not yet, or not any more
            over = study.state == "finished" and study.updated > command.began
            return "ending" if over else "starting"
        records = ledger.replicates("fragile")
        finished = [r.finished for r in records if r.finished is not None]
        if len(finished) >= MODELS:
            return "ending"
        if finished and time.time() - max(finished) < RECENT:
            return "recording"
        if any(r.state == "running" for r in records):
            # Ray starts workers for packs that are claimed.
            begun = any(line.time > command.began for line in trace(self._place.folder))
            return "training" if begun else "starting"
        return "proposing" if any(at > command.began for at in finished) else "starting"
