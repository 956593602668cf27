"""The training core alone on a GPU: stacked packs against models one by one and side by side.

    python tests/benchmarks/gpu.py [--device cuda] [--quick]

Needs torch and numpy, nothing else, and this checkout: no Ray, MLflow, Optuna or ledger takes part.
Prints a table, and last a line of JSON. `make bench ONLY=gpu` runs it where torch sees a GPU.
"""

# ruff: noqa: E402 - the path comes before anything of modmix is imported

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    # Before anything of modmix; and without this folder, whose file names are nobody's modules.
    sys.path[0] = str(ROOT / "platform")

import numpy as np
import torch

from modmix.base.messages import Pack, Replicate, TaskRef, pack_id
from modmix.base.settings import TRAINING, training_defaults
from modmix.methods.table import METHODS
from modmix.tasks.data import Data, Input, Split
from modmix.training.trainer import train_pack

if TYPE_CHECKING:
    from tests.benchmarks.harness import Options
    from tests.benchmarks.report import Section


@dataclass(frozen=True)
class Work:
    """What one model is: data of these shapes, a method, and settings."""

    name: str
    widths: Mapping[str, int]
    classes: int
    rows: tuple[int, int]  # training; validation and testing
    method: str
    hidden: Mapping[str, Sequence[int]]
    training: Mapping[str, Any]


DIGITS = {"left": 32, "right": 32, "profile": 16, "fourier": 64}
HIDDEN = dict.fromkeys(DIGITS, (64,))
SMALL = {"epochs": 20, "batch_size": 32, "learning_rate": 0.003}
WORKS = (
    Work("digits, mul", DIGITS, 10, (300, 359), "mul", HIDDEN, SMALL),
    Work("digits, mulmix", DIGITS, 10, (300, 359), "mulmix", HIDDEN, SMALL),
    Work(
        "HIGGS, mul 300x4 and 300x2",
        {"low": 21, "high": 7},
        2,
        (18_000, 5_000),
        "mul",
        {"low": [300] * 4, "high": [300] * 2},
        {
            "epochs": 1,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "weight_decay": 2e-5,
            "clip_norm": 10.0,
        },
    ),
)
STACKED = "one stacked pack"
IN_TURN = "one after another"


def make_data(work: Work) -> Data:
    """Gaussian classes in the shapes of the real task."""
    drawn = np.random.default_rng(0)
    means = {name: drawn.normal(size=(work.classes, w)) for name, w in work.widths.items()}

    def split(rows: int) -> Split:
        labels = drawn.integers(0, work.classes, rows)
        labels[: work.classes] = range(work.classes)
        noise = {name: drawn.normal(size=(rows, width)) for name, width in work.widths.items()}
        inputs = {n: (means[n][labels] + 2 * noise[n]).astype(np.float32) for n in work.widths}
        return Split(inputs=inputs, labels=labels.astype(np.int64))

    return Data(
        name="benchmark",
        inputs={n: Input(name=n, shape=(w,)) for n, w in work.widths.items()},
        classes=work.classes,
        class_names=tuple(f"class {i}" for i in range(work.classes)),
        train=split(work.rows[0]),
        val=split(work.rows[1]),
        test=split(work.rows[1]),
        fingerprint="benchmark",
    )


def make_pack(work: Work, models: int, **settings: Any) -> Pack:
    """So many models of β from 0 to 1, five seeds each."""
    declared = {h.name: h.default for h in METHODS[work.method].hyperparameters}
    training = {**training_defaults(), **work.training, "schedule": "constant", **settings}
    replicates = tuple(
        Replicate(
            key=f"{i:032x}",
            configuration=f"{i // 5:032x}",
            seed=i % 5,
            method=work.method,
            params={**declared, "beta": round(i / max(1, models - 1), 4)},
            training=training,
            encoders={n: {"name": "mlp", "hidden": list(h)} for n, h in work.hidden.items()},
            structure="benchmark",
        )
        for i in range(models)
    )
    task = TaskRef(name="benchmark", options={}, fingerprint="benchmark")
    return Pack(id=pack_id(replicates), study="benchmark", task=task, replicates=replicates)


def train(work: Work, data: Data, device: str, models: int, **settings: Any) -> float:
    """Train so many models as one pack; seconds, evaluation and test included."""
    begun = time.perf_counter()
    for _ in train_pack(make_pack(work, models, **settings), data, device=device):
        pass
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def fast_settings() -> list[tuple[str, dict[str, Any]]]:
    """The settings that change where or how fast a pack is trained, as far as there are any."""
    found: list[tuple[str, dict[str, Any]]] = [("float32", {})]
    shorter = [v for v in TRAINING["precision"].choices or () if v != "float32"]
    found += [(str(value), {"precision": value}) for value in shorter]
    for name, setting in TRAINING.items():
        if "compile" in name or "graph" in name:
            values = setting.choices or ((True,) if setting.kind == "bool" else ())
            found += [
                (f"{name}: {v}", {name: v}) for v in values if v not in (setting.default, "auto")
            ]
    return found


