"""Invented studies: their text, the function that a search minimises, and training that sleeps.

What a worker does is in its node's environment:

    MODMIX_BENCH_SECONDS  how long a pack takes on average (0.5 to 1.5 times that)
    MODMIX_BENCH_DOES     "no data" fails before it trains, "breaks" fails while it trains
    MODMIX_BENCH_NODE     name of the node in the trace
    MODMIX_BENCH_TRACE    file of the trace
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Generator
from typing import Any

from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress, Replicate
from tests.benchmarks.simulated.trace import note

EPOCHS = 2
METRICS = [f"{split}/{name}" for split in ("val", "test") for name in ("error", "nll", "ece")]
METRICS += [f"{split}/{name}" for split in ("val", "test") for name in ("auc", "f1")]

_STUDY = """\
study: {name}
task: {{name: weak, inputs: 2, train_rows: 40, val_rows: 20, test_rows: 20, dim: 4}}
seeds: 1
training: {{epochs: 2, batch_size: 20, stack: never}}
resources: {{max_models: 1, {resources}}}
parts:
"""
_SEARCH = """\
  search:
    search: {{configurations: {configurations}, seed: {seed}, {how}}}
    methods:
      mul:
        beta: {{low: 0, high: 1}}
        learning_rate: {{low: 0.0001, high: 1, log: true}}
        weight_decay: {{low: 0.000001, high: 0.1, log: true}}
"""
_GRID = """\
  curve:
    x: beta
    methods: {{mul: {{beta: {{grid: {betas}}}}}}}
"""


def search_text(name: str, configurations: int, how: str, *, seed: int = 0) -> str:
    """A TPE search over three hyperparameters, a pack per model."""
    text = _SEARCH.format(configurations=configurations, seed=seed, how=how)
    return _STUDY.format(name=name, resources="cpus: 1") + text


def grid_text(name: str, models: int, *, resources: str = "cpus: 1") -> str:
    """So many models that differ in β, a pack each."""
    betas = [round(i / models, 6) for i in range(models)]
    return _STUDY.format(name=name, resources=resources) + _GRID.format(betas=betas)


def bowl(replicate: Replicate) -> float:
    """0 at β = 0.3, learning rate 0.01, weight decay 0.0001; the last matters least."""
    training = replicate.training
    beta = replicate.params["beta"] - 0.3
    rate = math.log10(training["learning_rate"]) + 2
    decay = math.log10(max(1e-6, training["weight_decay"])) + 4
    return float((4 * beta) ** 2 + rate**2 + (decay / 3) ** 2)


def train(pack: Pack, **_: Any) -> Generator[Event, None, None]:
    """Stands where `modmix.execution.local.train` stands; fails as the node is meant to."""
    note("begins", pack)
    if os.environ.get("MODMIX_BENCH_DOES") == "no data":
        note("failed", pack)
        raise OSError("no data on this node")
    return _events(pack)


def _events(pack: Pack) -> Generator[Event, None, None]:
    keys = [replicate.key for replicate in pack.replicates]
    seconds = float(os.environ.get("MODMIX_BENCH_SECONDS", "0"))
    seconds *= random.Random(pack.id).uniform(0.5, 1.5)
    yield PackStarted(pack=pack.id, models=len(keys), device="cpu", stacked=False, why="invented")
    values = {r.key: dict.fromkeys(METRICS, bowl(r)) for r in pack.replicates}
    for epoch in range(1, EPOCHS + 1):
        time.sleep(seconds / EPOCHS)
        if os.environ.get("MODMIX_BENCH_DOES") == "breaks":
            note("failed", pack)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield Progress(
            pack=pack.id,
            epoch=epoch,
            epochs=EPOCHS,
            active=len(keys) if epoch < EPOCHS else 0,
            metrics=values,
        )
    note("ends", pack)
    for key in keys:
        history = {name: [value] * EPOCHS for name, value in values[key].items()}
        yield Finished(
            pack=pack.id,
            replicate=key,
            state="done",
            epochs=EPOCHS,
            best_epoch=float(EPOCHS),
            metrics=values[key],
            history={"epoch": [float(epoch + 1) for epoch in range(EPOCHS)], **history},
            seconds=seconds / len(keys),
        )
