"""The β-curve of the quickstart study, whole commands from start to exit."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import workload
from tests.benchmarks.harness import (
    PYTHON,
    Options,
    Turns,
    command,
    cpu_count,
    environment,
    say,
    scratch,
)
from tests.benchmarks.report import Figure, Section, Table, between, number
from tests.benchmarks.server import mlflow_server

STUDY = """\
study: curve
task: {{name: digits, train_rows: 300}}
seeds: {seeds}
training: {{epochs: 30, batch_size: 32, learning_rate: 0.003}}
parts:
  beta_curve:
    x: beta
    methods:
      mul: {{beta: {{grid: {betas}}}}}
      mulmix: {{beta: {{grid: {betas}}}}}
"""
BETAS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


def run(options: Options) -> Section:
    with scratch("curve") as folder, mlflow_server(folder / "server") as tracking:
        return _run(options, folder, tracking)


def _run(options: Options, folder: Path, tracking: str) -> Section:
    study, models, data = folder / "curve.yaml", folder / "models.json", folder / "data"
    betas, seeds = ([0, 0.5, 1], 2) if options.quick else (BETAS, 5)
    study.write_text(STUDY.format(betas=betas, seeds=seeds))
    count = workload.write_models(study, models, data=data)
    env = environment(MODMIX_DATA=data, OMP_NUM_THREADS="1")
    loop = [PYTHON, "-m", "tests.benchmarks.peers.loop", str(models)]
    optimizer = command([*loop, "--choose"], env=env).output.strip().splitlines()[-1]
    loop += ["--processes", str(cpu_count()), "--optimizer", optimizer]
    rates, notes = Turns(), []
    for turn in range(options.rounds):
        home = folder / f"home-{turn}"
        ours = workload.modmix_run(study, home, data=data, tracking=tracking)
        rates.add("modmix run", 60 * count / ours.wall)
        say(f"curve: modmix run, {count} models in {ours.wall:.1f} s")
        theirs = command(loop, env=env)
        rates.add("loop", 60 * count / theirs.wall)
        say(f"curve: bare loop ({optimizer} optimizer), {count} models in {theirs.wall:.1f} s")
        if turn == 0:
            learned = workload.our_results(home, "curve")
            found = workload.read_results(theirs.output.splitlines())
            notes.append(f"bare loop: {workload.compare(learned, found, 'the bare loop')}")
            say(f"curve: {notes[-1]}")
    rows = [
        [name, number(rates.median(name)), between(rates.values[name])] for name in rates.values
    ]
    return Section(
        name="curve",
        title="A β-curve against the same models trained by others",
        figures=[
            Figure(
                what="models a minute, over a bare PyTorch loop",
                key="curve_vs_loop",
                value=rates.ratio("modmix run", "loop"),
                target=4,
                at_least=True,
                unit="x",
            )
        ],
        tables=[Table("models a minute", ["contestant", "median", "range"], rows)],
        notes=notes,
    )
