"""Methods that cannot be stacked are trained one model after another, with the same numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from modmix.base.messages import PackStarted
from modmix.methods.base import Method, Pass, Stage, State, cross_entropy
from modmix.methods.model import build_model, derive_seed, model_spec
from modmix.training.trainer import train_pack
from plainloop import tensors, train_plainly
from toypack import add_method, finished, make_data, make_pack, make_replicates, same

DATA = make_data(rows=(96, 40, 30))


class Linear(Method):
    """A linear layer on all features; subclasses do one thing that cannot be stacked."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.head = nn.Linear(sum(features.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Any:
        return self.head(torch.cat([features[m] for m in self.modalities], dim=-1))

    def loss(self, outputs: Any, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)


class Indexing(Linear):
    """Hard examples count twice, found by a boolean index."""

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        loss_B = cross_entropy(outputs, target_B)
        hard_B = loss_B.detach() > 1.0
        extra = loss_B[hard_B].sum() / len(loss_B)
        return loss_B + extra


class Branching(Linear):
    """An `if` on a tensor."""

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        loss_B = cross_entropy(outputs, target_B)
        return 2 * loss_B if loss_B.mean() > 1.0 else loss_B


class TorchDropout(Linear):
    """Dropout from torch's own generator."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        merged = torch.cat([features[m] for m in self.modalities], dim=-1)
        logits_BC: Tensor = self.head(F.dropout(merged, 0.3, self.training))
        return logits_BC


class Objects(Linear):
    """Outputs that are no tensors, in a method that changes gradients (by nothing)."""

    def forward(self, features: Mapping[str, Tensor]) -> Any:
        return Categorical(logits=super().forward(features), validate_args=False)

    def loss(self, outputs: Any, target_B: Tensor) -> Tensor:
        loss_B: Tensor = -outputs.log_prob(target_B)
        return loss_B

    def scores(self, outputs: Any) -> Tensor:
        logits_BC: Tensor = outputs.logits
        return logits_BC

    def modulate(
        self,
        outputs: Any,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        return {
            name: outputs.probs.sum() / len(target_B) * g for name, g in gradients["loss"].items()
        }


class IndexingScores(Linear):
    """Trains as any other, but its probabilities need a boolean index."""

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        log_p_BC = F.log_softmax(outputs, dim=-1).clone()
        log_p_BC[log_p_BC < -50] = -50.0
        assert (log_p_BC[log_p_BC < 0] < 0).all()
        return log_p_BC


class IndexingPass(Linear):
    """Its pass counts the examples of class 0 by a boolean index."""

    count: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("count", torch.zeros(()))

    def passes(self, epoch: int) -> Sequence[Pass]:
        def step(state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
            some = features[self.modalities[0]]
            return {"n": state["n"] + len(some[some > 1e9])}

        return (
            Pass(
                start=lambda: {"n": torch.zeros(())}, step=step, finish=lambda s: {"count": s["n"]}
            ),
        )


class IndexingLater(IndexingPass):
    """The same, before the second epoch."""

    def passes(self, epoch: int) -> Sequence[Pass]:
        return super().passes(epoch) if epoch == 1 else ()


class BranchingLater(Linear):
    """An `if` on a tensor in the second stage."""

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        loss_B = cross_entropy(outputs, target_B)
        if self.in_second and loss_B.mean() > 1.0:
            loss_B = 2 * loss_B
        return loss_B

    def stages(self) -> tuple[Stage, ...]:
        return Stage(name="first", epochs=1), Stage(name="second", epochs=2)

    def enter(self, stage: Stage) -> None:
        self.in_second = stage.name == "second"


class Attention(Linear):
    """Scaled dot-product attention between the modalities."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        tokens_BMD = torch.stack([features[m] for m in self.modalities], 1)
        mixed_BMD = F.scaled_dot_product_attention(tokens_BMD, tokens_BMD, tokens_BMD)
        logits_BC: Tensor = self.head(mixed_BMD.flatten(1))
        return logits_BC


class OwnNorm(nn.BatchNorm1d):
    """Batch norm with a forward pass of its own: it bounds what it normalised."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


class OwnNormed(Linear):
    """The logits go through a user's batch norm."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.norm = OwnNorm(classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        logits_BC: Tensor = self.norm(super().forward(features))
        return logits_BC


KINDS: dict[type[Method], str] = {
    Indexing: "vmap|nonzero|index",
    Branching: r"data-dependent|\.item\(\)|vmap",
    TorchDropout: "random",
    Objects: "Categorical|tensor",
    IndexingScores: "vmap|nonzero|index",
    IndexingPass: "vmap|nonzero|index",
    IndexingLater: "vmap|nonzero|index",
}


