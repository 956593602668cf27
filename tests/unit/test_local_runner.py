"""The runner in this process: what it makes of failures before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.fakework import FakeWork

from modmix.base.errors import InputError, RunnerError
from modmix.execution import local
from modmix.execution.local import LocalRunner


@pytest.mark.parametrize(
    ("error", "of_machine"),
    [
        (RunnerError("the data on this machine differs"), True),
        (RuntimeError("CUDA error: device-side assert"), True),
        (InputError("my_task.py cannot be loaded"), False),
    ],
)
def test_what_fails_before_training_is_a_failure_of_the_pack(
    error: Exception, of_machine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any, **__: Any) -> Any:
        work.stopping = True  # one try is enough
        raise error

    work = FakeWork(1)
    monkeypatch.setattr(local, "train", train)
    LocalRunner().run(work)
    assert work.failures == [(local.describe(error), of_machine, True)]


@pytest.mark.parametrize(("gpus", "expected"), [({}, 0.0), ({"mul": 0.5}, 0.5), ({"": 2.0}, 2.0)])
def test_a_pack_gets_what_its_method_asks_for(
    gpus: Mapping[str, float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def train(*_: Any, **how: Any) -> Any:
        given.append(how["gpus"])
        yield from ()

    monkeypatch.setattr(local, "train", train)
    LocalRunner(gpus=gpus).run(FakeWork(1))  # a pack of mul
    assert given == [expected]
