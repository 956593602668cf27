"""The task ``arrays``: a user's own .npz or CSV file.

An .npz has one array per input (first axis: examples) and ``labels``. The split is given by
``n_train`` (the first n rows are training, the rest test), ``is_test`` (true: test) or ``split``
(0, 1, 2 or train, val, test), or else drawn at random, stratified by class. Alternatively, all
arrays, labels included, are stored per split as ``train_NAME``, ``test_NAME`` and optionally
``val_NAME``. Without a validation split, one is drawn from the training rows.

    (N,), (N, D)           dense
    (N, T, D) floats       sequence
    (N, H, W) integers     image (H, W, 1)
    (N, H, W, C)           image; uint8 is stored as uint8 and normalised on the device
    (N, L) integers        tokens if named by the option `tokens`, or if there is an array
                           NAME_lengths: ids are then stored plus 1, with 0 as padding
    (N,) text              tokens if named by `tokens`: lower-cased characters

A CSV has a header. Its delimiter is comma, semicolon or tab, whichever splits the header into the
most names. The option `columns` assigns its columns to inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_csv import read_csv
from modmix.tasks.arrays_inputs import view_of, write_view
from modmix.tasks.arrays_labels import check_classes, encode_labels, given_splits
from modmix.tasks.arrays_npz import read_npz
from modmix.tasks.arrays_read import Loaded, missing
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import ROWS, SPLITS, Augmentation
from modmix.tasks.files import Progress, Source
from modmix.tasks.splits import absent, stratified
from modmix.tasks.writer import Writer, extra_file, labels_file

_log = logging.getLogger(__name__)


class Arrays(Task):
    name: ClassVar[str] = "arrays"
    layout: ClassVar[int] = 2  # with row numbers

    def sources(self) -> tuple[Source, ...]:
        return (Source(path=Path(self.options["path"]), mend="correct the option `path`"),)

    def augmentation(self) -> Mapping[str, Augmentation]:
        found = {}
        for name, settings in (self.options["augment"] or {}).items():
            smallest = settings["crop"]
            crop = None if smallest is None else (smallest, 1.0)
            found[name] = Augmentation(pad=settings["pad"], flip=settings["flip"], crop=crop)
        for name, noise in (self.options["noise"] or {}).items():
            if noise:
                found[name] = replace(found.get(name, Augmentation()), noise=noise)
        return found

    def write(self, writer: Writer, progress: Progress) -> Contents:
        loaded = read_file(Path(self.options["path"]), self.options, writer.folder, progress)
        for name in self.options["spectrogram"] or ():
            if name not in loaded.inputs:
                raise missing(loaded.path, name, loaded.inputs)
        labels_N, class_names = encode_labels(loaded, self.options["classes"])
        splits_N = self._assign(loaded, labels_N)
        check_classes(loaded, labels_N, splits_N, class_names)
        if (lost := absent(labels_N, splits_N, class_names)) is not None:
            _log.warning("warning: %s: %s", loaded.path, lost)
        views = [view_of(loaded, name, splits_N, self.options) for name in loaded.inputs]
        writer.content("labels", labels_N)
        writer.content("class_names", list(class_names))
        writer.content("splits", splits_N)
        for option in ("standardise", "spectrogram"):
            writer.content(option, self.options[option])
        inputs = []
        for view in views:
            writer.content(view.name, view.values)
            if view.alphabet is not None:
                writer.alphabet(view.name, view.alphabet)
            inputs.append(write_view(loaded, writer, view, splits_N, self.options["standardise"]))
            progress("write", len(inputs), len(views))
        for number, split in enumerate(SPLITS):
            writer.put(labels_file(split), labels_N[splits_N == number], np.int64)
            rows_n = np.flatnonzero(splits_N == number)
            writer.put(extra_file(split, ROWS), rows_n, np.int64)
        return Contents(
            inputs=tuple(inputs),
            class_names=class_names,
            rows={split: int((splits_N == n).sum()) for n, split in enumerate(SPLITS)},
            extras=(ROWS,),
        )

    def _assign(self, loaded: Loaded, labels_N: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Assign each row the index of its split in `SPLITS`, (N,)."""
        rows, seed = len(labels_N), self.options["split_seed"]
        if loaded.split is None:
            splits_N = np.zeros(rows, dtype=np.uint8)
            wanted = max(1, round(self.options["test_fraction"] * rows))
            splits_N[stratified(labels_N, wanted, seed, "test")] = 2
        else:
            splits_N = given_splits(loaded, rows)
        if not (splits_N == 1).any():
            train = np.flatnonzero(splits_N == 0)
            wanted = max(1, round(self.options["val_fraction"] * len(train)))
            splits_N[train[stratified(labels_N[train], wanted, seed, "val")]] = 1
        for number, split in enumerate(SPLITS):
            if not (splits_N == number).any():
                raise DataError(
                    f"{loaded.path}: must have rows for train, val and test, got none for {split} "
                    f"of {rows:,} rows; correct the split or give more rows"
                )
        return splits_N


def read_file(path: Path, options: Mapping[str, Any], folder: Path, progress: Progress) -> Loaded:
    """Read an .npz, .csv, .tsv, .csv.gz or .tsv.gz file.

    Raises:
        DataError: unsupported or damaged file, or requested arrays or columns are missing.
    """
    name = path.name.lower()
    if name.endswith(".npz"):
        return read_npz(path, options)
    if name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return read_csv(path, options, folder, progress)
    raise DataError(
        f"{path}: must be an .npz, .csv, .tsv, .csv.gz or .tsv.gz file; convert it to one"
    )
