"""Start-up time: import, help, first training step."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks import workload
from tests.benchmarks.harness import (
    MODMIX,
    PYTHON,
    BenchmarkError,
    Options,
    Turns,
    command,
    say,
    scratch,
)
from tests.benchmarks.report import Figure, Section, between

# Nine steps an epoch, and an evaluation after each: the first line of the trace is the first step.
STUDY = """\
study: startup
task: {name: digits, train_rows: 300}
seeds: 2
training: {epochs: 1, batch_size: 32, evaluations_per_epoch: 9}
parts:
  curve:
    x: beta
    methods:
      mul: {beta: {grid: [0, 1]}}
"""
TEXT = """\
Whole processes. The first step is timed from typing `modmix run` on a study of four small models,
with Ray and the MLflow mirror, in an empty results folder with prepared data, to the end of the
first evaluation, which follows the first optimizer step."""

IMPORT, HELP, STEP, BARE = "import modmix", "modmix --help", "first step", "python alone"
COMMANDS = {
    BARE: [PYTHON, "-c", "pass"],
    IMPORT: [PYTHON, "-c", "import modmix"],
    HELP: [MODMIX, "--help"],
}


def run(options: Options) -> Section:
    times, turns = Turns(), 3 if options.quick else 9
    for words in COMMANDS.values():
        command(words)  # from here on the files are in memory
    for _ in range(turns):
        for name, words in COMMANDS.items():
            times.add(name, command(words).wall)
    with scratch("startup") as folder:
        _first_step(folder, 0)
        for turn in range(2 if options.quick else 5):
            times.add(STEP, _first_step(folder, turn + 1))
            say(f"startup: first step after {times.values[STEP][-1]:.1f} s")
    limits = ((IMPORT, 0.3), (HELP, 0.5), (STEP, 10.0))
    return Section(
        name="startup",
        title="Start-up",
        text=TEXT,
        figures=[
            Figure(
                what=f"start-up: {name}" if name != STEP else "start-up: to the first step",
                value=times.median(name),
                target=target,
                at_least=False,
                unit="s",
                spread=between(times.values[name], "s"),
            )
            for name, target in limits
        ],
        notes=[f"python alone takes {times.median(BARE):.3f} s of each"],
    )


def _first_step(folder: Path, turn: int) -> float:
    study, trace = folder / "startup.yaml", folder / f"trace-{turn}"
    study.write_text(STUDY)
    done = workload.modmix_run(
        study, folder / f"home-{turn}", data=folder / "data", tracking=None, trace=trace
    )
    if not trace.exists():
        raise BenchmarkError("modmix run wrote no MODMIX_TRACE")
    times = [float(json.loads(line)["time"]) for line in trace.read_text().splitlines()]
    return min(times) - done.started
