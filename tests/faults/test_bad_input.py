"""Wrong input of every kind, through the command line: one sentence per problem, and nothing done.

A case says what is wrong, the lines that must be printed (a pattern each, and no line more) and
the exit code:

    2   the input is wrong and nothing was started: almost everything here
    3   something failed during the study; results are kept, the same command resumes

Afterwards the results folder is as it was before, and no data has been prepared, but where only the
prepared data could show what is wrong (``prepared``): they are a cache, whole, and not of a study.
A cluster that refuses the driver's token is tried in test_cluster.py.
"""

from __future__ import annotations

import gzip
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.home import Home
from modmix.cli import main as cli
from modmix.ledger.ledger import Ledger

STUDY = """\
study: small
task: {name: weak, inputs: 2, train_rows: 30, val_rows: 10, test_rows: 10, dim: 3}
training: {epochs: 1}
seeds: 1
parts:
  one: {methods: {mul: }}
"""
LOCAL = ("run", "x.yaml", "--local", "--no-mlflow")
RAY = ("run", "x.yaml", "--no-mlflow")


def of(more: str = "", **lines: str) -> str:
    """The small study with some of its lines replaced, and more below it."""
    text = STUDY
    for key, value in lines.items():
        text, found = re.subn(rf"^( *){key}:.*$", rf"\g<1>{key}: {value}", text, flags=re.M)
        assert found == 1, key
    return text + more


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of wrong input."""

    lines: tuple[str, ...]
    study: str | bytes | None = STUDY
    command: tuple[str, ...] = LOCAL
    setup: Callable[[Path], None] = lambda _: None
    environment: Mapping[str, str] = field(default_factory=dict)
    code: int = 2
    prepared: bool = False


# ---------------------------------------------------------------- data that is wrong


def npz(**changed: Any) -> Callable[[Path], None]:
    """Write d.npz: two modalities and labels of three classes, with some arrays replaced."""

    def write(folder: Path) -> None:
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {
            "a": rng.normal(size=(60, 3)).astype(np.float32),
            "b": rng.normal(size=(60, 2)).astype(np.float32),
            "labels": np.arange(60) % 3,
        }
        for name, change in changed.items():
            arrays[name] = change(arrays.get(name))
        np.savez(folder / "d.npz", **arrays)

    return write


def with_value(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[7, 1] = value
        return array

    return change


def truncated(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        row = ",".join(["1.0"] * 29) + "\n"
        whole = gzip.compress((row + row.replace("1", "0", 1)).encode() * 2000)
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return write


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def pickles(folder: Path) -> None:
    """A folder as CIFAR-100's, whose pickles would write a file where they are read."""
    target = folder / "cifar-100-python"
    target.mkdir()
    for name in ("train", "test", "meta"):
        (target / name).write_bytes(b"cos\nmkdir\n(S'hacked'\ntR.")


ARRAYS = of(task="{name: arrays, path: d.npz}")
CSV = of(task='{name: arrays, path: d.csv, columns: {a: ["a*"], b: ["b*"]}}')
HIGGS = of(task="{name: higgs, path: h.csv, test_rows: 20}")
IN_DATA = r"x\.yaml: line 2: task\.path: "

