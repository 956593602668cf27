"""Stored test predictions: as bytes, from the trainer, in the ledger, as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from analysis_ledger import Written, open_ledger
from modmix.analysis.frames import read
from modmix.analysis.predictions import export
from modmix.base.errors import InputError
from modmix.base.messages import PackedPredictions
from modmix.base.predictions import (
    ExamplePredictions,
    ExampleTargets,
    integers_from_bytes,
    integers_to_bytes,
)
from modmix.cli.main import app
from modmix.ledger.ledger import Ledger
from modmix.methods.model import unpack_weights
from modmix.training.trainer import train_pack
from toypack import finished, make_data, make_pack, make_replicates, progress, train

DATA = make_data(rows=(96, 60, 40), noise=2.0)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("classes", [2, 256, 257, 70_000])
def test_predictions_survive_their_bytes(classes: int) -> None:
    given = np.array([0, classes - 1, 1, 0])
    p_true = np.array([1.0, 0.0, 0.25, 0.1], dtype=np.float16)
    data = ExamplePredictions(given, p_true).to_bytes(classes)
    found = ExamplePredictions.from_bytes(data, 4)
    assert found.classes_N.tolist() == given.tolist()
    assert found.p_true_N.tolist() == [1.0, 0.0, 0.25, 0.0999755859375]  # 1638 / 2^14


def test_integers_survive_their_bytes() -> None:
    for values in ([0, 1], [255], [256, 3], [70_000], [2**33]):
        assert integers_from_bytes(integers_to_bytes(np.array(values)), len(values)).tolist() == (
            values
        )


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("stack", ["always", "never"])
def test_predictions_are_those_of_the_kept_weights(stack: str) -> None:
    """Recomputed in float64 from the saved weights."""
    seeds = (0, 1) if stack == "always" else (0,)
    replicates = make_replicates(
        "mulmix", [{"beta": 0.5}], seeds, data=DATA, epochs=4, batch_size=16, stack=stack
    )
    keys = tuple(r.key for r in replicates)
    inputs = {name: torch.tensor(x).double() for name, x in DATA.test.inputs.items()}
    rows = torch.arange(DATA.test.rows)
    target = torch.tensor(DATA.test.labels)
    for end in train(replicates, DATA, keep_weights=True, keep_predictions=keys).values():
        assert end.weights is not None
        assert end.predictions is not None
        assert end.predictions.rows == 40
        found = ExamplePredictions.from_bytes(end.predictions.data, 40)
        model, _ = unpack_weights(end.weights)
        model = model.double()
        outputs = model(inputs)
        assert found.classes_N.tolist() == model.scores(outputs).argmax(-1).tolist()
        p_true = model.log_probabilities(outputs).exp()[rows, target].detach().numpy()
        np.testing.assert_allclose(found.p_true_N, p_true, rtol=1e-3)
        wrong = (found.classes_N != DATA.test.labels).mean()
        assert 100 * wrong == pytest.approx(end.metrics["test/error"])


def test_only_those_asked_for_are_kept() -> None:
    replicates = make_replicates("add", data=DATA, epochs=1, batch_size=16)
    ends = train(replicates, DATA, keep_predictions=(replicates[1].key,))
    assert [ends[r.key].predictions is None for r in replicates] == [True, False]


def test_predictions_are_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that end early are reported again after resuming, with their predictions."""
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    configurations = [{}, {"training": {"learning_rate": 0.0}}]  # the second stops at once
    replicates = make_replicates(
        "add", configurations, (0,), data=DATA, epochs=6, batch_size=16, patience=2
    )
    keys = tuple(r.key for r in replicates)
    expected = train(replicates, DATA, keep_predictions=keys)
    pack = make_pack(replicates, keep_predictions=keys, checkpoint=str(tmp_path / "c"))
    running = train_pack(pack, DATA)
    for event in running:
        if progress([event]) and event.active == 1:  # type: ignore[union-attr]
            break
    running.close()
    found = finished(train_pack(pack, DATA))
    for key in keys:
        assert found[key].predictions == expected[key].predictions is not None


# ---------------------------------------------------------------- files


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path)
    yield opened
    opened.close()


def packed(*classes: int, p_true: float = 0.5) -> PackedPredictions:
    given = np.array(classes)
    probabilities = np.full(len(classes), p_true, dtype=np.float16)
    data = ExamplePredictions(given, probabilities).to_bytes(3)
    return PackedPredictions(rows=len(classes), data=data)


