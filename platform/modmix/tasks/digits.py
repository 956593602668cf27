"""The task ``digits``: the 8x8 scans of handwritten digits bundled with scikit-learn.

The inputs are four views of a scan: its left and right halves (32 pixels each), its profile (8 row
sums, 8 column sums) and the magnitudes of its 2D Fourier transform (64). Test and validation are a
fifth of the rows each, stratified by class and drawn with ``split_seed``.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import ROWS, Array, Input
from modmix.tasks.files import Progress
from modmix.tasks.splits import Moments, stratified
from modmix.tasks.writer import Writer

SHARE = 0.2  # fraction of rows for test, and for validation


class Digits(Task):
    name: ClassVar[str] = "digits"
    layout: ClassVar[int] = 2  # with row numbers

    def write(self, writer: Writer, progress: Progress) -> Contents:  # noqa: ARG002 - fast
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

        scans = load_digits()
        images_NHW = np.asarray(scans.images, dtype=np.float64)
        labels_N = np.asarray(scans.target, dtype=np.int64)
        names = self.options["inputs"] or ["left", "right", "profile", "fourier"]
        views = {name: view for name, view in views_of(images_NHW).items() if name in names}
        chosen = self._splits(labels_N)
        # Fingerprint the integer scans: the views may differ in the last bit between machines.
        writer.content("images", images_NHW.astype(np.uint8))
        writer.content("labels", labels_N)
        writer.content("inputs", list(names))
        for split, rows_n in chosen.items():
            writer.content(split, rows_n)
        moments = {name: Moments(views[name].shape[1]) for name in names}
        for name in names:
            moments[name].add(views[name][chosen["train"]])
            writer.scaled(name, moments[name].mean_D, moments[name].scale_D)
        for split, rows_n in chosen.items():
            inputs = {name: moments[name].apply(views[name][rows_n]) for name in names}
            writer.split(split, inputs, labels_N[rows_n], {ROWS: rows_n})
        return Contents(
            inputs=tuple(Input(name=n, shape=views[n].shape[1:]) for n in names),
            class_names=tuple(str(name) for name in scans.target_names),
            rows={split: len(rows_n) for split, rows_n in chosen.items()},
            extras=(ROWS,),
        )

    def _splits(self, labels_N: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """Row indices of each split.

        Smaller training sets are subsets of larger ones, except for a row or two: where a set grows
        by one row, the largest remainder method may take a row of one class for two of another.
        """
        seed = self.options["split_seed"]
        rows_N = np.arange(len(labels_N))
        share = round(SHARE * len(labels_N))
        test_N = stratified(labels_N, share, seed, "test")
        rest = rows_N[~test_N]
        val = stratified(labels_N[rest], share, seed, "val")
        train = rest[~val]
        wanted = self.options["train_rows"]
        if wanted is not None and wanted > len(train):
            raise DataError(
                f"task digits: option 'train_rows' must be at most {len(train)}, got {wanted}"
            )
        if wanted is not None and wanted < len(train):
            train = train[stratified(labels_N[train], wanted, seed, "train")]
        return {"train": train, "val": rest[val], "test": rows_N[test_N]}


def views_of(images_NHW: Array) -> dict[str, Array]:
    """Compute the four views of (N, 8, 8) scans, each (N, D) float64."""
    rows = len(images_NHW)
    profile_ND = np.concatenate([images_NHW.sum(axis=2), images_NHW.sum(axis=1)], axis=1)
    return {
        "left": images_NHW[:, :, :4].reshape(rows, 32),
        "right": images_NHW[:, :, 4:].reshape(rows, 32),
        "profile": profile_ND,
        "fourier": np.abs(np.fft.fft2(images_NHW)).reshape(rows, 64),
    }
