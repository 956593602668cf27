"""Rows of numbers between two passes over them: in memory up to a limit, the rest in a file."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from modmix.base.allocator import free_memory

Rows = npt.NDArray[np.float32]

# What is kept in memory: at most so many bytes, and so much of what is free.
_MOST_BYTES = 3 << 29
_SHARE = 0.25


class RowStore:
    """Takes (n, F) float32 rows in order and gives them back in chunks, to any number of threads.

    Pages of files are dear to make and to write; memory that is asked for in large pieces is not.

    Args:
        spill: the file for what is too much for the memory; it is deleted on leaving.
        columns: F.
        chunk_rows: rows of a chunk; the last one has what is left.
        most_bytes: kept in memory; None: 1.5 GB, and a quarter of what is free at most.
    """

    def __init__(
        self, spill: Path, columns: int, chunk_rows: int, most_bytes: int | None = None
    ) -> None:
        if most_bytes is None:
            most_bytes = min(_MOST_BYTES, int(_SHARE * free_memory()))
        self.rows = 0
        self.chunk_rows = chunk_rows
        self._columns = columns
        self._chunk_bytes = chunk_rows * columns * np.dtype(np.float32).itemsize
        self._most_held = most_bytes // self._chunk_bytes
        self._held: list[Rows] = []
        self._path = spill
        self._file = spill.open("w+b", buffering=1 << 20)

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.clear()
        self._file.close()
        self._path.unlink(missing_ok=True)

    def append(self, rows_NF: Rows) -> None:
        """Append rows, (n, F)."""
        while len(rows_NF):
            number, at = divmod(self.rows, self.chunk_rows)
            part_NF = rows_NF[: self.chunk_rows - at]
            if number < self._most_held:
                if number == len(self._held):
                    self._held.append(np.empty((self.chunk_rows, self._columns), np.float32))
                self._held[number][at : at + len(part_NF)] = part_NF
            else:
                self._file.write(np.ascontiguousarray(part_NF).data.cast("B"))
            self.rows += len(part_NF)
            rows_NF = rows_NF[len(part_NF) :]

    def written(self) -> None:
        """Nothing more is appended: from now on chunks can be read."""
        self._file.flush()

    def chunk(self, number: int) -> Rows:
        """Chunk ``number`` from 0, not to be written to."""
        rows = min(self.chunk_rows, self.rows - number * self.chunk_rows)
        if number < len(self._held):
            return self._held[number][:rows]
        size = rows * self._columns * np.dtype(np.float32).itemsize
        place = (number - len(self._held)) * self._chunk_bytes
        values = os.pread(self._file.fileno(), size, place)
        return np.frombuffer(values, np.float32).reshape(rows, self._columns)
