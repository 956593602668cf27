"""A replicate's test predictions, and the targets they belong to, as compressed bytes.

Kept are the predicted class and the probability of the true class of every test example, in the
order of the prepared test split: enough to recompute error and NLL, and to compare models example
by example. Shapes: N test examples.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_PROBABILITY = np.dtype("<f2")


@dataclass(frozen=True, eq=False)
class ExamplePredictions:
    """Predicted classes (N,) int64 and probabilities of the true classes (N,) float16.

    float16 keeps probabilities to 0.05 % of their value from 6e-5 on; those below 3e-8 become 0.
    """

    classes_N: npt.NDArray[np.int64]
    p_true_N: npt.NDArray[np.float16]

    def to_bytes(self, classes: int) -> bytes:
        """All predicted classes in the smallest unsigned type for ``classes``, then all
        probabilities; compressed.
        """
        kind = _unsigned(classes)
        raw = self.classes_N.astype(kind).tobytes() + self.p_true_N.astype(_PROBABILITY).tobytes()
        return zlib.compress(raw)

    @staticmethod
    def from_bytes(data: bytes, rows: int) -> ExamplePredictions:
        """The inverse of `to_bytes`; the type of the classes follows from the length."""
        raw = zlib.decompress(data)
        width, rest = divmod(len(raw) - rows * _PROBABILITY.itemsize, max(1, rows))
        assert rest == 0, (len(raw), rows)
        classes_N = np.frombuffer(raw, f"<u{width or 1}", rows)
        p_true_N = np.frombuffer(raw, _PROBABILITY, rows, offset=rows * width)
        return ExamplePredictions(classes_N.astype(np.int64), p_true_N.astype(np.float16))


@dataclass(frozen=True, eq=False)
class ExampleTargets:
    """The true classes (N,) of a prepared test split and, if the task keeps them, its rows.

    ``rows_N`` are the row numbers of the examples in the task's source, from 0; None: unknown.
    """

    target_N: npt.NDArray[np.int64]
    rows_N: npt.NDArray[np.int64] | None = None

    @property
    def numbers_N(self) -> npt.NDArray[np.int64]:
        """``rows_N``, or positions in the prepared test split, 0 to N − 1, without them."""
        return np.arange(len(self.target_N)) if self.rows_N is None else self.rows_N


def integers_to_bytes(values_N: npt.NDArray[Any]) -> bytes:
    """Integers from 0 in the smallest unsigned type, compressed."""
    kind = _unsigned(int(values_N.max(initial=0)) + 1)
    return zlib.compress(values_N.astype(kind).tobytes())


def integers_from_bytes(data: bytes, rows: int) -> npt.NDArray[np.int64]:
    """The inverse of `integers_to_bytes`."""
    raw = zlib.decompress(data)
    return np.frombuffer(raw, f"<u{len(raw) // max(1, rows) or 1}", rows).astype(np.int64)


def _unsigned(count: int) -> np.dtype[Any]:
    """The smallest little-endian unsigned type that holds 0 to count − 1."""
    width = next(width for width in (1, 2, 4, 8) if count <= 1 << (8 * width))
    return np.dtype(f"<u{width}")
