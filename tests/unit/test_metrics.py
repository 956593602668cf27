"""Metrics against scikit-learn, loops, and cases done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from torch import Tensor

from modmix.base.metrics import (
    COLUMNS,
    METRICS,
    auc,
    ece,
    error,
    evaluate,
    f1,
    higher_is_better,
    log_odds,
    nll,
)

MODELS, ROWS = 4, 211


def draw(classes: int, *, ties: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores (4, 211, C) and targets (211,); with ties, scores take few values."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(MODELS, ROWS, classes, generator=generator)
    targets = torch.randint(0, classes, (ROWS,), generator=generator)
    scores += torch.nn.functional.one_hot(targets, classes)
    return (scores / 2).round() if ties else scores, targets


def of_scores(name: str, scores: Tensor, targets: Tensor) -> Tensor:
    """A metric of the models whose probabilities are the softmax of their scores."""
    return evaluate(scores, scores.log_softmax(-1), targets, [name])[name]


def reference(name: str, scores: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    classes = scores.shape[1]
    probabilities = np.exp(scores - np.logaddexp.reduce(scores, axis=1)[:, None])
    predicted = scores.argmax(1)
    match name:
        case "error":
            return 100 * (1 - float(accuracy_score(targets, predicted)))
        case "nll":
            return float(log_loss(targets, probabilities, labels=range(classes)))
        case "f1":
            return float(f1_score(targets, predicted, average="macro"))
        case "auc" if classes == 2:
            return float(roc_auc_score(targets, scores[:, 1] - scores[:, 0]))
        case "auc":
            return float(roc_auc_score(targets, probabilities, multi_class="ovr"))
        case "ece":
            return loop_ece(probabilities, targets)
    raise AssertionError(f"write a reference of {name} here")


def loop_ece(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == targets
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


# Without ties where the reference itself depends on rounding: probabilities whose ties it breaks,
# confidences on the edge of a bin.
CASES = [(name, classes, False) for name in METRICS for classes in (2, 3, 7)]
CASES += [(name, classes, True) for name in ("error", "nll", "f1") for classes in (2, 3, 7)]
CASES += [("auc", 2, True)]


@pytest.mark.parametrize(("name", "classes", "ties"), CASES)
def test_metrics_are_those_of_scikit_learn(name: str, classes: int, ties: bool) -> None:
    # float64, so that both sides see the same ties and the same bins
    scores, targets = draw(classes, ties=ties)
    found = of_scores(name, scores.double(), targets)
    assert found.shape == (MODELS,)
    expected = [reference(name, s.double().numpy(), targets.numpy()) for s in scores]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    single = of_scores(name, scores, targets)
    assert single.dtype == torch.float64
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_one_model_and_many_and_own_targets(name: str) -> None:
    scores, targets = draw(5, ties=False)
    one = of_scores(name, scores[2], targets)
    assert one.shape == ()
    torch.testing.assert_close(one, of_scores(name, scores, targets)[2])
    torch.testing.assert_close(of_scores(name, scores, targets.expand(MODELS, -1))[2], one)
    torch.testing.assert_close(of_scores(name, scores.view(2, 2, ROWS, 5), targets)[1, 0], one)


def test_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, 4.0]])
    targets = torch.tensor([0, 1, 1, 1])  # predicted 0, 1, 0 (the first of equals), 0
    assert error(scores, targets).item() == 50.0
    # differences −1, 3, 0, −1 of classes 0, 1, 1, 1: one tie of three pairs
    logs = scores.double().log_softmax(-1)
    assert auc(logs, targets).item() == pytest.approx(2.5 / 3)
    # class 0: 1 hit of 3 predicted, 1 present; class 1: 1 hit of 1 predicted, 3 present
    assert f1(scores, targets).item() == pytest.approx((2 / 4 + 2 / 4) / 2)
    p = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3)), 0.5, 1 / (1 + math.exp(1))]
    assert nll(logs, targets).item() == pytest.approx(-sum(map(math.log, p)) / 4)
    # confidences 0.731 (right and wrong share its bin), 0.953 (right), 0.5 (wrong)
    gaps = abs(1 - 2 * p[0]) + (1 - p[1]) + 0.5
    assert ece(logs, targets).item() == pytest.approx(gaps / 4)


def test_auc_counts_all_pairs_exactly() -> None:
    """Large enough for sums of ranks that float32 cannot hold."""
    rows = 40_000
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 50, (rows, 2), generator=generator).float()
    targets = torch.randint(0, 2, (rows,), generator=generator)
    difference = (scores[:, 1] - scores[:, 0]).numpy()
    expected = roc_auc_score(targets.numpy(), difference)
    assert auc(scores, targets).item() == pytest.approx(expected, rel=1e-6)


def test_auc_without_one_of_the_classes() -> None:
    scores = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert auc(scores, torch.zeros(6, dtype=torch.long)).isnan()
    three = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 0, 1, 0, 1])  # class 2 is absent and left out
    p = three.softmax(-1).double().numpy()
    expected = np.mean([roc_auc_score(targets == k, p[:, k]) for k in (0, 1)])
    assert auc(three.log_softmax(-1), targets).item() == pytest.approx(expected)
    assert auc(three, torch.zeros(6, dtype=torch.long)).isnan()


def test_perfect_and_worst_scores() -> None:
    targets = torch.tensor([0, 1, 2, 1])
    perfect = 50.0 * torch.nn.functional.one_hot(targets, 3).float()
    found = evaluate(perfect, perfect.log_softmax(-1), targets, METRICS)
    values = {name: value.item() for name, value in found.items()}
    assert values == {"error": 0, "auc": 1, "nll": 0, "ece": pytest.approx(0), "f1": 1}
    assert error(-perfect, targets).item() == 100
    assert auc((-perfect).log_softmax(-1), targets).item() == 0


def test_errors_are_counts_divided_in_float64() -> None:
    """The value of each count is what Python's own floats make of it, to the last digit."""
    rows = 19
    for wrong in range(rows + 1):
        targets = (torch.arange(rows) < wrong).long()
        scores = torch.tensor([1.0, 0.0]).expand(3, rows, 2)
        assert error(scores, targets).tolist() == [100 * wrong / rows] * 3


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_tells_nearly_certain_predictions_apart(classes: int) -> None:
    """Gaps of 25 to 90 nats: the largest probability is 1 in float32."""
    rows = 400
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    likely = torch.where(
        torch.rand(rows, generator=generator) < 0.8,
        targets,
        torch.randint(0, classes, (rows,), generator=generator),
    )
    gaps = 25 + 65 * torch.rand(rows, generator=generator)
    scores = torch.randn(rows, classes, generator=generator)
    scores += gaps[:, None] * torch.nn.functional.one_hot(likely, classes)
    assert (scores.softmax(-1).amax(-1) == 1).all()

    wide = scores.double().numpy()
    odds = np.empty_like(wide)
    for k in range(classes):
        odds[:, k] = wide[:, k] - np.logaddexp.reduce(np.delete(wide, k, axis=1), axis=1)
    each = [roc_auc_score(targets == k, odds[:, k]) for k in range(classes)]
    found = auc(scores.log_softmax(-1), targets).item()
    assert found == pytest.approx(np.mean(each), abs=1e-5)
    assert auc(scores.double().log_softmax(-1), targets).item() == pytest.approx(np.mean(each))


