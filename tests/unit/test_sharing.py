"""Fair shares of a cluster."""

from __future__ import annotations

import pytest

from modmix.execution.sharing import allowance, fair_share


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        (1.0, [], 1.0),
        (0.3, [], 0.3),
        (5.0, [], 1.0),
        (1.0, [1.0], 0.5),
        (1.0, [0.2], 0.8),
        (0.2, [1.0], 0.2),
        (1.0, [0.1, 1.0], 0.45),
        (1.0, [0.1, 9.0, 0.1], 0.4),
        (0.4, [0.4, 0.4], 1 / 3),
        (0.0, [1.0], 0.0),
        (1.0, [0.0], 1.0),
    ],
)
def test_shares(own: float, others: list[float], expected: float) -> None:
    assert fair_share(own, others) == pytest.approx(expected)


@pytest.mark.parametrize("demands", [(1.0, 0.5, 0.25), (0.1, 0.2, 0.3), (2.0, 2.0, 2.0)])
def test_shares_fill_the_cluster_and_no_more(demands: tuple[float, ...]) -> None:
    shares = [fair_share(one, [*demands[:i], *demands[i + 1 :]]) for i, one in enumerate(demands)]
    assert sum(shares) == pytest.approx(min(1.0, sum(min(d, 1.0) for d in demands)))


def test_trials() -> None:
    assert allowance(24, 16, []) == 16
    assert allowance(24, 16, [1.0]) == 8
    assert allowance(24, 16, [0.25]) == 12
    assert allowance(4, 16, [1.0]) == 4
    assert allowance(3, 1, [1.0, 1.0]) == 1
    assert allowance(2, 0, [1.0]) == 1
