"""What every runner does on the machine it chose: data, traces, and what a failure means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modmix.base.errors import RunnerError
from modmix.base.messages import Pack, PackStarted, Progress, TaskRef
from modmix.execution import local as runners
from modmix.tasks import base
from modmix.tasks.base import load_task
from toypack import make_data, make_pack, make_replicates

OPTIONS = {"train_rows": 60}


@pytest.fixture
def pack() -> Pack:
    digits = load_task("digits", OPTIONS)
    made = make_pack(make_replicates("add", data=digits, epochs=2, batch_size=32))
    task = TaskRef(name="digits", options=OPTIONS, fingerprint=digits.fingerprint)
    return replace(made, task=task)


def test_a_task_is_loaded_once_for_many_packs(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def spy(name: str, options: Any) -> Any:
        loads.append(name)
        return load_task(name, options)

    monkeypatch.setattr(base, "load_task", spy)
    monkeypatch.setattr(runners, "_LOADED", {})
    first, second = list(runners.train(pack)), list(runners.train(pack))
    assert loads == ["digits"]
    assert [e.metrics for e in first if isinstance(e, Progress)] == [
        e.metrics for e in second if isinstance(e, Progress)
    ]
    for rows in range(61, 67):  # a study over variants of the data does not keep them all
        other = load_task("digits", {"train_rows": rows})
        runners._data_of(
            TaskRef(name="digits", options={"train_rows": rows}, fingerprint=other.fingerprint)
        )
    assert len(runners._LOADED) < 6


def test_other_data_than_planned_is_refused(pack: Pack) -> None:
    wrong = replace(pack, task=replace(pack.task, fingerprint=make_data().fingerprint))
    with pytest.raises(RunnerError, match="put the same file on every node"):
        runners.train(wrong)


def test_the_trace_tells_who_trained_what_and_when(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_TRACE", str(tmp_path / "trace"))
    events = list(runners.train(pack))
    assert isinstance(events[0], PackStarted)
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    keys = sorted(r.key for r in pack.replicates)
    assert [(line["epoch"], line["replicates"]) for line in lines] == [
        (1, keys),
        (2, keys),
    ]
    assert lines == sorted(lines, key=lambda line: float(line["time"]))
