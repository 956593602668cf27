"""A simulated cluster: what is counted from its workers' notes, and what must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import cluster
from tests.benchmarks.harness import BenchmarkError
from tests.benchmarks.report import Section
from tests.benchmarks.simulated import trace
from tests.benchmarks.simulated.trace import Note, Stay

from fakework import pack


def notes() -> list[Note]:
    """Pack a ends, b is lost with its node and ends elsewhere, c fails and still runs elsewhere."""
    return [
        Note(1.0, "begins", "one", "a", "x", 1),
        Note(2.0, "begins", "two", "b", "y", 2),
        Note(3.0, "ends", "one", "a", "x", 1),
        Note(3.5, "begins", "one", "c", "x", 1),
        Note(4.0, "failed", "one", "c", "x", 1),
        Note(6.0, "begins", "two", "b", "x", 1),
        Note(6.5, "begins", "one", "c", "x", 3),
        Note(7.0, "ends", "two", "b", "x", 1),
    ]


def test_packs_on_workers() -> None:
    found = trace.stays(notes(), {"y": 5.0})
    assert found == [
        Stay("one", "a", "x", 1.0, 3.0, "ends"),
        Stay("two", "b", "y", 2.0, 5.0, "lost"),
        Stay("one", "c", "x", 3.5, 4.0, "failed"),
        Stay("two", "b", "x", 6.0, 7.0, "ends"),
    ]
    assert [trace.held(found, at) for at in (0.5, 1.0, 2.5, 3.0, 3.7, 5.0, 6.9)] == [
        *(0, 1, 2, 1, 2, 0, 1)
    ]
    assert [trace.held(found, 2.5, study) for study in ("one", "two")] == [1, 1]
    assert trace.again(found) == 1
    assert trace.ended(found) == {"a": 1, "b": 1}


def test_notes_are_read_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "trace"
    assert trace.read(file) == []
    monkeypatch.setenv("MODMIX_BENCH_TRACE", str(file))
    monkeypatch.setenv("MODMIX_BENCH_NODE", "node 1")
    trace.note("begins", pack(7))
    with file.open("a") as lines:
        lines.write('{"at": 1')
    (one,) = trace.read(file)
    assert (one.what, one.study, one.pack, one.node) == (
        *("begins", "overhead", pack(7).id, "node 1"),
    )


def bad_node(**changes: Any) -> dict[str, Any]:
    """Two packs failed on a bad node before it was named, and all models finished."""
    said = [(5.0, "warning: node 10.0.0.7 (abcd1234) is avoided from now on: OSError: no data")]
    return {
        "results": 3,
        "keys": 3,
        "states": ["done"] * 3,
        "said": said,
        "id": "abcd1234" + 48 * "0",
        "failed": [4.0, 4.5],
        "begun": [3.0, 3.5],
        "again": 2,
        "ended": {"a": 1, "b": 1, "c": 1},
        **changes,
    }


def test_a_bad_node_in_the_report() -> None:
    section = Section("cluster", "Cluster")
    cluster._bad(section, {"no data": bad_node()})
    (table,) = section.tables
    assert table.rows == [["no data", "3", "2", "2", "0", "OSError: no data"]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"states": ["done", "failed", "done"]}, "2 results of 3 models"),
        ({"keys": 2}, "3 results of 3 models with 2 keys"),
        ({"ended": {"a": 2, "b": 1, "c": 1}}, "1 packs were trained to their end twice"),
        ({"ended": {"a": 1, "b": 1}}, "2 of 3 packs were trained"),
        ({"said": []}, "0 nodes were named"),
        ({"id": 56 * "1"}, "another one was named"),
    ],
)
def test_what_must_hold_is_checked(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(BenchmarkError, match=expected):
        cluster._bad(Section("cluster", "Cluster"), {"no data": bad_node(**changes)})
