"""ReconBoost: what a modality's turn aims at and leaves alone, and whole training by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modmix.methods.model import build_model, derive_seed, model_spec, unpack_weights
from modmix.methods.reconboost import ReconBoost
from plainloop import error_of, tensors
from toypack import is_stacked, make_data, make_replicates, train

DATA = make_data(rows=(96, 40, 30), noise=2.0)
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


@pytest.mark.parametrize("modalities", [2, 3])
def test_target_of_every_turn(modalities: int) -> None:
    """y − λ y ⊙ q in the turns of modalities, y in those of all, for every example."""
    names = [f"m{i}" for i in range(modalities)]
    method = ReconBoost(dict.fromkeys(names, 4), 3, reconcile=0.5).double()
    generator = np.random.default_rng(0)
    features = {m: torch.tensor(generator.normal(size=(7, 4))) for m in names}
    target = generator.integers(0, 3, 7)
    outputs = method(features)
    z = outputs.own_MBC.detach().numpy()
    for turn in range(2 * modalities):
        method.turn = turn
        loss = method.loss(outputs, torch.tensor(target)).detach().numpy()
        for b, y in enumerate(target):
            aim, own = np.eye(3)[y], z[:, b].sum(0)
            if turn % 2 == 0:
                others = sum(z[j, b] for j in range(modalities) if j != turn // 2)
                q = np.exp(others) / np.exp(others).sum()
                aim, own = aim - 0.5 * aim * q, z[turn // 2, b]
            log_p = own - np.log(np.exp(own).sum())
            assert loss[b] == pytest.approx(-(aim * log_p).sum(), rel=1e-9)


def test_the_ensemble_of_the_others_gets_no_gradient() -> None:
    method = ReconBoost({"a": 3, "b": 3, "c": 3}, 3)
    outputs = method({m: torch.randn(5, 3) for m in "abc"})
    for turn in range(6):
        method.turn = turn
        loss = method.loss(outputs, torch.tensor([0, 1, 2, 0, 1])).sum()
        (found,) = torch.autograd.grad(loss, outputs.own_MBC, retain_graph=True)
        reached = [bool(g.abs().sum() > 0) for g in found]
        assert reached == ([True] * 3 if turn % 2 else [i == turn // 2 for i in range(3)])


def weights_after(epochs: int, stack: str, turn_epochs: int) -> dict[str, dict[str, Tensor]]:
    replicates = make_replicates(
        "reconboost", [{"turn_epochs": turn_epochs}], data=DATA, encoder=ENCODER, epochs=epochs,
        batch_size=16, optimizer="adamw", weight_decay=0.1, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    return {key: unpack_weights(end.weights or b"")[0].state_dict() for key, end in ends.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("stack", "turn_epochs"), [("always", 1), ("never", 1), ("always", 2)])
def test_only_the_modality_whose_turn_it_is_moves(stack: str, turn_epochs: int) -> None:
    """Weights and statistics of batch norm, with weight decay, over a round and one turn more."""
    after = [weights_after(turn_epochs * n, stack, turn_epochs) for n in (1, 2, 3, 4, 5, 6, 7)]
    for key in after[0]:
        for done in range(1, 7):
            turn = done % 6  # of three modalities
            for name, value in after[done][key].items():
                moved = not torch.equal(value, after[done - 1][key][name])
                parts = (f"encoders.{turn // 2}.", f"method.heads.{turn // 2}.")
                expected = turn % 2 == 1 or name.startswith(parts)
                assert moved == (expected and name != "method.reconcile"), (done, name)


# ---------------------------------------------------------------- whole training


def by_hand(replicate: Any) -> tuple[dict[str, Tensor], list[float]]:
    """One model with torch.optim, an optimizer per turn."""
    t, params = replicate.training, replicate.params
    model: Any = build_model(model_spec(replicate, DATA), replicate.seed)
    inputs, labels = tensors(DATA.train)
    learners = list(zip(model.encoders, model.method.heads, strict=True))
    optimizers = []
    for turn in range(6):
        trained = learners if turn % 2 else [learners[turn // 2]]
        parameters = [p for learner in trained for module in learner for p in module.parameters()]
        optimizers.append(torch.optim.Adam(parameters, lr=t["learning_rate"]))
    means = []
    for epoch in range(t["epochs"]):
        turn = epoch // params["turn_epochs"] % 6
        modality, correcting = divmod(turn, 2)
        seed = derive_seed(replicate.seed, "batches", epoch)
        order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
        losses = []
        for i, (encoder, _) in enumerate(learners):
            encoder.train(bool(correcting) or i == modality)
        for rows in order.split(16):
            y = labels[rows]
            z = [head(e(inputs[f"m{i}"][rows])) for i, (e, head) in enumerate(learners)]
            if correcting:
                loss = F.cross_entropy(sum(z), y)  # type: ignore[arg-type]
            else:
                others = [x.detach() for i, x in enumerate(z) if i != modality]
                q = torch.softmax(sum(others), 1)  # type: ignore[call-overload]
                hot = F.one_hot(y, 3)
                aim = hot - params["reconcile"] * hot * q
                loss = -(aim * z[modality].log_softmax(1)).sum(1).mean()
            optimizers[turn].zero_grad()
            loss.backward()
            optimizers[turn].step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return model.state_dict(), means


@pytest.mark.slow
@pytest.mark.parametrize(("turn_epochs", "epochs"), [(1, 8), (2, 7)])
@pytest.mark.parametrize("stack", ["always", "never"])
def test_training_is_that_of_a_hand_written_loop(stack: str, turn_epochs: int, epochs: int) -> None:
    configurations = [{"reconcile": x, "turn_epochs": turn_epochs} for x in (0.0, 0.2, 1.0)]
    replicates = make_replicates(
        "reconboost", configurations, data=DATA, encoder=ENCODER, epochs=epochs, batch_size=16,
        optimizer="adam", learning_rate=0.01, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    curves = set()
    for replicate in replicates:
        end = ends[replicate.key]
        state, losses = by_hand(replicate)
        curves.add(tuple(losses))
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-4)
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4, msg=name)
        assert end.metrics["test/error"] == pytest.approx(error_of(model, DATA.test))
        assert {f"test/m{i}/error" for i in range(3)} < set(end.metrics)
    assert len(curves) == len(replicates)
