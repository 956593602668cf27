"""The task ``arrays``: a user's own .npz or CSV.

An .npz has one array per modality (first axis examples) and ``labels``; its split is ``n_train``
(the first rows are training, the rest test), ``is_test`` (true: test), ``split`` (0, 1, 2 or train,
val, test), or drawn at random by class. Validation is drawn from the training rows where the file
has none.

    (N,), (N, D)                 flat
    (N, T, D) of floats          sequence
    (N, H, W) of whole numbers   image (H, W, 1)
    (N, H, W, C)                 image; bytes are divided by 255
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_csv import read_csv
from modmix.tasks.arrays_labels import check_classes, encode_labels, given_splits
from modmix.tasks.arrays_npz import read_npz
from modmix.tasks.arrays_read import Loaded
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import SPLITS, Array, Input, Kind, check_input_name
from modmix.tasks.files import Progress, Source
from modmix.tasks.splits import Moments, chunks, stratified
from modmix.tasks.writer import Writer, input_file, labels_file

# What zipfile, zlib and gzip raise on files that are not whole: OSError for an offset beyond the
# end, RuntimeError (with NotImplementedError) for a member they take for encrypted or unknown.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


class Arrays(Task):
    name: ClassVar[str] = "arrays"

    def sources(self) -> tuple[Source, ...]:
        return (Source(path=Path(self.options["path"]), mend="correct the option `path`"),)

    def write(self, writer: Writer, progress: Progress) -> Contents:
        loaded = read_file(Path(self.options["path"]), self.options)
        labels_N, class_names = encode_labels(loaded, self.options["classes"])
        views = {name: shaped(loaded, name, len(labels_N)) for name in loaded.inputs}
        splits_N = self._assign(loaded, labels_N)
        check_classes(loaded, labels_N, splits_N, class_names)
        writer.content("labels", labels_N)
        writer.content("class_names", list(class_names))
        writer.content("splits", splits_N)
        writer.content("standardize", self.options["standardize"])
        done = 0
        for name, (modality, values) in views.items():
            writer.content(name, values)
            _write_modality(writer, modality, values, splits_N, self.options["standardize"])
            progress("write", done := done + 1, len(views))
        for number, split in enumerate(SPLITS):
            writer.put(labels_file(split), labels_N[splits_N == number], np.int64)
        return Contents(
            inputs=tuple(modality for modality, _ in views.values()),
            class_names=class_names,
            rows={split: int((splits_N == n).sum()) for n, split in enumerate(SPLITS)},
        )

    def _assign(self, loaded: Loaded, labels_N: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Give each row the number of its split in `SPLITS`."""
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


def read_file(path: Path, options: Mapping[str, Any]) -> Loaded:
    """Read an .npz, .csv or .csv.gz file.

    Raises:
        DataError: another kind of file, a damaged one, or one without the arrays asked for.
    """
    name = path.name.lower()
    try:
        if name.endswith(".npz"):
            return read_npz(path, options)
        if name.endswith((".csv", ".csv.gz")):
            return read_csv(path, options)
    except _DAMAGED as error:
        raise DataError(
            f"{path}: is damaged or truncated ({error}); write or copy the file again"
        ) from error
    raise DataError(f"{path}: must be an .npz, .csv or .csv.gz file; convert it to one")


# ---------------------------------------------------------------- inputs


def shaped(loaded: Loaded, name: str, rows: int) -> tuple[Input, Array]:
    """Give an array the shape of its kind, (N, D), (N, T, D) or (N, H, W, C), and check it.

    Raises:
        DataError: not numbers, not one row per label, NaN or infinite, or too many dimensions.
    """
    values, where = loaded.inputs[name], f"{loaded.path}: {name!r}"
    check_input_name(name, str(loaded.path))
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} must hold real numbers, got {values.dtype}")
    if values.ndim == 0 or len(values) != rows:
        came = f"{len(values):,} rows" if values.ndim else "a single number"
        raise DataError(
            f"{where} must have one row per label ({rows:,}), got {came}; correct it or leave it "
            "out by the option `inputs`"
        )
    if values.ndim > 4 or 0 in values.shape:
        raise DataError(
            f"{where} must have rows of shape (D,), (T, D) or (H, W, C), got {values.shape[1:]}"
        )
    _check_finite(loaded, name, values)
    kind: Kind = "dense"
    if values.ndim == 1:
        values = values[:, None]
    elif values.ndim == 3 and values.dtype.kind == "f":
        kind = "sequence"
    elif values.ndim >= 3:
        kind = "image"
        values = values[..., None] if values.ndim == 3 else values
    return Input(name=name, shape=values.shape[1:], kind=kind), values


def _check_finite(loaded: Loaded, name: str, values: Array) -> None:
    if values.dtype.kind != "f":
        return
    for part in chunks(len(values), values[0].size):
        with np.errstate(over="ignore"):
            flat = values[part].reshape(len(values[part]), -1).astype(np.float32)
        bad = ~np.isfinite(flat)
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            came = values[part].reshape(len(flat), -1)[row, column]
            raise DataError(
                f"{loaded.path}: {name!r} must hold finite numbers, got {came} in "
                f"{loaded.place(part.start + row)}; fill in or leave out such rows"
            )


def _write_modality(
    writer: Writer,
    modality: Input,
    values: Array,
    splits_N: npt.NDArray[np.uint8],
    standardize: bool,
) -> None:
    """Write a modality's splits, standardised per feature (images: channel) or only scaled."""
    width = modality.shape[-1]
    rows = {split: np.flatnonzero(splits_N == n) for n, split in enumerate(SPLITS)}
    moments = Moments(width)
    scale = 1.0
    if standardize:
        for part in _parts(values, rows["train"]):
            moments.add(part.reshape(-1, width))
    elif modality.kind == "image" and values.dtype.kind in "iu":
        scale = 255.0 if values.dtype == np.uint8 else float(max(1, values[rows["train"]].max()))
    if standardize:
        writer.scaled(modality.name, moments.mean_D, moments.scale_D)
    elif scale != 1.0:
        writer.scaled(modality.name, np.zeros(1), np.full(1, scale))
    for split, rows_n in rows.items():
        with writer.array(input_file(split, modality.name), (len(rows_n), *modality.shape)) as file:
            for part in _parts(values, rows_n):
                if standardize:
                    file.append(moments.apply(part.reshape(-1, width)).reshape(part.shape))
                else:
                    file.append(part / np.float32(scale) if scale != 1.0 else part)


def _parts(values: Array, rows_n: npt.NDArray[np.int64]) -> Iterator[Array]:
    for part in chunks(len(rows_n), values[0].size):
        yield values[rows_n[part]]
