"""Balanced methods: whole trainings against hand-written loops, and their passes over the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modmix.base.messages import Progress
from modmix.methods import gblending
from modmix.methods.draws import normal
from modmix.methods.model import Model, build_model, derive_seed, model_spec, unpack_weights
from modmix.methods.pmr import PMR, PMROutputs
from modmix.tasks.data import Split
from modmix.training.stack import Stack
from modmix.training.trainer import train_pack
from plainloop import tensors
from toypack import finished, is_stacked, make_data, make_pack, make_replicates, same, train

DATA = make_data(widths=(6, 5, 4), rows=(96, 50, 30))
ENCODER = {"name": "mlp", "hidden": [7, 5], "batch_norm": True}
BATCH = 16


class Loop:
    """One model trained by hand: subclasses write its gradients."""

    def __init__(self, model: Model, params: Mapping[str, Any], seed: int) -> None:
        self.model, self.params, self.seed = model, params, seed
        fusion: Any = model.method.get_submodule("fusion.linear")
        self.weight, self.bias = fusion.weight, fusion.bias
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.epoch = self.step = 0

    def features(self, x: Mapping[str, Tensor]) -> list[Tensor]:
        return [encoder(x[f"m{i}"]) for i, encoder in enumerate(self.model.encoders)]

    def fused(self, features: list[Tensor]) -> Tensor:
        return torch.cat(features, 1) @ self.weight.T + self.bias

    def shares(self, features: list[Tensor]) -> list[Tensor]:
        blocks = [self.weight[:, 5 * i : 5 * i + 5] for i in range(3)]
        return [f @ w.T + self.bias / 3 for f, w in zip(features, blocks, strict=True)]

    def own(self, features: list[Tensor]) -> list[Tensor]:
        heads: Any = self.model.method.get_submodule("heads")
        return [head(f) for head, f in zip(heads, features, strict=True)]

    def encoder(self, i: int) -> list[tuple[str, torch.nn.Parameter]]:
        return sorted(self.model.encoders[i].named_parameters())

    def before_epoch(self) -> None:
        """What happens between epochs."""

    def backward(self, features: list[Tensor], y: Tensor) -> float:
        """Set the gradients; return the loss."""
        raise NotImplementedError

    def run(self, epochs: int) -> list[float]:
        inputs, labels = tensors(DATA.train)
        means = []
        for self.epoch in range(epochs):
            self.model.eval()
            with torch.no_grad():
                self.before_epoch()
            self.model.train()
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "batches", self.epoch))
            losses = []
            order = torch.randperm(len(labels), generator=generator)
            for self.step, rows in enumerate(order.split(BATCH)):
                self.optimizer.zero_grad()
                features = self.features({name: x[rows] for name, x in inputs.items()})
                losses.append(self.backward(features, labels[rows]))
                self.optimizer.step()
            means.append(float(np.mean(losses)))
        return means

    def everything(self, split: Split) -> tuple[list[Tensor], Tensor]:
        inputs, labels = tensors(split)
        return self.features(inputs), labels


def true_probabilities(logits: list[Tensor], y: Tensor) -> list[float]:
    """Σ p^y of each."""
    return [z.detach().softmax(-1)[range(len(y)), y].sum().item() for z in logits]


def against_others(values: list[float]) -> list[float]:
    return [v / (sum(values[:i] + values[i + 1 :]) / 2) for i, v in enumerate(values)]


class OGMGELoop(Loop):
    def backward(self, features: list[Tensor], y: Tensor) -> float:
        loss = F.cross_entropy(self.fused(features), y)
        loss.backward()
        ratios = against_others(true_probabilities(self.shares(features), y))
        seed = torch.tensor(derive_seed(self.seed, "draws", self.epoch) + self.step)
        if not self.params["first_epoch"] <= self.epoch <= self.params["last_epoch"]:
            return loss.item()
        draw = 0
        for i, ratio in enumerate(ratios):
            factor = 1 - math.tanh(self.params["alpha"] * ratio) if ratio > 1 else 1.0
            for _, parameter in self.encoder(i):
                assert parameter.grad is not None
                draw += 1
                positions = torch.arange(parameter.numel()).view(parameter.shape)
                noise = normal(seed, positions, draw << 16)
                size = self.params["noise"] * parameter.grad.std()
                parameter.grad = factor * parameter.grad + size * noise
        return loss.item()


class AGMLoop(Loop):
    def before_epoch(self) -> None:
        if self.epoch == 0:
            self.earlier: list[list[float]] = []

    def backward(self, features: list[Tensor], y: Tensor) -> float:
        loss = F.cross_entropy(self.fused(features), y)
        loss.backward()
        now = [-F.cross_entropy(z, y).item() for z in self.shares(features)]
        usual = np.mean(self.earlier, axis=0) if self.earlier else np.zeros(3)
        self.earlier.append(now)
        for i in range(3):
            lead = math.exp(now[i] - sum(now[:i] + now[i + 1 :]) / 2)
            best = math.exp(usual[i] - (usual.sum() - usual[i]) / 2)
            for _, parameter in self.encoder(i):
                assert parameter.grad is not None
                parameter.grad *= math.exp(self.params["alpha"] * min(best - lead, 10))
        return loss.item()


class MMParetoLoop(Loop):
    def backward(self, features: list[Tensor], y: Tensor) -> float:
        joint = F.cross_entropy(self.fused(features), y)
        own = [F.cross_entropy(z, y) for z in self.own(features)]
        new = []
        for i in range(3):
            parameters = [p for _, p in self.encoder(i)]
            g = torch.autograd.grad(joint, parameters, retain_graph=True)
            u = torch.autograd.grad(own[i], parameters, retain_graph=True)
            flat_g, flat_u = (torch.cat([x.flatten() for x in z]).double() for z in (g, u))
            weight = 0.5
            if flat_g @ flat_u <= 0:
                difference = flat_g - flat_u
                best = -(flat_u @ difference) / (difference @ difference)
                weight = min(max(best.item(), 0.001), 0.999)
            mixed = 2 * (weight * flat_g + (1 - weight) * flat_u)
            if self.params["norm"] == "encoder":
                mixed *= (flat_g + flat_u).norm() / mixed.norm()
            new.append((parameters, g, u, mixed.float()))
        total = torch.stack([joint, *own]).sum()
        total.backward()
        for parameters, g, u, mixed in new:
            sizes = [p.numel() for p in parameters]
            for p, gi, ui, part in zip(parameters, g, u, mixed.split(sizes), strict=True):
                scale = 1.0
                if self.params["norm"] == "tensor":
                    scale = max(1.0, ((gi + ui).norm() / part.norm()).item())
                p.grad = self.params["gamma"] * scale * part.view(p.shape)
        return total.item()


class PMRLoop(Loop):
    def before_epoch(self) -> None:
        features, labels = self.everything(DATA.train)
        new = []
        for f in features:
            rows = [[x for x, y in zip(f, labels, strict=True) if y == k] for k in range(3)]
            new.append(torch.stack([sum(x, torch.zeros(5)) / len(x) for x in rows]))
        if self.epoch:
            kept = self.params["keep"]
            pairs = zip(new, self.prototypes, strict=True)
            new = [(1 - kept) * x + kept * old for x, old in pairs]
        self.prototypes = new

    def backward(self, features: list[Tensor], y: Tensor) -> float:
        near = []
        for f, c in zip(features, self.prototypes, strict=True):
            near.append(-(f.unsqueeze(1) - c).square().sum(-1).sqrt())
        ratios = against_others(true_probabilities(near, y))
        loss = F.cross_entropy(self.fused(features), y)
        for z, ratio in zip(near, ratios, strict=True):
            if ratio < 1:
                loss = loss + self.params["alpha"] * F.cross_entropy(z, y)
        loss.backward()
        return loss.item()


class GBlendingLoop(Loop):
    def losses(self, features: list[Tensor], y: Tensor) -> list[Tensor]:
        return [F.cross_entropy(z, y) for z in (*self.own(features), self.fused(features))]

    def before_epoch(self) -> None:
        if self.epoch == 0:
            self.weights = [0.25] * 4
        elif self.epoch % self.params["super_epoch"]:
            return
        now = [
            [x.item() for x in self.losses(*self.everything(split))]
            for split in (DATA.train, DATA.val)
        ]
        if self.epoch:
            raw = []
            for (t, v), (t_old, v_old) in zip(zip(*now), zip(*self.old), strict=True):
                raw.append(abs(v - v_old) / max(abs((v - t) - (v_old - t_old)), 1e-3) ** 2)
            self.weights = [x / sum(raw) for x in raw]
        self.old = now

    def backward(self, features: list[Tensor], y: Tensor) -> float:
        pairs = zip(self.weights, self.losses(features, y), strict=True)
        loss = torch.stack([w * x for w, x in pairs]).sum()
        loss.backward()
        return loss.item()


class DGLLoop(Loop):
    """As the published code: the fusion's gradient is dropped after the unimodal losses."""

    def backward(self, features: list[Tensor], y: Tensor) -> float:
        unimodal = []
        for i, f in enumerate(features):
            alone = [f if i == j else torch.zeros_like(f) for j in range(3)]
            unimodal.append(F.cross_entropy(self.fused(alone), y))
        beside = self.params["alpha"] * torch.stack(unimodal).sum()
        beside.backward()
        self.weight.grad = self.bias.grad = None
        fused = F.cross_entropy(self.fused([f.detach() for f in features]), y)
        fused.backward()
        return (fused + beside).item()


