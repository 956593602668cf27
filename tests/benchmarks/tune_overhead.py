"""What Ray Tune costs a pack: many packs of instant training through `TuneRunner`.

    python -m tests.benchmarks.tune_overhead [PACKS] [CPUS]

prints one measurement as JSON: wall time and the driver's CPU time per pack, without the
start and the end of Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from tests.benchmarks.harness import (
    PYTHON,
    BenchmarkError,
    Options,
    Turns,
    command,
    cpu_count,
    environment,
    say,
)
from tests.benchmarks.report import Figure, Section, between
from tests.fakework import FakeWork

HERE = Path(__file__).parent
TEXT = """\
{packs} packs of one model each through Ray Tune, as in `modmix run`, on a local cluster of {cpus}
workers; training is replaced by instant results (20 epochs, every metric). Per pack, excluding the
first 10 %: the time from the end of one pack to the end of the next, and the CPU time of the
driver. The ledger and MLflow are covered in the driver section."""
MEASURED = (
    ("wall_ms", "wall time per pack", "ms"),
    ("driver_cpu_ms", "CPU time of the driver per pack", "ms"),
    ("start_s", "start of Ray", "s"),
    ("first_pack_s", "from Ray's start to the first pack's result", "s"),
)


def run(options: Options) -> Section:
    packs, rounds = (60, 1) if options.quick else (500, min(3, options.rounds))
    cpus, measured = cpu_count(), Turns()
    for _ in range(rounds):
        told = _measure_apart(packs, cpus)
        for name, _, _ in MEASURED:
            measured.add(name, told[name])
        say(f"overhead: {told['wall_ms']:.1f} ms a pack, driver {told['driver_cpu_ms']:.1f} ms")
    return Section(
        name="overhead",
        title="What Ray Tune costs per pack",
        text=TEXT.format(packs=packs, cpus=cpus),
        figures=[
            Figure(
                what=f"overhead: {what}",
                value=measured.median(name),
                unit=unit,
                spread=between(measured.values[name], unit),
            )
            for name, what, unit in MEASURED
        ],
    )


def _measure_apart(packs: int, cpus: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    words = [PYTHON, "-m", "tests.benchmarks.tune_overhead", str(packs), str(cpus)]
    output = command(words, env=environment(RAY_ADDRESS=None, OMP_NUM_THREADS="1")).output
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchmarkError(f"the runner gave no numbers:\n{output[-2000:]}")
    told: dict[str, float] = json.loads(lines[-1])
    return told


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
    parser = argparse.ArgumentParser()
    parser.add_argument("packs", type=int, nargs="?", default=500)
    parser.add_argument("cpus", type=int, nargs="?", default=2)
    given = parser.parse_args()
    paths = [str(HERE / "instant_workers"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = ":".join(paths)  # of the workers
    print(json.dumps(measure(given.packs, given.cpus)))


if __name__ == "__main__":
    main()