# ---------------------------------------------------------------- the competitors


@dataclass(frozen=True)
class Rate:
    work: str
    how: str
    models: int
    per_minute: float
    memory: int  # bytes at most on the device, of this process


def rates(work: Work, device: str, *, quick: bool, say: Callable[[str], None]) -> list[Rate]:
    """Every way of training this work."""
    data = make_data(work)
    sizes: tuple[int, ...] = (4, 16) if quick else (16, 64, 256, 1024)
    if work.name.startswith("HIGGS"):
        sizes = (2,) if quick else (16, 64, 128)
    found: list[Rate] = []

    def note(how: str, models: int, seconds: float) -> None:
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        found.append(Rate(work.name, how, models, 60 * models / seconds, peak))
        say(f"{work.name}: {how}, {models} models: {found[-1].per_minute:,.0f} a minute")
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    single = 1 if quick else 4
    train(work, data, device, 1)  # warm
    note(IN_TURN, single, train(work, data, device, single, stack="never"))
    for processes in (2,) if quick else (2, 4, 8):
        seconds = side_by_side(work, device, processes, single)
        note(f"{processes} processes", processes * single, seconds)
    for words, settings in fast_settings():
        for models in sizes:
            try:
                train(work, data, device, models, **{**settings, "epochs": 1})  # warm, or compile
                seconds = train(work, data, device, models, **settings)
            except Exception as error:
                say(f"{work.name}: {STACKED} of {models}, {words}: {type(error).__name__}: {error}")
                continue
            note(f"{STACKED}, {words}", models, seconds)
    return found


def side_by_side(work: Work, device: str, processes: int, models: int) -> float:
    """Processes that each train their models one after another on the one device, at once."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--device", device, "--worker", work.name]
        workers = [
            subprocess.Popen(
                [*words, "--folder", folder, "--number", str(i), "--models", str(models)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]
        while len(list(Path(folder).glob("ready-*"))) < processes:
            if any(worker.poll() is not None for worker in workers):
                raise RuntimeError("a worker ended before it was ready")
            time.sleep(0.02)
        (Path(folder) / "go").touch()
        begun = time.time()
        ends = [float(worker.communicate()[0].split()[-1]) for worker in workers]
    return max(ends) - begun


def work_as_told(given: argparse.Namespace) -> None:
    """One of the processes: warm up, wait for the others, train."""
    work = next(work for work in WORKS if work.name == given.worker)
    data, folder = make_data(work), Path(given.folder)
    train(work, data, given.device, 1, epochs=1)
    (folder / f"ready-{given.number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    train(work, data, given.device, given.models, stack="never")
    print(time.time())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and small packs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no GPU here: give --device cpu to try the script")
    torch.set_num_threads(1)
    if given.worker:
        work_as_told(given)
        return
    found = []
    for work in WORKS:
        found += rates(work, given.device, quick=given.quick, say=lambda t: print(t, flush=True))
    name = torch.cuda.get_device_name(0) if given.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "rates": [vars(rate) for rate in found]}))


# ---------------------------------------------------------------- as one of the suite


def run(options: Options) -> Section:
    """The section of the report; without a GPU it says so."""
    from tests.benchmarks.harness import PYTHON, command, say
    from tests.benchmarks.report import Section

    title = "On a GPU"
    if not torch.cuda.is_available():
        say("gpu: torch sees no GPU here")
        text = "No GPU was at hand when this was measured, so there are no numbers."
        return Section(name="gpu", title=title, text=text)
    words = [PYTHON, __file__, *(["--quick"] if options.quick else [])]
    done = command(words)
    told = json.loads(done.output.strip().splitlines()[-1])
    return section_of(told, title)


def section_of(told: Mapping[str, Any], title: str) -> Section:
    """The tables of what the script has printed."""
    from tests.benchmarks.report import Section, Table, number

    tables = []
    for work in dict.fromkeys(rate["work"] for rate in told["rates"]):
        mine = [rate for rate in told["rates"] if rate["work"] == work]
        others = [rate["per_minute"] for rate in mine if not rate["how"].startswith(STACKED)]
        rows = [
            [
                rate["how"],
                str(rate["models"]),
                number(rate["per_minute"]),
                number(rate["per_minute"] / max(others), "x"),
                number(rate["memory"] / 1e6),
            ]
            for rate in mine
        ]
        columns = ["how", "models", "models a minute", "over the best unstacked", "device MB"]
        tables.append(Table(work, columns, rows))
    text = (
        f"The training core alone on {told['device']}: data in memory, no Ray, ledger or MLflow. "
        "A pack is trained to its end, evaluations and test included. Unstacked models are trained "
        "one after another in one process, or in several processes that share the device."
    )
    return Section(name="gpu", title=title, text=text, tables=tables)


if __name__ == "__main__":
    main()
