"""A method of two stages with a pass over the training data between epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from modmix.base.messages import Finished
from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.model import InputSpec, ModelSpec, build_model, derive_seed, unpack_weights
from modmix.methods.table import METHODS, MethodEntry
from plainloop import tensors
from toypack import make_data, make_pack, make_replicates, progress, train, train_pack

DATA = make_data(rows=(96, 40, 30))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


class Outputs(NamedTuple):
    logits_BC: Tensor
    own_BC: Tensor


class TwoStages(Method):
    """Encoders with a classifier of their own first; then a head on the frozen features."""

    centre: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        width = sum(features.values())
        self.own = nn.Linear(width, classes)
        self.joint = nn.Linear(width, classes)
        self.register_buffer("centre", torch.zeros(width))
        self.stage = ""

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        merged = torch.cat([features[m] for m in self.modalities], dim=-1) - self.centre
        return Outputs(self.joint(merged), self.own(merged))

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs[0 if self.stage == "joint" else 1], target_B)

    def stages(self) -> tuple[Stage, ...]:
        frozen = ("encoders.", "method.own.")
        return (Stage(name="own", epochs=2), Stage(name="joint", frozen=frozen))

    def enter(self, stage: Stage) -> None:
        self.stage = stage.name

    def refreshes(self, epoch: int) -> bool:
        return self.stage == "own" and epoch == 1

    def refresh(self, features: Mapping[str, Tensor], target_N: Tensor) -> Mapping[str, Tensor]:
        assert target_N.shape == (96,)
        return {"centre": torch.cat([features[m] for m in self.modalities], dim=-1).mean(0)}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "twostages", MethodEntry(path="toystages:TwoStages", doc=""))
    import sys
    import types

    module = types.ModuleType("toystages")
    module.TwoStages = TwoStages  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toystages", module)


def by_hand(seed: int, epochs: int) -> dict[str, Tensor]:
    """Both stages with torch.optim; the last weights."""
    spec = ModelSpec(
        method="twostages",
        params={},
        encoders=dict.fromkeys(DATA.shapes, ENCODER),
        inputs={name: InputSpec(shape=shape) for name, shape in DATA.shapes.items()},
        classes=3,
    )
    model = build_model(spec, seed)
    method = model.method
    assert isinstance(method, TwoStages)
    inputs, labels = tensors(DATA.train)
    for stage, first, last in ((0, 0, 2), (1, 2, 2 + epochs)):
        method.enter(method.stages()[stage])
        trained = list(model.parameters()) if stage == 0 else list(method.joint.parameters())
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.0)
        for epoch in range(first, last):
            if epoch == 1:
                model.eval()
                with torch.no_grad():
                    method.centre.copy_(torch.cat(list(model.features(inputs).values()), 1).mean(0))
            model.train()
            if stage == 1:
                model.encoders.eval()
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
            order = torch.randperm(96, generator=generator)
            for rows in order.split(16):
                optimizer.zero_grad()
                outputs = model({name: x[rows] for name, x in inputs.items()})
                model.loss(outputs, labels[rows]).mean().backward()
                optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("stack", ["always", "never"])
def test_stages_are_trained_one_after_the_other(stack: str) -> None:
    replicates = make_replicates(
        "twostages",
        data=DATA,
        encoder=ENCODER,
        epochs=1,
        batch_size=16,
        optimizer="sgd",
        learning_rate=0.1,
        stack=stack,
    )
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        assert end.history["epoch"] == [1, 2, 3]
        assert end.best_epoch == 3  # the first stage's evaluations do not count
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in by_hand(replicate.seed, 1).items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_under_weight_decay() -> None:
    def weights(epochs: int) -> dict[str, Finished]:
        replicates = make_replicates(
            "twostages",
            data=DATA,
            encoder=ENCODER,
            epochs=epochs,
            batch_size=16,
            optimizer="adamw",
            weight_decay=0.1,
            monitor="val/nll",
        )
        return train(replicates, DATA, keep_weights=True)

    short, long = weights(1), weights(6)
    for key in short:
        one, other = short[key].weights, long[key].weights
        assert one is not None
        assert other is not None
        before, after = (unpack_weights(blob)[0].state_dict() for blob in (one, other))
        for name, value in before.items():
            assert torch.equal(after[name], value) == (not name.startswith("method.joint")), name


def test_a_stage_is_resumed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    replicates = make_replicates("twostages", data=DATA, encoder=ENCODER, epochs=3, batch_size=16)
    expected = train(replicates, DATA, keep_weights=True)
    for count in range(1, 5):
        pack = make_pack(replicates, keep_weights=True, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        while count > 0:
            count -= bool(progress([next(events)]))
        events.close()
        for event in train_pack(pack, DATA):
            if isinstance(event, Finished):
                other = expected[event.replicate]
                assert event.weights == other.weights
                assert event.history == other.history
