"""When a study that has ended is no success."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from modmix import api
from modmix.base.errors import ModmixError


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"failed": 2, "done": 0, "pruned": 0}, "every configuration of study s failed (diverged)"),
        ({"failed": 2, "done": 1, "pruned": 0}, ""),
        (
            {"failed": 1, "done": 0, "pruned": 7},
            "every configuration of study s that was not pruned (7 were) failed (diverged)",
        ),
        ({"failed": 0, "done": 0, "pruned": 0}, ""),
    ],
)
def test_only_failures_are_no_success(counts: dict[str, int], message: str) -> None:
    status = SimpleNamespace(
        configurations={"total": sum(counts.values()), **counts}, failed=["diverged"]
    )
    work: Any = SimpleNamespace(status=lambda: status, plan=SimpleNamespace(name="s"))
    if message:
        with pytest.raises(ModmixError, match=f"^{re.escape(message)}: fix this"):
            api._refuse_only_failures(work)
    else:
        api._refuse_only_failures(work)