Case = tuple[Callable[..., Loop], list[dict[str, Any]]]
CASES: dict[str, Case] = {
    "ogm_ge": (
        OGMGELoop,
        [
            {"alpha": 0.3, "noise": 0.0, "first_epoch": 0, "last_epoch": 50},
            {"alpha": 1.0, "noise": 0.5, "first_epoch": 1, "last_epoch": 1},
            {"alpha": 0.5, "noise": 1.0, "first_epoch": 0, "last_epoch": 1},
        ],
    ),
    "agm": (AGMLoop, [{"alpha": 0.0}, {"alpha": 1.0}, {"alpha": 2.0}]),
    "mmpareto": (
        MMParetoLoop,
        [{"gamma": 1.5, "norm": "encoder"}, {"gamma": 0.5, "norm": "encoder"}],
    ),
    "mmpareto by tensor": (MMParetoLoop, [{"gamma": 1.5, "norm": "tensor"}]),
    "pmr": (PMRLoop, [{"alpha": 1.0, "keep": 0.2}, {"alpha": 3.0, "keep": 0.7}]),
    "gblending": (GBlendingLoop, [{"super_epoch": 1}]),
    "gblending every second epoch": (GBlendingLoop, [{"super_epoch": 2}]),
    "dgl": (DGLLoop, [{"alpha": 4.0}, {"alpha": 0.3}]),
}


