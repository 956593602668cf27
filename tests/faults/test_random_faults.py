"""What the program that throws random faults at studies draws."""

from __future__ import annotations

from collections import Counter

from tests.faults.random_faults.checks import overlaps
from tests.faults.random_faults.plan import SIGNALS, draw
from tests.faults.random_faults.watch import Evaluation


def test_faults_are_drawn_from_the_seed() -> None:
    plans = draw(100, 7)
    assert plans == draw(100, 7)
    assert plans != draw(100, 8)
    faults = [fault for plan in plans for fault in plan.faults]
    assert Counter(fault.victim for fault in faults) == {
        "driver": 30, "worker": 18, "node": 12, "mlflow": 12, "database": 14, "mirror": 14,
    }  # fmt: skip
    assert {(fault.victim, fault.signal) for fault in faults} == {
        (victim, name) for victim, names in SIGNALS.items() for name in names
    }
    assert all(len({fault.victim for fault in plan.faults}) == 1 for plan in plans)
    (one,) = draw(3, 7, "node")
    assert [fault.victim for fault in one.faults] == ["node"] * 3


def test_replicates_trained_by_two_processes_at_once_are_found() -> None:
    def lines(*who: tuple[int, str]) -> list[Evaluation]:
        return [
            Evaluation(time=i, process=process, epoch=1.0, replicates=tuple(keys))
            for i, (process, keys) in enumerate(who)
        ]

    one_after_another = lines((1, "ab"), (1, "ab"), (2, "a"), (3, "b"), (2, "a"), (3, "b"))
    assert overlaps(one_after_another) == 0
    assert overlaps(lines((1, "ab"), (2, "b"), (1, "ab"), (2, "b"))) == 1
    assert overlaps(lines((1, "a"), (2, "a"), (3, "a"))) == 0