DATA = {
    "missing data file": Case(
        study=ARRAYS,
        lines=(
            IN_DATA
            + r"\S+/d\.npz: a data file must be here, found nothing; correct the option `path`",
        ),
    ),
    "unset variable in a path": Case(
        study=of(task="{name: arrays, path: $NO_SUCH_PLACE/d.npz}"),
        lines=(
            (
                r"x\.yaml: line 2: task\.path: the environment variable NO_SUCH_PLACE is not set: "
                r"export it first, or write \$\$ for a dollar sign"
            ),
        ),
    ),
    "not an npz": Case(
        study=ARRAYS,
        setup=text("d.npz", "hello"),
        lines=(
            IN_DATA + r"\S+/d\.npz: is not a whole \.npz file .*; write it again with numpy\.savez",
        ),
    ),
    "NaN": Case(
        study=ARRAYS,
        setup=npz(a=with_value(np.nan)),
        lines=(
            IN_DATA
            + r"\S+/d\.npz: 'a' must hold finite numbers, got nan in row 7 .*; fill in or .*",
        ),
    ),
    "infinite": Case(
        study=ARRAYS,
        setup=npz(a=with_value(np.inf)),
        lines=(
            IN_DATA
            + r"\S+/d\.npz: 'a' must hold finite numbers, got inf in row 7 .*; fill in or .*",
        ),
    ),
    "one class only": Case(
        study=ARRAYS,
        setup=npz(labels=np.zeros_like),
        lines=(IN_DATA + r"\S+/d\.npz: 'labels' must have at least two classes, got only '0'",),
    ),
    "a label out of range": Case(
        study=of(task="{name: arrays, path: d.npz, classes: 2}"),
        setup=npz(),
        lines=(
            IN_DATA + r"\S+/d\.npz: 'labels' must be from 0 to 1 \(2 classes\), got 2 in row 2 .*",
        ),
    ),
    "modalities of different length": Case(
        study=ARRAYS,
        setup=npz(b=lambda b: b[:-1]),
        lines=(
            IN_DATA
            + r"\S+/d\.npz: 'b' must have one row per label \(60\), got 59 rows; correct it .*",
        ),
    ),
    "pickled objects": Case(
        study=ARRAYS,
        setup=npz(b=lambda _: np.array([{}] * 60, dtype=object)),
        lines=(
            IN_DATA
            + r"\S+/d\.npz: 'b' is an object array, which only pickle could load and modmix .*",
        ),
    ),
    "truncated gzip": Case(
        study=CSV.replace("d.csv", "d.csv.gz"),
        setup=truncated("d.csv.gz"),
        lines=(IN_DATA + r"\S+/d\.csv\.gz: .*",),
    ),
    "a word among numbers": Case(
        study=CSV,
        setup=text("d.csv", "a1,b1,label\n" + "1,2,0\n3,x,1\n" * 20),
        lines=(
            IN_DATA
            + r"\S+/d\.csv: line 3 must hold a number in column 'b1', got 'x'; fill it in or .*",
        ),
    ),
    "HIGGS with a column too few": Case(
        study=HIGGS,
        setup=text("h.csv", (",".join(["1"] * 29) + "\n") * 50 + ",".join(["1"] * 28) + "\n"),
        lines=(
            IN_DATA + r"\S+/h\.csv: line 51 must have 29 columns, got 28; correct or remove it",
        ),
    ),
    "HIGGS truncated": Case(
        study=HIGGS.replace("h.csv", "h.csv.gz"),
        setup=truncated("h.csv.gz"),
        lines=(
            IN_DATA + r"\S+/h\.csv\.gz: is damaged or truncated .*; write or copy the file again",
        ),
    ),
    "CIFAR-100 that is not there": Case(
        study=of(task="{name: cifar100, path: photographs}"),
        lines=(
            (
                IN_DATA
                + r"\S+/photographs/cifar-100-python/train: a data file must be here, found "
                r"nothing; the option `path` must be the official folder cifar-100-python or one .*"
            ),
        ),
    ),
    "CIFAR-100 that is not the official one": Case(
        study=of(task="{name: cifar100, path: cifar-100-python}"),
        setup=pickles,
        lines=(
            (
                IN_DATA
                + r"\S+/cifar-100-python/train: the official file has md5 16019d7e\w+, this one "
                r"\w+, and no other pickle is read; the option `path` must be .*"
            ),
        ),
    ),
    "--data for a task without a file": Case(
        command=(*LOCAL, "--data", "d.npz"),
        lines=(r"--data: task weak reads no file: leave the flag out",),
    ),
    "an option that is no value": Case(
        command=("data", "prepare", "weak", "-o", "seed=["),
        lines=(r"--option must be name=value with a value as in a study file, got 'seed=\['.*",),
    ),
    "an option without a value": Case(
        command=("data", "prepare", "weak", "-o", "seed"),
        lines=(r"--option must be name=value with a value as in a study file, got 'seed'",),
    ),
    "an option for several tasks": Case(
        study="study: s\ntasks: {a: {task: digits}, b: {task: weak}}\n",
        command=("data", "prepare", "x.yaml", "-o", "train_rows=300"),
        lines=(r"--option: the study has several tasks: give the option in the file",),
    ),
    "tasks that are wrong": Case(
        study="study: s\ntasks:\n  a: {task: digitz}\n  b: {task: {name: weak, shar: 1}}\n",
        command=("data", "check", "x.yaml"),
        lines=(
            r"x\.yaml: line 3: tasks\.a\.task: unknown task 'digitz': did you mean 'digits'\?",
            r"x\.yaml: line 4: tasks\.b\.task\.shar: is not an option of this task .*",
        ),
    ),
    "a study file without a task": Case(
        study="study: s\n",
        command=("data", "prepare", "x.yaml"),
        lines=(r"x\.yaml: line 1: task: must name a task: task: \{name: digits\}",),
    ),
}

