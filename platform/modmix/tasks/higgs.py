"""The task ``higgs``: signal or background, from low-level and high-level features.

Baldi, Sadowski and Whiteson (2014), UCI's ``HIGGS.csv.gz``: 11,000,000 rows, the last 500,000 are
test. The variant ``small`` keeps a random third of the training rows; validation is drawn from the
training rows that are kept.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import SPLITS, Array, Input
from modmix.tasks.download import fetch
from modmix.tasks.files import Progress, Source, data_home
from modmix.tasks.higgs_csv import COLUMNS, Rows, read_rows
from modmix.tasks.rows import RowStore
from modmix.tasks.splits import Moments, permutation
from modmix.tasks.writer import ArrayFile, Writer, input_file, labels_file

URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz"
BYTES = 2_816_407_858
SHA256 = "ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698"

CLASS_NAMES = ("background", "signal")
VIEWS = {"low": slice(0, 21), "high": slice(21, 28)}  # of the 28 features
UNUSED = len(SPLITS)  # the split number of training rows that `small` leaves out
_CHUNK_ROWS = 1 << 17
_CHUNK_THREADS = 4  # each holds some 100 MB

Result = TypeVar("Result")


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
        path = self.sources()[0].path
        with RowStore(writer.folder / "rows.raw", COLUMNS, _CHUNK_ROWS) as store:
            labels_N = _copy_rows(path, store, writer, progress)
            splits_N = self._assign(path, labels_N)
            writer.content("splits", splits_N)
            counts = np.bincount(splits_N, minlength=len(SPLITS))
            moments = Moments(COLUMNS - 1)
            for part in _each_chunk(store, splits_N, _training_moments):
                moments.merge(part)
            for view in VIEWS:
                writer.scaled(view, moments.mean_D[VIEWS[view]], moments.scale_D[VIEWS[view]])
            with ExitStack() as stack:
                files = {
                    (number, view): stack.enter_context(
                        writer.array(input_file(split, view), (int(counts[number]), _width(view)))
                    )
                    for number, split in enumerate(SPLITS)
                    for view in VIEWS
                }
                _write_inputs(store, splits_N, moments, files, progress)
        for number, split in enumerate(SPLITS):
            writer.put(labels_file(split), labels_N[splits_N == number], np.int64)
        return Contents(
            inputs=tuple(Input(name=view, shape=(_width(view),)) for view in VIEWS),
            class_names=CLASS_NAMES,
            rows={split: int(counts[number]) for number, split in enumerate(SPLITS)},
        )

    def _assign(self, path: Path, labels_N: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Give each row the number of its split in `SPLITS`, or `UNUSED`.

        Raises:
            DataError: too few rows, or a split without one of the classes.
        """
        rows, test_rows, seed = len(labels_N), self.options["test_rows"], self.options["split_seed"]
        kept = max(0, rows - test_rows)
        splits_N = np.full(rows, 2, dtype=np.uint8)
        order = permutation(kept, seed, "higgs", "small")
        if self.options["variant"] == "small":
            splits_N[order[kept // 3 :]] = UNUSED
            order = order[: kept // 3]
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
    path: Path, store: RowStore, writer: Writer, progress: Progress
) -> npt.NDArray[np.uint8]:
    """Parse the file into the store, (N, 29) float32, and return the labels (N,)."""
    labels = [np.empty(0, dtype=np.uint8)]
    for rows_NF in read_rows(path, progress):
        if rows_NF.size:
            writer.content_bytes(rows_NF.data.cast("B"))
        store.append(rows_NF)
        labels.append(rows_NF[:, 0].astype(np.uint8))
    store.written()
    return np.concatenate(labels)


Splits = npt.NDArray[np.uint8]


def _each_chunk(
    store: RowStore, splits_N: Splits, work: Callable[[Rows, Splits], Result]
) -> Iterator[Result]:
    """Do something to the rows, chunk by chunk on several threads, with their splits.

    What comes of it is in the order of the file; a few chunks are in flight.
    """
    threads = min(_CHUNK_THREADS, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()

    def one(number: int, split_N: Splits) -> Result:
        return work(store.chunk(number), split_N)

    with ThreadPoolExecutor(threads, thread_name_prefix="modmix-chunk") as pool:
        for number, first in enumerate(range(0, len(splits_N), store.chunk_rows)):
            waiting.append(pool.submit(one, number, splits_N[first : first + store.chunk_rows]))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _training_moments(rows_NF: Rows, split_N: Splits) -> tuple[int, Array, Array]:
    return Moments.part(rows_NF[split_N == 0, 1:])


def _write_inputs(
    store: RowStore,
    splits_N: Splits,
    moments: Moments,
    files: dict[tuple[int, str], ArrayFile],
    progress: Progress,
) -> None:
    def standardise(rows_NF: Rows, split_N: Splits) -> list[Rows]:
        standard_NF = moments.apply(rows_NF[:, 1:])
        return [
            np.ascontiguousarray(standard_NF[split_N == number, VIEWS[view]])
            for number, view in files
        ]

    done = 0
    # Each view's files have a thread of their own, which keeps the order: checksum and disk of the
    # one go on beside those of the other.
    with ExitStack() as stack:
        writers = {
            view: stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="modmix-write"))
            for view in VIEWS
        }
        before: list[Future[None]] = []
        for parts in _each_chunk(store, splits_N, standardise):
            for future in before:  # one chunk waits at most
                future.result()
            before = [
                writers[view].submit(file.append, part)
                for ((_, view), file), part in zip(files.items(), parts, strict=True)
            ]
            done = min(done + store.chunk_rows, len(splits_N))
            progress("write", done, len(splits_N))
        for future in before:
            future.result()
