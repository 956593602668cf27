"""Loss curves written down: whoever changes one changes every result of that method.

Then `NUMERICS_VERSION` in base/messages.py must be raised, so that old results are not mixed with
new ones. MODMIX_WRITE_GOLDEN=1 writes the file anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from modmix.base.messages import NUMERICS_VERSION
from modmix.methods.table import METHODS
from toypack import make_data, make_replicates, train

FILE = Path(__file__).with_name("golden_losses.txt")
DATA = make_data(rows=(96, 40, 30), noise=2.0, seed=11)
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "late": {"combine": "learned"},
    "add": {"merge": "mean"},
    "mul": {"beta": 0.5, "margin": 0.3},
    "mulmix": {"beta": 0.8, "project": 6, "merge": "sum"},
    "dimml": {"warmup": 2, "head_epochs": 2},
    "ogm_ge": {"last_epoch": 2},
    "gblending": {"super_epoch": 1},
}


def curve(method: str) -> list[float]:
    replicates = make_replicates(
        method,
        [CONFIGURATIONS.get(method, {})],
        [5],
        data=DATA,
        epochs=4,
        batch_size=16,
        clip_norm=2.0,
    )
    (end,) = train(replicates, DATA).values()
    return list(end.history["train/loss"])


def written() -> dict[str, list[float]]:
    lines = [line.split() for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return {name: [float(number) for number in numbers] for name, *numbers in lines}


def test_write_golden_curves() -> None:
    if "MODMIX_WRITE_GOLDEN" in os.environ:
        rows = [f"{m} " + " ".join(f"{x:.8g}" for x in curve(m)) for m in METHODS]
        FILE.write_text("\n".join([f"# numerics {NUMERICS_VERSION}", *rows]) + "\n")
    assert FILE.read_text().startswith(f"# numerics {NUMERICS_VERSION}\n")
    assert set(written()) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_loss_curves_are_those_written_down(method: str) -> None:
    assert curve(method) == pytest.approx(written()[method], rel=1e-5)
