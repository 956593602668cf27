"""A cluster that invents its results: so many slots, a clock of its own, a function to minimise."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modmix import api
from modmix.base.home import Home
from modmix.base.messages import Finished, Pack, Replicate
from modmix.execution.run import StudyRun
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry

Value = Callable[[Replicate], float]


@dataclass
class Outcome:
    """What a study did on the cluster."""

    values: list[float] = field(default_factory=list)  # in the order of arrival
    seconds: float = 0.0  # of the cluster's clock
    in_flight: list[int] = field(default_factory=list)  # configurations not told, at every arrival
    entries: list[Entry] = field(default_factory=list)
    status: Any = None


def simulate(
    text: str,
    folder: Path,
    value: Value,
    *,
    slots: int,
    seed: int = 0,
    seconds: Callable[[Replicate], float] = lambda _: 60.0,
    stop_after: int | None = None,
    change: Callable[[Finished, Replicate], Finished] = lambda event, _: event,
) -> Outcome:
    """Run a study file with invented results; a model takes half to one and a half ``seconds``.

    Args:
        value: a model's ``val/error``.
        change: makes another result of a finished model.
        stop_after: packs after which the driver dies; the same call goes on.
    """
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "study.yaml"
    path.write_text(text)
    plan, home = api.make_plan(path), Home(folder / "runs")
    home.make()
    ledger, outcome, drawn = Ledger(home.ledger_url), Outcome(), random.Random(seed)
    file: Mapping[str, Any] = {
        "spec": plan.spec.model_dump(mode="json"),
        "text": text,
        "source": str(path),
        "details": plan.details(),
    }
    ledger.start_study(plan.name, **file)
    lease = ledger.acquire(plan.name)
    work = StudyRun(plan, ledger, lease, home, slots=slots)
    work.prepare()
    running: list[tuple[float, int, Pack]] = []
    numbers = itertools.count()
    while not work.finished and stop_after != 0:
        while len(running) < slots and (pack := work.next_pack()) is not None:
            took = sum(seconds(r) for r in pack.replicates) * drawn.uniform(0.5, 1.5)
            heapq.heappush(running, (outcome.seconds + took, next(numbers), pack))
        if not running:  # all that was proposed had results
            continue
        states = [entry.state for entry in ledger.entries(plan.name) if entry.proposal]
        outcome.in_flight.append(states.count("pending"))
        outcome.seconds, _, pack = heapq.heappop(running)
        outcome.values += [value(r) for r in pack.replicates]
        events = [change(result_of(pack, r, value(r), seconds(r)), r) for r in pack.replicates]
        work.record(events)
        work.ended(pack.id)
        stop_after = None if stop_after is None else stop_after - 1
    outcome.entries, outcome.status = ledger.entries(plan.name), work.status()
    work.release_packs()
    ledger.release(lease)
    ledger.close()
    return outcome


def result_of(pack: Pack, replicate: Replicate, value: float, seconds: float) -> Finished:
    """The event of a model that is done, with this value of every metric."""
    metrics = {f"val/{name}": value for name in ("error", "nll", "ece", "auc", "f1")}
    metrics |= {f"test/{name}": value for name in ("error", "nll", "ece", "auc", "f1")}
    return Finished(
        pack=pack.id,
        replicate=replicate.key,
        state="done",
        epochs=2,
        best_epoch=2.0,
        metrics=metrics,
        history={"epoch": [1.0, 2.0], **{name: [v, v] for name, v in metrics.items()}},
        seconds=seconds,
    )