# ---------------------------------------------------------------- a study file that is wrong


def line(number: int, rest: str) -> tuple[str, ...]:
    return (rf"x\.yaml: line {number}: {rest}",)


FILES = {
    "missing": Case(study=None, lines=(r"no study file x\.yaml: check the path",)),
    "a folder": Case(
        study=None,
        setup=lambda folder: (folder / "x.yaml").mkdir(),
        lines=(r"the study file x\.yaml cannot be read: .*Is a directory.*",),
    ),
    "not text": Case(
        study=b"\xff\xfe\x00", lines=(r"the study file x\.yaml cannot be read: 'utf-8' codec .*",)
    ),
    "not YAML": Case(
        study=of("  - [\n"), lines=line(7, "not valid YAML: expected <block end>, but found '-'")
    ),
    "empty": Case(study="", lines=line(1, "a study file must be a mapping that begins with .*")),
    "duplicate key": Case(
        study=of("seeds: 2\n"),
        lines=line(7, r"seeds: this key is given twice \(first on line 4\); keep one"),
    ),
    "unknown key": Case(
        study=of("sead: 2\n"), lines=line(7, "sead: unknown key 'sead': did you mean 'seeds'.")
    ),
    "wrong type": Case(
        study=of(training="{epochs: many}"),
        lines=line(3, "training.epochs: must be a whole number, got 'many'"),
    ),
    "bad name": Case(
        study=of(study="../x"), lines=line(1, r"study: a name must be letters, .*, got '\.\./x'")
    ),
    "our own folder's name": Case(
        study=of(study="weights"),
        lines=line(1, "study: 'weights' is the name of something else in the results folder"),
    ),
    "seeds repeated": Case(
        study=of(seeds="[1, 2, 1]"),
        lines=line(4, r"seeds: must differ from each other, got \[1, 2, 1\]"),
    ),
    "unknown task": Case(
        study=of(task="weka"), lines=line(2, "task: unknown task 'weka': did you mean 'weak'.")
    ),
    "unknown encoder": Case(
        study=of("encoders: {default: {name: mpl}}\n"),
        lines=line(7, "encoders.default: unknown encoder 'mpl': did you mean 'mlp'."),
    ),
    "unknown method": Case(
        study=of(one="{methods: {mull: }}"),
        lines=line(6, "parts.one.methods.mull: unknown method 'mull': did you mean 'mul'."),
    ),
    "beta below 0": Case(
        study=of(one="{methods: {mul: {beta: -0.1}}}"),
        lines=line(6, "parts.one.methods.mul.beta: must be at least 0, got -0.1"),
    ),
    "reversed range": Case(
        study=of(one="{search: {configurations: 2}, methods: {mul: {beta: {low: 1, high: 0}}}}"),
        lines=line(6, "parts.one.methods.mul.beta: low must be below high, got low 1 and high 0"),
    ),
    "range without search": Case(
        study=of(one="{methods: {mul: {beta: {low: 0, high: 1}}}}"),
        lines=line(6, "parts.one.methods.mul.beta: ranges and choices need a search: .*"),
    ),
    "grid in search": Case(
        study=of(one="{search: {configurations: 2}, methods: {mul: {beta: {grid: [0, 1]}}}}"),
        lines=line(6, "parts.one.methods.mul.beta: a search takes ranges and choices: .*"),
    ),
    "nothing to search": Case(
        study=of(one="{search: {configurations: 2}, methods: {mul: }}"),
        lines=line(6, "parts.one.methods.mul: nothing to search: give it a range or choices, .*"),
    ),
    "x that no method varies": Case(
        study=of(one="{x: beta, methods: {mul: }}"),
        lines=line(6, "parts.one.x: method mul does not vary 'beta': give it a grid .*"),
    ),
    "objective on the test split": Case(
        study=of("objective: test/error\n"),
        lines=line(7, r"objective: must be a validation metric \(.*\), got 'test/error': .*"),
    ),
    "two objectives for cmaes": Case(
        study=of(
            "objective: [val/error, val/auc]\n",
            one="{search: {configurations: 2, sampler: cmaes}, "
            "methods: {mul: {beta: {low: 0, high: 1}}}}",
        ),
        lines=line(6, "parts.one.search.sampler: cmaes takes one objective: use nsga2, .*"),
    ),
    "infinite margin": Case(
        study=of(one="{methods: {mul: {margin: .inf}}}"),
        lines=line(6, "parts.one.methods.mul.margin: must be a finite number, got inf"),
    ),
    "mul with one modality": Case(
        study=of(task="{name: weak, inputs: 1}"),
        lines=line(6, "parts.one.methods.mul: needs at least 2 modalities, got m1"),
        prepared=True,
    ),
    "sum of unequal widths": Case(
        study=of(
            "encoders: {m1: {name: mlp, hidden: [3]}, m2: {name: mlp, hidden: [4]}}\n",
            one="{methods: {add: {merge: sum}}}",
        ),
        lines=line(6, "parts.one.methods.add: .*3.*4.*"),
        prepared=True,
    ),
    "too many mixtures": Case(
        study=of(task="{name: weak, inputs: 8, train_rows: 30}", one="{methods: {mulmix: }}"),
        lines=line(
            6,
            "parts.one.methods.mulmix: at most 127 mixtures can be combined, 8 modalities make "
            "255; set max_subset",
        ),
        prepared=True,
    ),
    "an encoder of no modality": Case(
        study=of("encoders: {m3: {name: mlp}}\n"),
        lines=line(7, "encoders.m3: unknown input 'm3': did you mean 'm2'."),
        prepared=True,
    ),
    "final of a method that is none": Case(
        study=of("final: {of: small, method: nul, configuration: abc}\n"),
        command=("final", "x.yaml", "--local"),
        lines=line(7, "final.method: unknown method 'nul': did you mean 'mul'."),
    ),
    "several at once": Case(
        study=of("sead: 1\nobjective: val/err\n", study="a b", seeds="0"),
        lines=(
            *line(1, "study: a name must be letters, .*, got 'a b'"),
            *line(4, "seeds: the number of seeds must be between 1 and 10000, got 0"),
            *line(7, "sead: unknown key 'sead': did you mean 'seeds'."),
            *line(8, "objective: must be a validation metric .*, got 'val/err': .*"),
        ),
    ),
}

