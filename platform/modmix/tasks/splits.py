"""Seeded splits and standardisation.

Permutations are derived from the raw output of PCG64, whose stream NumPy guarantees across versions
and machines, unlike `Generator.permutation`. So a seed gives the same split everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from modmix.base.wording import counted
from modmix.tasks.data import SPLITS, Array

CHUNK_NUMBERS = 1 << 22  # numbers converted at a time: 32 MB of float64
_NAMED = 3  # classes named in a message


def generator(seed: int, *words: str) -> np.random.Generator:
    """An independent generator per seed and purpose ``words``."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, words)))


def _sequence(seed: int, words: Iterable[str]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, *"/".join(words).encode()])


def permutation(rows: int, seed: int, *words: str) -> npt.NDArray[np.int64]:
    """A random permutation of 0..rows-1, the same on every machine."""
    bits = np.random.PCG64(_sequence(seed, words)).random_raw(rows)
    return np.argsort(np.asarray(bits, dtype=np.uint64), kind="stable")


def stratified(
    labels_N: npt.NDArray[np.int64], rows: int, seed: int, *words: str
) -> npt.NDArray[np.bool_]:
    """Stratified random choice of ``rows`` examples, as a mask (N,) bool.

    At least one example of each class is left unchosen, even if that gives fewer than ``rows``.
    """
    counts_C = np.bincount(labels_N)
    quota_C = _quotas(counts_C, rows)
    order_N = permutation(len(labels_N), seed, *words)
    by_class_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
    sorted_labels_N = labels_N[by_class_N]
    first_C = np.cumsum(counts_C) - counts_C
    rank_N = np.arange(len(labels_N)) - first_C[sorted_labels_N]
    chosen_N = np.zeros(len(labels_N), dtype=np.bool_)
    chosen_N[by_class_N[rank_N < quota_C[sorted_labels_N]]] = True
    return chosen_N


def absent(
    labels_N: npt.NDArray[np.int64], splits_N: Array, class_names: Sequence[str]
) -> str | None:
    """A warning about classes that have examples, but none in some split; None without such.

    ``splits_N`` holds indices of `SPLITS`. A class with one or two examples cannot be in all.
    """
    counts_SC = np.stack(
        [np.bincount(labels_N[splits_N == n], minlength=len(class_names)) for n in range(3)]
    )
    lost = np.flatnonzero((counts_SC == 0).any(axis=0) & counts_SC.any(axis=0))
    if not lost.size:
        return None
    named = [
        f"{class_names[c]!r} ({counted(int(counts_SC[:, c].sum()), 'example')}) in "
        f"{' and '.join(s for s, n in zip(SPLITS, counts_SC[:, c], strict=True) if not n)}"
        for c in lost[:_NAMED].tolist()
    ]
    more = f", and {lost.size - _NAMED:,} more" if lost.size > _NAMED else ""
    return (
        f"classes without examples in a split: {', '.join(named)}{more}; metrics of that split "
        "do not cover them: add examples, or leave these classes out"
    )


def _quotas(counts_C: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    """Number of rows to choose per class: largest remainder method, at most count − 1."""
    limit_C = np.maximum(counts_C - 1, 0)
    rows = min(rows, int(limit_C.sum()))
    exact_C = rows * counts_C / max(1, counts_C.sum())
    quota_C = np.minimum(np.floor(exact_C).astype(np.int64), limit_C)
    while (short := rows - int(quota_C.sum())) > 0:
        room_C = quota_C < limit_C
        wish_C = np.where(room_C, exact_C - quota_C, -np.inf)
        best = np.argsort(-wish_C, kind="stable")[: min(short, int(room_C.sum()))]
        quota_C[best] += 1
    return np.asarray(quota_C, dtype=np.int64)


class Moments:
    """Running mean and standard deviation of features, in float64.

    Chunks are merged by the formula of Chan et al., which avoids the cancellation of a plain sum of
    squares.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean_D = np.zeros(features)
        self._squares_D = np.zeros(features)

    def add(self, values_ND: Array) -> None:
        """Update with values (N, D) of any numeric type."""
        self.merge(self.part(values_ND))

    @staticmethod
    def part(values_ND: Array) -> tuple[int, Array, Array]:
        """Count, mean and sum of squared deviations of values (N, D), for `merge`."""
        values = np.asarray(values_ND, dtype=np.float64)
        if not len(values):
            return 0, np.zeros(values.shape[1]), np.zeros(values.shape[1])
        mean_D = values.mean(axis=0)
        return len(values), mean_D, np.square(values - mean_D).sum(axis=0)

    def merge(self, part: tuple[int, Array, Array]) -> None:
        """Update with a result of `part`. The order of parts affects the last bits."""
        count, mean_D, squares_D = part
        if count == 0:
            return
        total = self.count + count
        delta_D = mean_D - self.mean_D
        self._squares_D += squares_D + np.square(delta_D) * (self.count * count / total)
        self.mean_D = self.mean_D + delta_D * (count / total)
        self.count = total

    @property
    def scale_D(self) -> Array:
        """Population standard deviation; 1 for constant features, which so become 0."""
        deviation_D = np.sqrt(self._squares_D / max(1, self.count))
        # A constant such as 0.1 has a tiny deviation from rounding, which must not be amplified.
        constant_D = deviation_D <= 1e-12 * np.abs(self.mean_D)
        return np.where(constant_D, 1.0, deviation_D)

    def apply(self, values_ND: Array) -> npt.NDArray[np.float32]:
        """Standardise values (N, D)."""
        values = np.asarray(values_ND, dtype=np.float64)
        standard: npt.NDArray[np.float32] = ((values - self.mean_D) / self.scale_D).astype(
            np.float32
        )
        return standard


def chunks(rows: int, numbers_per_row: int) -> Iterable[slice]:
    """Slices of rows with at most `CHUNK_NUMBERS` numbers each, but at least one row."""
    step = max(1, CHUNK_NUMBERS // max(1, numbers_per_row))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))
