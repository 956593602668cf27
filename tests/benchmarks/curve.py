"""The β-curve of the quickstart study, complete commands from start to exit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import workload
from tests.benchmarks.competitors import (
    BEST_RAY,
    LOOP,
    OPTUNA,
    OURS,
    RAY,
    RAY_REUSE,
    RAY_SETUP,
    Peers,
    paired,
    ranking,
)
from tests.benchmarks.harness import Options, Run, Turns, say, scratch
from tests.benchmarks.report import Figure, Section
from tests.benchmarks.server import mlflow_server
from tests.benchmarks.workload import Result

EPOCHS = 30
STUDY = """\
study: curve
task: {{name: digits, train_rows: 300}}
seeds: {seeds}
training: {{epochs: {epochs}, batch_size: 32, learning_rate: 0.003}}
parts:
  beta_curve:
    x: beta
    methods:
      mul: {{beta: {{grid: {betas}}}}}
      mulmix: {{beta: {{grid: {betas}}}}}
"""
BETAS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
TEXT = """\
The β-curve of studies/quickstart.yaml: {count} models of `mul` and `mulmix` on digits, 30 epochs.
Whole commands from start to exit for `modmix run` (imports, planning, Ray, its MLflow mirror,
results and figures included), for the bare loop, and for Ray Tune without MLflow; the latter two
log nothing and keep no learning curves. Ray Tune with MLflow and Optuna are far slower: each trains
a random subset of the same models for {seconds:.0f} s, and its rate excludes start-up. The peers
compute one validation metric per epoch, modmix five."""


def run(options: Options) -> Section:
    betas, seeds = ([0, 0.5, 1], 2) if options.quick else (BETAS, 5)
    with scratch("curve") as folder, mlflow_server(folder / "server") as tracking:
        return _section(options, Curve("curve", folder, tracking, betas, seeds))


def _section(options: Options, curve: Curve) -> Section:
    slow = [RAY, RAY_REUSE, RAY_SETUP, OPTUNA]
    for turn in range(options.rounds):
        curve.train_ours(turn)
        curve.train_by(LOOP)
        curve.train_by(BEST_RAY)
        for name in slow[turn :: options.rounds]:
            curve.train_part(name, options.ray_seconds)
    return Section(
        name="curve",
        title="A β-curve, against the same models trained by others",
        text=TEXT.format(count=curve.count, seconds=options.ray_seconds),
        figures=[
            curve.figure("curve_vs_loop", LOOP, "a bare PyTorch loop on all cores", 1.5),
            curve.figure("curve_vs_best_ray", BEST_RAY, "Ray Tune at its best", 1.5),
        ],
        tables=[ranking(curve.rates, "models")],
        notes=curve.notes,
    )


class Curve:
    """The models of one curve, and what each competitor made of them.

    Args:
        name: of the benchmark.
        folder: for all files.
        tracking: MLflow's address.
        betas: the points of the curve.
        seeds: replicates of each.
    """

    def __init__(
        self, name: str, folder: Path, tracking: str, betas: Sequence[float], seeds: int
    ) -> None:
        self._name, self._folder, self._tracking = name, folder, tracking
        self._study, self._data = folder / "curve.yaml", folder / "data"
        self._study.write_text(STUDY.format(betas=list(betas), seeds=seeds, epochs=EPOCHS))
        models = folder / "models.json"
        self.count = workload.write_models(self._study, models, data=self._data)
        self.rates = Turns()  # models per minute
        self._peers = Peers(models, self._data, tracking)
        self._learned: dict[str, Result] = {}
        self.notes = [
            f"the optimizer of the peers: torch.optim, {self._peers.optimizer}, the fastest here"
        ]

    def train_ours(self, turn: int) -> None:
        """All models by `modmix run`, in an empty results folder."""
        home = self._folder / f"home-{turn}"
        run = workload.modmix_run(self._study, home, data=self._data, tracking=self._tracking)
        self._whole(OURS, run)
        self._learned = self._learned or workload.our_results(home, "curve")

    def train_by(self, name: str) -> None:
        """All models by the bare loop, or by Ray Tune at its best; the first time compared."""
        run = self._peers.loop() if name == LOOP else self._peers.best_ray()
        self._whole(name, run)
        if len(self.rates.values[name]) == 1:
            self._compare(name, run.output, whole=True)

    def train_part(self, name: str, seconds: float) -> None:
        """As many models as a slow peer trains in that time."""
        done = self._peers.slice(name, seconds)
        each = 1 if name == OPTUNA else EPOCHS
        self.rates.add(name, done.per_minute / each)
        say(f"{self._name}: {name}: {done.done / each:.1f} models in {done.seconds:.1f} s")
        self._compare(name, done.run.output)

    def figure(self, key: str, name: str, shown: str, target: float) -> Figure:
        """The ratio to a competitor that trained everything."""
        return Figure(
            what=f"{self._name}: models per minute, relative to {shown}",
            key=key,
            value=self.rates.ratio(OURS, name),
            target=target,
            unit="x",
            spread=paired(self.rates, name),
        )

    def _whole(self, name: str, run: Run) -> None:
        self.rates.add(name, 60 * self.count / run.wall)
        say(f"{self._name}: {name}: {self.count} models in {run.wall:.1f} s")

    def _compare(self, name: str, output: str, *, whole: bool = False) -> None:
        found = workload.read_results(output.splitlines())
        if found or whole:
            same = str(workload.compare(self._learned, found, name, whole=whole))
        else:
            same = workload.compare_partial(self._learned, output.splitlines(), name)
        self.notes.append(f"{name}: {same}")
        say(f"{self._name}: {self.notes[-1]}")
