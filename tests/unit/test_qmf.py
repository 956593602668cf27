"""Quality-aware fusion: its history of every example by hand, and a loop of torch.optim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from equations_confidence import confidence, cross_entropies, qmf
from modmix.methods.model import build_model, derive_seed, model_spec, unpack_weights
from modmix.methods.qmf import QMF
from plainloop import tensors
from toypack import defaults, is_stacked, make_data, make_replicates, train

ROWS, BATCH = 100, 16  # four rows of every epoch are left out
DATA = make_data(rows=(ROWS, 40, 30), widths=(6, 4), noise=2.0)
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


def ranks(c: list[float], rows: list[int], history: list[float]) -> list[float]:
    """Rank loss of each example of a batch of ``rows``, from the history of all examples."""
    least, most = min(history), max(history)
    kappa = [(history[row] - least) / (most - least) if most > least else 0.0 for row in rows]
    found = []
    for i in range(len(rows)):
        j = (i + 1) % len(rows)
        sign = (kappa[i] > kappa[j]) - (kappa[i] < kappa[j])
        found.append(max(0.0, sign * (c[i] - c[j]) - abs(kappa[i] - kappa[j])))
    return found


@pytest.mark.parametrize("modalities", [2, 3])
def test_history_over_two_epochs(modalities: int) -> None:
    """Every loss, with other features at each step, as if the model had moved."""
    names = [f"m{i}" for i in range(modalities)]
    params = {**defaults("qmf"), "rank_weight": 0.7, "unimodal_weight": 0.5, "temperature": 3.0}
    method = QMF(dict.fromkeys(names, 3), 4, **params)
    method.remember(12)
    method.double()
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 12)
    history = [[0.0] * 12 for _ in names]
    ranked = 0.0
    for _ in range(2):
        for rows in np.split(generator.permutation(12), 3):
            features = {m: torch.tensor(3 * generator.normal(size=(4, 3))) for m in names}
            target = labels[rows]
            method.index = torch.tensor(rows)
            outputs = method(features)
            loss = method.loss(outputs, torch.tensor(target)).detach().numpy()
            logits = [z.detach().numpy() for z in outputs.own_MBC.unbind()]
            expected, fused = qmf(method, params, logits, target)
            np.testing.assert_allclose(outputs.logits_BC.detach().numpy(), fused, rtol=1e-6)
            for m, z in enumerate(logits):
                c = confidence(z, params).tolist()
                found = np.array(ranks(c, rows.tolist(), history[m]))
                ranked += found.sum()
                expected = expected + params["rank_weight"] * found
            np.testing.assert_allclose(loss, expected, rtol=1e-6)
            for m, z in enumerate(logits):
                for row, value in zip(rows, cross_entropies(z, target), strict=True):
                    history[m][row] += float(value)
    np.testing.assert_allclose(method.history_MN.numpy(), history, rtol=1e-9)
    assert ranked > 0.1


def test_no_gradient_flows_through_the_weights_of_the_fusion() -> None:
    method = QMF({"a": 3, "b": 3}, 3, unimodal_weight=0.0, rank_weight=0.0)
    features = {m: torch.randn(5, 3, requires_grad=True) for m in "ab"}
    outputs = method(features)
    target = torch.tensor([0, 1, 2, 0, 1])
    (found,) = torch.autograd.grad(method.loss(outputs, target).sum(), outputs.own_MBC)
    c_MB = outputs.own_MBC.logsumexp(-1) / 10
    gradient = outputs.logits_BC.softmax(-1) - F.one_hot(target, 3)
    torch.testing.assert_close(found, c_MB.unsqueeze(-1) * gradient)


def test_rank_loss_lowers_the_confidence_of_the_harder_example() -> None:
    method = QMF({"a": 2, "b": 2}, 2, unimodal_weight=0.0, rank_weight=1.0)
    method.remember(3)
    method.index = torch.tensor([0, 1])
    method.history_MN[0, 0], method.history_MN[:, 2] = 0.01, 1.0  # modality a: 0 is harder than 1
    own_MBC = torch.tensor([[[9.0, 0], [1.0, 0]]] * 2, requires_grad=True)
    c_MB = own_MBC.logsumexp(-1) / method.temperature
    outputs = method(dict.fromkeys("ab", torch.zeros(2, 2)))
    loss = method.loss(outputs._replace(confidence_MB=c_MB), torch.tensor([0, 0])).sum()
    (gradient,) = torch.autograd.grad(loss, c_MB)
    # Two pairs, (0, 1) and (1, 0); modality b has no history of either.
    torch.testing.assert_close(gradient, torch.tensor([[2.0, -2.0], [0.0, 0.0]]))


class Copies(TorchDispatchMode):
    """Names of the operations that allocate at least ``numbers`` numbers."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.found = numbers, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        large = isinstance(result, Tensor) and result.numel() >= self.numbers
        if large and result.untyped_storage().data_ptr() not in given:
            self.found.append(str(func))
        return result


