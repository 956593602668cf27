"""What the driver costs per configuration: everything but training, on 1,000 and on 10,000
configurations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.harness import (
    PYTHON,
    BenchmarkError,
    Options,
    command,
    environment,
    say,
    scratch,
)
from tests.benchmarks.report import Figure, Section, Table, between, number

GRID = """\
study: driver
task: digits
seeds: 5
training: {{epochs: 20}}
parts:
  curve:
    x: beta
    methods:
      mul:
        beta: {{grid: {betas}}}
        learning_rate: {{grid: {rates}}}
"""
SEARCH = """\
study: driver
task: digits
seeds: 5
training: {{epochs: 20}}
parts:
  search:
    search: {{configurations: {configurations}, batch: 10}}
    methods:
      mul:
        beta: {{low: 0, high: 1}}
        learning_rate: {{low: 0.0003, high: 0.03, log: true}}
"""
TEXT = """\
A study of {small:,} configurations of 5 seeds, and one of {large:,}, with training replaced by
instant results (20 epochs, every metric). Everything else is real and included, from the start of
the command to its exit: imports, planning, the ledger on SQLite, packs, recording, figures, tables
and the report. The MLflow mirror runs in a separate process on CPU time that training leaves idle.
Its CPU time is counted until MLflow has every configuration. Because instant training leaves no
idle time, the command's wait for the mirror at the end is reported separately. Training runs in the
driver's own process, so these numbers do not include Ray.
"""
# The large study is made smaller, and the report says so, where it would take longer than this.
LARGE_SECONDS = 420.0


@dataclass(frozen=True)
class Driven:
    """One run of `driver_child`."""

    configurations: int
    wall: float
    cpu: float
    peak: int
    others: float  # processor seconds of the processes it has started
    phases: dict[str, tuple[float, float]]  # name -> wall, processor seconds
    memory: list[tuple[int, int, int]]  # replicates so far, bytes of the driver, of its children

    @property
    def wall_ms(self) -> float:
        """Without the wait for the MLflow mirror at the end."""
        waited = self.phases["wait for MLflow"][0] + self.phases["sync"][0]
        return 1000 * (self.wall - waited) / self.configurations

    @property
    def whole_ms(self) -> float:
        """Until MLflow holds every configuration."""
        return 1000 * self.wall / self.configurations

    @property
    def cpu_ms(self) -> float:
        """Of the driver's process."""
        return 1000 * self.cpu / self.configurations

    @property
    def others_ms(self) -> float:
        """Of processes that the driver has started: the MLflow mirror."""
        return 1000 * self.others / self.configurations

    @property
    def mirror_ms(self) -> float:
        """Of the MLflow mirror: its process, and `modmix sync` where that had to finish."""
        return self.others_ms + 1000 * self.phases["sync"][1] / self.configurations

    @property
    def growth(self) -> float:
        """The driver's resident memory after the last pack over that after half of them."""
        half = next(bytes_ for done, bytes_, _ in self.memory if done >= self.memory[-1][0] / 2)
        return self.memory[-1][1] / half

    @property
    def peak_of_others(self) -> int:
        return max(bytes_ for _, _, bytes_ in self.memory)


