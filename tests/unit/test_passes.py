"""Passes between epochs: a fold over a split in chunks, against NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modmix.base.messages import PackStarted, Progress
from modmix.methods.base import Method, Pass, State, cross_entropy
from modmix.methods.model import Model, unpack_weights
from modmix.training.group import Group
from modmix.training.trainer import train_pack
from plainloop import tensors
from toypack import add_method, finished, make_data, make_pack, make_replicates, train

DATA = make_data(widths=(6, 4), rows=(96, 50, 30))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}
CHUNKS: list[int] = []


class Means(Method):
    """A head on the distances to the classes' means, of the train or the validation split."""

    train_CD: Tensor
    val_CD: Tensor
    at: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        width = sum(features.values())
        self.head = nn.Linear(width, classes)
        self.register_buffer("train_CD", torch.zeros(classes, width))
        self.register_buffer("val_CD", torch.zeros(classes, width))
        self.register_buffer("at", torch.zeros(()))

    def merged(self, features: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([features[m] for m in self.modalities], dim=-1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x = self.merged(features)
        logits_BC: Tensor = self.head(x) - 0.1 * torch.cdist(x, self.train_CD + self.val_CD)
        return logits_BC

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)

    def passes(self, epoch: int) -> Sequence[Pass]:
        if epoch == 1:
            return ()
        return (self._means("train"), self._means("val"))

    def _means(self, split: str) -> Pass:
        def start() -> State:
            zeros = torch.zeros_like(self.train_CD)
            return {"sum": zeros, "count": torch.zeros(self.classes)}

        def step(state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
            CHUNKS.append(len(target_B))
            one_B = torch.ones_like(target_B, dtype=torch.float32)
            state["sum"].index_add_(0, target_B, self.merged(features))  # in place, as one would
            state["count"].index_add_(0, target_B, one_B)
            return state

        def finish(state: State) -> Mapping[str, Tensor]:
            new = {f"{split}_CD": state["sum"] / state["count"].unsqueeze(1)}
            if split == "train":
                new["at"] = self.at + 1  # a pass sees the method's own buffers
            return new

        return Pass(
            start=start, step=step, finish=finish, split="train" if split == "train" else "val"
        )


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "means", Means)
    CHUNKS.clear()


def class_means(model: Model, split: str) -> NDArray[np.float64]:
    inputs, labels = tensors(DATA.splits[split])
    model.eval()
    with torch.no_grad():
        features = np.concatenate([x.double().numpy() for x in model.features(inputs).values()], 1)
    return np.stack([features[labels.numpy() == c].mean(0) for c in range(3)])


def replicates(**fields: object) -> tuple[object, ...]:
    settings = {"epochs": 3, "batch_size": 16, "select": "last", "encoder": ENCODER, **fields}
    return make_replicates("means", data=DATA, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [7, 48, 96, 4096])
@pytest.mark.parametrize("stack", ["always", "never"])
def test_class_means_are_those_of_numpy(stack: str, size: int) -> None:
    """Training stands still, so that the last weights are those that the passes saw."""
    made = replicates(stack=stack, eval_batch_size=size, learning_rate=0.0, epochs=1)
    events = list(train_pack(make_pack(made, keep_weights=True), DATA))  # type: ignore[arg-type]
    assert isinstance(events[0], PackStarted)
    assert events[0].stacked == (stack == "always")
    ends = finished(events)
    assert max(CHUNKS) <= size
    for end in ends.values():
        assert end.weights is not None
        trained = unpack_weights(end.weights)[0]
        fresh = unpack_weights(end.weights)[0]  # statistics of batch norm moved after the pass
        for encoder in fresh.encoders:
            for module in encoder.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.reset_running_stats()
        assert isinstance(trained.method, Means)
        assert trained.method.at == 1
        for split in ("train", "val"):
            found = getattr(trained.method, f"{split}_CD")
            np.testing.assert_allclose(
                found.numpy(), class_means(fresh, split), rtol=1e-4, atol=1e-5
            )


def test_passes_are_made_before_the_epochs_that_ask_for_them() -> None:
    ends = train(replicates(), DATA, keep_weights=True)  # type: ignore[arg-type]
    for end in ends.values():
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        assert isinstance(model.method, Means)
        assert model.method.at == 2  # not before epoch 1


def test_stacked_is_one_after_another_is_resumed(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    made = replicates(evaluations_per_epoch=2, eval_batch_size=20)
    stacked = train(made, DATA)  # type: ignore[arg-type]
    apart = train(replicates(evaluations_per_epoch=2, stack="never"), DATA)  # type: ignore[arg-type]
    for key, end in stacked.items():
        expected = list(end.history["train/loss"])
        assert list(apart[key].history["train/loss"]) == pytest.approx(expected, rel=1e-5)
    for count in (1, 2, 4):
        pack = make_pack(made, checkpoint=f"{tmp_path}/{count}")  # type: ignore[arg-type]
        events = train_pack(pack, DATA)
        left = count
        while left:
            left -= isinstance(next(events), Progress)
        events.close()
        for key, end in finished(train_pack(pack, DATA)).items():
            assert end.history == stacked[key].history


def test_the_time_of_passes_is_that_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that stands still except in passes."""
    now = [0.0]
    original = Group.run_pass

    def slow(self: Group, *arguments: Any) -> None:
        original(self, *arguments)
        now[0] += 12.0

    monkeypatch.setattr(Group, "run_pass", slow)
    monkeypatch.setattr("modmix.training.trainer.time.perf_counter", lambda: now[0])
    made = make_replicates("means", data=DATA, encoder=ENCODER, epochs=3, batch_size=16)
    ends = train(made, DATA)
    assert [end.seconds for end in ends.values()] == [24.0, 24.0]  # of four passes, by two models
