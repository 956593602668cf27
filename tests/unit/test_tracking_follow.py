"""How long the mirror's process goes on trying at the end of a study."""

from __future__ import annotations

from typing import Any

import pytest

from modmix.base.errors import TrackingError
from modmix.tracking import follow
from modmix.tracking.follow import Follower, Task
from modmix.tracking.store import RefusedError


@pytest.mark.parametrize(
    ("error", "tries"), [(RefusedError("no permission"), 2), (TrackingError("it is away"), 4)]
)
def test_what_mlflow_refuses_is_tried_once_more_at_the_end(
    error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[str, Any]] = []
    task = Task(study="s", ledger_url="sqlite://", uri="http://x", home=".", niceness=0)
    follower = Follower(task, lambda what, value: answers.append((what, value)))
    made = []

    def make() -> Any:
        made.append(None)
        if len(made) == 4:
            follower._deadline = 0.0  # the driver waits no longer
        raise error

    monkeypatch.setattr(follow, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(follower, "_make_writer", make)
    follower.receive({"end": "finished", "seconds": 1000.0})
    assert follower.follow() is False
    assert len(made) == tries
    assert answers == [("problem", str(error))]