# ---------------------------------------------------------------- machines, servers, commands


def damaged(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "runs").mkdir()
        (folder / "runs" / name).write_bytes(content)

    return write


def known(folder: Path) -> None:
    """A ledger that knows one study, without results."""
    Home(folder / "runs").make()
    ledger = Ledger(Home(folder / "runs").ledger_url)
    spec = {"study": "known", "objective": ["val/error"], "parts": {}, "seeds": [0]}
    ledger.start_study("known", spec=spec, text="", source="x.yaml", details={})
    ledger.close()


UNKNOWN = (
    r"no study 'other' in the ledger \S+/ledger\.db \(it has known\): run its file first, .*",
)
NONE = (r"there are no studies in \S+/runs: run one first, or set MODMIX_HOME .*",)

PLACES = {
    "a file in place of the results folder": Case(
        setup=text("runs", "mine"),
        lines=(r"the results folder \S+/runs cannot be written \(File exists\): .*",),
        prepared=True,
    ),
    "a file in place of the data folder": Case(
        setup=text("data", "mine"),
        lines=(r"\S+/data/prepared: Not a directory; look at the disk or set MODMIX_DATA .*",),
    ),
    "damaged ledger": Case(
        setup=damaged("ledger.db", b"SQLite format 3\0" + b"x" * 5000),
        lines=(r"the ledger \S+/ledger\.db cannot be opened \(file is not a database\): check .*",),
        prepared=True,
    ),
    "damaged ledger, read": Case(
        command=("status", "small"),
        setup=damaged("ledger.db", b"hello" * 500),
        lines=(r"the ledger \S+/ledger\.db cannot be opened \(file is not a database\): check .*",),
    ),
    "a ledger's address that is none": Case(
        command=("list",),
        environment={"MODMIX_LEDGER": "somewhere"},
        lines=(r"MODMIX_LEDGER is not a database URL: write .*",),
    ),
    "a ledger on no server": Case(
        command=("list",),
        environment={"MODMIX_LEDGER": "postgresql+psycopg://me:secret@127.0.0.1:1/db"},
        lines=(
            r"the ledger postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/db cannot be opened .*",
        ),
    ),
    "damaged MLflow database": Case(
        command=("run", "x.yaml", "--local"),
        setup=damaged("mlflow.db", b"hello" * 500),
        lines=(r"\S+/runs/mlflow\.db cannot be read as an SQLite database \(.*\): move it .*",),
        prepared=True,
    ),
    "a folder for MLflow": Case(
        command=("run", "x.yaml", "--local"),
        environment={"MLFLOW_TRACKING_URI": "/tmp/mlruns"},
        lines=(
            r"MLFLOW_TRACKING_URI /tmp/mlruns is a folder, which MLflow 3 does not support: .*",
        ),
        prepared=True,
    ),
    "an address of Ray that is none": Case(
        command=(*RAY, "--address", "nonsense"),
        lines=(r"the address of a Ray cluster must be host:port or auto, got 'nonsense': .*",),
        prepared=True,
    ),
    "a cluster and no Ray": Case(
        command=(*LOCAL, "--address", "127.0.0.1:9"),
        lines=(r"--local is about this machine, and --address names the cluster 127.0.0.1:9: .*",),
        prepared=True,
    ),
    "a cluster and workers of this machine": Case(
        command=(*RAY, "--address", "127.0.0.1:9", "--workers", "2"),
        lines=(r"--workers is about this machine, and --address names the cluster .*",),
        prepared=True,
    ),
    "more processors than the machine has": Case(
        study=of("resources: {cpus: 4000}\n"),
        command=RAY,
        lines=(
            r"resources: a pack asks for 4000 CPUs, more than this machine has or --workers .*",
        ),
        prepared=True,
    ),
    "a runner of a GPU that is not there": Case(
        study=of("resources: {gpus: 1}\n"),
        lines=(r"the study needs a GPU and torch finds none: check the NVIDIA driver .*",),
        prepared=True,
    ),
    "final of another file": Case(
        command=("final", "x.yaml"),
        lines=(r"x\.yaml has no final: block: give a file written by .*",),
    ),
    "a format that is none": Case(
        command=("table", "known", "--format", "xls"),
        setup=known,
        lines=(r"--format must be one of .*, got 'xls'",),
    ),
    "rows that are none": Case(
        command=("table", "known", "--by", "seed"),
        setup=known,
        lines=(r"--by must be .*, got 'seed'",),
    ),
    "best of a study without a complete configuration": Case(
        command=("best", "known"),
        setup=known,
        lines=(r"study 'known' has no complete configuration: continue with .*",),
    ),
    **{
        f"{command} of an unknown study": Case(
            command=(command, "other"), setup=known, lines=UNKNOWN
        )
        for command in ("status", "table", "figure", "report", "best", "sync")
    },
    **{
        f"{command} before any study": Case(command=(command, "other"), lines=NONE)
        for command in ("status", "table", "best")
    },
}

