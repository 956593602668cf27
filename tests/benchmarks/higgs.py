"""HIGGS at the paper's size: a β-curve against a plain loop, and a step against its bound."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.benchmarks import curve, workload
from tests.benchmarks.competitors import LOOP, Peers
from tests.benchmarks.harness import (
    PYTHON,
    Options,
    Skipped,
    Turns,
    command,
    environment,
    say,
    scratch,
)
from tests.benchmarks.report import Figure, Section, Table, between, number
from tests.benchmarks.server import mlflow_server

OURS = "modmix run"
_BETAS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
STUDY = """\
study: higgs
task: {{name: higgs, path: {path}, test_rows: 5000, val_rows: 3000}}
seeds: {seeds}
training: {{epochs: {epochs}, evaluations_per_epoch: 1, patience: null}}
parts:
  beta_curve:
    x: beta
    methods:
      mul: {{beta: {{grid: {betas}}}}}
"""
TEXT = """\
`mul` with networks of 300x4 units for the 21 low-level and 300x2 for the 7 high-level features, on
{rows}: {count} models, {epochs} epochs of batches of 128, SGD with momentum, clipping and weight
decay. Whole commands as in the curve above. A step is the training step of the largest pack that
`modmix run` hands out here, in one process with one thread; its floor is the larger of its
operations over the best rate of float32 matrix products and its bytes over the best rate of copies,
both measured in the same process before and after."""


def run(options: Options) -> Section:
    folder = os.environ.get("MODMIX_TEST_DATA")
    if not folder:
        raise Skipped("MODMIX_TEST_DATA names no folder with HIGGS.csv.gz")
    path = Path(folder).absolute() / "HIGGS.csv.gz"
    if not path.exists():
        raise Skipped(f"{path} is not there")
    with scratch("higgs") as place, mlflow_server(place / "server") as tracking:
        return _run(options, path, place, tracking)


def _run(options: Options, path: Path, folder: Path, tracking: str) -> Section:
    study, models, data = folder / "higgs.yaml", folder / "models.json", folder / "data"
    betas, seeds, epochs = ([0, 1], 2, 2) if options.quick else (_BETAS, 2, 8)
    study.write_text(STUDY.format(path=path, betas=betas, seeds=seeds, epochs=epochs))
    count = workload.write_models(study, models, data=data)
    peers = Peers(models, data, tracking)
    rates, notes = (
        Turns(),
        [f"the loop's optimizer: torch.optim, {peers.optimizer}, the fastest here"],
    )
    for turn in range(max(1, options.rounds - 1)):
        home = folder / f"home-{turn}"
        ours = workload.modmix_run(study, home, data=data, tracking=tracking)
        rates.add(OURS, 60 * count / ours.wall)
        say(f"higgs: {OURS}: {count} models in {ours.wall:.1f} s")
        theirs = peers.loop()
        rates.add(LOOP, 60 * count / theirs.wall)
        say(f"higgs: {LOOP}: {count} models in {theirs.wall:.1f} s")
        if turn == 0:
            learned = workload.our_results(home, "higgs")
            found = workload.read_results(theirs.output.splitlines())
            notes.append(str(workload.compare(learned, found, LOOP)))
            say(f"higgs: {notes[-1]}")
    steps = _steps(options, study, folder)
    pairs = zip(rates.values[OURS], rates.values[LOOP])
    first = steps[0]
    return Section(
        name="higgs",
        title="HIGGS, networks of 300 units",
        text=TEXT.format(rows="17,970 real rows", count=count, epochs=epochs),
        figures=[
            Figure(
                what="HIGGS: models per minute, relative to a bare PyTorch loop on all cores",
                key="higgs_vs_loop",
                value=rates.ratio(OURS, LOOP),
                target=1.2,
                unit="x",
                spread=between([o / t for o, t in pairs], "x"),
            ),
            Figure(
                what="HIGGS: a stacked step over the floor of this machine",
                key="higgs_step_over_floor",
                value=first["seconds"] / first["floor"],
                target=2,
                at_least=False,
                unit="x",
                spread=f"{number(first['spread'][0] / first['floor'])} to "
                f"{number(first['spread'][1] / first['floor'], 'x')} over parts of epochs; "
                f"CPU time {number(first['processor'] / first['floor'], 'x')}",
            ),
        ],
        tables=[
            Table(
                "",
                ["competitor", "models per minute", "range"],
                [[n, number(rates.median(n)), between(rates.values[n])] for n in rates.values],
            ),
            _table(steps),
        ],
        notes=notes,
    )


def _steps(options: Options, study: Path, folder: Path) -> list[dict[str, Any]]:
    """The steps of this study's pack and, for information, of the quickstart's curve."""
    small = folder / "curve.yaml"
    small.write_text(curve.STUDY.format(betas=curve.BETAS, seeds=5, epochs=curve.EPOCHS))
    seconds = 3.0 if options.quick else 12.0
    wanted = [
        {"name": "HIGGS, mul", "study": str(study), "method": None, "seconds": seconds},
        {"name": "quickstart, mul", "study": str(small), "method": "mul", "seconds": seconds / 2},
        {
            "name": "quickstart, mulmix",
            "study": str(small),
            "method": "mulmix",
            "seconds": seconds / 2,
        },
    ]
    request = folder / "steps.json"
    request.write_text(json.dumps(wanted))
    env = environment(MODMIX_DATA=folder / "data", MODMIX_LEDGER=None, OMP_NUM_THREADS="1")
    run = command([PYTHON, "-m", "tests.benchmarks.step", str(request)], env=env)
    found = [json.loads(line) for line in run.output.splitlines() if line.startswith('{"name"')]
    for one in found:
        say(f"higgs: step of {one['name']}: {one['seconds'] / one['floor']:.2f} times its floor")
    return found


def _table(steps: list[dict[str, Any]]) -> Table:
    rows = [
        [
            one["name"],
            f"{one['models']} in {one['groups']}",
            f"{one['parameters']:,}",
            number(1000 * one["seconds"]),
            number(1000 * one["processor"]),
            number(1000 * one["operations"] / one["matrix_rate"]),
            number(1000 * one["bytes"] / one["copy_rate"]),
            number(one["seconds"] / one["floor"], "x"),
            number(one["matrix_rate"] / 1e9),
            number(one["copy_rate"] / 1e9),
        ]
        for one in steps
    ]
    columns = ["pack", "models in groups", "parameters of one", "step ms", "processor ms"]
    columns += ["operations ms", "bytes ms", "step over floor", "matrix Gflop/s", "copy GB/s"]
    return Table("one step of a pack, one thread", columns, rows)