def run(options: Options) -> Section:
    small, large, searched = (100, 400, 40) if options.quick else (1000, 10_000, 200)
    # One repetition less than of short commands: each takes long enough to be steady.
    few = [_drive("grid", _grid(small)) for _ in range(max(1, options.rounds - 1))]
    search = _drive("search", SEARCH.format(configurations=searched))
    typical = sorted(few, key=lambda one: one.wall)[len(few) // 2]
    wall = median(one.wall_ms for one in few)
    notes = []
    if (predicted := median(one.whole_ms for one in few) / 1000 * large) > LARGE_SECONDS:
        large = max(2 * small, round(large * LARGE_SECONDS / predicted / small) * small)
        notes.append(
            f"10,000 configurations would have taken {predicted:.0f} s: measured with "
            f"{large:,} instead"
        )
        say(f"driver: {notes[-1]}")
    many = _drive("grid", _grid(large))
    rows = [_row("grid", one) for one in (typical, many)] + [_row("TPE search, batch 10", search)]
    phases = [
        [phase, *(_phase(one, phase) for one in (typical, many, search))] for phase in many.phases
    ]
    return Section(
        name="driver",
        title="What the driver costs per configuration",
        text=TEXT.format(small=small, large=large),
        figures=[
            Figure(
                what=f"driver: wall time per configuration, {small:,} configurations",
                key="driver_ms_per_configuration_1000",
                value=wall,
                target=15,
                at_least=False,
                unit="ms",
                spread=between([one.wall_ms for one in few], "ms"),
            ),
            Figure(
                what=f"driver: wall time per configuration, {large:,} configurations over "
                f"{small:,}",
                key="driver_growth_10000",
                value=many.wall_ms / wall,
                target=1.2,
                at_least=False,
                unit="x",
                spread=f"CPU time: {number(many.cpu_ms / typical.cpu_ms, 'x')}",
            ),
            Figure(
                what="driver: background CPU time of the MLflow mirror per configuration, "
                f"{small:,} configurations",
                key="mirror_ms_per_configuration",
                value=median(one.mirror_ms for one in few),
                target=60,
                at_least=False,
                unit="ms",
                spread=between([one.mirror_ms for one in few], "ms"),
            ),
            Figure(
                what=f"driver: memory at the end over the middle, {large:,} configurations",
                value=many.growth,
                target=1.1,
                at_least=False,
                unit="x",
            ),
        ],
        tables=[
            Table(
                "per configuration",
                [
                    "study",
                    "configurations",
                    "wall ms",
                    "until MLflow has all, ms",
                    "processor ms, driver",
                    "processor ms, its children",
                    "peak MB, driver",
                    "peak MB, its children",
                ],
                rows,
            ),
            Table(
                "where it goes, wall (driver's processor) ms per configuration",
                ["phase", f"grid, {small:,}", f"grid, {large:,}", f"search, {searched:,}"],
                phases,
            ),
        ],
        notes=notes,
    )


def _grid(configurations: int) -> str:
    """A curve over β at several learning rates: a figure that a study of this size would have."""
    rates = [round(0.001 * (i + 1), 4) for i in range(20)]
    betas = [
        round(i / (configurations // len(rates)), 5) for i in range(configurations // len(rates))
    ]
    return GRID.format(betas=betas, rates=rates)


def _row(kind: str, one: Driven) -> list[str]:
    return [
        kind,
        f"{one.configurations:,}",
        number(one.wall_ms),
        number(one.whole_ms),
        number(one.cpu_ms),
        number(one.others_ms),
        f"{one.peak / 2**20:,.0f}",
        f"{one.peak_of_others / 2**20:,.0f}",
    ]


def _phase(one: Driven, phase: str) -> str:
    wall, cpu = (1000 * seconds / one.configurations for seconds in one.phases[phase])
    return f"{number(wall)} ({number(cpu)})"


def _drive(kind: str, text: str) -> Driven:
    with scratch("driver") as folder:
        study, target = folder / "driver.yaml", folder / "told.json"
        study.write_text(text)
        _prepare(folder)
        env = environment(
            MODMIX_HOME=folder / "home",
            MODMIX_DATA=folder / "data",
            MODMIX_LEDGER=None,
            MLFLOW_TRACKING_URI=None,
            OMP_NUM_THREADS="1",
        )
        words = [PYTHON, "-m", "tests.benchmarks.driver_child", str(study), str(target)]
        run = command(words, env=env)
        if not target.exists():
            raise BenchmarkError(f"the driver gave no numbers:\n{run.output[-2000:]}")
        told: dict[str, Any] = json.loads(target.read_text())
    one = Driven(
        configurations=told["configurations"],
        wall=told["wall"],
        cpu=told["cpu"],
        peak=told["peak"],
        others=told["others"],
        phases={name: (wall, cpu) for name, (wall, cpu) in told["phases"].items()},
        memory=[(done, own, others) for done, own, others in told["memory"]],
    )
    say(
        f"driver: {kind}, {one.configurations:,} configurations in {one.wall:.1f} s "
        f"({one.wall_ms:.1f} ms a configuration, processor {one.cpu_ms:.1f} ms)"
    )
    return one


def _prepare(folder: Path) -> None:
    """The data, which is no part of what is measured."""
    env = environment(MODMIX_DATA=folder / "data")
    code = "from modmix.tasks.base import load_task; load_task('digits', {})"
    command([PYTHON, "-c", code], env=env)