CASES = {**FILES, **DATA, **PLACES}


# ---------------------------------------------------------------- the test


@dataclass
class Shell:
    """A folder to type commands in."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def type(self, *words: str) -> tuple[int, str]:
        """Run a command in this process: its exit code and what it says is wrong."""
        self.monkeypatch.setattr(sys, "argv", ["modmix", *words])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = self.capture.readouterr()
        assert printed.out == ""
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.err

    def state(self) -> dict[str, bytes | None]:
        """Every file below the folder but the data's, with its content; databases as text."""
        found: dict[str, bytes | None] = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if name.startswith("data") and path.parent != self.folder:
                continue
            if name.endswith(("-wal", "-shm")):
                continue  # SQLite's, and of no meaning of their own
            found[name] = path.read_bytes() if path.is_file() else None
        return found

    def prepared(self) -> list[Path]:
        folder = self.folder / "data" / "prepared"
        found = list(folder.iterdir()) if folder.is_dir() else []
        return [path for path in found if path.suffix != ".lock"]


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    for name in ("MODMIX_LEDGER", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "NO_SUCH_PLACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys, monkeypatch)


def check(printed: str, patterns: tuple[str, ...]) -> None:
    lines = printed.splitlines()
    assert len(lines) == len(patterns), printed
    for found, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(f"modmix: {pattern}", found), f"{found}\nis not {pattern}"
        assert len(found) < 500


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, shell: Shell) -> None:
    case = CASES[name]
    if "GPU" in name:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    if isinstance(case.study, str):
        (shell.folder / "x.yaml").write_text(case.study)
    elif case.study is not None:
        (shell.folder / "x.yaml").write_bytes(case.study)
    case.setup(shell.folder)
    for variable, value in case.environment.items():
        shell.monkeypatch.setenv(variable, value)
    before = shell.state()
    code, printed = shell.type(*case.command)
    check(printed, case.lines)
    assert code == case.code
    after = shell.state()
    after.pop("data", None)
    if case.prepared and "runs" not in before:
        # Where the results go is looked at first, then the machine: an empty folder may be left.
        assert after.pop("runs", None) is None
        before.pop("runs", None)
    before.pop("data", None)
    assert after == before
    assert len(shell.prepared()) == case.prepared


