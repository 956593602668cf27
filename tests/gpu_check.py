"""`make gpu-check`: is what a GPU trains what a processor trains, and how fast?

    python -m tests.gpu_check [--cpu] [--only checks|rates] [--minutes 8] [--out FOLDER]

Needs torch, numpy and this checkout (safetensors, where it is there, for the check of resuming).
Checks train small packs on the GPU in every way there is and hold their learning curves against the
processor's; then `tests/benchmarks/gpu.py` measures. Prints tables in Markdown and writes them with
all numbers to the folder. Without a GPU, or with --cpu, it says so and runs on the processor with
the branches of a GPU switched on, which shows that this program works. Ends with 1 where a check
fails.
"""

# ruff: noqa: E402 - the path comes before anything of modmix is imported

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: the same sums every time

import torch

import gpucases
from modmix.base.messages import Finished, PackStarted, Replicate
from modmix.methods.table import METHODS
from modmix.tasks.data import Data
from modmix.training import batches, graphs
from modmix.training.group import Group
from modmix.training.stack import Stack
from modmix.training.trainer import train_pack
from tests.benchmarks.gpu import Measuring, markdown, table
from toypack import finished, make_pack, progress

# Largest distances of learning curves from the processor's, relative to their size, after 50 steps.
# Sums are taken in another order, and what that changes grows from step to step.
NEAR = 1e-3
CONVOLUTIONS = 2e-2
SHORT = 1e-1  # bf16, tf32
SAME = 1e-6  # of two ways on one device

GRAPHS: dict[str, Any] = {"cuda_graphs": "always"}
PLAIN: dict[str, Any] = {"cuda_graphs": "never"}


class NotHere(Exception):
    """What a check needs is missing; the text says what."""


@dataclass(frozen=True)
class Result:
    """Of one check: a distance and what it must stay under, where it has one."""

    name: str
    state: str  # ok, FAILED, not run
    distance: float | None
    limit: float | None
    seconds: float
    note: str = ""


