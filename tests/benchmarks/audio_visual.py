"""Seconds and memory of ResNet-18 pairs at the size of CREMA-D, and what a full study would take.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.audio_visual [--seconds 60]

A model is two ResNet-18 with 512 features: spectrograms of 3 s (257×299) and three frames of
224×224, batch 16, SGD with momentum, as in the code of DI-MML. Each row is a process of its own
with one thread, so that peak memory is its own: models are trained by the trainer itself, on random
data (a step costs the same), one after another, as the trainer decides on a CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from modmix.base.messages import Pack, Replicate, TaskRef
from modmix.base.settings import TRAINING
from modmix.methods.table import METHODS
from modmix.tasks.data import Data, Input, Split
from modmix.training.trainer import train_pack

ROWS, BATCH = 48, 16
TRAIN_ROWS = 6_698  # of CREMA-D's list
EPOCHS, HEAD_EPOCHS = 150, 20
CASES = (("concat", 1), ("dimml", 1), ("dimml", 2), ("ogm_ge", 1))

AUDIO = Input(name="audio", shape=(257, 299, 1), kind="image", dtype="float16")
FRAMES = Input(
    name="video",
    shape=(3, 224, 224, 3),
    kind="video",
    dtype="uint8",
    mean=np.full(3, 120, dtype=np.float32),
    scale=np.full(3, 60, dtype=np.float32),
)


def make_data() -> Data:
    generator = np.random.default_rng(0)

    def split(rows: int) -> Split:
        return Split(
            inputs={
                "audio": generator.normal(size=(rows, *AUDIO.shape)).astype(np.float16),
                "video": generator.integers(0, 256, (rows, *FRAMES.shape), dtype=np.uint8),
            },
            labels=np.arange(rows, dtype=np.int64) % 6,
        )

    return Data(
        name="random",
        inputs={"audio": AUDIO, "video": FRAMES},
        classes=6,
        class_names=tuple("abcdef"),
        train=split(ROWS),
        val=split(BATCH),
        test=split(BATCH),
        fingerprint="random",
    )


def make_pack(method: str, models: int) -> Pack:
    params = {h.name: h.default for h in METHODS[method].hyperparameters}
    if method == "dimml":
        params |= {"warmup": 1, "head_epochs": 2}
    settings = {name: h.default for name, h in TRAINING.items()}
    settings |= {"batch_size": BATCH, "optimizer": "sgd", "learning_rate": 0.001, "epochs": 1000}
    replicates = tuple(
        Replicate(
            key=f"{seed}",
            configuration="one",
            seed=seed,
            method=method,
            params=params,
            training={**settings, "weight_decay": 0.0001},
            encoders={name: {"name": "resnet18", "width": 64} for name in ("audio", "video")},
            structure="one",
        )
        for seed in range(models)
    )
    task = TaskRef(name="random", options={}, fingerprint="random")
    return Pack(id="pack", study="bench", task=task, replicates=replicates)


@contextmanager
def watched(laps: list[tuple[int, float]]) -> Iterator[None]:
    """Note the steps and seconds of every group's part of an epoch."""
    from modmix.training.group import Group

    original = Group.train

    def train(group: Group, examples: Any, order: Any, start: int, stop: int) -> None:
        begun = time.perf_counter()
        original(group, examples, order, start, stop)
        laps.append((stop - start, time.perf_counter() - begun))

    Group.train = train  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Group.train = original  # type: ignore[method-assign]


def measure(method: str, models: int, seconds: float) -> dict[str, Any]:
    data, laps = make_data(), list[tuple[int, float]]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.perf_counter() + seconds
    with watched(laps):
        for _ in train_pack(make_pack(method, models), data, threads=1):
            if time.perf_counter() > end and len(laps) >= 3 * models:
                break
    steady = laps[models:]  # without the first epoch
    each = sum(spent for _, spent in steady) / sum(steps for steps, _ in steady)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": each, "gigabytes": (peak - before) / 1024**2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each row")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        torch.set_num_threads(1)
        found = measure(given.case[0], int(given.case[1]), given.seconds)
        print(json.dumps(found))
        return
    print("| method | models | s a step and model | GB beside the data | epoch of CREMA-D, h |")
    print("|---|---:|---:|---:|---:|")
    for method, models in CASES:
        command = [sys.executable, "-m", "tests.benchmarks.audio_visual"]
        command += ["--seconds", str(given.seconds), "--case", method, str(models)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(told)
        hours = found["seconds"] * (TRAIN_ROWS // BATCH) / 3600
        cells = [method, str(models), f"{found['seconds']:.2f}", f"{found['gigabytes']:.2f}"]
        print("| " + " | ".join([*cells, f"{hours:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
