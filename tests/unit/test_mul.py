"""Equations 8 to 10 against loops over examples, in exact decimals where floats would not do."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from modmix.methods.mul import Mul, boosted, class_losses, log_one_minus
from modmix.methods.mulmix import MulMix

Matrix = NDArray[np.float64]

BETAS = (0.0, 0.3, 1.0, 2.0)


def softmax(logits: Matrix) -> Matrix:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def loop_losses(
    logits_SBC: Matrix, beta: float, alpha: float = 0.0, weights: Matrix | None = None
) -> Matrix:
    """ℓ^k of every example and class, straight from eqs. 8 and 9, (B, C)."""
    p = softmax(logits_SBC)
    sources, batch, classes = p.shape
    losses = np.zeros((batch, classes))
    for b, k, i in itertools.product(range(batch), range(classes), range(sources)):
        others = math.prod(1.0 - p[j, b, k] for j in range(sources) if j != i)
        q = others ** (beta / (sources - 1))
        focal = (1.0 - p[i, b, k]) ** alpha
        weight = 1.0 if weights is None else weights[i]
        losses[b, k] -= weight * q * focal * math.log(p[i, b, k])
    return losses


def decimal_losses(logits_SC: list[list[float]], beta: float, alpha: float = 0.0) -> list[float]:
    """ℓ^k of one example in 60 digits; log(1 − p) from the sum of the other exponentials."""
    with localcontext() as context:
        context.prec = 60
        sources = len(logits_SC)
        log_p, log_rest = [], []
        for row in logits_SC:
            exponentials = [Decimal(x).exp() for x in row]
            total = sum(exponentials)
            log_p.append([(e / total).ln() for e in exponentials])
            rests = [sum(exponentials[:k] + exponentials[k + 1 :]) for k in range(len(row))]
            log_rest.append([(rest / total).ln() for rest in rests])
        losses = []
        for k in range(len(logits_SC[0])):
            loss = Decimal(0)
            for i in range(sources):
                others = sum((log_rest[j][k] for j in range(sources) if j != i), Decimal(0))
                exponent = Decimal(beta) / (sources - 1) * others + Decimal(alpha) * log_rest[i][k]
                loss -= exponent.exp() * log_p[i][k]
            losses.append(float(loss))
        return losses


def ours(
    logits_SBC: Tensor,
    beta: float,
    alpha: float = 0.0,
    weights: Matrix | None = None,
    *,
    detach: bool = True,
) -> Tensor:
    """(B, C), called with the layout that the method uses."""
    sources = logits_SBC.shape[0]
    dtype = torch.float64 if logits_SBC.dtype == torch.float64 else torch.float32
    w = torch.ones(sources, dtype=dtype) if weights is None else torch.tensor(weights, dtype=dtype)
    b, a = torch.tensor(beta, dtype=dtype), torch.tensor(alpha, dtype=dtype)
    return class_losses(logits_SBC.mT, b, a, w, detach=detach).mT


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("sources", [2, 3])
def test_class_losses_are_the_equations(sources: int, classes: int, beta: float) -> None:
    generator = np.random.default_rng(sources * 10 + classes)
    logits = 3 * generator.normal(size=(sources, 7, classes))
    weights = generator.uniform(0, 2, size=sources)
    for alpha, w in ((0.0, None), (0.7, None), (0.0, weights), (2.0, weights)):
        expected = loop_losses(logits, beta, alpha, w)
        for detach in (True, False):
            exact = ours(torch.tensor(logits), beta, alpha, w, detach=detach)
            np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-10)
            single = ours(torch.tensor(logits, dtype=torch.float32), beta, alpha, w, detach=detach)
            assert single.dtype == torch.float32
            np.testing.assert_allclose(single.numpy(), expected, rtol=2e-5, atol=1e-6)


def test_two_sources_by_hand() -> None:
    """p_1 = (0.8, 0.2), p_2 = (0.4, 0.6): q_1 = 1 − p_2 and q_2 = 1 − p_1 at β = 1."""
    logits = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]], dtype=torch.float64).log()
    expected = [
        -0.6 * math.log(0.8) - 0.2 * math.log(0.4),
        -0.4 * math.log(0.2) - 0.8 * math.log(0.6),
    ]
    np.testing.assert_allclose(ours(logits, 1.0)[0].numpy(), expected, rtol=1e-12)
    smoothed = -math.sqrt(0.6) * math.log(0.8) - math.sqrt(0.2) * math.log(0.4)
    np.testing.assert_allclose(ours(logits, 0.5)[0, 0].item(), smoothed, rtol=1e-12)


def double(rows: list[list[float]]) -> list[Tensor]:
    """Logits (1, C) of each source, from its probabilities."""
    return [torch.tensor([row], dtype=torch.float64).log() for row in rows]


def test_probabilities_of_mul_by_hand() -> None:
    """softmax(−ℓ/Σw) of the two sources above with weights 1 and 2."""
    method = Mul({"a": 3, "b": 2}, 2, weights={"b": 2.0}).double()
    found = method.log_probabilities(method.combine(double([[0.8, 0.2], [0.4, 0.6]])))
    first = 0.6 * math.log(0.8) + 2 * 0.2 * math.log(0.4)
    second = 0.4 * math.log(0.2) + 2 * 0.8 * math.log(0.6)
    odds = math.exp((second - first) / 3)
    expected = [math.log(1 / (1 + odds)), math.log(odds / (1 + odds))]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12)


def test_probabilities_of_mulmix_by_hand() -> None:
    """Three sources: q is the square root of the others' product at β = 1, and Σw = 3."""
    method = MulMix({"a": 3, "b": 2}, 2).double()
    found = method.log_probabilities(method.combine(double([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])))
    first = (
        math.sqrt(0.6 * 0.5) * math.log(0.8)
        + math.sqrt(0.2 * 0.5) * math.log(0.4)
        + math.sqrt(0.2 * 0.6) * math.log(0.5)
    )
    second = (
        math.sqrt(0.4 * 0.5) * math.log(0.2)
        + math.sqrt(0.8 * 0.5) * math.log(0.6)
        + math.sqrt(0.8 * 0.4) * math.log(0.5)
    )
    odds = math.exp((second - first) / 3)
    expected = [math.log(1 / (1 + odds)), math.log(odds / (1 + odds))]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-12)


