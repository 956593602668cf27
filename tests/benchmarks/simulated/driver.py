"""One study on a cluster, as `modmix.api.run` runs it, and what its driver uses.

python -m tests.benchmarks.simulated.driver STUDY.yaml ADDRESS RESULT.json
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from modmix import api
from modmix.base.home import Home, write_text
from modmix.execution.run import StudyRun
from modmix.ledger.ledger import Ledger
from tests.benchmarks.driver_child import resident


class Watched:
    """Called after every change of the study."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float, float, int]] = []  # results; clocks; resident bytes
        self.in_flight: list[tuple[int, int]] = []  # configurations proposed, and not told yet
        self._ledger: Ledger | None = None

    def __call__(self, work: StudyRun) -> None:
        if not self.marks or work.trained > self.marks[-1][0]:
            mark = (work.trained, time.perf_counter(), time.process_time(), resident())
            self.marks.append(mark)
        if any(part.search is not None for part in work.plan.parts):
            self._look(work.plan.name)

    def _look(self, study: str) -> None:
        """In the ledger, whatever the study believes."""
        if self._ledger is None:
            self._ledger = Ledger(Home.from_environment().ledger_url)
        states = [entry.state for entry in self._ledger.entries(study) if entry.proposal]
        self.in_flight.append((len(states), states.count("pending")))

    def told(self) -> dict[str, Any]:
        """Costs per result from a tenth of them on: the start of workers is left out."""
        last = self.marks[-1]
        first = next(mark for mark in self.marks if 10 * mark[0] >= last[0])
        half = next(mark for mark in self.marks if 2 * mark[0] >= last[0])
        results = max(1, last[0] - first[0])
        return {
            "results": last[0],
            "wall_ms": 1000 * (last[1] - first[1]) / results,
            "cpu_ms": 1000 * (last[2] - first[2]) / results,
            "resident": [mark[3] for mark in (first, half, last)],
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "in_flight": self.in_flight,
        }


def main() -> None:
    study, address, target = sys.argv[1:]
    watched, said = Watched(), list[tuple[float, str]]()

    def note(text: str) -> None:
        said.append((time.time(), text))

    api.run(study, address=address, mlflow=False, changed=watched, log=note)
    told = {**watched.told(), "said": said, "ended": time.time()}
    write_text(Path(target), json.dumps(told))


if __name__ == "__main__":
    main()