class Checks:
    """Each public method is a check; it returns a distance and its limit, or raises."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.gpu = device == "cuda"
        self.why = ""  # of the way in which the last pack was trained
        self._known: dict[str, dict[str, Finished]] = {}

    def named(self) -> Iterator[tuple[str, Callable[[], tuple[float, float] | None]]]:
        """All checks in order."""
        for method in METHODS:
            yield f"{method}: plain steps", lambda m=method: self.method(m, **PLAIN)
            yield f"{method}: recorded steps", lambda m=method: self.method(m, **GRAPHS)
        for recipe in ("sgd", "adamw"):
            yield f"{recipe}: recorded steps", lambda r=recipe: self.method("mul", r, **GRAPHS)
        yield "one after another", lambda: self.method("mul", stack="never", **PLAIN)
        yield "one after another, recorded", lambda: self.method("mul", stack="never", **GRAPHS)
        yield "data streamed by threads", self.streamed
        yield "tf32", lambda: self.method("mul", precision="tf32", limit=SHORT, **GRAPHS)
        yield "bf16", lambda: self.method("mul", precision="bf16", limit=SHORT, **GRAPHS)
        yield "compiled", lambda: self.compiled(**PLAIN)
        yield "compiled and recorded", lambda: self.compiled(**GRAPHS)
        yield "augmentation, dropout, halving", self.many_ends
        yield "recorded equals not recorded", self.recorded_equals_plain
        yield "resumed equals undisturbed", self.resumed
        for encoder in gpucases.TOKEN_ENCODERS:
            yield encoder, lambda e=encoder: self.tokens(e)
        yield "resnet", self.convolutions
        yield "nothing waits inside a step", self.nothing_waits
        yield "a step that cannot be recorded", self.reads_back
        yield "too little memory", self.too_little_memory
        yield "memory is given back", self.memory_is_given_back

    # ------------------------------------------------------------ against the processor

    def method(
        self, method: str, recipe: str = "adam", *, limit: float = NEAR, **how: Any
    ) -> tuple[float, float]:
        expected = self._on_processor(
            f"{method} {recipe}", gpucases.every_setting(method, recipe), gpucases.VECTORS
        )
        found = self._train(gpucases.every_setting(method, recipe, **how), gpucases.VECTORS)
        return gpucases.differences(found, expected), limit

    def compiled(self, **how: Any) -> tuple[float, float]:
        if not self.gpu:
            raise NotHere("compiling takes long on a processor")
        return self.method("mul", compile=True, **how)

    def streamed(self) -> tuple[float, float]:
        with self._too_large_for_the_device():
            return self.many_ends(**PLAIN)

    def many_ends(self, **how: Any) -> tuple[float, float]:
        data = gpucases.images()
        # Without ends that hang on the last digit of an error.
        even: dict[str, Any] = {"halving": None, "patience": None, "epochs": 3}
        expected = self._on_processor("many ends", gpucases.many_ends(**even), data)
        found = self._train(gpucases.many_ends(**even, **(how or GRAPHS)), data)
        return gpucases.differences(found, expected), NEAR

    def tokens(self, encoder: str) -> tuple[float, float]:
        spec = gpucases.TOKEN_ENCODERS[encoder]
        data = gpucases.texts()
        expected = self._on_processor(encoder, gpucases.on_tokens(spec), data)
        found = self._train(gpucases.on_tokens(spec, **GRAPHS), data)
        return gpucases.differences(found, expected), NEAR

    def convolutions(self) -> tuple[float, float]:
        data = gpucases.images(rows=(24, 12, 12), side=8)
        expected = self._on_processor("resnet", gpucases.on_images(), data)
        found = self._train(gpucases.on_images(stack="always", **GRAPHS), data)
        assert self.why == "stack: always", self.why
        return gpucases.differences(found, expected), CONVOLUTIONS

    # ------------------------------------------------------------ on the device alone

    def recorded_equals_plain(self) -> tuple[float, float]:
        data = gpucases.images()
        one = self._train(gpucases.many_ends(**GRAPHS), data)
        other = self._train(gpucases.many_ends(**PLAIN), data)
        return gpucases.differences(one, other), SAME

    def resumed(self) -> tuple[float, float]:
        if find_spec("safetensors") is None:
            raise NotHere("safetensors is not installed")
        data, replicates = gpucases.images(), gpucases.many_ends(**GRAPHS, epochs=3)
        expected = self._train(replicates, data)
        os.environ["MODMIX_CHECKPOINT_SECONDS"] = "0"
        largest = 0.0
        for evaluations in (1, 4):
            with TemporaryDirectory() as folder:
                pack = make_pack(replicates, checkpoint=folder)
                events, left = train_pack(pack, data, device=self.device), evaluations
                for event in events:
                    left -= len(progress([event]))
                    if left == 0:
                        break
                events.close()
                found = finished(train_pack(pack, data, device=self.device))
            largest = max(largest, gpucases.differences(found, expected))
        del os.environ["MODMIX_CHECKPOINT_SECONDS"]
        return largest, SAME

    def nothing_waits(self) -> None:
        """A step neither reads back nor sends anything that the device is waited for."""
        self._needs_gpu()
        train = Group.train

        def watched(group: Group, *arguments: Any) -> None:
            with graphs._nothing_read_back():
                train(group, *arguments)

        data, how = gpucases.images(), {"halving": None, "patience": None, "epochs": 2}
        Group.train = watched  # type: ignore[method-assign]
        try:
            self._train(gpucases.many_ends(**how, **PLAIN), data)
            self._train(gpucases.many_ends(**how, **PLAIN, stack="never"), data)
            with self._too_large_for_the_device():
                self._train(gpucases.many_ends(**how, **PLAIN), data)
        finally:
            Group.train = train  # type: ignore[method-assign]

    def reads_back(self) -> None:
        """It is trained without recording, and others are recorded afterwards."""
        self._needs_gpu()
        data = gpucases.VECTORS
        ends = self._train(gpucases.reading_back(cuda_graphs="auto"), data)
        assert {end.state for end in ends.values()} == {"done"}
        self.method("mul", **GRAPHS)

    def too_little_memory(self) -> tuple[float, float]:
        """A pack that does not fit is halved, and its results stay."""
        data = gpucases.VECTORS
        units = 4096 if self.gpu else 64
        expected = self._on_processor("wide", gpucases.wide(units), data)
        sizes: list[int] = []
        original = Stack.loss_and_gradient

        def noted(stack: Stack, *arguments: Any) -> Any:
            sizes.append(stack.models)
            if not self.gpu and stack.models > 2:
                raise torch.OutOfMemoryError("simulated")
            return original(stack, *arguments)

        Stack.loss_and_gradient = noted  # type: ignore[method-assign]
        try:
            with self._little_memory():
                found = self._train(gpucases.wide(units, **GRAPHS), data)
        finally:
            Stack.loss_and_gradient = original  # type: ignore[method-assign]
        assert max(sizes) > sizes[-1], f"sizes of groups: {sorted(set(sizes))}"
        return gpucases.differences(found, expected), NEAR

    def memory_is_given_back(self) -> None:
        self._needs_gpu()
        held = []
        for _ in range(3):
            self._train(gpucases.many_ends(**GRAPHS), gpucases.images())
            graphs_and_stacks_go()
            held.append(torch.cuda.memory_allocated())
        assert held[2] <= held[1] + (1 << 20), f"bytes after each of three packs: {held}"

    # ------------------------------------------------------------ how

    def _train(self, replicates: Sequence[Replicate], data: Data) -> dict[str, Finished]:
        events = list(train_pack(make_pack(replicates), data, device=self.device))
        self.why = next(event.why for event in events if isinstance(event, PackStarted))
        return finished(events)

    def _on_processor(
        self, name: str, replicates: Sequence[Replicate], data: Data
    ) -> dict[str, Finished]:
        """Without the switch; trained once."""
        if name not in self._known:
            switch = os.environ.pop("MODMIX_FORCE_GPU_PATHS", None)
            self._known[name] = finished(train_pack(make_pack(replicates), data))
            if switch is not None:
                os.environ["MODMIX_FORCE_GPU_PATHS"] = switch
        return self._known[name]

    def _needs_gpu(self) -> None:
        if not self.gpu:
            raise NotHere("it needs a GPU")

    @contextmanager
    def _too_large_for_the_device(self) -> Iterator[None]:
        before = batches._RESIDENT_SHARE
        batches._RESIDENT_SHARE = 0.0
        try:
            yield
        finally:
            batches._RESIDENT_SHARE = before

    @contextmanager
    def _little_memory(self) -> Iterator[None]:
        """On a GPU, so little that the pack's weights fit and a step of it does not."""
        if not self.gpu:
            yield
            return
        graphs_and_stacks_go()
        total = torch.cuda.get_device_properties(0).total_memory
        allowed = torch.cuda.memory_reserved() + gpucases.WIDE_BYTES
        torch.cuda.set_per_process_memory_fraction(allowed / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def graphs_and_stacks_go() -> None:
    """Collect what holds each other, and give cached memory back."""
    gc.collect()
    torch.cuda.empty_cache()


def run_checks(device: str, until: float) -> list[Result]:
    """All of them, as long as there is time."""
    found: list[Result] = []
    for name, check in Checks(device).named():
        begun = time.monotonic()
        if begun > until:
            found.append(Result(name, "not run", None, None, 0.0, "no time left"))
            continue
        state, distance, limit, note = "ok", None, None, ""
        try:
            measured = check()
            if measured is not None:
                distance, limit = measured
                state = "ok" if distance <= limit else "FAILED"
        except NotHere as reason:
            state, note = "not run", str(reason)
        except Exception as error:
            state, note = "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            traceback.print_exc()
        found.append(Result(name, state, distance, limit, time.monotonic() - begun, note))
        print(f"{state}: {name} {_number(distance)} {note}".rstrip(), flush=True)
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def shown(results: Sequence[Result]) -> str:
    """A table in Markdown."""
    rows = [
        [r.name, r.state, _number(r.distance), _number(r.limit), f"{r.seconds:.1f}", r.note]
        for r in results
    ]
    return table(("check", "", "distance", "allowed", "s", "note"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-check")
    parser.add_argument("--cpu", action="store_true", help="on the processor, small")
    parser.add_argument("--only", choices=("checks", "rates"))
    parser.add_argument("--minutes", type=float, default=8.0, help="about how long")
    parser.add_argument("--out", type=Path, default=ROOT / "modmix_runs")
    given = parser.parse_args()
    gpu = torch.cuda.is_available() and not given.cpu
    end = time.monotonic() + 60 * given.minutes
    if not gpu:
        reason = "as asked" if given.cpu else "torch sees no GPU here"
        print(f"No GPU is used ({reason}): a GPU's branches run on the processor, at small scale.")
        os.environ["MODMIX_FORCE_GPU_PATHS"] = "1"
    gpucases.add_encoders()
    torch.set_num_threads(1)
    results, text = [], []
    name = torch.cuda.get_device_name(0) if gpu else "the processor"
    text.append(f"## gpu-check on {name}, torch {torch.__version__}\n")
    told: dict[str, Any] = {"device": name, "torch": torch.__version__, "checks": [], "rates": []}
    if given.only != "rates":
        with _exact():
            results = run_checks("cuda" if gpu else "cpu", end)
        text += [shown(results), ""]
        told["checks"] = [asdict(result) for result in results]
    if given.only != "checks":
        seconds = max(0.0, end - time.monotonic())
        measuring = Measuring("cuda" if gpu else "cpu", quick=not gpu, seconds=seconds)
        with suppress(KeyboardInterrupt):
            measuring.run()
        text.append(markdown(measuring.rates))
        told["rates"] = [asdict(rate) for rate in measuring.rates]
    print("\n" + "\n".join(text))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu-check.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (given.out / "gpu-check.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    failed = [result.name for result in results if result.state == "FAILED"]
    print(f"failed: {', '.join(failed)}" if failed else "no check failed")
    return 1 if failed else 0


@contextmanager
def _exact() -> Iterator[None]:
    """The same sums every time, where torch has such kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before)


if __name__ == "__main__":
    sys.exit(main())
