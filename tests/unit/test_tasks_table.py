"""The table of tasks and its options: plain declarations that check themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from modmix.base.errors import DataError
from modmix.tasks.options import Option
from modmix.tasks.table import TASKS, default_encoders, option_problems, resolve_options, task_entry


def test_every_default_is_acceptable_and_required_options_are_missed() -> None:
    for name, entry in TASKS.items():
        required = [option.name for option in entry.options if option.required]
        assert [place for place, _ in option_problems(name, {})] == required
        for option in entry.options:
            if not option.required:
                assert option.problem(option.default) is None, (name, option.name)
            assert option.normalise(option.default) == option.default


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("higs", {}, "there is no task 'higs' (did you mean 'higgs'?); the tasks are digits"),
        ("digits", {"split_sed": 1}, "option 'split_sed' is not an option of this task (did you"),
        ("digits", {"inputs": ["lef"]}, "must be one of left, right, profile, fourier, got 'lef'"),
        (
            "digits",
            {"inputs": ["left", "left"]},
            "must be a list of distinct words, got ['left', 'l",
        ),
        ("digits", {"inputs": "left"}, "must be a list of distinct words, got 'left'"),
        ("digits", {"inputs": []}, "must be a list of distinct words, got []"),
        ("digits", {"train_rows": 3}, "must be at least 10, got 3"),
        ("weak", {"share": 1.5}, "option 'share' must be at most 1, got 1.5"),
        ("weak", {"classes": True}, "must be a whole number, got True"),
        ("weak", {"weakness": "nois"}, "must be one of noise, conflict, missing, got 'nois'"),
        ("weak", {"seed": None}, "must be a whole number, got null"),
        ("higgs", {"variant": 3}, "must be one of small, full, got 3"),
        ("higgs", {"path": 3}, "must be a path, got 3"),
        ("higgs", {"path": "~nobody_here/x"}, "the home directory in '~nobody_here/x' is not"),
        ("cifar100", {"path": ["x"]}, "option 'path' must be a path, got ['x']"),
        ("cifar100", {"val_rows": 0}, "option 'val_rows' must be at least 1, got 0"),
        ("cifar100", {"val_rows": 50_000}, "option 'val_rows' must be at most 49900, got 50000"),
        ("cifar100", {"val_rows": 0.1}, "option 'val_rows' must be a whole number, got 0.1"),
        ("cifar100", {"augment": {"pad": 2}}, "option 'augment' must be true or false, got {'pad"),
        ("cifar100", {"val_fraction": 0.1}, "'val_fraction' is not an option of this task"),
        ("arrays", {}, "option 'path' is required: an .npz, .csv or .tsv (.gz)"),
        (
            "arrays",
            {"path": "x", "columns": ["a"]},
            "must be a mapping of inputs to lists of column",
        ),
        ("arrays", {"path": "x", "columns": {"a": "b"}}, "must be a mapping of inputs to lists of"),
        ("arrays", {"path": "x", "classes": 1}, "must be at least 2, got 1"),
        ("arrays", {"path": "x", "tokens": {"a": 1}}, "must be a list of distinct words, got {"),
        (
            "arrays",
            {"path": "x", "augment": ["a"]},
            "must be a mapping of inputs to their settings",
        ),
        (
            "arrays",
            {"path": "x", "augment": {"a": {"flop": True}}},
            "option 'augment' of 'a': 'flop' is not an option of augment (did you mean 'flip'?): p",
        ),
        (
            "arrays",
            {"path": "x", "spectrogram": {"a": {"window": 2.5}}},
            "option 'spectrogram' of 'a': 'window' must be a whole number, got 2.5",
        ),
    ],
)
def test_wrong_options_are_one_clear_sentence(
    task: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        resolve_options(task, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed_at_once() -> None:
    found = option_problems("weak", {"shares": 0.1, "noise": -1, "dim": 2})
    assert [name for name, _ in found] == ["shares", "noise"]


def test_resolved_options_are_complete_in_order_and_in_one_spelling(tmp_path: Path) -> None:
    resolved = resolve_options("weak", {"share": 1, "seed": 3})
    assert list(resolved) == [option.name for option in task_entry("weak").options]
    assert resolved["share"] == 1.0
    assert isinstance(resolved["share"], float)
    resolved = resolve_options("arrays", {"path": "x.npz", "inputs": ("b", "a")}, tmp_path)
    assert resolved["path"] == str(tmp_path / "x.npz")
    assert resolved["inputs"] == ["b", "a"]
    assert resolve_options("higgs", {})["path"] is None


def test_order_of_columns_is_kept() -> None:
    option = Option(name="columns", kind="columns", default=None, doc="", optional=True)
    assert list(option.normalise({"b": ["x"], "a": ("y", "z")}).items()) == [
        ("b", ["x"]),
        ("a", ["y", "z"]),
    ]


def test_settings_by_input_are_completed() -> None:
    given = {
        "path": "x",
        "augment": {"a": {"pad": 2}},
        "spectrogram": {"b": None, "c": {"rate": 8}},
    }
    resolved = resolve_options("arrays", given)
    assert resolved["augment"] == {"a": {"pad": 2, "flip": False, "crop": None}}
    default = {"rate": 1.0, "window": 256, "overlap": None, "mu_law": None}
    assert resolved["spectrogram"] == {"b": default, "c": {**default, "rate": 8.0}}


def test_default_encoders() -> None:
    assert default_encoders("higgs", ["high", "low"]) == {
        "high": {"name": "mlp", "hidden": [300, 300]},
        "low": {"name": "mlp", "hidden": [300] * 4},
    }
    assert default_encoders("arrays", ["x"]) == {"x": {"name": "mlp", "hidden": [64]}}
    assert TASKS["higgs"].training["clip_norm"] == 10.0


def test_the_table_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, modmix.tasks.table; print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_tasks_import_only_numpy_when_they_are_loaded() -> None:
    folder = Path(task_entry.__code__.co_filename).parent
    heavy = {
        "torch",
        "torchvision",
        "sklearn",
        "pyarrow",
        "filelock",
        "pandas",
        "scipy",
        "safetensors",
        "pooch",
        "av",
        "PIL",
    }
    for file in folder.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            else:
                continue
            assert not names & heavy, f"{file.name}: {names & heavy}"
