"""When a study that has ended is no success."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from modmix import api
from modmix.base.errors import ModmixError


@pytest.mark.parametrize(
    ("counts", "raises"),
    [
        ({"failed": 2, "done": 0, "pruned": 0}, True),
        ({"failed": 2, "done": 1, "pruned": 0}, False),
        ({"failed": 1, "done": 0, "pruned": 7}, False),  # they were trained, and are told
        ({"failed": 0, "done": 0, "pruned": 0}, False),
    ],
)
def test_only_failures_are_no_success(counts: dict[str, int], raises: bool) -> None:
    status = SimpleNamespace(
        configurations={"total": sum(counts.values()), **counts}, failed=["diverged"]
    )
    work: Any = SimpleNamespace(status=lambda: status, plan=SimpleNamespace(name="s"))
    if raises:
        with pytest.raises(ModmixError, match=r"^every configuration of study s failed \(diverged"):
            api._refuse_only_failures(work)
    else:
        api._refuse_only_failures(work)
