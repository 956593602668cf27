"""Every tensor of training lies on the device, shown with tensors that have one and no content.

They refuse to meet tensors of another device. The backward pass of torch asks for a real GPU where
the device is "cuda", so whole steps run on a device made in Python.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import gpucases
from modmix.base.metrics import METRICS, evaluate
from modmix.methods.base import Pass, remembers
from modmix.methods.model import build_model, model_spec
from modmix.methods.table import METHODS
from modmix.tasks.data import Data
from modmix.training import batches
from modmix.training.batches import Examples, Order
from modmix.training.evaluation import predictions_of
from modmix.training.group import Group, Member
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry
from toypack import make_replicates

CUDA = torch.device("cuda:0")
IMAGES = gpucases.images(rows=(32, 12, 12))


@pytest.fixture(autouse=True)
def encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpucases.ENCODERS, "noisy", gpucases.ENTRIES["noisy"])
    monkeypatch.setattr(batches, "available", lambda *_: 1 << 30)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode, torch.no_grad():
        yield mode


def make_group(method: str, data: Data, encoder: Mapping[str, Any], **training: Any) -> Group:
    """Four models, of two seeds, in their first stage."""
    settings: dict[str, Any] = {"clip_norm": 1.0, "weight_decay": 0.1, **training}
    replicates = make_replicates(method, [{}, {}], data=data, **settings)
    specs = dict.fromkeys(data.shapes, encoder)
    replicates = tuple(replace(r, encoders=specs) for r in replicates)
    models = [build_model(model_spec(r, data), r.seed) for r in replicates]
    for model in models:
        remembers(model.method, data.train.rows)
    members = [Member(index=i, seed=r.seed, training=r.training) for i, r in enumerate(replicates)]
    group = Group(members, Stack(models, CUDA))
    group.start_stage(StageEntry(stage=stage_of(group), epochs=2, from_best=False, keeps_best=True))
    return group


def stage_of(group: Group) -> Any:
    return group.stack.template.method.stages()[0]


def devices(tensors: Mapping[str, Tensor]) -> set[torch.device]:
    return {value.device for value in tensors.values()}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_without_its_backward_pass(method: str, optimizer: str) -> None:
    data = gpucases.VECTORS
    encoder = {"name": "mlp", "hidden": [4], "batch_norm": True}
    group = make_group(method, data, encoder, optimizer=optimizer)
    stack = group.stack
    inputs = {name: torch.empty(4, 5, *s, device=CUDA) for name, s in data.shapes.items()}
    target = torch.empty(4, 5, device=CUDA, dtype=torch.long)
    buffers = stack._with_index(torch.empty(4, 5, device=CUDA, dtype=torch.long))
    losses, wrong_K, _ = stack._map(stack._loss, inputs, target, buffers=buffers)
    assert devices(losses) == {wrong_K.device} == {CUDA}
    group.optimizer.start_epoch(1)
    group.optimizer.step(stack.parameters_KP, torch.empty_like(stack.parameters_KP))
    found = stack.predict({name: x[0] for name, x in inputs.items()}, parts=bool(group.parts))
    assert found.scores.shape == (4, 5, 3)
    for value in evaluate(found.scores, found.log_probabilities, target[0], METRICS).values():
        assert value.device == CUDA
    assert devices(group.state()) == {CUDA}


@pytest.mark.usefixtures("fake")
def test_batches_augmentation_and_evaluation() -> None:
    encoder = {"name": "noisy"}
    group = make_group("mul", IMAGES, encoder)
    train = Examples(IMAGES, "train", list(IMAGES.inputs), CUDA)
    assert train.place == CUDA
    order = Order(train.rows, 8, train.place)
    group.start_epoch(0, order, 0)
    for raw, target_SB, index_SB in train.batches([order.step(group._order_SN, 1)]):
        assert raw["picture"].dtype == torch.uint8
        inputs = train.prepare(raw, index_SB, group._augment_S)
        assert {x.dtype for x in inputs.values()} == {torch.float32}
        assert devices(inputs) == {target_SB.device} == {CUDA}
        assert inputs["picture"].shape == (2, 8, 6, 6, 3)
        rows = {name: x.index_select(0, group._seed_K) for name, x in inputs.items()}
        losses, _, _ = group.stack._map(
            group.stack._loss, rows, target_SB.index_select(0, group._seed_K)
        )
        assert devices(losses) == {CUDA}
    val = Examples(IMAGES, "val", list(IMAGES.inputs), CUDA)
    found = predictions_of(group.stack, val, 5)
    assert (found.scores.shape, found.scores.device) == ((4, 12, 3), CUDA)
    assert val.targets.device == CUDA


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("method", ["late", "mul"])
def test_best_weights_rows_and_stages(method: str) -> None:
    data = gpucases.VECTORS
    encoder = {"name": "mlp", "hidden": [4], "batch_norm": True}
    group = make_group(method, data, encoder, optimizer="adam")
    group.start_epoch(0, Order(800, 32, CUDA), 0)
    parts = {name: [True, False, False, True] for name in group.parts}
    group.keep_best([True] * 4, parts)
    group.keep_best([False, True, False, True], parts)
    group.keep_stopped([1])
    group.keep_stopped([2, 3])
    group.go_back([2])
    saved = group.snapshot()
    group.load(*saved)
    assert devices(saved[0]) == {CUDA}
    for half in (*group.halves(), group):
        half = half.select([1, 0])
        assert devices(half.state()) == {CUDA}
        half.optimizer.step(half.stack.parameters_KP, torch.empty_like(half.stack.parameters_KP))
        entry = StageEntry(stage=stage_of(half), epochs=1, from_best=True, keeps_best=False)
        half.start_stage(entry)
        assert half.chosen.parameters_KP.device == CUDA


@pytest.mark.usefixtures("fake")
def test_a_pass_over_the_features() -> None:
    group = make_group("add", IMAGES, {"name": "noisy"})
    group.stack.buffers["method.centre"] = torch.empty(4, 8, device=CUDA)

    def step(state: Any, features: Mapping[str, Tensor], target_B: Tensor) -> Any:
        return {
            "sum": state["sum"] + features["picture"].sum(0),
            "count": state["count"] + (target_B >= 0).sum(),
        }

    one = Pass(
        start=lambda: {
            "sum": torch.zeros(8, device=CUDA),
            "count": torch.zeros((), dtype=torch.long, device=CUDA),
        },
        step=step,
        finish=lambda state: {"centre": state["sum"] / state["count"]},
    )
    group.run_pass(one, Examples(IMAGES, "train", list(IMAGES.inputs), CUDA), 5)
    assert group.stack.buffers["method.centre"].device == CUDA


@pytest.mark.slow
def test_whole_steps_wait_for_nothing() -> None:
    """Backward pass included: no other device, no result read back, no blocking copy."""
    script = Path(__file__).parents[1] / "fakedevice.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    read_back = told.pop("reading back")  # that shows that such things are found
    assert any("_to_copy" in name for name in read_back)
    assert len(told) == len(METHODS) + 2 + 3 + len(gpucases.TOKEN_ENCODERS)
    assert {case: found for case, found in told.items() if found} == {}


@pytest.mark.usefixtures("fake")
def test_a_tensor_of_the_host_is_noticed() -> None:
    group = make_group("add", gpucases.VECTORS, {"name": "mlp", "hidden": [4]})
    inputs = {name: torch.empty(5, *s) for name, s in gpucases.VECTORS.shapes.items()}
    with pytest.raises(RuntimeError, match="device"):
        group.stack.predict(inputs)
