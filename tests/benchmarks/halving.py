"""Successive halving: how many epochs it saves, and whether the result is the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import workload
from tests.benchmarks.harness import Options, say, scratch
from tests.benchmarks.report import Figure, Section, Table

STUDY = """\
study: {name}
task: {{name: digits, train_rows: 300}}
seeds: 3
training: {{epochs: 36, batch_size: 32{halving}}}
resources: {{max_models: 81}}     # 27 configurations of 3 seeds in one pack
parts:
  search:
    search: {{configurations: {configurations}, batch: 27, sampler: qmc}}
    shared:
      learning_rate: {{low: 0.00003, high: 0.3, log: true}}
    methods:
      mul: {{beta: {{low: 0, high: 1}}}}
      add: {{depth: 1}}
"""
SEARCHED = ("beta", "learning_rate")
HALVING = ", halving: {eta: 3, min_epochs: 4}"
TEXT = """\
{configurations} configurations each of `mul` and `add` with learning rates from 0.00003 to 0.3, 27
configurations a batch, 3 seeds, 36 epochs, with and without `halving: {{eta: 3, min_epochs: 4}}`.
The sampler draws the same configurations in both (quasi-random), so that the winners can be
compared.
"""


@dataclass(frozen=True)
class Best:
    """A method's winner, on validation (%)."""

    number: int
    params: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Searched:
    """One of the two runs."""

    wall: float
    epochs: int
    device: float  # seconds of training
    best: dict[str, Best]


def run(options: Options) -> Section:
    configurations = 27 if options.quick else 54
    with scratch("halving") as folder:
        whole = _search(folder, "whole", "", configurations)
        halved = _search(folder, "halved", HALVING, configurations)
    share = halved.epochs / whole.epochs
    rows, same = [], []
    for method, best in whole.best.items():
        other = halved.best[method]
        rows.append([method, *map(_words, (best, other)), _verdict(best, other)])
        same.append(other.number == best.number or best.low <= other.mean <= best.high)
    return Section(
        name="halving",
        title="Successive halving",
        text=TEXT.format(configurations=configurations),
        figures=[
            Figure(
                what="halving: share of epochs trained",
                key="halving_epoch_share",
                value=share,
                target=0.40,
                at_least=False,
            ),
            Figure(
                what="halving: methods whose best is the same, or within the other's interval",
                value=sum(same) / len(same),
                target=1.0,
            ),
        ],
        tables=[
            Table(
                "best configuration of each method, validation error in % (95 % interval)",
                ["method", "without halving", "with halving", "the same?"],
                rows,
            ),
        ],
        notes=[
            f"epochs of single models: {whole.epochs:,} without, {halved.epochs:,} with halving",
            f"the whole command: {whole.wall:.1f} s without, {halved.wall:.1f} s with halving",
            f"training alone: {whole.device:.1f} s without, {halved.device:.1f} s with halving",
        ],
    )


def _search(folder: Path, name: str, halving: str, configurations: int) -> Searched:
    import modmix

    study, home = folder / f"{name}.yaml", folder / f"home-{name}"
    study.write_text(STUDY.format(name=name, halving=halving, configurations=configurations))
    run = workload.modmix_run(study, home, data=folder / "data", tracking=None)
    found = modmix.open_study(name, home)
    frame = found.replicates()
    best = {
        one.method: Best(
            one.number,
            ", ".join(f"{k} = {v:.3g}" for k, v in one.params.items() if k in SEARCHED),
            one.mean,
            one.ci_low,
            one.ci_high,
        )
        for one in found.best()
    }
    searched = Searched(run.wall, int(frame["epochs"].sum()), float(frame["seconds"].sum()), best)
    say(f"halving: {name}: {searched.epochs:,} epochs in {run.wall:.1f} s")
    return searched


def _words(best: Best) -> str:
    return f"{best.mean:.2f} ({best.low:.2f} to {best.high:.2f}), {best.params}"


def _verdict(whole: Best, halved: Best) -> str:
    if whole.number == halved.number:
        return "the same configuration"
    if whole.low <= halved.mean <= whole.high:
        return "within the interval"
    return "another"