def test_nll_and_ece_of_nearly_certain_predictions() -> None:
    logs = torch.tensor([[-1e-12, -27.6], [-200.0, 0.0], [-3e-12, -26.5], [0.0, -300.0]])
    targets = torch.tensor([0, 0, 0, 1])
    assert nll(logs, targets).item() == pytest.approx((1e-12 + 200 + 3e-12 + 300) / 4, rel=1e-7)
    assert nll(logs[[0, 2]], targets[[0, 2]]).item() == pytest.approx(2e-12, rel=1e-6)
    assert ece(logs, targets).item() == pytest.approx(0.5)


def test_log_odds_are_those_of_a_loop() -> None:
    scores = 30 * torch.randn(5, 50, generator=torch.Generator().manual_seed(2)).double()
    found = log_odds(scores.log_softmax(0)).numpy()
    for k in range(5):
        rest = np.logaddexp.reduce(np.delete(scores.numpy(), k, axis=0), axis=0)
        np.testing.assert_allclose(found[k], scores[k].numpy() - rest, rtol=1e-9)
    certain = torch.tensor([[0.0], [-torch.inf], [-torch.inf]])
    assert log_odds(certain).flatten().tolist() == [math.inf, -math.inf, -math.inf]


def test_scores_decide_errors_and_log_probabilities_the_rest() -> None:
    scores = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
    logs = scores.flip(-1).log_softmax(-1)
    targets = torch.tensor([0, 1])
    found = evaluate(scores, logs, targets, METRICS)
    assert found["error"].tolist() == [0.0]
    assert found["f1"].tolist() == [1.0]
    assert found["auc"].tolist() == [0.0]
    assert found["nll"].item() == pytest.approx(math.log(1 + math.e))


def test_scores_in_half_precision_and_without_number() -> None:
    scores, targets = draw(3, ties=False)
    half = scores.bfloat16()
    values = evaluate(half, half.log_softmax(-1), targets, METRICS)
    assert all(value.dtype == torch.float64 for value in values.values())
    broken = scores.clone()
    broken[1, 5] = math.nan
    for name, value in evaluate(broken, broken.log_softmax(-1), targets, METRICS).items():
        whole = of_scores(name, scores, targets)
        assert torch.equal(value[[0, 2, 3]], whole[[0, 2, 3]])
    assert of_scores("nll", broken, targets)[1].isnan()


def test_directions() -> None:
    assert not higher_is_better("val/error")
    assert higher_is_better("val/auc")
    assert higher_is_better("test/f1")
    assert not higher_is_better("train/loss")
    with pytest.raises(KeyError):
        higher_is_better("val/unheard")
    assert set(COLUMNS).isdisjoint(f"val/{name}" for name in METRICS)
