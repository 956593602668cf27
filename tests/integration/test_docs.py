"""README and docs: blocks are parsed or run, and tables say what the code's tables say."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click import Command
from pydantic import BaseModel
from typer.main import get_command

from mediafiles import GREEN, RED, write_video
from modmix.base import sources
from modmix.base.settings import TRAINING
from modmix.cli.main import app
from modmix.encoders.table import ENCODERS
from modmix.methods.table import METHODS
from modmix.study import files, spec
from modmix.study.spec import (
    BudgetSpec,
    PartSpec,
    ReplicatesSpec,
    ResourcesSpec,
    SearchSpec,
    StudySpec,
)
from modmix.study.validate import Checker
from modmix.tasks.base import load_task
from modmix.tasks.entries_arrays import ARRAYS
from modmix.tasks.entries_bundled import DIGITS, WEAK
from modmix.tasks.entries_papers import CIFAR100, GENDER, HIGGS
from modmix.tasks.entries_text import FOOD101, HATEFUL_MEMES, MOSEI, MOSI, MVSA
from modmix.tasks.entries_video import AVE, CREMAD, KINETICS_SOUNDS, MODELNET40, UCF101
from modmix.tasks.entry import TaskEntry

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
REQUIRED = "required"


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and text of every block in this language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return [
        (page, text)
        for page, whole in PAGES.items()
        for text in re.findall(pattern, whole, flags=re.MULTILINE | re.DOTALL)
    ]


def commands(text: str) -> list[list[str]]:
    """The words of every line of a shell block."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


# ---------------------------------------------------------------- links and blocks


def anchors(page: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", PAGES[page], flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        assert not path or (folder / path).exists(), target
        if anchor:
            assert anchor in anchors(Path(path).name or page), target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of users' own code that the pages show."""
    for _, text in blocks("python"):
        if found := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / found.group(1)).write_text(text)
    return tmp_path


FRAME: Mapping[str, Any] = {
    "study": "s",
    "task": "digits",
    "parts": {
        "a": {
            "search": {"configurations": 9},
            "methods": {"mul": {"depth": {"choices": [0, 1]}}},
        }
    },
}


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_study_files_are_right(page: str, text: str, folder: Path) -> None:
    """Whole ones, and parts of one together with the rest of a small one."""
    given = files.parse(text, name=page, folder=folder)
    assert not given.problems, given.problems
    frame = {
        key: value for key, value in FRAME.items() if key != "task" or "tasks" not in given.raw
    }
    whole = yaml.safe_dump({**frame, **given.raw}, sort_keys=False, allow_unicode=True)
    source = files.parse(whole.replace("…", "x"), name=page, folder=folder)
    _, problems = spec.check(source)
    for one in files.sources_of_tasks(source).values() or [source]:
        checker = Checker(one)
        checker.run()
        problems += checker.problems
    assert not problems


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_can_be_read_and_names_what_is_there(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modmix"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), page
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = {"modmix": "modmix", "study": "modmix.api"}.get(node.value.id)
            if owner == "modmix":
                assert hasattr(importlib.import_module(owner), node.attr), (page, node.attr)
            elif owner is not None:
                assert hasattr(importlib.import_module(owner).Study, node.attr), (page, node.attr)


@pytest.mark.parametrize(("page", "text"), blocks("sh"))
def test_commands_exist(page: str, text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    known: Mapping[str, Command] = get_command(app).commands  # type: ignore[attr-defined]
    for words in commands(text):
        match words:
            case ["make", target]:
                assert target in targets
            case ["modmix", name, *arguments]:
                one_command = known[name]
                if arguments and arguments[0] in getattr(one_command, "commands", {}):
                    one_command = one_command.commands[arguments[0]]  # type: ignore[attr-defined]
                options = {option for one in one_command.params for option in one.opts}
                assert {a for a in arguments if a.startswith("--")} <= options, words
                for argument in arguments:
                    assert not argument.startswith("studies/") or (ROOT / argument).exists()
            case ["export", *settings]:
                assert all("=" in setting for setting in settings)
            case ["ray", "start", *_]:
                pass
            case _:
                pytest.fail(f"{page}: nobody checks {words}")


def test_commands_in_sentences_exist() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for page, text in PAGES.items():
        for name in re.findall(r"`modmix ([a-z]+)", text):
            assert name in known, (page, name)
        for name in re.findall(r"`make ([a-z-]+)", text):
            assert f"\n{name}:" in (ROOT / "Makefile").read_text(), (page, name)


def test_variables_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "platform").rglob("*.py"))
    for page, text in PAGES.items():
        for name in re.findall(r"MODMIX_[A-Z_]+", text):
            assert name in source or name == "MODMIX_TEST_DATA", (page, name)


