"""Data for tests of the plan, which looks at shapes only."""

from __future__ import annotations

import numpy as np

from modmix.tasks.data import Data, Input, Split


def fake_data(fingerprint: str) -> Data:
    """Two inputs of 4 and 3 numbers, three classes, six rows in every split."""
    shapes = {"left": (4,), "right": (3,)}
    split = Split(
        inputs={name: np.zeros((6, *shape), np.float32) for name, shape in shapes.items()},
        labels=np.arange(6, dtype=np.int64) % 3,
    )
    return Data(
        name="fake",
        inputs={name: Input(name=name, shape=shape) for name, shape in shapes.items()},
        classes=3,
        class_names=("a", "b", "c"),
        train=split,
        val=split,
        test=split,
        fingerprint=fingerprint,
    )
