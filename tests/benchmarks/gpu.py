"""The training core alone on a GPU: stacked packs against models one by one and side by side.

    python tests/benchmarks/gpu.py [--device cuda] [--quick] [--minutes 20]

Needs torch and numpy, nothing else, and this checkout: no Ray, MLflow, Optuna or ledger takes part.
Prints tables in Markdown, and last a line of JSON. `make gpu-check` runs it after its checks, and
`make bench ONLY=gpu` where torch sees a GPU.
"""

# ruff: noqa: E402 - the path comes before anything of modmix is imported

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    # Before anything of modmix; and without this folder, whose file names are nobody's modules.
    sys.path[:1] = [str(ROOT / "platform"), str(ROOT)]

import torch

from modmix.base.messages import Finished, PackStarted, Progress
from modmix.tasks.data import Data
from modmix.training.trainer import train_pack
from tests.benchmarks.gpu_works import Work, make_data, make_pack, works

if TYPE_CHECKING:
    from tests.benchmarks.harness import Options
    from tests.benchmarks.report import Section, Table

STACKED = "stacked"
IN_TURN = "one after another"
PROCESSES = (2, 4, 8)
RECORDED = "float32, recorded"
# Ways of training a stacked pack: all sizes by recorded steps, the largest by the others too.
SETTINGS: dict[str, dict[str, Any]] = {
    RECORDED: {"cuda_graphs": "always"},
    "float32": {"cuda_graphs": "never"},
    "tf32, recorded": {"precision": "tf32", "cuda_graphs": "always"},
    "bf16, recorded": {"precision": "bf16", "cuda_graphs": "always"},
    "float32, compiled, recorded": {"compile": True, "cuda_graphs": "always"},
}


@dataclass(frozen=True)
class Rate:
    """How fast models were trained; ``note`` is why there is no number, or what was chosen.

    ``seconds`` are those of one step of one model, evaluations in between included, set-up and the
    first epoch left out.
    """

    work: str
    how: str
    models: int
    seconds: float | None = None
    memory: int = 0  # bytes at most on the device, of this process
    note: str = ""


class Measuring:
    """Measures every way of training some work until the time is over."""

    def __init__(
        self,
        device: str,
        *,
        quick: bool = False,
        seconds: float = 1e9,
        names: str = "",
        say: Callable[[str], None] = print,
    ) -> None:
        self.device, self.quick, self.names, self.say = device, quick, names, say
        self._end = time.monotonic() + seconds
        self.rates: list[Rate] = []

    def run(self) -> list[Rate]:
        """All works, or those with ``names`` in theirs; each has its share of the time left."""
        waiting = [work for work in works(quick=self.quick) if self.names in work.name]
        while waiting:
            work = waiting.pop(0)
            now = time.monotonic()
            self._until = now + (self._end - now) / (len(waiting) + 1)
            self._measure(work)
        return self.rates

    def _measure(self, work: Work) -> None:
        data = make_data(work, rows=(128, 64) if self.quick else None)
        settings: dict[str, Any] = {"epochs": 2} if self.quick else {}
        sizes = work.sizes[:1] if self.quick else work.sizes
        alone = 1 if self.quick else 2
        for words, graphs in (("", "never"), (", recorded", "always")):
            how = {"stack": "never", "cuda_graphs": graphs, **settings}
            self._note(
                work, IN_TURN + words, alone, lambda h=how: self._train(work, data, alone, **h)
            )
        for size in sizes:
            self._stacked(work, data, size, RECORDED, settings)
        self._stacked(work, data, sizes[-1], "as modmix chooses", settings)
        for name in () if self.quick else list(SETTINGS)[1:4]:
            self._stacked(work, data, sizes[-1], name, settings)
        for processes in () if self.quick else PROCESSES:
            self._side_by_side(work, processes)
        for name in () if self.quick else list(SETTINGS)[4:]:
            self._stacked(work, data, sizes[-1], name, settings)

    def _stacked(
        self, work: Work, data: Data, models: int, name: str, settings: Mapping[str, Any]
    ) -> None:
        how = {"stack": "always", **SETTINGS[name]} if name in SETTINGS else {}

        def once() -> tuple[float, str]:
            seconds, why = self._train(work, data, models, **{**settings, **how})
            return seconds, "" if why == "stack: always" else why

        self._note(work, f"{STACKED}, {name}" if how else name, models, once)

    def _side_by_side(self, work: Work, processes: int) -> None:
        def plain() -> tuple[float, str]:
            return side_by_side(work, self.device, processes, {}), ""

        def served() -> tuple[float, str]:
            with own_mps() as environment:
                return side_by_side(work, self.device, processes, environment), ""

        self._note(work, f"{processes} processes", processes, plain)
        if self.device == "cuda" and shutil.which("nvidia-cuda-mps-control"):
            self._note(work, f"{processes} processes with MPS", processes, served)

    def _train(self, work: Work, data: Data, models: int, **settings: Any) -> tuple[float, str]:
        return train(work, data, self.device, models, **settings)

    def _note(
        self, work: Work, how: str, models: int, measure: Callable[[], tuple[float, str]]
    ) -> None:
        """Measure, unless the time is over; what goes wrong is a note in the table."""
        if time.monotonic() > self._until:
            self.rates.append(Rate(work.name, how, models, note="not measured: no time left"))
            return
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds, note = measure()
            memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
            self.rates.append(Rate(work.name, how, models, seconds, memory, note))
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            self.rates.append(Rate(work.name, how, models, note=f"{type(error).__name__}: {text}"))
        one = self.rates[-1]
        rate = "no number" if one.seconds is None else f"{1e3 * one.seconds:.3f} ms a step"
        self.say(f"{work.name}: {how}, {models} models: {rate} {one.note}".rstrip())


