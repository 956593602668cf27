"""What Ray Tune costs a pack: many packs of instant training through `TuneRunner`.

    python -m tests.benchmarks.tune_overhead [PACKS] [CPUS]

Prints wall time and the driver's processor time per pack, without the start and the end of Ray.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.fakework import FakeWork

HERE = Path(__file__).parent


def measure(count: int, cpus: int) -> dict[str, float]:
    """Run so many packs; per pack, after the first tenth."""
    from modmix.execution.tune_runner import TuneRunner

    work = FakeWork(count)
    runner = TuneRunner(workers=cpus)
    begun = time.perf_counter()
    runner.start()
    started = time.perf_counter()
    runner.run(work)
    ran = time.perf_counter()
    runner.close()
    assert len(work.finished_models) == count, work.failures[:1]
    skipped = count // 10
    (wall, cpu), (last_wall, last_cpu) = work.ends[skipped], work.ends[-1]
    packs = count - 1 - skipped
    return {
        "packs": count,
        "start_s": started - begun,
        "first_pack_s": work.ends[0][0] - started,
        "run_s": ran - started,
        "wall_ms": 1000 * (last_wall - wall) / packs,
        "driver_cpu_ms": 1000 * (last_cpu - cpu) / packs,
    }


def main() -> None:
    count, cpus = (int(word) for word in [*sys.argv[1:], "500", "2"][:2])
    paths = [str(HERE / "instant_workers"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = ":".join(paths)  # of the workers
    print(json.dumps(measure(count, cpus)))


if __name__ == "__main__":
    main()
