"""Methods that remember something of every training example, by its row number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modmix.base.errors import InputError
from modmix.base.messages import Replicate
from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.model import InputSpec, ModelSpec, build_model, derive_seed, unpack_weights
from modmix.study.dry_run import check_model
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.counting import count_stages
from modmix.training.probe import Probe
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry
from modmix.training.trainer import train_pack
from toypack import (
    add_method,
    finished,
    is_stacked,
    make_data,
    make_pack,
    make_replicates,
    progress,
    train,
)

ROWS, BATCH = 100, 16  # four rows of every epoch are left out
DATA = make_data(widths=(6, 4), rows=(ROWS, 40, 30))
ENCODER = {"name": "mlp", "hidden": [5]}


class Counting(Method):
    """Counts how often it has seen each training example; early examples weigh more."""

    uses_index = True
    seen: Tensor
    shown: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.head = nn.Linear(sum(features.values()), classes)
        self.register_buffer("shown", torch.zeros(ROWS))  # a copy that is saved, for the tests

    def remember(self, rows: int) -> None:
        self.register_buffer("seen", torch.zeros(rows), persistent=False)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        logits_BC: Tensor = self.head(torch.cat([features[m] for m in self.modalities], dim=-1))
        return logits_BC

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        self.seen[self.index] += 1
        if len(self.seen) == ROWS:  # not in a dry run
            self.shown.copy_(self.seen)
        return cross_entropy(outputs, target_B) / self.seen[self.index]


class Modulating(Counting):
    """The same in `modulate`; the gradient depends on it."""

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)

    def modulate(
        self,
        outputs: Tensor,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        self.seen.index_add_(0, self.index, torch.ones(len(target_B)))
        self.shown.copy_(self.seen)
        factor = 1 / self.seen[self.index].mean()
        return {name: factor * g for name, g in gradients["loss"].items()}


class Saving(Counting):
    def remember(self, rows: int) -> None:
        self.register_buffer("seen", torch.zeros(rows))


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Counting, Modulating, Saving):
        add_method(monkeypatch, kind.__name__.lower(), kind)


def made(method: str = "counting", epochs: int = 3, **fields: Any) -> tuple[Replicate, ...]:
    """Two configurations by two seeds: rows with the same seed see the same batches."""
    configurations = [{"training": {"learning_rate": rate}} for rate in (0.1, 0.01)]
    settings = {"epochs": epochs, "batch_size": BATCH, "select": "last", **fields}
    return make_replicates(method, configurations, data=DATA, encoder=ENCODER, **settings)


def counts(seed: int, epochs: int) -> list[float]:
    found = np.zeros(ROWS)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
        order = torch.randperm(ROWS, generator=generator).numpy()
        found[order[: ROWS // BATCH * BATCH]] += 1
    return found.tolist()


def assert_counted(replicates: tuple[Replicate, ...], ends: Mapping[str, Any], epochs: int) -> None:
    for replicate in replicates:
        model, _ = unpack_weights(ends[replicate.key].weights)
        assert isinstance(model.method, Counting)
        assert model.method.shown.tolist() == counts(replicate.seed, epochs)
    assert counts(0, epochs) != counts(1, epochs)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("method", ["counting", "modulating"])
def test_every_example_is_counted_when_it_is_seen(
    method: str, stack: str, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``forced``: streamed batches and steps that are captured and replayed."""
    if forced:
        monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    replicates = made(method, stack=stack, cuda_graphs="always")
    assert is_stacked(replicates, DATA) == (stack == "always")
    assert_counted(replicates, train(replicates, DATA, keep_weights=True), 3)


def test_steps_replayed_as_graphs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    monkeypatch.setattr("modmix.training.batches.forced", lambda: False)  # examples stay in place
    replicates = made(cuda_graphs="always")
    assert_counted(replicates, train(replicates, DATA, keep_weights=True), 3)


def test_stacked_is_one_after_another() -> None:
    """The counts are in the loss, so the curves tell."""
    stacked, apart = (train(made(stack=stack), DATA) for stack in ("always", "never"))
    for key, end in stacked.items():
        expected = list(end.history["train/loss"])
        assert list(apart[key].history["train/loss"]) == pytest.approx(expected, rel=1e-5)


def test_counts_survive_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    replicates = made(evaluations_per_epoch=2)
    expected = train(replicates, DATA, keep_weights=True)
    for count in (1, 2, 4):
        pack = make_pack(replicates, keep_weights=True, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        left = count
        while left:
            left -= bool(progress([next(events)]))
        events.close()
        ends = finished(train_pack(pack, DATA))
        assert_counted(replicates, ends, 3)
        for key, end in ends.items():
            assert end.history == expected[key].history
            assert end.weights == expected[key].weights


def test_counts_survive_splitting_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the third epoch: its first steps are undone, and done again by halves."""
    original, calls = Stack.loss_and_gradient, []

    def tight(self: Stack, *arguments: Any) -> Any:
        calls.append(self.models)
        if self.models > 2 and len(calls) > 25:
            raise torch.OutOfMemoryError("simulated")
        return original(self, *arguments)

    monkeypatch.setattr(Stack, "loss_and_gradient", tight)
    replicates = made(epochs=5)
    assert_counted(replicates, train(replicates, DATA, keep_weights=True), 5)
    assert calls[0] == 1  # the step that measures memory
    assert set(calls[1:26]) == {4}
    assert set(calls[-12:]) == {2}


def test_saved_models_do_without_the_memory() -> None:
    (end, *_) = train(made(epochs=1), DATA, keep_weights=True).values()
    model, _ = unpack_weights(end.weights or b"")
    assert set(model.method.state_dict()) == {"shown", "head.weight", "head.bias"}
    assert model.method.index.shape == (0,)
    model.scores(model({"m0": torch.zeros(2, 6), "m1": torch.zeros(2, 4)}))


def test_the_memory_of_a_model_has_its_numbers_of_every_example() -> None:
    """The buffer, its copy beside the best weights, and the copies of both that can be restored."""
    found = []
    for rows in (200, 1200):
        data = make_data(widths=(6, 4), rows=(rows, 40, 30))
        pack = make_pack(made(), keep_weights=True)
        cpu = torch.device("cpu")
        builder = Builder(pack, data, cpu, lambda _: None)
        entry = StageEntry(stage=Stage(name="s"), epochs=1, from_best=False, keeps_best=True)
        (single,) = builder.started([0], entry)
        train_split = Examples(data, "train", list(data.inputs), cpu)
        measured = Probe(builder, train_split, Order(rows, BATCH, cpu))._bytes(single)
        assert measured is not None
        found.append(measured)
    assert found[1][0] - found[0][0] == 4 * 1000 * 4
    assert found[1][1] == found[0][1]  # per example in evaluation


def test_memory_that_would_be_saved_is_refused() -> None:
    with pytest.raises(InputError, match="persistent=False, got 'seen', which would be saved"):
        train(made("saving"), DATA)


def test_the_dry_run_and_the_count_of_operations_have_row_numbers() -> None:
    spec = ModelSpec(
        method="counting", params={}, encoders={"m0": ENCODER, "m1": ENCODER}, classes=3,
        inputs={"m0": InputSpec(shape=(6,)), "m1": InputSpec(shape=(4,))},
    )  # fmt: skip
    check_model(spec)
    ((_, count),) = count_stages(lambda: build_model(spec, 0), DATA.inputs, 7)
    # Forward and backward pass of three linear layers; the first two need no gradient of inputs.
    macs = 2 * (6 * 5 + 4 * 5) + 3 * 10 * 3
    assert count.flops == 2 * 7 * macs
