"""`modmix tasks` and `modmix methods`: all entries, or one; `modmix list`, and how `run` ends."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console
from typer.testing import CliRunner

import modmix
from analysis_ledger import Written
from modmix.base.errors import InputError
from modmix.base.home import Home
from modmix.cli.main import app
from modmix.cli.run import print_summary
from modmix.ledger.ledger import Ledger
from modmix.ledger.tables import STUDIES
from modmix.methods.table import METHODS
from modmix.tasks.table import TASKS

RUNNER = CliRunner()
WHEN = time.strftime("%Y-%m-%d %H:%M", time.localtime(1_800_000_000))


def printed(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def headings(text: str) -> list[str]:
    return [line.partition(":")[0] for line in text.splitlines() if not line.startswith(" ")]


def test_all_or_one() -> None:
    assert headings(printed("methods")) == list(METHODS)
    assert headings(printed("tasks")) == list(TASKS)
    assert headings(printed("methods", "dimml")) == ["dimml"]
    assert headings(printed("tasks", "cremad")) == ["cremad"]
    assert '"mul"' not in printed("methods", "dimml", "--json")
    with pytest.raises(InputError, match="unknown method 'diml': did you mean 'dimml'"):
        printed("methods", "diml")


def test_required_options_have_no_default() -> None:
    text = printed("tasks", "cremad")
    assert "    path (required): " in text


# ---------------------------------------------------------------- studies


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two studies: of the first, one configuration is pruned, one has a failed model."""
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path))
    ledger = Ledger(Home(tmp_path).ledger_url, owner="ann")
    study = Written(ledger, "curve", parts={"a": {}})
    states = ["done"] * 4 + ["failed", "done", "pruned", "pruned"]
    for number in range(4):
        key = study.configuration("a", "mul", {"beta": float(number)}, seeds=[0, 1])
        for seed in (0, 1):
            state = states[2 * number + seed]
            study.end(key, seed, {"val/error": 1.0, "test/error": 1.0}, state=state)
    other = Written(ledger, "a-longer-name", parts={"a": {}})
    other.configuration("a", "mul", {"beta": 0.0}, seeds=[0, 1])  # both reused
    other.configuration("a", "mul", {"beta": 9.0}, seeds=[0, 1, 2])  # to be trained
    ledger.adopt("a-longer-name")
    with ledger._engine.begin() as db:
        db.execute(sa.update(STUDIES).values(updated=1_800_000_000.0))
    ledger.close()
    return tmp_path


@pytest.mark.usefixtures("home")
def test_studies_are_listed_with_their_progress() -> None:
    assert [re.split("  +", line) for line in printed("list").splitlines()] == [
        ["study", "owner", "state", "configurations", "models", "updated", "task"],
        ["ann/curve", "ann", "running", "4 (1 failed)", "8 (1 failed)", WHEN, "digits"],
        ["ann/a-longer-name", "ann", "running", "1 of 2", "2 of 5", WHEN, "digits"],
    ]
    header, *lines = printed("list").splitlines()
    assert {line.index(WHEN) for line in lines} == {header.index("updated")}
    first, _ = json.loads(printed("list", "--json"))
    assert (first["owner"], first["task"], first["updated"]) == ("ann", "digits", 1_800_000_000)


def test_a_finished_study_says_what_became_of_everything(home: Path) -> None:
    said = []
    for name in ("curve", "a-longer-name"):
        out = io.StringIO()
        study = modmix.open_study(f"ann/{name}", home)
        print_summary(study, Console(file=out, width=200), mlflow=True)
        said.append(out.getvalue().splitlines()[0])
    assert said == [
        (
            "study ann/curve is finished: 4 configurations (2 done, 1 pruned, 1 failed), "
            "8 models (5 done, 2 pruned, 1 failed)"
        ),
        (
            "study ann/a-longer-name is finished: 2 configurations (1 done, 1 pending), "
            "5 models (2 done, 3 pending), 2 of them reused"
        ),
    ]