def run(kind: type[Method], stack: str, **fields: Any) -> tuple[PackStarted, Any, Any]:
    settings = {"epochs": 2, "batch_size": 16, "select": "last", **fields}
    made = make_replicates("toy", data=DATA, stack=stack, **settings)
    events = list(train_pack(make_pack(made), DATA))
    assert isinstance(events[0], PackStarted)
    return events[0], made, finished(events)


@pytest.mark.parametrize("stack", ["auto", "always", "never"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reason_is_told_and_the_numbers_are_those_of_a_plain_loop(
    kind: type[Method], stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_method(monkeypatch, "toy", kind)
    started, made, ends = run(kind, stack)
    assert not started.stacked
    if stack == "never":
        assert started.why == "stack: never"
    else:
        assert started.why.startswith("cannot be stacked: ")
        assert len(started.why) < 250
        assert re.search(KINDS[kind], started.why), started.why
    for replicate in made:
        history = ends[replicate.key].history
        if kind is TorchDropout:
            assert list(history["train/loss"]) == pytest.approx(seeded_losses(replicate), rel=1e-5)
            continue
        plain = train_plainly(replicate, DATA)
        for name in ("train/loss", "val/error"):
            assert list(history[name]) == pytest.approx(plain.history[name], rel=1e-5)


def test_a_later_stage_that_cannot_be_stacked_is_noticed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_method(monkeypatch, "toy", BranchingLater)
    started, made, ends = run(BranchingLater, "always")
    assert re.search(KINDS[Branching], started.why), started.why
    same(ends, run(BranchingLater, "never")[2])
    assert {len(ends[replicate.key].history["epoch"]) for replicate in made} == {3}


def seeded_losses(replicate: Any) -> list[float]:
    """A plain loop that seeds torch's generator in every step."""
    model = build_model(model_spec(replicate, DATA), replicate.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs, labels = tensors(DATA.train)
    means = []
    for epoch in range(2):
        generator = torch.Generator().manual_seed(derive_seed(replicate.seed, "batches", epoch))
        losses = []
        for step, rows in enumerate(torch.randperm(96, generator=generator).split(16)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(replicate.seed, "draws", epoch) + step)
                outputs = model({name: x[rows] for name, x in inputs.items()})
            loss = model.loss(outputs, labels[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return means


@pytest.mark.parametrize("stack", ["auto", "always"])
def test_attention_gives_the_numbers_of_a_plain_loop(
    stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it can be stacked is torch's affair; if not, the reason is told."""
    add_method(monkeypatch, "toy", Attention)
    started, made, ends = run(Attention, stack)
    if not started.stacked:
        assert "cannot be stacked: " in started.why or "faster" in started.why
    for replicate in made:
        plain = train_plainly(replicate, DATA)
        found = list(ends[replicate.key].history["train/loss"])
        assert found == pytest.approx(plain.history["train/loss"], rel=1e-5)


def test_outputs_that_are_no_tensors_can_be_stacked_without_modulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Objects, "modulate", Method.modulate)
    add_method(monkeypatch, "toy", Objects)
    started, made, ends = run(Objects, "always")
    assert (started.stacked, started.why) == (True, "stack: always")
    for replicate in made:
        plain = train_plainly(replicate, DATA)
        found = list(ends[replicate.key].history["train/loss"])
        assert found == pytest.approx(plain.history["train/loss"], rel=1e-5)


def test_a_subclass_of_batch_norm_keeps_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "toy", OwnNormed)
    started, made, stacked = run(OwnNormed, "always")
    assert started.stacked
    _, _, alone = run(OwnNormed, "never")
    for replicate in made:
        history, other = stacked[replicate.key].history, alone[replicate.key].history
        # Not the errors: the norm cancels the bias before it, so that Adam moves it by rounding.
        assert list(history["train/loss"]) == pytest.approx(list(other["train/loss"]), rel=1e-5)


@pytest.mark.parametrize("stack", ["auto", "always", "never"])
def test_mistakes_of_a_method_are_errors(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, outputs: Tensor, target_B: Tensor) -> Tensor:
        raise ValueError("a mistake in my loss")

    monkeypatch.setattr(Linear, "loss", broken)
    add_method(monkeypatch, "toy", Linear)
    with pytest.raises(ValueError, match="a mistake in my loss"):
        run(Linear, stack)