def test_a_step_of_stacked_models_copies_no_history() -> None:
    """Their histories may have millions of rows."""
    method = QMF({"a": 2, "b": 2}, 3)
    method.remember(500)
    features = {m: torch.randn(4, 2) for m in "ab"}
    target_B, index_KB = (
        torch.zeros(4, dtype=torch.int64),
        torch.tensor([[0, 5, 7, 2], [9, 3, 1, 0]]),
    )

    def step(history_MN: Tensor, index_B: Tensor) -> Tensor:
        method.history_MN, method.index = history_MN, index_B
        return method.loss(method(features), target_B)

    histories_KMN = torch.zeros(2, 2, 500)
    with Copies(500) as copies, torch.no_grad():
        torch.func.vmap(step)(histories_KMN, index_KB)
    assert copies.found == []
    for history_MN, index_B in zip(histories_KMN, index_KB, strict=True):
        assert sorted(history_MN[0].nonzero().flatten().tolist()) == sorted(index_B.tolist())


@pytest.mark.parametrize("rows", [1, 4])
def test_batches_of_one_example_or_one_class(rows: int) -> None:
    method = QMF({"a": 2, "b": 2}, 3, rank_weight=1.0)
    method.remember(6)
    for _ in range(3):
        method.index = torch.arange(rows)
        outputs = method({m: torch.randn(rows, 2) for m in "ab"})
        loss = method.loss(outputs, torch.zeros(rows, dtype=torch.int64))
        loss.sum().backward()
        assert loss.shape == (rows,)
        assert loss.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


# ---------------------------------------------------------------- whole training


def by_hand(replicate: Any) -> tuple[dict[str, Tensor], list[float]]:
    t, p = replicate.training, replicate.params
    model: Any = build_model(model_spec(replicate, DATA), replicate.seed)
    inputs, labels = tensors(DATA.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=t["learning_rate"])
    history = [[0.0] * ROWS for _ in range(2)]
    means = []
    for epoch in range(t["epochs"]):
        seed = derive_seed(replicate.seed, "batches", epoch)
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
        losses = []
        for rows in order[: ROWS // BATCH * BATCH].split(BATCH):
            y = labels[rows]
            features = model.features({name: x[rows] for name, x in inputs.items()})
            z = [model.method.heads[i](features[f"m{i}"]) for i in range(2)]
            c = [torch.logsumexp(x, 1) / p["temperature"] for x in z]
            fused = sum(a.detach().unsqueeze(1) * x for a, x in zip(c, z, strict=True))
            loss = F.cross_entropy(fused, y)  # type: ignore[arg-type]
            for m in range(2):
                loss = loss + p["unimodal_weight"] * F.cross_entropy(z[m], y)
                least, most = min(history[m]), max(history[m])
                kappa = (torch.tensor(history[m])[rows] - least) / ((most - least) or 1.0)
                difference = kappa - kappa.roll(-1)
                sign = torch.sign(difference)
                other = c[m].roll(-1) + difference.abs() / torch.where(sign == 0, 1.0, sign)
                ranking = F.margin_ranking_loss(c[m], other, -sign)
                loss = loss + p["rank_weight"] * ranking
            for m in range(2):
                own = F.cross_entropy(z[m], y, reduction="none").tolist()
                for row, value in zip(rows.tolist(), own, strict=True):
                    history[m][row] += float(value)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return model.state_dict(), means


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
def test_training_is_that_of_a_hand_written_loop(stack: str) -> None:
    """Of which the rank loss is written with torch's own function, as in the published code."""
    configurations = [{"rank_weight": 0.0}, {"rank_weight": 2.0, "unimodal_weight": 0.5}]
    replicates = make_replicates(
        "qmf", configurations, data=DATA, encoder=ENCODER, epochs=4, batch_size=BATCH,
        optimizer="adam", learning_rate=0.01, stack=stack, select="last",
    )  # fmt: skip
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        state, losses = by_hand(replicate)
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-4)
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4, msg=name)
        assert not any("history" in name for name in model.state_dict())
