"""A search of 100 configurations, five seeds each, against Ray Tune's OptunaSearch and Optuna
alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks import workload
from tests.benchmarks.competitors import (
    BEST_RAY,
    LOOP,
    OPTUNA,
    OURS,
    RAY_REUSE,
    RAY_SETUP,
    Peers,
    paired,
    ranking,
)
from tests.benchmarks.harness import BenchmarkError, Options, Run, Turns, say, scratch
from tests.benchmarks.report import Figure, Section
from tests.benchmarks.server import mlflow_server

EPOCHS, SEEDS = 30, 5
STUDY = """\
study: search
task: {{name: digits, train_rows: 300}}
seeds: {seeds}
training: {{epochs: {epochs}, batch_size: 32}}
parts:
  search:
    search: {{configurations: {configurations}, batch: 10}}
    methods:
      mul:
        beta: {{low: 0, high: 1}}
        learning_rate: {{low: 0.0005, high: 0.02, log: true}}
        weight_decay: {{low: 0.000001, high: 0.01, log: true}}
"""
TEXT = """\
TPE over β, learning rate and weight decay of `mul` on digits, {configurations} configurations of
{seeds} seeds, 30 epochs. `modmix run`, in batches of 10 configurations, and Ray Tune without
MLflow, with one result per configuration and no learning curves, are timed as whole commands. A
trial of the peers is one configuration, whose seeds are trained one after another. Those with
MLflow run for {seconds:.0f} s each, and their rates exclude start-up; they report one result per
epoch, as in the curve, or one per seed (1 instead of 30). Each sampler proposes different
configurations, so a few of modmix's are trained again in plain PyTorch to check that the training
is the same."""
SEED = ", a result a seed"


def run(options: Options) -> Section:
    with scratch("search") as folder, mlflow_server(folder / "server") as tracking:
        return _Search(options, folder, tracking).section()


class _Search:
    def __init__(self, options: Options, folder: Path, tracking: str) -> None:
        self.options, self.folder, self.tracking = options, folder, tracking
        self.study, self.data = folder / "search.yaml", folder / "data"
        self.configurations = 20 if options.quick else 100
        text = STUDY.format(configurations=self.configurations, seeds=SEEDS, epochs=EPOCHS)
        self.study.write_text(text)
        self.models = folder / "models.json"
        workload.write_models(self.study, self.models, data=self.data)
        self.peers = Peers(self.models, self.data, tracking)
        self.rates = Turns()  # configurations per minute
        self.notes: list[str] = []

    def section(self) -> Section:
        slow = [
            (RAY_REUSE, "epoch"),
            (RAY_REUSE, "seed"),
            (RAY_SETUP, "epoch"),
            (RAY_SETUP, "seed"),
            (OPTUNA, ""),
        ]
        turns = max(1, self.options.rounds - 1)
        for turn in range(turns):
            self._ours(turn)
            self._best_ray()
            for name, each in slow[turn::turns]:
                self._slice(name, each)
        text = TEXT.format(
            configurations=self.configurations, seeds=SEEDS, seconds=self.options.ray_seconds
        )
        return Section(
            name="search",
            title="A search, against Ray Tune with OptunaSearch and Optuna alone",
            text=text,
            figures=[
                Figure(
                    what="search: configurations per minute, relative to Ray Tune at its best with "
                    "OptunaSearch",
                    key="search_vs_best_ray",
                    value=self.rates.ratio(OURS, BEST_RAY),
                    target=2,
                    unit="x",
                    spread=paired(self.rates, BEST_RAY),
                )
            ],
            tables=[ranking(self.rates, "configurations")],
            notes=self.notes,
        )

    def _ours(self, turn: int) -> None:
        home = self.folder / f"home-{turn}"
        run = workload.modmix_run(self.study, home, data=self.data, tracking=self.tracking)
        self._whole(OURS, run)
        if turn == 0:
            self._train_again(home)

    def _best_ray(self) -> None:
        run = self.peers.best_ray("--configurations", str(self.configurations))
        done = run.output.count('{"configuration"')
        if done != self.configurations:
            raise BenchmarkError(f"{BEST_RAY} trained {done} of {self.configurations}")
        self._whole(BEST_RAY, run)

    def _whole(self, name: str, run: Run) -> None:
        self.rates.add(name, 60 * self.configurations / run.wall)
        say(f"search: {name}: {self.configurations} configurations in {run.wall:.1f} s")

    def _train_again(self, home: Path) -> None:
        """Hold some of our configurations against plain PyTorch."""
        from tests.benchmarks.peers.plain import configuration_of

        given = json.loads(self.models.read_text())
        space = given.pop("space")
        keys, again = workload.our_configurations(home, "search", 3), []
        for params, by_seed in keys:
            values = {name: params[name] for name in space}
            configuration = configuration_of(given["models"], values)
            again += [{**model, "key": by_seed[model["seed"]]} for model in configuration]
        target = self.folder / "again.json"
        target.write_text(json.dumps({**given, "models": again}))
        output = Peers(target, self.data, self.tracking, self.peers.optimizer).loop().output
        found = workload.read_results(output.splitlines())
        same = workload.compare(workload.our_results(home, "search"), found, LOOP)
        self.notes.append(f"our configurations trained again by plain PyTorch: {same}")
        say(f"search: {self.notes[-1]}")

    def _slice(self, name: str, each: str) -> None:
        words = ["--each", each] if each else []
        done = self.peers.slice(name, self.options.ray_seconds, *words)
        results = {"epoch": EPOCHS * SEEDS, "seed": SEEDS, "": 1}[each]
        shown = name + SEED if each == "seed" else name
        self.rates.add(shown, done.per_minute / results)
        say(f"search: {shown}: {done.done / results:.1f} configurations in {done.seconds:.1f} s")
