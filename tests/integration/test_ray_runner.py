"""The cluster that a study starts on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SCRIPT = """
import json, os, psutil
from modmix.ray_runner import RayRunner
runner = RayRunner(workers=2)
runner.start()
me = psutil.Process()
family = [me, *me.children(recursive=True)]
listening = sorted({
    connection.laddr.ip
    for process in family
    for connection in process.net_connections(kind="inet")
    if connection.status == psutil.CONN_LISTEN
})
print(json.dumps({"listening": listening, "slots": runner.slots, "processes": len(family)}))
runner.close()
"""


def test_nothing_listens_beyond_this_machine() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )  # fmt: skip
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["processes"] > 3
    assert found["slots"] == 2
    assert found["listening"], "a cluster without any socket is no cluster"
    assert set(found["listening"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
