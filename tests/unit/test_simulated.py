"""What is counted from the notes of a simulated cluster's workers."""

from __future__ import annotations

from pathlib import Path

import pytest
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