@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("case", CASES)
def test_models_are_those_of_a_hand_written_loop(case: str, stack: str) -> None:
    kind, configurations = CASES[case]
    replicates = make_replicates(
        case.split()[0], configurations, data=DATA, encoder=ENCODER, epochs=3, batch_size=BATCH,
        optimizer="sgd", learning_rate=0.1, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    curves = []
    for replicate in replicates:
        end = ends[replicate.key]
        model = build_model(model_spec(replicate, DATA), replicate.seed)
        losses = kind(model, replicate.params, replicate.seed).run(3)
        curves.append(tuple(losses))
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-4)
        assert end.weights is not None
        found = unpack_weights(end.weights)[0].state_dict()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-4, msg=name)
    assert len(set(curves)) == len(curves)  # the hyperparameters matter


@pytest.mark.parametrize("method", ["ogm_ge", "agm", "pmr", "gblending"])
def test_interrupted_and_resumed_is_uninterrupted(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise, running means, prototypes and weights go on where they were."""
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    params = {"super_epoch": 1} if method == "gblending" else {}
    replicates = make_replicates(
        method, [params], data=DATA, encoder=ENCODER, epochs=3, batch_size=BATCH,
        evaluations_per_epoch=2, learning_rate=0.01, select="last",
    )  # fmt: skip
    whole = train(replicates, DATA, keep_weights=True)
    pack = make_pack(replicates, checkpoint=str(tmp_path / "pack"), keep_weights=True)
    for _ in range(2):
        events = train_pack(pack, DATA)
        left = 3
        while left:
            left -= isinstance(next(events), Progress)
        events.close()
    same(finished(train_pack(pack, DATA)), whole)


# ---------------------------------------------------------------- passes


@pytest.mark.parametrize("size", [7, 4096])
@pytest.mark.parametrize("stack", ["always", "never"])
def test_prototypes_are_class_means(stack: str, size: int) -> None:
    """Training stands still, so that the final weights are those that the passes saw."""
    replicates = make_replicates(
        "pmr", [{"keep": 0.3}], data=DATA, encoder={"name": "mlp", "hidden": [5]}, epochs=2,
        batch_size=BATCH, learning_rate=0.0, eval_batch_size=size, stack=stack, select="last",
    )  # fmt: skip
    for end in train(replicates, DATA, keep_weights=True).values():
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        assert isinstance(model.method, PMR)
        inputs, labels = tensors(DATA.train)
        for i, f_ND in enumerate(model.features(inputs).values()):
            sums, counts = np.zeros((3, 5)), np.zeros(3)
            for row, label in zip(f_ND.detach().numpy(), labels.tolist(), strict=True):
                sums[label] += row
                counts[label] += 1
            found = model.method.get_buffer(f"prototypes{i}_CD")
            np.testing.assert_allclose(found, sums / counts[:, None], rtol=1e-4, atol=1e-5)


def test_a_class_without_examples_has_the_prototype_zero() -> None:
    method = PMR({"a": 2, "b": 3}, 4)
    features = {"a": torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]]), "b": torch.ones(3, 3)}
    (one,) = method.passes(0)
    found = one.finish(one.step(one.start(), features, torch.tensor([0, 0, 2])))
    assert found["prototypes0_CD"].tolist() == [[2, 4], [0, 0], [5, 5], [0, 0]]
    assert found["prototypes1_CD"].tolist() == [[1] * 3, [0] * 3, [1] * 3, [0] * 3]


def test_the_slower_modality_gets_the_prototype_loss() -> None:
    """α times the cross-entropy, for modalities whose true classes are less likely than others'."""
    method = PMR({"a": 2, "b": 2, "c": 2}, 3, alpha=2.0)
    fused = torch.zeros(2, 3)
    sure, unsure, wrong = (
        torch.tensor([[5.0, 0, 0]]),
        torch.zeros(1, 3),
        torch.tensor([[0, 5.0, 0]]),
    )
    near = torch.stack([sure, unsure, wrong]).expand(3, 2, 3)
    loss_B = method.loss(PMROutputs(fused, torch.zeros(3, 2, 3), near), torch.tensor([0, 0]))
    extra = math.log(3) + math.log(1 + 1 + math.exp(5)) - 0.0
    np.testing.assert_allclose(loss_B, [math.log(3) + 2 * extra] * 2, rtol=1e-6)
    same = PMROutputs(fused, torch.zeros(3, 2, 3), unsure.expand(3, 2, 3))
    np.testing.assert_allclose(
        method.loss(same, torch.tensor([0, 0])), [math.log(3)] * 2, rtol=1e-6
    )


def test_the_distance_has_a_gradient_at_a_prototype() -> None:
    method = PMR({"a": 2, "b": 2}, 3)
    features = {m: torch.zeros(4, 2, requires_grad=True) for m in ("a", "b")}
    outputs = method(features)
    F.cross_entropy(outputs.prototypes_MBC[0], torch.tensor([0, 1, 2, 0])).backward()
    assert features["a"].grad is not None
    assert torch.equal(features["a"].grad, torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Two classifiers: G = 0.5 and 0.2, O = 0.1 and 0.2: 50 to 5.
        (([2.0, 2.0], [2.1, 2.1]), ([1.4, 1.6], [1.6, 1.9]), [50 / 55, 5 / 55]),
        # The second got worse on validation data: its G is the absolute value, O = 1.
        (([2.0, 2.0], [2.0, 2.0]), ([1.0, 1.5], [1.5, 2.5]), [2 / 2.5, 0.5 / 2.5]),
        # The gap of the first did not change: O counts as 0.001.
        (([2.0, 2.0], [2.0, 2.0]), ([1.0, 1.0], [1.0, 1.5]), [1e6 / (1e6 + 2), 2 / (1e6 + 2)]),
        # Nothing changed on validation data.
        (([2.0, 2.0], [2.0, 2.0]), ([1.0, 0.5], [2.0, 2.0]), [0.5, 0.5]),
        (([2.0, 2.0], [2.0, 2.0]), ([2.0, 2.0], [2.0, 2.0]), [0.5, 0.5]),
    ],
)
def test_weights_of_blended_losses(
    before: tuple[list[float], list[float]],
    after: tuple[list[float], list[float]],
    expected: list[float],
) -> None:
    given = [torch.tensor(x, dtype=torch.float64) for x in (*before, *after)]
    np.testing.assert_allclose(gblending.weights(*given), expected, rtol=1e-9)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("method", ["pmr", "gblending"])
def test_passes_over_features_of_half_precision(method: str, stacked: bool) -> None:
    """They are summed in float32 or better, outside autocast."""
    (replicate,) = make_replicates(method, seeds=[0], data=DATA, encoder=ENCODER)
    inputs, labels = tensors(DATA.train)
    found = []
    for low in (False, True):
        model = build_model(model_spec(replicate, DATA), 0)
        stack = Stack([model], torch.device("cpu"), stacked=stacked, low_precision=low)
        for one in model.method.passes(0):
            state = stack.step_pass(one, stack.start_pass(one), inputs, labels)
            assert all(x.dtype in (torch.float32, torch.float64) for x in state.values())
            stack.finish_pass(one, state)
        names = ("val_K",) if method == "gblending" else [f"prototypes{i}_CD" for i in range(3)]
        found.append(torch.cat([stack.buffers[f"method.{n}"].flatten() for n in names]))
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.02)
    assert not torch.equal(found[0], found[1])