def train(work: Work, data: Data, device: str, models: int, **settings: Any) -> tuple[float, str]:
    """Train so many models as one pack; seconds a step of one model, and the way chosen.

    The time is that from the first epoch's evaluation to the last one's.

    Raises:
        RuntimeError: a model failed.
    """
    pack, why = make_pack(work, models, **settings), ""
    times: list[float] = []  # of evaluations, which read their numbers back from the device
    for event in train_pack(pack, data, device=device):
        if isinstance(event, PackStarted):
            why = event.why
        elif isinstance(event, Progress):
            times.append(time.perf_counter())
        elif isinstance(event, Finished) and event.state == "failed" and not _diverged(event):
            raise RuntimeError(event.reason)
    batch = pack.replicates[0].training["batch_size"]
    steps = (len(times) - 1) * max(1, len(data.train.labels) // batch)
    return (times[-1] - times[0]) / (steps * models), why


def _diverged(end: Finished) -> bool:
    return "diverged" in end.reason  # with random data that may be, and its steps take as long


def side_by_side(work: Work, device: str, processes: int, environment: Mapping[str, str]) -> float:
    """Seconds a step of one model where processes train one each on the one device, at once."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--device", device, "--worker", work.name]
        workers = [
            subprocess.Popen(
                [*words, "--folder", folder, "--number", str(i)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
            for i in range(processes)
        ]
        try:
            while len(list(Path(folder).glob("ready-*"))) < processes:
                if any(worker.poll() is not None for worker in workers):
                    raise RuntimeError("a worker ended before it was ready")
                time.sleep(0.02)
            (Path(folder) / "go").touch()
            seconds = [float(worker.communicate()[0].split()[-1]) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    return 1 / sum(1 / one for one in seconds)


@contextmanager
def own_mps() -> Iterator[dict[str, str]]:
    """NVIDIA's server that lets processes use a device at the same time, for these ones alone."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        command, whole = ["nvidia-cuda-mps-control"], {**os.environ, **environment}
        subprocess.run([*command, "-d"], env=whole, check=True, capture_output=True)
        try:
            yield environment
        finally:
            subprocess.run(command, env=whole, input=b"quit\n", check=False, capture_output=True)


def work_as_told(given: argparse.Namespace) -> None:
    """One of the processes: warm up, wait for the others, train."""
    work = next(work for work in works() if work.name == given.worker)
    data, folder = make_data(work), Path(given.folder)
    train(work, data, given.device, 1, epochs=2)
    (folder / f"ready-{given.number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    print(train(work, data, given.device, 1, cuda_graphs="never")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few and small packs")
    parser.add_argument("--minutes", type=float, default=20.0, help="about how long")
    parser.add_argument("--names", default="", help="only the models with this in their names")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no GPU here: give --device cpu to try the script")
    torch.set_num_threads(1)
    if given.worker:
        work_as_told(given)
        return
    measuring = Measuring(
        given.device,
        quick=given.quick,
        seconds=60 * given.minutes,
        names=given.names,
        say=_say,
    )
    found = measuring.run()
    print(markdown(found))
    name = torch.cuda.get_device_name(0) if given.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "rates": [asdict(rate) for rate in found]}))


def _say(text: str) -> None:
    print(text, flush=True)


# ---------------------------------------------------------------- tables

COLUMNS = ("how", "models", "ms a step and model", "over the best unstacked", "device MB", "note")


def rows_of(rates: Sequence[Rate]) -> dict[str, list[list[str]]]:
    """By work, the rows of a table with `COLUMNS`."""
    found: dict[str, list[list[str]]] = {}
    for work in dict.fromkeys(rate.work for rate in rates):
        mine = [rate for rate in rates if rate.work == work]
        others = [
            rate.seconds
            for rate in mine
            if rate.seconds and not rate.how.startswith((STACKED, "as modmix"))
        ]
        best = min(others, default=None)
        found[work] = [_row(rate, best) for rate in mine]
    return found


def _row(rate: Rate, best: float | None) -> list[str]:
    if rate.seconds is None:
        return [rate.how, str(rate.models), "", "", "", rate.note]
    ratio = "" if best is None else f"{best / rate.seconds:.2f}"
    memory = f"{rate.memory / 1e6:,.0f}" if rate.memory else ""
    return [rate.how, str(rate.models), f"{1e3 * rate.seconds:.3g}", ratio, memory, rate.note]


def markdown(rates: Sequence[Rate]) -> str:
    """A table per work."""
    lines: list[str] = []
    for work, rows in rows_of(rates).items():
        lines += [f"### {work}", "", table(COLUMNS, rows), ""]
    return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
    from tests.benchmarks.report import Section, Table

    rates = [Rate(**rate) for rate in told["rates"]]
    tables: list[Table] = [
        Table(work, list(COLUMNS), rows) for work, rows in rows_of(rates).items()
    ]
    text = (
        f"The training core alone on {told['device']}: data in memory, no Ray, ledger or MLflow. "
        "Times are those of a step, evaluations after each epoch included, set-up and the first "
        "epoch left out. Unstacked models are trained by the same code, one after another in one "
        "process or one in each of several processes that share the device: a bare loop takes less."
    )
    return Section(name="gpu", title=title, text=text, tables=tables)


if __name__ == "__main__":
    main()
