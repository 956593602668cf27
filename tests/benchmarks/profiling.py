"""Profiles `modmix run` on the curve, in all its processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import curve, workload
from tests.benchmarks.harness import MODMIX, Options, command, environment, say, scratch
from tests.benchmarks.report import Section, Table, number

HERE = Path(__file__).parent
TEXT = """\
One `modmix run` of the curve above ({models} models), watched from inside all of its processes a
hundred times a second (tests/benchmarks/sampler). Seconds are wall time of a thread; those of the
workers are sums."""

# The first rule whose words are all in one frame of a stack says what the thread was doing.
Rule = tuple[str, tuple[str, ...]]
TRAINER = "modmix/training/trainer.py:train_pack"
COMMON: tuple[Rule, ...] = (
    ("imports", ("<frozen importlib._bootstrap>", "_find_and_load")),
    ("compiling (torch.compile)", ("torch/_inductor/", "")),
    ("compiling (torch.compile)", ("torch/_dynamo/convert_frame", "")),
)
DRIVER: tuple[Rule, ...] = (
    *COMMON,
    ("figures, tables, report", ("modmix/analysis/", "")),
    ("MLflow mirror", ("modmix/tracking/", "")),
    ("starting Ray", ("ray/_private/worker.py", ":init")),
    ("planning and data", ("modmix/study/", "")),
    ("planning and data", ("modmix/tasks/", "")),
    ("ledger", ("modmix/ledger/", "")),
    ("ending Ray", ("ray/_private/worker.py", ":shutdown")),
    ("Tune and waiting for workers", ("ray/", "")),
    ("study, display, rest", ("", "")),
)
WORKER: tuple[Rule, ...] = (
    *COMMON,
    ("probing memory and speed", ("modmix/training/probe.py", "")),
    ("evaluation", ("modmix/training/group.py", ":evaluate")),
    ("optimizer", ("modmix/training/optimizers.py", "")),
    ("backward", ("torch/autograd/", "")),
    ("forward", ("modmix/training/stack.py", "")),
    ("gathering batches", ("modmix/training/batches.py", "")),
    ("rest of a step", ("modmix/training/group.py", ":train")),
    ("data, building models", ("modmix/tasks/", "")),
    ("data, building models", ("modmix/training/builder.py", "")),
    ("asking the driver", ("modmix/execution/tune_store.py", "")),
    ("records, events, rest of the trainer", ("modmix/training/", "")),
    ("rest of a trial", ("modmix/execution/", "")),
    ("waiting for work, Ray", ("", "")),
)


@dataclass(frozen=True)
class Process:
    """What was seen in one process: seconds by thread and stack."""

    command: str
    begun: float
    ended: float
    threads: Mapping[str, Mapping[str, float]]

    def training(self) -> list[str]:
        """The threads that have trained."""
        return [n for n, stacks in self.threads.items() if any(TRAINER in s for s in stacks)]


def phase_of(stack: str, rules: Sequence[Rule]) -> str:
    """The phase of a stack ("file:function|file:function", outermost first)."""
    frames = stack.split("|")
    for phase, words in rules:
        if any(all(word in frame for word in words) for frame in frames):
            return phase
    raise AssertionError("the last rule fits everything")


def run(options: Options) -> Section:
    with scratch("profile") as folder:
        return _run(options, folder)


def _run(options: Options, folder: Path) -> Section:
    study, data, samples = folder / "curve.yaml", folder / "data", folder / "samples"
    samples.mkdir()
    betas, seeds = ([0, 0.5, 1], 2) if options.quick else (curve.BETAS, 5)
    study.write_text(curve.STUDY.format(betas=betas, seeds=seeds, epochs=curve.EPOCHS))
    models = workload.write_models(study, folder / "models.json", data=data)
    trace = folder / "trace"
    env = environment(
        MODMIX_HOME=folder / "home",
        MODMIX_DATA=data,
        MODMIX_LEDGER=None,
        MODMIX_TRACE=trace,
        MLFLOW_TRACKING_URI=None,
        RAY_ADDRESS=None,
        OMP_NUM_THREADS="1",
        PYTHONPATH=_with_path(str(HERE / "sampler")),
        MODMIX_BENCH_SAMPLES=samples,
    )
    done = command([MODMIX, "run", study], env=env, cwd=folder)
    say(f"profile: {models} models in {done.wall:.1f} s")
    processes = [_read(path) for path in sorted(samples.glob("*.json"))]
    drivers = [p for p in processes if "modmix" in p.command and " run " in p.command]
    driver = max(drivers, key=lambda p: p.ended - p.begun)
    training = [p.threads[n] for p in processes if p is not driver for n in p.training()]
    times = [float(json.loads(line)["time"]) for line in trace.read_text().splitlines()]
    timeline = [
        ("from the start of the command to the first evaluation", min(times) - done.started),
        ("from the first to the last evaluation", max(times) - min(times)),
        ("from the last evaluation to exit", done.started + done.wall - max(times)),
        ("total", done.wall),
    ]
    return Section(
        name="profile",
        title="Where the time goes",
        text=TEXT.format(models=models),
        tables=[
            Table("", ["", "seconds"], [[n, number(s)] for n, s in timeline]),
            _table("the driver's main thread", [driver.threads["MainThread"]], DRIVER),
            _table(
                "the driver's MLflow mirror thread",
                [driver.threads.get("modmix-mirror", {})],
                DRIVER,
            ),
            _table(f"{len(training)} training threads of workers", training, WORKER),
            _functions("our functions, with what they call, in those threads", training),
            _functions("the same in the driver's main thread", [driver.threads["MainThread"]]),
        ],
    )


def _with_path(folder: str) -> str:
    return ":".join(p for p in (folder, environment().get("PYTHONPATH", "")) if p)


def _read(path: Path) -> Process:
    told: dict[str, Any] = json.loads(path.read_text())
    return Process(" ".join(told["command"]), told["begun"], told["ended"], told["threads"])


def _table(caption: str, threads: Sequence[Mapping[str, float]], rules: Sequence[Rule]) -> Table:
    total: dict[str, float] = {}
    for stacks in threads:
        for stack, seconds in stacks.items():
            phase = phase_of(stack, rules)
            total[phase] = total.get(phase, 0.0) + seconds
    everything = sum(total.values()) or 1.0
    ordered = sorted(total.items(), key=lambda item: -item[1])
    rows = [[name, number(s), f"{100 * s / everything:.0f} %"] for name, s in ordered]
    return Table(caption, ["", "seconds", "share"], rows)


def _functions(caption: str, threads: Sequence[Mapping[str, float]], count: int = 12) -> Table:
    """The functions of modmix that stood innermost in the stacks for the longest."""
    total: dict[str, float] = {}
    for stacks in threads:
        for stack, seconds in stacks.items():
            ours = [f for f in stack.split("|") if "/modmix/" in f]
            name = ours[-1].rpartition("/modmix/")[2] if ours else "not in modmix"
            total[name] = total.get(name, 0.0) + seconds
    ordered = sorted(total.items(), key=lambda item: -item[1])[:count]
    return Table(caption, ["", "seconds"], [[f"`{name}`", number(s)] for name, s in ordered])