def test_every_kind_of_error_has_the_code_it_says() -> None:
    assert len(CASES) > 60
    assert {case.code for case in CASES.values()} == {2}


# ---------------------------------------------------------------- what needs something running


def test_a_second_driver(shell: Shell) -> None:
    """A real process holds the lease."""
    (shell.folder / "x.yaml").write_text(STUDY)
    known(shell.folder)
    home = Home(shell.folder / "runs")
    ledger = Ledger(home.ledger_url)
    ledger.start_study("small", spec={"study": "small"}, text="the first", source="", details={})
    code = (
        "import sys\nfrom modmix.ledger.ledger import Ledger\nledger = Ledger(sys.argv[1])\n"
        "ledger.acquire('small'); print('held', flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, home.ledger_url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = ledger.study("small")
    for command in (LOCAL, ("sync", "small")):
        code_, printed = shell.type(*command)
        check(
            printed, (rf"study 'small' is being run by process {holder.pid} on .*: wait until .*",)
        )
        assert code_ == 2
    assert ledger.study("small") == before
    assert ledger.holder("small") == (socket.gethostname(), holder.pid)
    assert ledger.replicates("small") == []
    holder.communicate("\n")
    ledger.close()


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://me:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow  # imports MLflow
def test_an_mlflow_server_that_refuses_and_one_that_is_away(shell: Shell, refusing: str) -> None:
    (shell.folder / "x.yaml").write_text(STUDY)
    for address, says in (
        ("http://127.0.0.1:9", r"is unreachable \(connection refused\): start it or correct .*"),
        (refusing, "rejects the login: set MLFLOW_TRACKING_USERNAME and .*"),
    ):
        shell.monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        code, printed = shell.type("run", "x.yaml", "--local")
        check(printed, (rf"MLflow at http://\S+ {says}",))
        assert "secret" not in printed
        assert code == 2
    assert list((shell.folder / "runs").iterdir()) == []


@pytest.mark.slow  # imports Ray
def test_an_address_where_no_cluster_answers(shell: Shell) -> None:
    (shell.folder / "x.yaml").write_text(STUDY)
    for address, why in (
        ("127.0.0.1:9", "Connection refused"),
        ("no.such.host.invalid:6379", ".*"),
    ):
        shell.monkeypatch.setenv("RAY_ADDRESS", address)
        code, printed = shell.type(*RAY)
        check(printed, (rf"no Ray cluster answers at {address} \({why}\): check the address, .*",))
        assert code == 2
    assert list((shell.folder / "runs").iterdir()) == []


def test_ctrl_c_while_the_data_is_prepared(shell: Shell) -> None:
    """Exit code 3: the same command resumes."""
    (shell.folder / "x.yaml").write_text(STUDY)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    shell.monkeypatch.setattr("modmix.tasks.weak.Weak.write", interrupted)
    code, printed = shell.type(*LOCAL)
    check(printed, ("interrupted; run the same command again to resume",))
    assert code == 3
    assert shell.prepared() == []


# ---------------------------------------------------------------- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount small disks of their own; only root can."""
    mounted: list[Path] = []

    def mount(name: str, options: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root can mount a small disk")
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize(
    ("options", "why"), [("size=1m", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_disk_for_results_that_takes_nothing(
    shell: Shell, disk: Callable[..., Path], options: str, why: str
) -> None:
    (shell.folder / "x.yaml").write_text(STUDY)
    runs = disk("runs", options)
    code, printed = shell.type(*LOCAL)
    check(printed, (rf"the results folder \S+/runs cannot be written \({why}\): free some .*",))
    assert code == 2
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("size=8k", "the disk is full; free some space or set MODMIX_DATA .*"),
        ("ro", "modmix must be able to write here, got 'Read-only file system'; change .*"),
    ],
)
def test_a_disk_for_data_that_takes_nothing(
    shell: Shell, disk: Callable[..., Path], options: str, why: str
) -> None:
    (shell.folder / "x.yaml").write_text(STUDY)
    disk("data", options)
    code, printed = shell.type(*LOCAL)
    check(printed, (rf"\S+/data\S*: {why}",))
    assert code == 2
    assert shell.prepared() == []
    assert not (shell.folder / "runs").exists()


FILL = """
import sys
from pathlib import Path
from modmix.cli import main as cli
from modmix.execution.run import StudyRun

prepare = StudyRun.prepare

def and_fill(self):
    prepare(self)
    try:
        Path("runs/filler").write_bytes(bytes(16 << 20))
    except OSError:
        pass

StudyRun.prepare = and_fill
sys.argv[0] = "modmix"
cli.main()
"""


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle(shell: Shell, disk: Callable[..., Path]) -> None:
    """Exit code 3: what was recorded is kept, and the same command finishes when there is room."""
    (shell.folder / "x.yaml").write_text(STUDY)
    runs = disk("runs", "size=12m")
    ended = subprocess.run(
        [sys.executable, "-c", FILL, *LOCAL, "--quiet"], capture_output=True, text=True, check=False
    )
    check(ended.stderr, (r"the ledger \S+/ledger\.db could not be used \(.*full\): fix this .*",))
    assert ended.returncode == 3
    (runs / "filler").unlink()
    shell.monkeypatch.setattr(sys, "argv", ["modmix", *LOCAL, "--quiet"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    assert "study small is finished: 1 configuration, 1 model" in shell.capture.readouterr().out
    ledger = Ledger(Home(runs).ledger_url)
    assert [r.state for r in ledger.replicates("small")] == ["done"]
    ledger.close()


# ---------------------------------------------------------------- the real command


@pytest.mark.slow
def test_the_command_itself(tmp_path: Path) -> None:
    """What was tried above in this process, once as people type it."""
    environment = {**os.environ, "MODMIX_HOME": str(tmp_path / "runs")}

    def modmix(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modmix", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    (tmp_path / "x.yaml").write_text(of("sead: 1\n", seeds="0"))
    wrong = modmix("run", "x.yaml")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.splitlines() == [
        "modmix: x.yaml: line 4: seeds: the number of seeds must be between 1 and 10000, got 0",
        "modmix: x.yaml: line 7: sead: unknown key 'sead': did you mean 'seeds'?",
    ]
    usage = modmix("run", "x.yaml", "--nonsense")
    assert usage.returncode == 2
    assert "No such option" in usage.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "x.yaml"]
