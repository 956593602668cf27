"""Models per minute of a finished fair comparison, against the bare loop on the same models.

    MODMIX_TEST_DATA=FOLDER python -m tests.benchmarks.fair_comparison HOME

HOME is the results folder of `modmix run studies/fair_comparison/fair_comparison.yaml`. The loop
(`peers/plain.py`) trains the first model of every method and data set, one process per core, and
its rate is taken for all of them. Methods with several stages, turns, passes or changed gradients
are left out on both sides: the loop cannot train them.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from modmix.base.home import Home
from modmix.base.messages import Pack, Replicate
from modmix.ledger.ledger import Ledger
from modmix.methods.base import Method
from modmix.methods.model import build_model, model_spec
from modmix.tasks.base import load_task
from modmix.tasks.data import Data
from tests.benchmarks.harness import cpu_count
from tests.benchmarks.instant import packs_of
from tests.benchmarks.peers.plain import Examples, train

STUDY = Path("studies/fair_comparison/fair_comparison.yaml")
_examples: dict[str, Examples] = {}  # by fingerprint; filled before the processes fork


def normalised(data: Data) -> Examples:
    """A task's examples as the models see them."""
    examples = Examples(data)
    for part in (examples.train, examples.val, examples.test):
        for name, given in data.inputs.items():
            x = part.inputs[name].float()
            if given.mean is not None and data.inputs[name].dtype == "uint8":
                assert given.scale is not None
                x = (x - torch.tensor(given.mean)) / torch.tensor(given.scale)
            part.inputs[name] = x
    return examples


def is_plain(replicate: Replicate, data: Data) -> bool:
    """Whether one loss, in one stage, is all of a method's training."""
    method = build_model(model_spec(replicate, data), 0).method
    kind = type(method)
    hooks = (kind.modulate, kind.passes, kind.remember)
    base = (Method.modulate, Method.passes, Method.remember)
    stages = method.stages()
    return hooks == base and len(stages) == 1 and not stages[0].turns


def firsts(packs: list[Pack]) -> dict[tuple[str, str], tuple[Pack, Replicate]]:
    """The first model of every data set and method."""
    found: dict[tuple[str, str], tuple[Pack, Replicate]] = {}
    for pack in packs:
        for replicate in pack.replicates:
            found.setdefault((pack.task.fingerprint, replicate.method), (pack, replicate))
    return found


def loop(job: tuple[str, dict[str, Any]]) -> float:
    """Seconds of one model in the bare loop."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    train(job[1], _examples[job[0]])
    return time.perf_counter() - begun


def ours(home: Path, tasks: Mapping[str, str]) -> dict[tuple[str, str], list[float]]:
    """Device seconds of every model, by fingerprint and method."""
    found: dict[tuple[str, str], list[float]] = {}
    with closing(Ledger(Home(home).ledger_url)) as ledger:
        for task, fingerprint in tasks.items():
            configurations = {
                c.key: c.method for c in ledger.configurations("fair_comparison") if c.task == task
            }
            for record in ledger.replicates("fair_comparison", configurations=[*configurations]):
                key = fingerprint, configurations[record.configuration]
                found.setdefault(key, []).append(record.seconds)
    return found


def main() -> None:
    home = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        chosen = firsts(packs_of(STUDY, Path(folder), cpu_count()))
    jobs: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for (fingerprint, method), (pack, replicate) in chosen.items():
        data = load_task(pack.task.name, pack.task.options)
        if fingerprint not in _examples:
            _examples[fingerprint] = normalised(data)
        if is_plain(replicate, data):
            training = {**replicate.training, "schedule": "constant"}
            jobs[fingerprint, method] = (
                fingerprint,
                {
                    "method": method,
                    "params": replicate.params,
                    "encoders": replicate.encoders,
                    "seed": replicate.seed,
                    "training": training,
                },
            )
    with multiprocessing.get_context("fork").Pool(cpu_count()) as pool:
        seconds = dict(zip(jobs, pool.map(loop, list(jobs.values()), chunksize=1)))
    with closing(Ledger(Home(home).ledger_url)) as ledger:
        tasks = {c.task: c.fingerprint for c in ledger.configurations("fair_comparison")}
    mine = ours(home, tasks)
    methods = sorted({method for _, method in jobs})
    counted = {key: mine[key] for key in jobs if key in mine}
    models = sum(len(each) for each in counted.values())
    spent = sum(sum(each) for each in counted.values()) / cpu_count()
    in_loop = sum(len(each) * seconds[key] for key, each in counted.items()) / cpu_count()
    print(f"methods compared: {len(methods)}: {', '.join(methods)}")
    print(f"models: {models} of {sum(len(each) for each in mine.values())}")
    rates = models / spent * 60, models / in_loop * 60
    print(f"study: {rates[0]:.0f} models/min in training, the loop {rates[1]:.0f}")
    for fingerprint in _examples:
        keys = [key for key in counted if key[0] == fingerprint]
        a = sum(sum(counted[key]) for key in keys)
        b = sum(len(counted[key]) * seconds[key] for key in keys)
        name = next(task for task, one in tasks.items() if one == fingerprint)
        print(f"  {name}: the loop takes {b / a:.2f} times as long")


if __name__ == "__main__":
    main()
