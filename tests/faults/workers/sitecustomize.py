"""On PYTHONPATH: workers train invented packs, in the way that their node's MODMIX_TEST_DOES says.

""       five evaluations with 20 ms between them
slow     the same, with 0.2 s between them
waits    waits for the file MODMIX_TEST_GATE and says so by one beside it; then as ""
dies     its process ends at the second evaluation, until there is the file MODMIX_TEST_GATE, if set
"""

import os
import sys
import time
from pathlib import Path

from modmix.base.messages import Finished, PackStarted, Progress
from modmix.execution import local


def train(pack, **how):
    does = os.environ.get("MODMIX_TEST_DOES", "")
    return events(pack, does)


def wait_for(gate):
    gate.with_name(f"{gate.name}-reached").touch()
    patience = time.monotonic() + 120
    while not gate.exists():
        if time.monotonic() > patience:
            raise TimeoutError(f"{gate} is still not there")
        time.sleep(0.05)


def is_mended():
    gate = os.environ["MODMIX_TEST_GATE"]
    return gate and Path(gate).exists()


def events(pack, does):
    keys = [replicate.key for replicate in pack.replicates]
    yield PackStarted(pack=pack.id, models=len(keys), device="cpu", stacked=True, why="invented")
    if does == "waits":
        wait_for(Path(os.environ["MODMIX_TEST_GATE"]))
    for epoch in range(1, 6):
        time.sleep(0.2 if does == "slow" else 0.02)
        if epoch == 2 and does == "dies" and not is_mended():
            os._exit(1)
        yield Progress(
            pack=pack.id,
            epoch=epoch,
            epochs=5,
            active=len(keys) if epoch < 5 else 0,
            metrics={key: {"val/error": 10.0 - epoch} for key in keys},
        )
    for key in keys:
        yield Finished(pack=pack.id, replicate=key, state="done", epochs=5)


local.train = train
if os.environ.get("MODMIX_TEST_DOES") == "alien":
    sys.modules["modmix.execution.tune_trial"] = None
