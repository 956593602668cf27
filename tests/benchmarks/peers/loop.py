"""A bare PyTorch loop: one model after another, one process per core, nothing logged.

python -m tests.benchmarks.peers.loop MODELS.json [--processes 2] [--optimizer fused]
python -m tests.benchmarks.peers.loop MODELS.json --choose     which optimizer is fastest here
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.peers.plain import IMPLEMENTATIONS, Examples, read, train

_examples: Examples  # set before the processes fork, so that all share it


def _train(job: tuple[dict[str, Any], str]) -> str:
    torch.set_num_threads(1)
    spec, implementation = job
    found = train(spec, _examples, implementation=implementation)
    return json.dumps({"key": spec["key"], **found})


def choose(models: list[dict[str, Any]]) -> str:
    """The implementation of the optimizer that is fastest for a model of each method."""
    torch.set_num_threads(1)
    firsts = list({model["method"]: model for model in models}.values())
    for model in firsts:
        model["training"]["epochs"] = min(4, model["training"]["epochs"])
    seconds = dict.fromkeys(IMPLEMENTATIONS, math.inf)
    for _ in range(4):  # processor time, the least of several: others may be at work
        for name in IMPLEMENTATIONS:
            begun = time.process_time()
            for model in firsts:
                train(model, _examples, implementation=name)
            seconds[name] = min(seconds[name], time.process_time() - begun)
    return min(seconds, key=lambda name: seconds[name])


def main() -> None:
    global _examples
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--optimizer", default="fused", choices=list(IMPLEMENTATIONS))
    parser.add_argument("--choose", action="store_true")
    given = parser.parse_args()
    models, _examples, _ = read(given.models)
    if given.choose:
        print(choose(models))
        return
    # Forked after torch and the data are there, so that both are loaded once.
    with multiprocessing.get_context("fork").Pool(given.processes) as pool:
        jobs = [(model, given.optimizer) for model in models]
        for line in pool.imap_unordered(_train, jobs):
            print(line)


if __name__ == "__main__":
    main()
