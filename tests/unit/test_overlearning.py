"""Over-learning against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from analysis_ledger import Written, open_ledger
from modmix.analysis.frames import read
from modmix.analysis.overlearning import analyse, overlearning_table
from modmix.analysis.statistics import over_learning
from modmix.base.errors import InputError
from modmix.base.messages import PackedPredictions
from modmix.base.predictions import ExamplePredictions, ExampleTargets
from modmix.cli.main import app
from modmix.ledger.ledger import Ledger
from modmix.study import files, make_plan

TARGET = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
# Right on 0 to 3, on 2 to 5: together on 0 to 5.
LEFT = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
RIGHT = [1, 1, 0, 0, 1, 1, 0, 0, 0, 0]
# Of examples 0 to 5, wrong on 5 alone; of all ten, wrong on 5, 8 and 9.
ADD = [0, 0, 0, 0, 1, 0, 1, 1, 0, 0]


def packed(classes: list[int]) -> PackedPredictions:
    p_true = np.zeros(len(classes), dtype=np.float16)
    data = ExamplePredictions(np.array(classes), p_true).to_bytes(2)
    return PackedPredictions(rows=len(classes), data=data)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path)
    yield opened
    opened.close()


def end(
    study: Written, configuration: str, seed: int, classes: list[int] | None, val: float = 5.0
) -> None:
    wrong = np.mean(np.array(classes or TARGET) != TARGET)
    metrics = {"val/error": val, "test/error": 100 * float(wrong)}
    predictions = None if classes is None else packed(classes)
    study.end(configuration, seed, metrics, predictions=predictions)


def base(study: Written, modality: str, classes: list[int] | None, val: float = 9.0) -> str:
    params = {"modality": modality, "depth": int(val)}
    key = study.configuration("p", "base", params, seeds=[0, 1])
    for seed in (0, 1):
        end(study, key, seed, classes, val)
    return key


def make(ledger: Ledger, **spec: object) -> Written:
    study = Written(ledger, seeds=[0, 1], **spec)
    ledger.add_test_split("f" * 32, ExampleTargets(np.array(TARGET)))
    return study


def test_the_definition() -> None:
    target, right = np.array([0, 1, 1, 0]), np.array([True, True, False, True])
    assert over_learning(np.array([0, 1, 1, 0]), right, target) == 0
    assert over_learning(np.array([1, 1, 0, 0]), right, target) == pytest.approx(100 / 3)
    assert math.isnan(over_learning(target, np.zeros(4, dtype=bool), target))


def test_by_hand(ledger: Ledger) -> None:
    study = make(ledger, paper={"add": {"test/overlearning": [2.9, 0.1]}})
    base(study, "left", TARGET, val=20.0)  # not the best one of its modality
    best_left = base(study, "left", LEFT)
    best_right = base(study, "right", RIGHT)
    add = study.configuration("p", "add", {}, seeds=[0, 1])
    end(study, add, 0, ADD)
    end(study, add, 1, TARGET)
    late = study.configuration("p", "late", {}, seeds=[0, 1])
    for seed in (0, 1):
        end(study, late, seed, None, val=6.0)
    found = analyse(ledger, read(ledger, "demo"))
    assert found.singles == {"left": best_left, "right": best_right}
    assert found.solvable.mean == pytest.approx(60)
    first, second = found.rows
    assert (first.best.method, second.best.method) == ("add", "late")
    assert first.overall.mean == pytest.approx(15)  # of 30 and 0
    assert first.over.mean == pytest.approx(100 / 12)  # of 1 / 6 and 0
    assert first.over.std == pytest.approx(100 / 6 / math.sqrt(2))
    assert (second.stored, second.over.n) == (0, 0)
    assert math.isnan(second.over.mean)

    table = overlearning_table(ledger, read(ledger, "demo"))
    assert table.header == ("method", "n", "test error (%)", "over-learning (%)", "paper")
    cells = [[cell.text for cell in row] for row in table.cells]
    assert cells[0] == ["add", "2", "15.00 ± 21.21", "8.33 ± 11.79", "2.9 ± 0.1"]
    assert cells[1][3:] == ["–", "–"]
    assert "Without stored test predictions: late (2 of 2 models)." in table.notes
    assert "(60.00 ± 0.00 %)" in table.notes[0]


def test_the_papers_numbers_may_be_stated() -> None:
    text = """study: s
task: digits
parts: {p: {methods: {add: }}}
paper: {add: {test/overlearning: [2.9, 0.1]}}
"""
    *_, problems = make_plan.check(files.parse(text, name="s.yaml", folder=Path()))
    assert problems == []


def test_what_is_missing_is_named(ledger: Ledger, tmp_path: Path) -> None:
    study = make(ledger)
    add = study.configuration("p", "add", {}, seeds=[0, 1])
    end(study, add, 0, ADD)
    with pytest.raises(InputError, match="no finished method that combines modalities"):
        analyse(ledger, read(ledger, "demo"))
    end(study, add, 1, ADD)
    base(study, "left", None)
    message = (
        r"lacks left \(no predictions for seed 0, 1\); right \(no finished configuration\): add"
    )
    with pytest.raises(InputError, match=message):
        analyse(ledger, read(ledger, "demo"))


def test_without_predictions(ledger: Ledger) -> None:
    study = make(ledger)
    base(study, "left", None)
    base(study, "right", None)
    study.fill(study.configuration("p", "add", {}), 3.0)
    with pytest.raises(InputError, match="'demo' has no stored test predictions"):
        analyse(ledger, read(ledger, "demo"))


def test_the_command(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path))
    study = make(ledger)
    base(study, "left", LEFT)
    base(study, "right", RIGHT)
    add = study.configuration("p", "add", {}, seeds=[0, 1])
    for seed in (0, 1):
        end(study, add, seed, ADD)
    run = CliRunner().invoke(app, ["table", "demo", "--by", "overlearning", "--format", "csv"])
    assert run.exit_code == 0, run.output
    header, row = run.stdout.splitlines()
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(values["test/overlearning/mean"]) == pytest.approx(100 / 6)
    assert float(values["test/error/mean"]) == pytest.approx(30)
