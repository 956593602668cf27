"""What is refused or warned about because settings, or settings and data, do not work together."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import SpecError
from modmix.base.messages import digest
from modmix.base.metrics import METRICS
from modmix.methods.table import METHODS
from modmix.study import files, make_plan
from modmix.study.compatibility import metric_problem
from modmix.study.plan import Plan
from modmix.tasks.data import Data, Input, Split


def split(labels: list[int]) -> Split:
    n = len(labels)
    inputs = {"left": np.zeros((n, 4), np.float32), "right": np.zeros((n, 3), np.float32)}
    return Split(inputs=inputs, labels=np.array(labels, np.int64))


def data(*, train: int = 40, val: list[int] | None = None, name: str = "fake") -> Data:
    return Data(
        name=name,
        inputs={"left": Input(name="left", shape=(4,)), "right": Input(name="right", shape=(3,))},
        classes=3,
        class_names=("a", "b", "c"),
        train=split([i % 3 for i in range(train)]),
        val=split([0, 1, 2, 0] if val is None else val),
        test=split([0, 1, 2]),
        fingerprint=digest(name),
    )


def make(
    monkeypatch: pytest.MonkeyPatch, text: str, found: Data | Mapping[Any, Data] | None = None
) -> Plan:
    def load(_: str, options: Mapping[str, Any], *__: Any) -> Data:
        if isinstance(found, Mapping):
            return found[options["split_seed"]]
        return found or data()

    monkeypatch.setattr("modmix.tasks.base.load_task", load)
    if "parts:" not in text:
        text += "\nparts: {p: {methods: {add: }}}"
    source = files.parse(f"study: s\ntask: digits\n{text}", name="x.yaml", folder=Path("/"))
    return make_plan.make(source)


def refusals(
    monkeypatch: pytest.MonkeyPatch, text: str, found: Data | Mapping[Any, Data] | None = None
) -> list[str]:
    with pytest.raises(SpecError) as caught:
        make(monkeypatch, text, found)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


# ---------------------------------------------------------------- metrics and labels


def test_which_metrics_one_class_leaves_undefined() -> None:
    """Against the metrics themselves, on targets of one class."""
    import torch

    from modmix.base.metrics import evaluate

    scores = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    one = data(val=[1, 1, 1, 1])
    values = evaluate(scores, scores.log_softmax(-1), torch.tensor([1, 1, 1, 1]), METRICS)
    for name, value in values.items():
        assert (metric_problem(f"val/{name}", one) is not None) == bool(value.isnan().any()), name
        assert metric_problem(f"val/{name}", data()) is None


AUC = (
    "val/auc is undefined, because all 4 examples of the split 'val' are of class 'b': split the "
    "data so that it has several classes there, or name another metric (val/error, val/nll, "
    "val/ece, val/f1)"
)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("objective: val/auc", "objective"),
        ("objective: [val/error, val/auc]", "objective"),
        ("training: {monitor: val/auc}", "training.monitor"),
        ("objective: val/auc\ntraining: {monitor: val/auc}", "objective"),
    ],
)
def test_auc_of_one_class_is_refused_once(
    monkeypatch: pytest.MonkeyPatch, text: str, path: str
) -> None:
    one = data(val=[1, 1, 1, 1])
    assert refusals(monkeypatch, text, one) == [f"{path}: {AUC}"]
    make(monkeypatch, text)
    make(monkeypatch, "objective: val/error", one)


def test_every_condition_s_labels_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {0: data(), 1: data(val=[1, 1, 1, 1], name="other")}
    parts = "parts: {p: {methods: {add: {task.split_seed: {grid: [0, 1]}}}}}"
    text = f"objective: val/auc\n{parts}"
    assert refusals(monkeypatch, text, variants) == [f"objective: {AUC}"]


# ---------------------------------------------------------------- batches of one

BATCH_NORM = "encoders: {default: {name: mlp, hidden: [8], batch_norm: true}}"


@pytest.mark.parametrize(
    ("text", "train"),
    [
        (f"{BATCH_NORM}\ntraining: {{batch_size: 1}}", 40),
        (f"{BATCH_NORM}\nparts: {{p: {{methods: {{add: {{batch_size: {{grid: [8, 1]}}}}}}}}}}", 40),
        (
            (
                f"{BATCH_NORM}\nparts: {{p: {{search: {{configurations: 3}}, methods: "
                "{add: {batch_size: {low: 1, high: 64, log: true}}}}}"
            ),
            40,
        ),
        (
            (
                "training: {batch_size: 1}\nparts: {p: {methods: {add: {encoder.batch_norm: "
                "{grid: [false, true]}}}}}\nencoders: {default: {name: mlp}}"
            ),
            40,
        ),
        (f"{BATCH_NORM}\ntraining: {{batch_size: 32}}", 1),
    ],
)
def test_batch_norm_refuses_batches_of_one(
    monkeypatch: pytest.MonkeyPatch, text: str, train: int
) -> None:
    (found,) = refusals(monkeypatch, text, data(train=train))
    why = "batch_size is 1" if train > 1 else "there are no more in the training split"
    assert found.startswith(
        f"parts.p.methods.add: it cannot be trained on batches of one example ({why}): "
        "Expected more than 1 value per channel"
    )
    assert found.endswith("raise batch_size, or turn batch norm off")


@pytest.mark.parametrize(
    "text",
    [
        f"{BATCH_NORM}\ntraining: {{batch_size: 2}}",
        "encoders: {default: {name: mlp}}\ntraining: {batch_size: 1}",
        # The fortieth example is dropped: it is no batch of its own.
        f"{BATCH_NORM}\ntraining: {{batch_size: 39}}",
    ],
)
def test_other_batches_are_fine(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    make(monkeypatch, text)


# ---------------------------------------------------------------- without effect


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("momentum: 0.5", "momentum has no effect with optimizer: adam (only with sgd)"),
        ("nesterov: true", "nesterov has no effect with optimizer: adam (only with sgd)"),
        (
            "optimizer: sgd, eps: 1e-9",
            "eps has no effect with optimizer: sgd (only with adam or adamw)",
        ),
        ("optimizer: sgd, momentum: 0, nesterov: true", "nesterov has no effect with momentum: 0"),
        ("milestones: [3]", "milestones has no effect with schedule: constant (only with step)"),
        (
            "decay_rate: 0.5, schedule: cosine",
            "decay_rate has no effect with schedule: cosine (only with exponential or step)",
        ),
        (
            "schedule: step",
            "schedule: step has no effect without milestones: the learning rate stays as it is",
        ),
        (
            "schedule: step, milestones: [2, 5], epochs: 5",
            "milestones from 5 on have no effect: training ends after 5 epochs",
        ),
        (
            "patience: 4, epochs: 5",
            (
                "patience 4 never stops a model that has 5 evaluations "
                "(epochs · evaluations_per_epoch): lower it, or raise epochs"
            ),
        ),
        (
            "evaluations_per_epoch: 6, batch_size: 8",
            (
                "evaluations_per_epoch 6 is more than an epoch has steps (5): "
                "there is one after every step"
            ),
        ),
        (
            "batch_size: 41",
            "batch_size 41 is more than the 40 training examples: every step sees all of them",
        ),
        (
            "cuda_graphs: always",
            "cuda_graphs: always has no effect without a GPU: give resources: {gpus: 1}",
        ),
        (
            "stack: never, compile: true",
            "compile has no effect with stack: never (only with auto or always)",
        ),
    ],
)
def test_what_has_no_effect_is_said(
    monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    plan = make(monkeypatch, f"training: {{{text}}}")
    assert plan.warnings == (f"add: {sentence}",)


def test_defaults_and_what_works_are_not_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = (
        "optimizer: sgd, momentum: 0.9, nesterov: true, schedule: step, milestones: [2, 4], "
        "decay_rate: 0.1, epochs: 5, patience: 3, batch_size: 8, evaluations_per_epoch: 5"
    )
    assert make(monkeypatch, f"training: {{{fine}}}").warnings == ()
    assert make(monkeypatch, "").warnings == ()
    graphs = "training: {cuda_graphs: always}\nresources: {gpus: 0.5}"
    assert make(monkeypatch, graphs).warnings == ()


@pytest.mark.parametrize(
    ("method", "epochs", "sentence"),
    [
        (
            "dimml: ",
            20,
            (
                "DUC never acts, as it begins after warmup (20) epochs and there are 20: "
                "lower warmup, raise epochs, or set duc_weight: 0"
            ),
        ),
        ("dimml: ", 21, None),
        ("dimml: {warmup: 3}", 3, "DUC never acts, as it begins after warmup (3) epochs and there"),
        ("dimml: {duc_weight: 0}", 5, None),
        (
            "gblending: ",
            10,
            (
                "the losses' weights stay equal, as training ends with the first super_epoch (10) "
                "after 10 epochs: lower super_epoch, or raise epochs"
            ),
        ),
        ("gblending: ", 11, None),
        (
            "reconboost: {turn_epochs: 2}",
            7,
            "7 epochs end before a round of the turns of 2 modalities, which takes 8: raise epochs",
        ),
        ("reconboost: {turn_epochs: 2}", 8, None),
        (
            "ogm_ge: {first_epoch: 5}",
            5,
            "gradients are never modulated with first_epoch 5 and last_epoch 50 in 5 epochs",
        ),
        ("ogm_ge: {first_epoch: 3, last_epoch: 2}", 9, "gradients are never modulated with first"),
        ("ogm_ge: {first_epoch: 5, last_epoch: 5}", 6, None),
    ],
)
def test_what_a_method_never_does_in_so_few_epochs_is_said(
    monkeypatch: pytest.MonkeyPatch, method: str, epochs: int, sentence: str | None
) -> None:
    """Also of defaults: the method would not be what its name says."""
    encoders = "encoders: {default: {name: mlp, hidden: [4]}}"
    part = f"parts: {{p: {{methods: {{{method}}}}}}}"
    found = make(monkeypatch, f"training: {{epochs: {epochs}}}\n{encoders}\n{part}").warnings
    if sentence is None:
        assert found == ()
    else:
        (only,) = found
        assert only.startswith(f"{method.partition(':')[0]}: {sentence}")


def test_patience_that_is_said_to_stop_nothing_stops_nothing() -> None:
    """The first evaluation is the best so far, so that E of them wait E - 1 times at most."""
    from modmix.training.record import Record

    for patience, epochs in ((3, 5), (4, 5), (5, 5)):
        record = Record()
        stops = 0
        for epoch in range(epochs):
            record.add({"epoch": epoch + 1.0, "val/error": 1.0 + epoch}, "val/error", higher=False)
            stops += record.waited >= patience and epoch < epochs - 1
        assert bool(stops) == (patience < epochs - 1)


@pytest.mark.parametrize(
    ("block", "warns"),
    [
        ("width: 8", True),
        ("width: {grid: [8, 16]}", True),
        ("depth: 0, width: 8", True),
        ("depth: 1, width: 8", False),
        ("depth: {grid: [0, 1]}, width: 8", False),
        ("depth: 0", False),
    ],
)
def test_a_width_without_hidden_layers(
    monkeypatch: pytest.MonkeyPatch, block: str, warns: bool
) -> None:
    plan = make(monkeypatch, f"parts: {{p: {{methods: {{late: {{{block}}}}}}}}}")
    sentence = "late: width has no effect with depth: 0 (no hidden layers)"
    assert plan.warnings == ((sentence,) if warns else ())


@pytest.mark.parametrize("method", METHODS)
def test_no_method_reads_its_width_without_hidden_layers(method: str) -> None:
    declared = {h.name: h for h in METHODS[method].hyperparameters}
    if not {"depth", "width"} <= set(declared) or declared["depth"].problem(0) is not None:
        return
    module, _, name = METHODS[method].path.partition(":")
    made = getattr(importlib.import_module(module), name)
    values = {name: one.default for name, one in declared.items()} | {"depth": 0}
    features = {"a": 5} if method == "base" else {"a": 5, "b": 5}
    one, other = (made(features, 3, **values | {"width": width}) for width in (8, 16))
    assert [x.shape for x in one.parameters()] == [x.shape for x in other.parameters()]


def test_fields_of_encoders_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (
        "parts: {p: {shared: {encoder.taps: true}, methods: {add: , early: , "
        "mul: {optimizer: {grid: [sgd, adam]}, momentum: 0.5}}}}"
    )
    plan = make(monkeypatch, f"encoders: {{default: {{name: mlp}}}}\n{parts}")
    assert set(plan.warnings) == {
        "add, mul: encoder.taps has no effect: no encoder here has it (mlp)",
        "early: encoder.taps has no effect: the method takes raw inputs",
        "mul: momentum has no effect with optimizer: adam (only with sgd)",
    }
