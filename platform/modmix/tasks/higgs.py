"""The task ``higgs``: signal or background, from low-level and high-level features.

Baldi, Sadowski and Whiteson (2014), ``HIGGS.csv.gz`` from UCI: 11,000,000 rows, of which the last
500,000 are the test split. The variant ``small`` keeps a third of the remaining rows.
Validation is drawn from the rows that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.base import Contents, Task
from modmix.tasks.csv_file import read_blocks, rows_of
from modmix.tasks.data import SPLITS, Input
from modmix.tasks.download import fetch
from modmix.tasks.files import Progress, Source, data_home
from modmix.tasks.splits import Moments, permutation
from modmix.tasks.writer import Writer, input_file, labels_file

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz"
BYTES = 2_816_407_858
SHA256 = "ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698"

CLASS_NAMES = ("background", "signal")
VIEWS = {"low": slice(0, 21), "high": slice(21, 28)}  # slices of the 28 features
UNUSED = len(SPLITS)  # split index of rows that `small` leaves out
COLUMNS = 29  # the label and 28 features
_CHUNK_ROWS = 1 << 17  # 30 MB of float64

Rows = npt.NDArray[np.float32]
Splits = npt.NDArray[np.uint8]


class Higgs(Task):
    name: ClassVar[str] = "higgs"

    def sources(self) -> tuple[Source, ...]:
        if (path := self.options["path"]) is not None:
            return (Source(path=Path(path), mend="correct the option `path`"),)
        target = data_home() / "downloads" / "higgs" / "HIGGS.csv.gz"
        mend = f"run `modmix data get higgs`, or download {URL} elsewhere and put it there"
        return (Source(path=target, mend=mend, bytes=BYTES, sha256=SHA256),)

    def get(self, progress: Progress) -> list[Path]:
        if self.options["path"] is not None:
            return []
        return [fetch(URL, self.sources()[0], progress)]

    def write(self, writer: Writer, progress: Progress) -> Contents:
        path, rows_file = self.sources()[0].path, writer.folder / "rows.raw"
        labels_N = _copy_rows(path, rows_file, writer, progress)
        splits_N = self._assign(path, labels_N)
        writer.content("splits", splits_N)
        moments = Moments(COLUMNS - 1)
        with_test = self.options["standardise"] == "train_and_test"
        for rows_NF, split_N in _chunks(rows_file, splits_N):
            counts_N = (split_N == 0) | (split_N == 2) if with_test else split_N == 0
            moments.add(rows_NF[counts_N, 1:])
        if with_test:  # else they follow from the rows and their splits
            writer.content("moments", np.stack([moments.mean_D, moments.scale_D]))
        for view, columns in VIEWS.items():
            writer.scaled(view, moments.mean_D[columns], moments.scale_D[columns])
        _write_inputs(writer, rows_file, splits_N, moments, progress)
        rows_file.unlink()
        for number, split in enumerate(SPLITS):
            writer.put(labels_file(split), labels_N[splits_N == number], np.int64)
        return Contents(
            inputs=tuple(Input(name=view, shape=(_width(view),)) for view in VIEWS),
            class_names=CLASS_NAMES,
            rows={split: int((splits_N == number).sum()) for number, split in enumerate(SPLITS)},
        )

    def _assign(self, path: Path, labels_N: npt.NDArray[np.uint8]) -> Splits:
        """Assign each row the index of its split in `SPLITS`, or `UNUSED`, (N,).

        Raises:
            DataError: too few rows, or a split lacks one of the classes.
        """
        rows, test_rows, seed = len(labels_N), self.options["test_rows"], self.options["split_seed"]
        kept = max(0, rows - test_rows)
        splits_N = np.full(rows, 2, dtype=np.uint8)
        order = permutation(kept, seed, "higgs", "small")
        if self.options["variant"] == "small":
            every = self.options["third"] == "every"
            order = order[order % 3 == 0] if every else order[: kept // 3]
            splits_N[:kept] = UNUSED
        val_rows = self.options["val_rows"]
        if val_rows is None:
            val_rows = max(1, round(self.options["val_fraction"] * len(order)))
        if val_rows >= len(order):
            raise DataError(
                f"{path}: must have more rows than test_rows ({test_rows:,}) and validation "
                f"({val_rows:,}) take, got {rows:,} ({len(order):,} to train and validate with, "
                f"variant {self.options['variant']}); set test_rows and val_rows lower"
            )
        splits_N[order[:val_rows]] = 1
        splits_N[order[val_rows:]] = 0
        for number, split in enumerate(SPLITS):
            found = np.flatnonzero(np.bincount(labels_N[splits_N == number]))
            if len(found) < len(CLASS_NAMES):
                raise DataError(
                    f"{path}: the {split} rows must have both labels, 0 and 1, got only "
                    f"{int(found[0])}; shuffle the file's rows or set test_rows and val_rows higher"
                )
        return splits_N


def _width(view: str) -> int:
    return VIEWS[view].stop - VIEWS[view].start


def _copy_rows(
    path: Path, rows_file: Path, writer: Writer, progress: Progress
) -> npt.NDArray[np.uint8]:
    """Write the CSV as raw float32 (N, 29) to ``rows_file``; return the labels (N,)."""
    names = [f"f{i}" for i in range(COLUMNS)]
    labels = [np.empty(0, dtype=np.uint8)]
    rows = 0
    with rows_file.open("wb") as file:
        for block in read_blocks(
            path, dict.fromkeys(names, "float32"), names=names, progress=progress
        ):
            rows_NF = np.stack([column.to_numpy() for column in block.columns], axis=1)
            _check_rows(path, rows_NF, rows)
            rows += len(rows_NF)
            writer.content_bytes(rows_NF.tobytes())
            file.write(rows_NF.tobytes())
            labels.append(rows_NF[:, 0].astype(np.uint8))
    return np.concatenate(labels)


def _check_rows(path: Path, rows_NF: Rows, before: int) -> None:
    right_NF = np.isfinite(rows_NF)
    right_NF[:, 0] &= (rows_NF[:, 0] == 0) | (rows_NF[:, 0] == 1)
    if not right_NF.all():
        row, column = (int(i) for i in np.argwhere(~right_NF)[0])
        line, cells = next(islice(rows_of(path), before + row, None))
        raise DataError(
            f"{path}: line {line:,} must be a label of 0 or 1 and finite numbers that float32 can "
            f"hold, got {cells[column][:40]!r} in column {column + 1}; correct or remove it"
        )


def _chunks(rows_file: Path, splits_N: Splits) -> Iterator[tuple[Rows, Splits]]:
    """Yield rows (n, 29) and their split indices (n,) in chunks of bounded size."""
    with rows_file.open("rb") as file:
        for first in range(0, len(splits_N), _CHUNK_ROWS):
            values = np.fromfile(file, np.float32, _CHUNK_ROWS * COLUMNS)
            yield values.reshape(-1, COLUMNS), splits_N[first : first + _CHUNK_ROWS]


def _write_inputs(
    writer: Writer, rows_file: Path, splits_N: Splits, moments: Moments, progress: Progress
) -> None:
    done = 0
    with ExitStack() as stack:
        files = {
            (number, view): stack.enter_context(
                writer.array(
                    input_file(split, view), (int((splits_N == number).sum()), _width(view))
                )
            )
            for number, split in enumerate(SPLITS)
            for view in VIEWS
        }
        for rows_NF, split_N in _chunks(rows_file, splits_N):
            standard_NF = moments.apply(rows_NF[:, 1:])
            for (number, view), file in files.items():
                file.append(standard_NF[split_N == number, VIEWS[view]])
            progress("write", done := done + len(rows_NF), len(splits_N))
