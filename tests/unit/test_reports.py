"""Errors of further predictors that a method reports: their values, and where they are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from analysis_ledger import Written, open_ledger
from modmix.analysis.best import best_configurations
from modmix.analysis.compare import compare_table
from modmix.analysis.frames import read
from modmix.analysis.labels import is_metric, metric_label, metric_text
from modmix.analysis.over_tasks import results_of
from modmix.analysis.tables import configurations_of
from modmix.base.errors import InputError
from modmix.cli.main import app
from modmix.ledger.ledger import Ledger
from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.model import InputSpec, ModelSpec, unpack_weights
from modmix.registry import final
from modmix.study.dry_run import check_model
from modmix.tracking.content import configuration_content
from modmix.training.trainer import train_pack
from plainloop import tensors
from toypack import add_method, is_stacked, make_data, make_replicates, progress, train
from toypack import make_pack as pack_of

DATA = make_data(widths=(6, 4), rows=(96, 50, 30), noise=2.5)
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


class Outputs(NamedTuple):
    logits_BC: Tensor
    own: dict[str, Tensor]


class Reporting(Method):
    """A classifier per modality beside the joint one; the second stage reports the first only."""

    late_only = False

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.heads = nn.ModuleList(nn.Linear(d, classes) for d in features.values())
        self.second = False

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        pairs = zip(self.modalities, self.heads, strict=True)
        own = {m: head(features[m]) for m, head in pairs}
        return Outputs(torch.stack(list(own.values())).sum(0), own)

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.logits_BC, target_B)

    def reports(self, outputs: Outputs) -> Mapping[str, Tensor]:
        if self.late_only and not self.second:
            return {}
        return {name: logits.log_softmax(-1) for name, logits in outputs.own.items()}

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(name="first", epochs=1), Stage(name="second"))

    def enter(self, stage: Stage) -> None:
        self.second = stage.name == "second"


class LateReporting(Reporting):
    late_only = True


class WrongShape(Reporting):
    def reports(self, outputs: Outputs) -> Mapping[str, Tensor]:
        return {"m0": outputs.own["m0"][:, 0]}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "reporting", Reporting)
    add_method(monkeypatch, "latereporting", LateReporting)
    add_method(monkeypatch, "wrongshape", WrongShape)


@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("select", ["best", "last"])
def test_errors_are_those_of_the_kept_weights(select: str, stack: str) -> None:
    made = make_replicates(
        "reporting", data=DATA, encoder=ENCODER, epochs=4, batch_size=16, learning_rate=0.03,
        stack=stack, select=select, eval_batch_size=7,
    )  # fmt: skip
    assert is_stacked(made, DATA) == (stack == "always")
    found = set()
    for end in train(made, DATA, keep_weights=True).values():
        assert list(end.history)[-3:] == ["val/m0/error", "val/m1/error", "lr"]
        model, _ = unpack_weights(end.weights or b"")
        for split in ("val", "test"):
            inputs, labels = tensors(DATA.splits[split])
            with torch.no_grad():
                own = model(inputs).own
            for name, logits in own.items():
                wrong = 100 * np.mean(logits.numpy().argmax(1) != labels.numpy())
                assert end.metrics[f"{split}/{name}/error"] == pytest.approx(wrong)
                found.add(round(wrong, 3))
        at = list(end.history["epoch"]).index(end.best_epoch)
        for name in ("m0", "m1"):
            assert end.history[f"val/{name}/error"][at] == end.metrics[f"val/{name}/error"]
    assert len(found) > 3


def test_a_stage_without_reports_has_nan() -> None:
    made = make_replicates("latereporting", data=DATA, encoder=ENCODER, epochs=2, batch_size=16)
    for end in train(made, DATA).values():
        column = list(end.history["val/m0/error"])
        assert np.isnan(column).tolist() == [True, False, False]
        assert len(column) == len(end.history["epoch"])
        assert "test/m0/error" in end.metrics


def test_progress_has_them() -> None:
    made = make_replicates("reporting", data=DATA, encoder=ENCODER, epochs=1, batch_size=16)
    for event in progress(train_pack(pack_of(made), DATA)):
        assert all("val/m1/error" in values for values in event.metrics.values())


def test_methods_without_reports_have_no_further_columns() -> None:
    (end, *_) = train(make_replicates("add", data=DATA, epochs=1), DATA).values()
    assert not [name for name in (*end.history, *end.metrics) if name.count("/") > 1]


def test_the_dry_run_checks_their_shape() -> None:
    spec = ModelSpec(
        method="wrongshape", params={}, encoders={"m0": ENCODER, "m1": ENCODER}, classes=3,
        inputs={"m0": InputSpec(shape=(6,)), "m1": InputSpec(shape=(4,))},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"reports: m0 must be of shape \(2, 3\)"):
        check_model(spec)


# ---------------------------------------------------------------- tables, MLflow


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = open_ledger(tmp_path)
    study = Written(ledger, parts={"p": {"methods": {"own": None, "add": None}}})
    for method, error, reported in (("own", 8.0, {"a+b": 25.0}), ("add", 9.0, {})):
        key = study.configuration("p", method, {}, seeds=range(2))
        metrics = {"val/error": error - 1, "test/error": error}
        metrics |= {f"{s}/{n}/error": x for n, x in reported.items() for s in ("val", "test")}
        study.record([study.result(key, seed, metrics) for seed in range(2)])
    return ledger


def test_names_and_units() -> None:
    assert metric_label("test/audio/error") == "test error of audio (%)"
    assert metric_label("val/face.left/error") == "validation error of face.left (%)"
    assert metric_text(12.345, "test/audio/error") == "12.35"
    assert is_metric("val/audio/error")
    assert not is_metric("val/audio/other")


def test_tables_show_them_when_asked(ledger: Ledger) -> None:
    snapshot = read(ledger, "demo")
    assert "test/a+b/error" in snapshot.metrics
    for table in (
        results_of(snapshot, ["test/error", "test/a+b/error"]),
        configurations_of(snapshot, ["test/a+b/error"]),
    ):
        place = table.header.index("test error of a+b (%)")
        shown = {row[table.header.index("method")].text: row[place].text for row in table.cells}
        assert shown == {"own": "25.00 ± 0.00", "add": "–"}
        assert "test/a+b/error/mean" in table.frame
    table = compare_table(ledger, ["demo"], "test/a+b/error")
    assert "25.00 ± 0.00" in [cell.text for row in table.cells for cell in row]
    with pytest.raises(InputError, match=r"must be one that is recorded .*, got 'test/c/error'"):
        configurations_of(snapshot, ["test/c/error"])


def test_predictors_that_nobody_reports_are_refused(ledger: Ledger) -> None:
    """Selecting or comparing by them would find nothing and not say why."""
    (best,) = best_configurations(ledger, "demo", "val/a+b/error")
    assert (best.method, best.mean) == ("own", 25.0)
    for name in ("a", "", "a/b"):
        with pytest.raises(InputError, match=r"selected by .*, val/a\+b/error\), got 'val/"):
            best_configurations(ledger, "demo", f"val/{name}/error")
        with pytest.raises(InputError, match=r"must be one of .*, test/a\+b/error, got 'test/"):
            compare_table(ledger, ["demo"], f"test/{name}/error")


@pytest.mark.parametrize("by", ["configuration", "method"])
@pytest.mark.usefixtures("ledger")
def test_the_command_line_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path))
    run = CliRunner().invoke(app, ["table", "demo", "--by", by, "--metric", "test/a+b/error"])
    assert run.exit_code == 0, run.output
    assert "test error of a+b (%)" in run.stdout
    assert "25.00" in run.stdout
    assert "test error (%)" not in run.stdout


def test_the_table_of_over_learning_takes_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path))
    arguments = ["table", "demo", "--by", "overlearning", "--metric", "test/a/error"]
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, InputError)
    assert "leave --metric out" in str(run.exception)


def test_mlflow_has_them(ledger: Ledger) -> None:
    study = ledger.study("demo")
    (configuration,) = [c for c in ledger.configurations("demo") if c.method == "own"]
    mine = [r for r in ledger.replicates("demo") if r.configuration == configuration.key]
    content = configuration_content(study, configuration, mine, ["p"], {}, {})
    logged = {value.key: value.value for value in content.metrics}
    assert logged["test/a_b/error"] == logged["val/a_b/error"] == 25.0  # MLflow refuses "+"
    assert logged["test/a_b/error_std"] == 0.0


def test_a_registered_model_has_them(ledger: Ledger) -> None:
    """MLflow refuses the whole version for a tag with "+" in its key."""
    study = ledger.study("demo")
    study = replace(study, spec={**study.spec, "final": {"of": "x"}})
    (configuration,) = [c for c in ledger.configurations("demo") if c.method == "own"]
    mine = [r for r in ledger.replicates("demo") if r.configuration == configuration.key]
    tags = final._tags(study, configuration, mine, mine[0])
    assert tags["test/a_b/error"] == "25 ± 0 (n=2)"
    assert all(re.fullmatch(r"[\w\-. /:]+", key) for key in tags)
