"""Methods that change gradients between the backward pass and the update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.model import build_model, derive_seed, model_spec, unpack_weights
from plainloop import tensors
from toypack import add_method, is_stacked, make_data, make_replicates, train

DATA = make_data(widths=(6, 4), rows=(96, 40, 30))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


class Outputs(NamedTuple):
    logits_BC: Tensor
    own_MBC: Tensor


class Balanced(Method):
    """Two classifiers and their sum; the encoder of the one that leads is slowed down.

    As in on-the-fly gradient modulation: the factor is 1 − tanh(α·max(0, ρ − 1)), ρ the ratio of
    the true classes' probabilities. The joint loss alone is modulated.
    """

    alpha: Tensor

    def __init__(self, features: Mapping[str, int], classes: int, *, alpha: float) -> None:
        super().__init__(features, classes)
        self.heads = nn.ModuleList(nn.Linear(d, classes) for d in features.values())
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        own = [g(features[m]) for m, g in zip(self.modalities, self.heads, strict=True)]
        return Outputs(sum(own[1:], own[0]), torch.stack(own))

    def losses(self, outputs: Outputs, target_B: Tensor) -> Mapping[str, Tensor]:
        own = [cross_entropy(logits_BC, target_B) for logits_BC in outputs.own_MBC.unbind()]
        joint_B = cross_entropy(outputs.logits_BC, target_B)
        return {"joint": joint_B, "own": 0.3 * sum(own[1:], own[0])}

    def factors(self, outputs: Outputs, target_B: Tensor) -> list[Tensor]:
        p_M = outputs.own_MBC.softmax(-1).gather(-1, target_B.expand(2, -1).unsqueeze(-1)).sum(1)
        ratio = p_M[0] / p_M[1]
        return [1 - torch.tanh(self.alpha * F.relu(r - 1)) for r in (ratio, 1 / ratio)]

    def modulate(
        self,
        outputs: Outputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        assert not outputs.logits_BC.requires_grad
        return {
            name: factor.squeeze() * gradients["joint"][name] + gradients["own"][name]
            for i, factor in enumerate(self.factors(outputs, target_B))
            for name in gradients["joint"]
            if name.startswith(f"encoders.{i}.")
        }


class Staged(Balanced):
    """First all, then the second modality; the first one's parameters are asked to move, too."""

    def stages(self) -> tuple[Stage, ...]:
        frozen = ("encoders.0.", "method.heads.0.")
        return (Stage(name="all", epochs=1), Stage(name="second", frozen=frozen))

    def losses(self, outputs: Outputs, target_B: Tensor) -> Mapping[str, Tensor]:
        """One of the losses is of the frozen classifier alone."""
        first, second = outputs.own_MBC.unbind()
        return {"first": cross_entropy(first, target_B), "second": cross_entropy(second, target_B)}

    def modulate(
        self,
        outputs: Outputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        moved = {"method.heads.0.weight": torch.ones_like(self.heads[0].weight)}  # type: ignore[arg-type]
        return {**{n: 2 * g for n, g in gradients["second"].items()}, **moved}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "balanced", Balanced)
    add_method(monkeypatch, "staged", Staged)


def by_hand(alpha: float, seed: int, epochs: int) -> tuple[dict[str, Tensor], list[float]]:
    """The same with autograd and SGD, one model at a time."""
    (replicate,) = make_replicates(
        "balanced", [{"alpha": alpha}], seeds=[seed], data=DATA, encoder=ENCODER
    )
    model = build_model(model_spec(replicate, DATA), seed)
    assert isinstance(model.method, Balanced)
    inputs, labels = tensors(DATA.train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    means = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
        losses = []
        for rows in torch.randperm(96, generator=generator).split(16):
            y = labels[rows]
            outputs = model({name: x[rows] for name, x in inputs.items()})
            joint = F.cross_entropy(outputs.own_MBC[0] + outputs.own_MBC[1], y)
            own = 0.3 * sum(F.cross_entropy(z, y) for z in outputs.own_MBC)
            losses.append((joint + own).item())
            p = [z.detach().softmax(-1)[torch.arange(16), y].sum().item() for z in outputs.own_MBC]
            factors = [1 - np.tanh(alpha * max(0.0, p[i] / p[1 - i] - 1)) for i in (0, 1)]
            optimizer.zero_grad()
            joint.backward(retain_graph=True)
            for i, factor in enumerate(factors):
                for parameter in model.encoders[i].parameters():
                    assert parameter.grad is not None
                    parameter.grad *= factor
            own.backward()  # type: ignore[union-attr]
            optimizer.step()
        means.append(float(np.mean(losses)))
    return model.state_dict(), means


@pytest.mark.parametrize("stack", ["always", "never"])
def test_modulated_models_are_those_of_a_hand_written_loop(stack: str) -> None:
    configurations: list[dict[str, Any]] = [{"alpha": a} for a in (0.0, 0.5, 2.0)]
    replicates = make_replicates(
        "balanced", configurations, data=DATA, encoder=ENCODER, epochs=3, batch_size=16,
        optimizer="sgd", learning_rate=0.1, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    curves = []
    for replicate in replicates:
        end = ends[replicate.key]
        state, losses = by_hand(replicate.params["alpha"], replicate.seed, 3)
        curves.append(tuple(losses))
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-5)
        assert end.weights is not None
        found = unpack_weights(end.weights)[0].state_dict()
        for name, value in found.items():
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5, msg=name)
    assert len(set(curves)) == len(curves)  # the factor matters


@pytest.mark.parametrize("stack", ["always", "never"])
def test_frozen_parts_stay(stack: str) -> None:
    def weights(epochs: int) -> dict[str, dict[str, Tensor]]:
        made = make_replicates(
            "staged", [{"alpha": 1.0}], data=DATA, encoder=ENCODER, epochs=epochs, batch_size=16,
            optimizer="adam", weight_decay=0.1, clip_norm=1.0, stack=stack, select="last",
        )  # fmt: skip
        assert is_stacked(made, DATA) == (stack == "always")
        ends = train(made, DATA, keep_weights=True)
        return {k: unpack_weights(e.weights or b"")[0].state_dict() for k, e in ends.items()}

    short, long = weights(1), weights(3)
    for key, before in short.items():
        for name, value in before.items():
            still = name.startswith(("encoders.0.", "method.heads.0.", "method.alpha"))
            assert torch.equal(long[key][name], value) == still, name
