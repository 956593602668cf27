"""`modmix data` on study files: of one task, of several, and of a user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from modmix.base.errors import InputError
from modmix.cli.main import app
from modmix.tasks.base import load_task, prepare_task

SEVERAL = """\
study: several
tasks:
  scans: {task: digits}
  simulated: {task: {name: weak, share: 0.5, train_rows: 40, val_rows: 20, test_rows: 20}}
parts: {}    # not written yet
"""

OWN = '''\
import numpy as np

import modmix
from modmix.tasks.base import Contents
from modmix.tasks.data import Input


class Ramp(modmix.Task):
    """One number per row."""

    def __init__(self, *, rows: int = 4):
        self.rows = rows

    def write(self, writer, progress):
        for split in ("train", "val", "test"):
            values = np.arange(self.rows, dtype=np.float32)[:, None]
            writer.content(split, values)
            writer.split(split, {"x": values}, np.arange(self.rows) % 2)
        return Contents(
            inputs=(Input(name="x", shape=(1,)),),
            class_names=("even", "odd"),
            rows=dict.fromkeys(("train", "val", "test"), self.rows),
        )
'''


def lines(*words: str) -> list[str]:
    ended = CliRunner().invoke(app, ["data", *words])
    assert ended.exit_code == 0, ended.output
    return ended.stdout.splitlines()


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "data"))


def test_all_tasks_of_a_study_are_prepared(tmp_path: Path) -> None:
    file = tmp_path / "several.yaml"
    file.write_text(SEVERAL)
    sizes = {"share": 0.5, "train_rows": 40, "val_rows": 20, "test_rows": 20}
    found = lines("prepare", str(file))
    assert found == [str(prepare_task("digits", {})), str(prepare_task("weak", sizes))]
    assert lines("check", str(file)) == [f"{path}: checksums match" for path in found]
    assert load_task("weak", sizes).train.rows == 40


def test_an_option_of_the_command_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("study: one\ntask: {name: weak, train_rows: 40, val_rows: 20, test_rows: 20}\n")
    (path,) = lines("prepare", str(file), "-o", "train_rows=50")
    sizes = {"train_rows": 50, "val_rows": 20, "test_rows": 20}
    assert path == str(prepare_task("weak", sizes)) != lines("prepare", str(file))[0]


@pytest.mark.parametrize("block", ["tasks: {a: {task: %s}}", "task: %s\ntasks: {}"])
def test_an_option_is_that_of_the_only_task(tmp_path: Path, block: str) -> None:
    file = tmp_path / "one.yaml"
    task = "{name: weak, train_rows: 40, val_rows: 20, test_rows: 20}"
    file.write_text("study: one\n" + block % task + "\n")
    sizes = {"train_rows": 50, "val_rows": 20, "test_rows": 20}
    assert lines("prepare", str(file), "-o", "train_rows=50") == [str(prepare_task("weak", sizes))]


@pytest.mark.parametrize(
    ("block", "option", "why"),
    [
        ("task: {name: weak}", "name=digits", "--option name: the study file names the task"),
        ("tasks: {a: {task: weak}}", "class=x.py:X", "--option class: the study file names"),
        ("tasks: {a: {task: weak}, b: {task: digits}}", "dim=3", "the study has several tasks"),
    ],
)
def test_options_that_are_not_of_one_task(
    tmp_path: Path, block: str, option: str, why: str
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(f"study: one\n{block}\n")
    ended = CliRunner().invoke(app, ["data", "prepare", str(file), "-o", option])
    assert isinstance(ended.exception, InputError)
    assert why in str(ended.exception)


def test_an_option_of_the_command_mends_the_file(tmp_path: Path) -> None:
    """Its path is below the folder of the study file, as if it stood there."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(60, 3)), "b": rng.normal(size=(60, 2))}
    np.savez(tmp_path / "x.npz", **arrays, labels=np.arange(60) % 3)  # type: ignore[arg-type]
    file = tmp_path / "own.yaml"
    file.write_text("study: s\ntask: {name: arrays, path: $MODMIX_NOWHERE/y.npz}\n")
    (path,) = lines("prepare", str(file), "-o", "path=x.npz")
    assert path == str(prepare_task("arrays", {"path": str(tmp_path / "x.npz")}))


def test_a_task_of_one_s_own_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "ramp.py").write_text(OWN)
    file = tmp_path / "own.yaml"
    file.write_text('study: own\ntask: {class: "ramp.py:Ramp", rows: 6}\n')
    (path,) = lines("prepare", str(file))
    assert sum(one.stat().st_size for one in Path(path).glob("*train*")) >= 6 * 4
    assert lines("check", str(file)) == [f"{path}: checksums match"]


READER = '''\
from pathlib import Path

import numpy as np

import modmix
from modmix.tasks.base import Contents
from modmix.tasks.data import Input


class Column(modmix.Task):
    """The numbers of a file."""

    def __init__(self, *, path: Path):
        self.path = path

    def write(self, writer, progress):
        values = np.loadtxt(self.path.parent / self.path.name, dtype=np.float32)[:, None]
        writer.content("file", self.path)
        writer.content("values", values)
        for split in ("train", "val", "test"):
            writer.split(split, {"x": values}, np.arange(len(values)) % 2)
        return Contents(
            inputs=(Input(name="x", shape=(1,)),),
            class_names=("even", "odd"),
            rows=dict.fromkeys(("train", "val", "test"), len(values)),
        )
'''


def test_a_task_of_one_s_own_reads_the_file_that_its_option_names(tmp_path: Path) -> None:
    """Another file, or the same one after an edit, is other data."""
    (tmp_path / "column.py").write_text(READER)
    file = tmp_path / "own.yaml"
    file.write_text('study: own\ntask: {class: "column.py:Column", path: a.txt}\n')
    (tmp_path / "a.txt").write_text("1\n2\n")
    (tmp_path / "b.txt").write_text("3\n4\n")
    first = lines("prepare", str(file))
    assert lines("prepare", str(file)) == first
    second = lines("prepare", str(file), "-o", "path=b.txt")
    (tmp_path / "a.txt").write_text("1\n2\n5\n")
    assert len({*first, *second, *lines("prepare", str(file))}) == 3
