"""When a pack that machines fail to train is abandoned."""

from __future__ import annotations

import pytest

from modmix.execution.failures import MAX_FAILURES, UNKNOWN, Failures
from modmix.ledger.records import PackRecord


def record(failures: int, **note: object) -> PackRecord:
    return PackRecord(id="p", replicates=("a",), state="interrupted", note=note, failures=failures)


@pytest.mark.parametrize(
    ("epochs", "count"),
    [
        ([0, 0, 0], 3),
        ([2, 2, 2], 3),  # the first one had advanced, from nothing
        ([1, 2, 3], 1),
        ([1, 2, 2, 2], 3),
        ([5, 1, 4], 3),  # without its checkpoint: it is not further than it was
        ([5, 1, 6], 1),
    ],
)
def test_failures_count_since_the_last_progress(epochs: list[float], count: int) -> None:
    failures = Failures()
    for epoch in epochs:
        failures = failures.after(epoch, "died")
    assert (failures.count, failures.reached) == (count, max(epochs))


def test_it_is_given_up_after_the_sixth() -> None:
    failures = Failures()
    for _ in range(MAX_FAILURES):
        failures = failures.after(0, "died")
        assert not failures.too_many
    assert failures.after(0, "died").too_many


def test_the_ledger_keeps_it() -> None:
    failures = Failures().after(2, "first").after(2, "second")
    assert Failures.of(record(failures.count, device="cpu", **failures.note)) == failures
    assert Failures.of(record(0)) == Failures()
    # --retry-failed sets the count to 0.
    assert Failures.of(record(0, **failures.note)).after(2, "again").count == 1


def test_counts_without_a_reason_are_of_something_else() -> None:
    """Earlier versions counted lost nodes and failed configurations, too."""
    assert Failures.of(record(7, device="cpu")).count == 0


def test_an_unknown_reason_is_said_to_be() -> None:
    assert Failures().after(0, "").why == UNKNOWN