def small_study(ledger: Ledger, name: str = "demo") -> Written:
    """`add` with two seeds that have predictions, `late` with one that has none."""
    study = Written(ledger, name, seeds=[0, 1])
    ledger.add_test_split("f" * 32, ExampleTargets(np.array([0, 2, 1]), np.array([7, 8, 30])))
    add = study.configuration("p", "add", {"depth": 0}, seeds=[0, 1])
    study.end(add, 1, {"val/error": 1.0}, predictions=packed(0, 2, 2, p_true=0.25))
    study.end(add, 0, {"val/error": 1.0}, predictions=packed(0, 1, 1))
    study.end(study.configuration("p", "late", {}, seeds=[0]), 0, {"val/error": 2.0})
    return study


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_row_per_model_and_example(
    ledger: Ledger, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modmix.analysis.predictions._ROWS_AT_ONCE", 2)
    study = small_study(ledger)
    path = tmp_path / f"new/out.{form}"
    done = export(ledger, read(ledger, study.name), path, form)
    assert (done.path, done.rows, done.replicates, done.missing) == (path, 6, 2, 1)
    frame = pd.read_csv(path) if form == "csv" else pd.read_parquet(path)
    assert list(frame) == [
        "method", "configuration", "seed", "row", "target", "predicted", "p_true",
    ]  # fmt: skip
    assert frame["method"].tolist() == ["add"] * 6
    assert set(frame["configuration"].map(len)) == {10}
    assert frame["seed"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["row"].tolist() == [7, 8, 30] * 2
    assert frame["target"].tolist() == [0, 2, 1] * 2
    assert frame["predicted"].tolist() == [0, 1, 1, 0, 2, 2]
    assert frame["p_true"].tolist() == [0.5] * 3 + [0.25] * 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_row_numbers_rows_are_positions(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add_test_split("f" * 32, ExampleTargets(np.array([0, 2, 1])))
    study = small_study(ledger)  # the first split of a fingerprint stays
    export(ledger, read(ledger, study.name), tmp_path / "x.parquet", "parquet")
    assert pd.read_parquet(tmp_path / "x.parquet")["row"].tolist() == [0, 1, 2] * 2


def test_a_study_without_predictions(ledger: Ledger, tmp_path: Path) -> None:
    study = Written(ledger, "old")
    study.fill(study.configuration("p", "add", {}), 3.0)
    with pytest.raises(InputError, match="study 'old' has no stored test predictions: set"):
        export(ledger, read(ledger, "old"), tmp_path / "x.csv", "csv")
    with pytest.raises(InputError, match="must be one of parquet, csv, got 'xlsx'"):
        export(ledger, read(ledger, "old"), tmp_path / "x.csv", "xlsx")
    assert not list(tmp_path.glob("*x.csv*"))


def test_the_command(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path))
    small_study(ledger)
    run = CliRunner().invoke(app, ["export", "predictions", "demo"])
    assert run.exit_code == 0, run.output
    assert run.stdout == f"{tmp_path}/demo/predictions.parquet\n"
    assert "6 predictions of 2 models" in run.stderr
    assert "without stored test predictions: 1 finished models" in run.stderr
    out = str(tmp_path / "x.csv")
    assert CliRunner().invoke(app, ["export", "predictions", "demo", "--out", out]).exit_code == 0
    assert len(Path(out).read_text().splitlines()) == 7


# ---------------------------------------------------------------- several tasks


def test_the_task_is_a_column_of_studies_of_several(ledger: Ledger, tmp_path: Path) -> None:
    tasks: dict[str, Any] = {"one": {"task": {"name": "digits"}}, "two": {"task": {"name": "weak"}}}
    study = Written(ledger, "many", task=None, tasks=tasks, seeds=[0])
    for task, fingerprint in (("one", "a"), ("two", "b")):
        ledger.add_test_split(fingerprint, ExampleTargets(np.array([0, 1])))
        key = study.configuration(
            f"p@{task}", "add", {"task": task}, seeds=[0], task=task, fingerprint=fingerprint
        )
        study.end(key, 0, {"val/error": 1.0}, predictions=packed(0, 1))
    snapshot = read(ledger, "many")
    export(ledger, snapshot, tmp_path / "x.parquet", "parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["task"].tolist() == ["one", "one", "two", "two"]
    done = export(ledger, snapshot.of_task("two"), tmp_path / "y.parquet", "parquet")
    assert done.rows == 2
