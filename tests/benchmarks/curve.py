"""The β-curve of the quickstart study, complete commands from start to exit."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import competitors, workload
from tests.benchmarks.competitors import LOOP, OPTUNA, RAY, RAY_REUSE, RAY_SETUP, Peers
from tests.benchmarks.harness import Options, Turns, say, scratch
from tests.benchmarks.report import Figure, Section, Table, between, number
from tests.benchmarks.server import mlflow_server
from tests.benchmarks.workload import Result

OURS = "modmix run"
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
results and figures included) and for the bare loop, which logs nothing. Ray Tune and Optuna are far
slower: each works for {seconds:.0f} s on a random part of the same models, and its rate leaves out
its start. The peers compute one validation metric an epoch, modmix five."""


def run(options: Options) -> Section:
    with scratch("curve") as folder, mlflow_server(folder / "server") as tracking:
        return _Curve(options, folder, tracking).section()


class _Curve:
    def __init__(self, options: Options, folder: Path, tracking: str) -> None:
        self.options, self.folder, self.tracking = options, folder, tracking
        self.study, self.data = folder / "curve.yaml", folder / "data"
        betas, seeds = ([0, 0.5, 1], 2) if options.quick else (BETAS, 5)
        self.study.write_text(STUDY.format(betas=betas, seeds=seeds, epochs=EPOCHS))
        models = folder / "models.json"
        self.count = workload.write_models(self.study, models, data=self.data)
        self.peers = Peers(models, self.data, tracking)
        self.rates = Turns()  # models a minute
        self.learned: dict[str, Result] = {}
        self.notes = [
            f"the loop's optimizer: torch.optim, {self.peers.optimizer}, the fastest here"
        ]

    def section(self) -> Section:
        slow = [RAY, RAY_REUSE, RAY_SETUP, OPTUNA]
        for turn in range(self.options.rounds):
            self._ours(turn)
            self._loop(turn)
            for name in slow[turn :: self.options.rounds]:
                self._slice(name)
        self.notes.append("the first target is for the faster of the two with the callback")
        best_ray = max(competitors.WITH_CALLBACK, key=self.rates.median)
        rows = [
            [
                name,
                number(self.rates.median(name)),
                between(self.rates.values[name]),
                "" if name == OURS else number(self.rates.ratio(OURS, name), "x"),
            ]
            for name in self.rates.values
        ]
        columns = ["competitor", "models a minute", "range", "modmix is faster by"]
        return Section(
            name="curve",
            title="A β-curve, against the same models trained by others",
            text=TEXT.format(count=self.count, seconds=self.options.ray_seconds),
            figures=[
                Figure(
                    what="curve: models a minute, over Ray Tune with its MLflow callback",
                    key="curve_vs_ray",
                    value=self.rates.ratio(OURS, best_ray),
                    target=10,
                    unit="x",
                    spread=self._paired(best_ray),
                ),
                Figure(
                    what="curve: models a minute, over a bare PyTorch loop on all cores",
                    key="curve_vs_loop",
                    value=self.rates.ratio(OURS, LOOP),
                    target=4,
                    unit="x",
                    spread=self._paired(LOOP),
                ),
            ],
            tables=[Table("", columns, rows)],
            notes=self.notes,
        )

    def _paired(self, name: str) -> str:
        """The range of the ratio over turns; a slow peer has one turn beside all of ours."""
        theirs = self.rates.values[name]
        theirs = theirs * len(self.rates.values[OURS]) if len(theirs) == 1 else theirs
        return between([o / t for o, t in zip(self.rates.values[OURS], theirs)], "x")

    def _ours(self, turn: int) -> None:
        home = self.folder / f"home-{turn}"
        run = workload.modmix_run(self.study, home, data=self.data, tracking=self.tracking)
        self.rates.add(OURS, 60 * self.count / run.wall)
        self.learned = self.learned or workload.our_results(home, "curve")
        say(f"curve: {OURS}: {self.count} models in {run.wall:.1f} s")

    def _loop(self, turn: int) -> None:
        run = self.peers.loop()
        self.rates.add(LOOP, 60 * self.count / run.wall)
        say(f"curve: {LOOP}: {self.count} models in {run.wall:.1f} s")
        if turn == 0:
            self._compare(LOOP, run.output)

    def _slice(self, name: str) -> None:
        done = self.peers.slice(name, self.options.ray_seconds)
        each = 1 if name == OPTUNA else EPOCHS
        self.rates.add(name, done.per_minute / each)
        say(f"curve: {name}: {done.done / each:.1f} models in {done.seconds:.1f} s")
        self._compare(name, done.run.output)

    def _compare(self, name: str, output: str) -> None:
        found = workload.read_results(output.splitlines())
        if found:
            same = str(workload.compare(self.learned, found, name))
        else:
            same = workload.compare_partial(self.learned, output.splitlines(), name)
        self.notes.append(f"{name}: {same}")
        say(f"curve: {self.notes[-1]}")
