"""The β-curve with ten times as many models: what is paid once counts for little."""

from __future__ import annotations

from tests.benchmarks.competitors import LOOP, ranking
from tests.benchmarks.curve import BETAS, Curve
from tests.benchmarks.harness import Options, scratch
from tests.benchmarks.report import Section
from tests.benchmarks.server import mlflow_server

TEXT = """\
The β-curve above with {seeds} seeds: {count:,} models, the same settings, whole commands from start
to exit."""


def run(options: Options) -> Section:
    betas, seeds = ([0, 0.5, 1], 10) if options.quick else (BETAS, 50)
    with scratch("curve1100") as folder, mlflow_server(folder / "server") as tracking:
        curve = Curve("curve1100", folder, tracking, betas, seeds)
        for turn in range(min(2, options.rounds)):  # minutes each, and steady
            curve.train_ours(turn)
            curve.train_by(LOOP)
    shown = f"a bare PyTorch loop on all cores, {curve.count:,} models"
    return Section(
        name="curve1100",
        title="A β-curve of 1,100 models",
        text=TEXT.format(seeds=seeds, count=curve.count),
        figures=[curve.figure("curve1100_vs_loop", LOOP, shown, 2)],
        tables=[ranking(curve.rates, "models")],
        notes=curve.notes,
    )
