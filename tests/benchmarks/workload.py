"""Studies, the same models for peers, and checks that results agree."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tests.benchmarks.harness import MODMIX, PYTHON, BenchmarkError, Run, command, environment


@dataclass(frozen=True)
class Result:
    """What a model has learned: its last training loss, and errors with its last weights (%)."""

    loss: float
    val: float
    test: float
    losses: tuple[float, ...] = ()  # after every epoch, where they are known


@dataclass(frozen=True)
class Difference:
    """How far two competitors are from each other over the models both have trained.

    Losses relative to ours, errors in percentage points; ``val`` and ``test`` are differences of
    the means over models.
    """

    models: int
    loss_median: float
    loss_largest: float
    val: float
    test: float

    def __str__(self) -> str:
        return (
            f"{self.models} models compared: last training loss differs by "
            f"{100 * self.loss_median:.2g} % (median; largest {100 * self.loss_largest:.2g} %), "
            f"mean validation error by {self.val:+.2f}, test error by {self.test:+.2f} points"
        )


# The same sums in another order drift apart over hundreds of steps; other weights, batches or
# settings would be far outside of these.
LOSS_MEDIAN, LOSS_LARGEST, ERROR_CONFIGURATIONS = 0.01, 0.25, 0.25


def modmix_run(
    study: Path, home: Path, *, data: Path, tracking: str | None, trace: Path | None = None
) -> Run:
    """The real command from start to exit, in a results folder of its own."""
    env = environment(
        MODMIX_HOME=home,
        MODMIX_DATA=data,
        MODMIX_LEDGER=None,
        MLFLOW_TRACKING_URI=tracking,
        MODMIX_TRACE=trace,
        RAY_ADDRESS=None,
        OMP_NUM_THREADS="1",
    )
    return command([MODMIX, "run", study], env=env, cwd=study.parent)


def our_results(home: Path, study: str) -> dict[str, Result]:
    """What the ledger holds, by replicate."""
    from modmix.ledger.ledger import Ledger

    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    try:
        records = [r for r in ledger.replicates(study) if r.state == "done"]
        histories = ledger.histories(study, [r.key for r in records])
    finally:
        ledger.close()
    return {
        r.key: Result(
            histories[r.key]["train/loss"][-1],
            r.metrics["val/error"],
            r.metrics["test/error"],
            tuple(histories[r.key]["train/loss"]),
        )
        for r in records
    }


def our_configurations(
    home: Path, study: str, count: int
) -> list[tuple[Mapping[str, Any], dict[int, str]]]:
    """Some finished configurations, evenly over the study: parameters, and replicate keys by
    seed.
    """
    from modmix.ledger.ledger import Ledger

    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    try:
        configurations, replicates = ledger.configurations(study), ledger.replicates(study)
    finally:
        ledger.close()
    keys: dict[str, dict[int, str]] = {}
    for r in replicates:
        if r.state == "done":
            keys.setdefault(r.configuration, {})[r.seed] = r.key
    done = [
        (configuration.params, keys[configuration.key])
        for configuration in configurations
        if configuration.key in keys
    ]
    return [done[round((i + 0.5) * len(done) / count - 0.5)] for i in range(count)]


def write_models(study: Path, target: Path, *, data: Path) -> int:
    """Write every model of a study's grids for the peers; return how many there are."""
    words = [PYTHON, "-m", "tests.benchmarks.workload", str(study), str(target)]
    run = command(words, env=environment(MODMIX_DATA=data))
    return int(run.output.split()[-1])


def compare(
    ours: Mapping[str, Result], theirs: Mapping[str, Result], who: str, *, whole: bool = False
) -> Difference:
    """Hold what a peer has learned against ours, model by model; ``whole``: all of them.

    Raises:
        BenchmarkError: they have nothing in common, or differ by more than sums in another order.
    """
    both = sorted(ours.keys() & theirs.keys())
    if whole and len(both) < len(ours):
        raise BenchmarkError(f"{who} trained {len(both)} models of {len(ours)}")
    if not both or len(both) < len(theirs):
        raise BenchmarkError(f"{who} trained {len(theirs)} models, of which ours has {len(both)}")
    losses = [abs(theirs[k].loss - ours[k].loss) / max(abs(ours[k].loss), 1e-3) for k in both]
    found = Difference(
        len(both),
        median(losses),
        max(losses),
        fmean(theirs[k].val - ours[k].val for k in both),
        fmean(theirs[k].test - ours[k].test for k in both),
    )
    # The fewer models, the more one prediction more or less moves their mean.
    allowed = ERROR_CONFIGURATIONS * max(1.0, math.sqrt(20 / len(both)))
    if not (
        found.loss_median <= LOSS_MEDIAN
        and found.loss_largest <= LOSS_LARGEST
        and abs(found.val) <= allowed
        and abs(found.test) <= 2 * allowed
    ):
        raise BenchmarkError(f"{who} did not learn what ours did: {found}")
    return found


def compare_partial(ours: Mapping[str, Result], lines: Iterable[str], who: str) -> str:
    """As `compare`, for models that a peer had no time to finish: the loss after its last epoch.

    Raises:
        BenchmarkError: it has none, or its losses are others.
    """
    found = [json.loads(line) for line in lines if line.startswith('{"partial"')]
    gaps = []
    for one in found:
        mine = ours[one["partial"]].losses[one["epoch"] - 1]
        gaps.append(abs(one["train/loss"] - mine) / max(abs(mine), 1e-3))
    if not gaps:
        raise BenchmarkError(f"{who} reported nothing")
    if max(gaps) > LOSS_LARGEST:
        raise BenchmarkError(f"{who} did not learn what ours did: losses differ by {max(gaps):.2g}")
    return (
        f"{len(gaps)} models compared when the time limit was reached: training loss differs by at "
        f"most {100 * max(gaps):.2g} %"
    )


def read_results(lines: Iterable[str]) -> dict[str, Result]:
    """A peer's results: one line of JSON per model, {"key": …, "train/loss": …, …}."""
    found = {}
    for line in lines:
        if line.startswith('{"key"'):
            one = json.loads(line)
            found[one["key"]] = Result(
                float(one["train/loss"]), float(one["val/error"]), float(one["test/error"])
            )
    return found


# ---------------------------------------------------------------- in a process of its own


def _models_of(study: Path) -> dict[str, Any]:
    """Every model of the grids; or the space of a search, and a configuration of it without its
    values.
    """
    from modmix.api import make_plan

    plan = make_plan(study)
    models: dict[str, Any] = {}
    found: dict[str, Any] = {
        "task": {"name": plan.task.name, "options": dict(plan.task.options)},
    }
    for part in plan.parts:
        for method, domains in part.domains.items():
            if part.search is not None:
                found["space"] = {n: [d.low, d.high, d.log] for n, d in domains.items()}  # type: ignore[union-attr]
            assignments = [{}] if part.search is not None else part.assignments(method)
            for assignment in assignments:
                for replicate in plan.configuration(method, assignment).replicates:
                    models.setdefault(replicate.key, asdict(replicate))
    return {**found, "models": list(models.values())}


def _main(arguments: Sequence[str]) -> None:
    study, target = map(Path, arguments)
    found = _models_of(study)
    # Any first part of them is a fair sample.
    random.Random(0).shuffle(found["models"])
    target.write_text(json.dumps(found))
    print(len(found["models"]))


if __name__ == "__main__":
    import sys

    _main(sys.argv[1:])