def test_agreeing_sources_do_not_sharpen_the_probabilities() -> None:
    method = MulMix({"a": 3, "b": 2}, 2, beta=0.0).double()
    found = method.log_probabilities(method.combine(double([[0.7, 0.3]] * 3)))
    np.testing.assert_allclose(found[0].exp().numpy(), [0.7, 0.3], rtol=1e-12)


@pytest.mark.parametrize("detach", [True, False])
def test_no_matrix_product_where_tf32_could_be_used(detach: bool) -> None:
    """On every device but a CPU ("meta" runs the same operations without values), and backward."""
    logits = torch.zeros(3, 4, 50, device="meta", requires_grad=True)
    one = torch.ones((), device="meta")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        losses = class_losses(logits, one, one, torch.ones(3, device="meta"), detach=detach)
        losses.sum().backward()
    names = {event.key for event in profiler.key_averages()}
    assert {"aten::mul", "aten::_log_softmax_backward_data"} <= names
    products = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "einsum", "mv", "dot")
    assert not names & {f"aten::{name}" for name in products}


def test_beta_zero_is_exactly_the_sum_of_the_losses() -> None:
    logits = torch.tensor([[[3e4, -1e4, 0.0]], [[0.0, 0.0, 0.0]], [[-5.0, 2.0, 100.0]]])
    log_p = torch.log_softmax(logits.mT, dim=1).mT
    assert torch.equal(ours(logits, 0.0), -log_p.sum(0))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    "logits",
    [
        [[40.0, 0.0], [0.0, 0.0]],  # p = 1 − 4e-18: 1 in float32
        [[0.0, 40.0], [1.0, 0.0]],  # p = 4e-18
        [[9.0, 0.0, -3.0], [12.0, 1.0, 0.0], [-1.0, 0.5, 0.25]],  # p nearly 1
        [[700.0, 0.0], [600.0, 0.0]],  # p is 0 in float32 and in bf16
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]],
        [[1e4, 1e4, -1e4], [1e4, -1e4, -1e4]],  # two classes share p = 1/2
    ],
)
def test_probabilities_of_zero_one_and_nearly_one(logits: list[list[float]], beta: float) -> None:
    for alpha in (0.0, 1.5):
        expected = decimal_losses(logits, beta, alpha)
        inputs = torch.tensor(logits).unsqueeze(1)
        single = ours(inputs, beta, alpha)[0]
        double = ours(inputs.double(), beta, alpha)[0]
        # exp turns an absolute error of a logarithm into a relative one of q.
        np.testing.assert_allclose(single.numpy(), expected, rtol=5e-5, atol=1e-6)
        np.testing.assert_allclose(double.numpy(), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("constant", [True, False])
def test_log_one_minus_is_accurate_from_certain_to_impossible(constant: bool) -> None:
    grid = np.concatenate([np.linspace(-2, 2, 401), np.geomspace(2, 1e4, 100)])
    logits = torch.tensor(np.stack([grid, np.zeros_like(grid), np.full_like(grid, -1.0)]))
    found = log_one_minus(torch.log_softmax(logits, 0), dim=0, constant=constant)
    for column, value in enumerate(grid):
        row = [value, 0.0, -1.0]
        for k in range(3):
            others = [x for j, x in enumerate(row) if j != k]
            expected = np.logaddexp(*others) - np.logaddexp.reduce(row)
            # Cancellation in the expected value itself: hence the absolute part.
            assert found[k, column].item() == pytest.approx(expected, rel=1e-9, abs=2e-12)


def test_the_faster_log_one_minus_is_right_to_rounding_in_float32() -> None:
    """It is an exponent: what counts is the absolute error."""
    p = torch.cat([torch.logspace(-38, -0.31, 2000, dtype=torch.float64), torch.zeros(1).double()])
    log_p = torch.stack([p.log(), torch.log1p(-p)])  # two classes
    found = log_one_minus(log_p.float(), dim=0, constant=True)[0]
    expected = torch.log1p(-log_p[0].float().double().exp())
    np.testing.assert_allclose(found.double().numpy(), expected.numpy(), rtol=0, atol=2e-7)


def extreme_logits(dtype: torch.dtype) -> Tensor:
    values = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4])
    rows = torch.cartesian_prod(values, values, values)  # all triples, as classes
    first = rows.unsqueeze(0)
    return torch.cat([first, first.flip(1), first.roll(7, 1)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("beta", BETAS)
def test_extreme_logits_give_finite_values_and_gradients(
    beta: float, detach: bool, dtype: torch.dtype
) -> None:
    for alpha in (0.0, 0.5, 2.0):
        logits = extreme_logits(dtype).requires_grad_()
        losses = ours(logits, beta, alpha, detach=detach)
        assert losses.dtype == torch.float32  # never computed in half precision
        assert losses.isfinite().all()
        for k in range(3):
            target = torch.full((losses.shape[0],), k)
            for margin in (math.inf, 0.0, 1.0):
                loss = boosted(losses.mT, target, torch.tensor(margin))
                (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
                assert loss.isfinite().all()
                assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
def test_gradient_through_the_weights(beta: float) -> None:
    torch.manual_seed(0)
    logits = (2 * torch.randn(3, 4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(x, beta, 0.5, detach=False), logits)


@pytest.mark.parametrize("beta", BETAS)
def test_detached_weights_are_constants(beta: float) -> None:
    """∂ℓ^y/∂z_i = w_i q_i^y (1−p_i^y)^α (p_i − e_y) when q carries no gradient."""
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(3, 5, 4))
    target = generator.integers(0, 4, 5)
    weights = np.array([0.3, 0.5, 1.0])
    inputs = torch.tensor(logits, requires_grad=True)
    losses = ours(inputs, beta, 0.5, weights)
    boosted(losses.mT, torch.tensor(target), torch.tensor(math.inf)).sum().backward()
    p = softmax(logits)
    expected = np.zeros_like(logits)
    for i, b in itertools.product(range(3), range(5)):
        y = target[b]
        others = math.prod(1 - p[j, b, y] for j in range(3) if j != i)
        factor = weights[i] * others ** (beta / 2) * (1 - p[i, b, y]) ** 0.5
        expected[i, b] = factor * (p[i, b] - np.eye(4)[y])
    assert inputs.grad is not None
    np.testing.assert_allclose(inputs.grad.numpy(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (math.inf, [1.0, 1.0, 2.0, 1.0]),
        (0.0, [0.0, 1.0, 2.0, 1.0]),  # the tie in row 2 is not "smaller"
        (0.4, [0.0, 1.0, 2.0, 1.0]),
        (0.5, [1.0, 1.0, 2.0, 1.0]),  # 1 + 0.5 is not below 1.5
    ],
)
def test_margin_on_both_sides(margin: float, expected: list[float]) -> None:
    losses = torch.tensor([[1.0, 1.5, 9.0], [1.0, 1.0, 9.0], [1.0, 2.0, 3.0], [1.0, 0.5, 9.0]])
    target = torch.tensor([0, 0, 1, 0])
    found = boosted(losses.T, target, torch.tensor(margin))
    assert found.tolist() == expected


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_margin_is_equation_ten(margin: float) -> None:
    generator = np.random.default_rng(5)
    losses = generator.uniform(0, 3, size=(200, 3))
    target = generator.integers(0, 3, 200)
    expected = []
    for row, y in zip(losses, target, strict=True):
        product = math.prod(float(row[y] + margin < row[k]) for k in range(3) if k != y)
        expected.append(row[y] * (1 - product))
    found = boosted(torch.tensor(losses).T, torch.tensor(target), torch.tensor(margin))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)
    assert 0 < np.count_nonzero(expected) < 200


def test_margin_stops_the_gradient_of_settled_examples_only() -> None:
    losses = torch.tensor([[0.5, 2.0], [0.5, 0.6]], requires_grad=True)
    boosted(losses.T, torch.tensor([0, 0]), torch.tensor(1.0)).sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_margin_does_not_hide_a_loss_that_is_not_a_number() -> None:
    losses = torch.tensor([[math.nan, 2.0]])
    assert boosted(losses.T, torch.tensor([0]), torch.tensor(0.1)).isnan().all()


def test_the_smallest_loss_is_predicted() -> None:
    torch.manual_seed(0)
    method = Mul({"a": 3, "b": 2}, 4, beta=0.5, weights={"b": 2.0})
    features = {"a": torch.randn(6, 3), "b": torch.randn(6, 2)}
    outputs = method(features)
    assert outputs.logits_SCB.shape == (2, 4, 6)
    assert torch.equal(method.scores(outputs).argmax(-1), outputs.losses_CB.argmin(0))
    assert method.weights_S.tolist() == [1.0, 2.0]
    for name in ("beta", "margin", "alpha", "weights_S"):
        assert name in dict(method.named_buffers())