# ---------------------------------------------------------------- tables


def rows(page: str, heading: str, first: str) -> Iterator[tuple[str, str, str]]:
    """The rows of the table in a section whose first cell is ``first``; none without a table."""
    text = re.split(rf"^#+ {re.escape(heading)}$", PAGES[page], flags=re.MULTILINE)[1]
    lines = iter(re.split(r"^#+ ", text, flags=re.MULTILINE)[0].splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    for line in list(lines)[1:]:
        if not line.startswith("|"):
            return
        name, default, doc = (cell.strip() for cell in line.strip("|").split(" | "))
        yield name.strip("`"), default.strip("`"), doc


def value(text: str) -> Any:
    return text if text == REQUIRED else files.parse_value(text)


def table(page: str, heading: str, first: str) -> dict[str, Any]:
    return {name: value(default) for name, default, _ in rows(page, heading, first)}


def test_training_settings() -> None:
    found = table("study-file.md", "training", "setting")
    assert found == {name: setting.default for name, setting in TRAINING.items()}
    for name, _, doc in rows("study-file.md", "training", "setting"):
        choices = TRAINING[name].choices
        assert all(f"`{choice}`" in doc for choice in choices), name


@pytest.mark.parametrize(
    ("heading", "entry"),
    [
        ("arrays: your own file", ARRAYS),
        ("digits: four views of scans", DIGITS),
        ("weak: synthetic, with weak inputs", WEAK),
        ("higgs: collisions of particles", HIGGS),
        ("cifar100: small photographs", CIFAR100),
        ("gender: names, user IDs and activity", GENDER),
        ("food101", FOOD101),
        ("mvsa", MVSA),
        ("hateful_memes", HATEFUL_MEMES),
        ("mosi, mosei: sentiment from text, audio and vision", MOSI),
        ("mosi, mosei: sentiment from text, audio and vision", MOSEI),
        ("cremad: acted emotions", CREMAD),
        ("ave: audio-visual events", AVE),
        ("kinetics_sounds: audio-visual actions", KINETICS_SOUNDS),
        ("ucf101: a frame and optical flow", UCF101),
        ("modelnet40: objects from several views", MODELNET40),
    ],
)
def test_options_of_tasks(heading: str, entry: TaskEntry) -> None:
    declared = {o.name: REQUIRED if o.required else o.default for o in entry.options}
    assert table("study-file.md", heading, "option") == declared


@pytest.mark.parametrize("method", METHODS)
def test_hyperparameters_of_methods(method: str) -> None:
    declared = {h.name: h.default for h in METHODS[method].hyperparameters}
    assert table("methods.md", method, "hyperparameter") == declared


def test_encoders() -> None:
    found = {}
    for name, takes, fields in rows("study-file.md", "encoders", "encoder"):
        pairs = re.findall(r"`(\w+): ([^`]+)`", fields)
        found[name] = tuple(takes.split(", ")), {field: value(text) for field, text in pairs}
    declared = {
        name: (entry.inputs, {h.name: h.default for h in entry.hyperparameters})
        for name, entry in ENCODERS.items()
    }
    assert found == declared


@pytest.mark.parametrize(
    ("heading", "first", "model"),
    [
        ("Keys", "key", StudySpec),
        ("parts", "key", PartSpec),
        ("searches", "key", SearchSpec),
        ("Staged replicates", "key", ReplicatesSpec),
        ("resources and budget", "key of `resources`", ResourcesSpec),
        ("resources and budget", "key of `budget`", BudgetSpec),
    ],
)
def test_keys(heading: str, first: str, model: type[Any]) -> None:
    found = table("study-file.md", heading, first)
    fields = model.model_fields
    assert set(found) == set(fields)
    for name, default in found.items():
        if fields[name].is_required():
            assert default == REQUIRED, name
        elif name == "seeds" and default is not None:
            assert list(range(default)) == fields[name].default
        elif name == "objective":
            assert [default] == fields[name].default
        elif isinstance(fields[name].default, BaseModel):  # has a table of its own
            assert default == {}
        else:
            assert default == fields[name].default, name


def test_reasons_of_the_probe() -> None:
    """The sentences that training.md explains are those that the probe gives."""
    source = inspect.getsource(importlib.import_module("modmix.training.probe"))
    reasons = [
        "one stacked model",
        "stacked models, memory for",
        "stacked models, cache for",
        "models at a time",
        "times faster one after another",
        "cannot be stacked: ",
        "memory for one model at a time",
        '"one model"',
        "stack: never",
        "stack: always",
    ]
    for reason in reasons:
        assert reason in source, reason
        assert reason.strip('" ') in PAGES["training.md"], reason


@pytest.mark.slow
def test_how_packs_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block of training.md that reads the ledger, after a small study."""
    import modmix

    text = "study: s\ntask: {name: digits, train_rows: 100}\nseeds: 2\ntraining: {epochs: 1}\n"
    (tmp_path / "s.yaml").write_text(text + "parts: {a: {methods: {add: }}}\n")
    home = tmp_path / "modmix_runs"
    modmix.run(tmp_path / "s.yaml", runner="local", home=home, mlflow=False)
    (block,) = [text for page, text in blocks("python") if page == "training.md"]
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "training.md", "exec"), {})
    assert re.fullmatch(r"[^ /]+/s 2 cpu (True|False) .*\{.*\}\n", capsys.readouterr().out)


@pytest.mark.slow
def test_methods_with_modulate_and_turns(folder: Path) -> None:
    """`my_damped.py` and `my_turns.py` of own-code.md learn the digits."""
    import modmix

    (folder / "s.yaml").write_text(
        "study: s\ntask: {name: digits, train_rows: 300}\nseeds: 1\ntraining: {epochs: 15}\n"
        "parts:\n  a:\n    methods:\n"
        '      damped: {class: "my_damped.py:Damped", factor: {grid: [0.0, 0.5]}}\n'
        '      turns: {class: "my_turns.py:Alternating"}\n'
    )
    study = modmix.run(folder / "s.yaml", runner="local", home=folder / "runs", mlflow=False)
    found = study.frame().set_index("method")["val/error/mean"]
    assert len(found) == 3
    assert (found < 50).all()
    frozen, damped = found["damped"]
    assert frozen != damped


@pytest.mark.slow
def test_the_task_of_media_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`my_clips.py` of own-code.md, on small videos."""
    monkeypatch.setenv("MODMIX_DATA", str(folder / "home"))
    colours = {"green": GREEN, "red": RED}
    for split in ("train", "val", "test"):
        for name, colour in colours.items():
            path = folder / "clips" / split / name / "a.mp4"
            write_video(path, [colour], codec="mpeg4", sound="aac", rate=16_000)
    task = sources.find("my_clips.py:Clips", folder)
    data = load_task(task, {"path": str(folder / "clips")})
    assert data.shapes == {"frames": (4, 64, 64, 3), "sound": (8000,)}
    assert data.class_names == ("green", "red")
    for split in data.splits.values():
        assert split.labels.tolist() == [0, 1]
        colour_of_frames = split.inputs["frames"].astype(int).mean((1, 2, 3))
        np.testing.assert_allclose(colour_of_frames, list(colours.values()), atol=12)
