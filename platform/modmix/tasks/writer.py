"""Writes a folder of prepared arrays: .npy files, their checksums and the fingerprint.

Rows are appended with file writes rather than through a memory map, so that a full disk raises an
OSError instead of killing the process with SIGBUS.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from modmix.base.messages import digest
from modmix.tasks.data import SPLITS, Array, Input, check_input_name
from modmix.tasks.files import write_json

# Incremented whenever the same source would give different prepared arrays.
PREPARED_VERSION = 2


class ArrayFile:
    """An .npy file of a fixed shape whose rows are appended in blocks."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.rows = 0
        self._file = file
        self._shape = shape
        self._dtype = dtype
        self._hasher = hashlib.sha256()
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(start, header)
        self._write(start.getvalue())

    def append(self, values: Array) -> None:
        """Append rows (n, ...), converted to the file's dtype."""
        assert values.shape[1:] == self._shape[1:], (values.shape, self._shape)
        block = np.ascontiguousarray(values, dtype=self._dtype)
        if block.size:  # the buffer of an empty array cannot be cast
            self._write(block.data.cast("B"))
        self.rows += len(block)

    def _write(self, values: bytes | memoryview) -> None:
        self._hasher.update(values)
        self._file.write(values)

    def close(self) -> dict[str, Any]:
        """Sync to disk; return size and checksum."""
        assert self.rows == self._shape[0], f"{self.rows} of {self._shape[0]} rows were written"
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell(), "sha256": self._hasher.hexdigest()}


class Writer:
    """Writer of a folder of prepared arrays.

    ``scratch`` is a folder, not yet made, for intermediate files that are kept if the process is
    killed: the next attempt at the same preparation finds them. It is removed once the preparation
    is complete.

    A task passes everything that determines its data to `content`, before floating-point operations
    whose last bits could differ between machines. It writes arrays with `split`, `put` or, block by
    block, `array`. Afterwards the caller writes meta.json with `finish`.
    """

    def __init__(self, folder: Path, scratch: Path | None = None) -> None:
        self.folder = folder
        self.scratch = scratch or folder.with_name(f"{folder.name}.scratch")
        self.files: dict[str, dict[str, Any]] = {}
        self._scaling: dict[str, dict[str, list[float]]] = {}
        self._alphabets: dict[str, str | list[str]] = {}
        self._content = hashlib.sha256()

    def content(self, name: str, value: Any) -> None:
        """Add an array, a JSON value or a path to the fingerprint."""
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, np.ndarray):
            little = value.astype(value.dtype.newbyteorder("<"), copy=False)
            self.content(name, [str(little.dtype.str), list(value.shape)])
            self.content_bytes(np.ascontiguousarray(little).data.cast("B"))
        else:
            self._content.update(digest([name, value]).encode())

    def content_bytes(self, values: bytes | memoryview) -> None:
        """Add bytes to the fingerprint; only their concatenation over calls matters."""
        self._content.update(values)

    def scaled(self, name: str, mean_D: Array, scale_D: Array) -> None:
        """Record that prepared = (raw - mean) / scale, along the last axis or with scalars.

        Registered models apply this to raw values. It is not for inputs that are stored raw, with
        `Input.mean` and `Input.scale`.
        """
        self._scaling[name] = {
            "mean": np.asarray(mean_D, dtype=np.float64).tolist(),
            "scale": np.asarray(scale_D, dtype=np.float64).tolist(),
        }

    def alphabet(self, name: str, tokens: str | Sequence[str]) -> None:
        """Record the characters or words of a text input, with ids 2, 3, … (1: unknown).

        A string is one of characters, any other sequence is a list of words.
        """
        self._alphabets[name] = tokens if isinstance(tokens, str) else list(tokens)

    @contextmanager
    def array(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32
    ) -> Iterator[ArrayFile]:
        """Open ``name``.npy for appending rows; all must be written when the block ends."""
        with (self.folder / f"{name}.npy").open("wb") as file:
            array = ArrayFile(file, shape, np.dtype(dtype))
            yield array
            self.files[f"{name}.npy"] = array.close()

    def put(self, name: str, values: Array, dtype: npt.DTypeLike) -> None:
        """Write an array held in memory."""
        with self.array(name, values.shape, dtype) as file:
            file.append(values)

    def text(self, name: str, text: str) -> None:
        """Write a human-readable file beside the arrays; it is not part of the fingerprint."""
        content = text.encode(errors="backslashreplace")
        (self.folder / name).write_bytes(content)
        self.files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def split(
        self,
        split: str,
        inputs: Mapping[str, Array],
        labels_N: Array,
        extras: Mapping[str, Array] | None = None,
    ) -> None:
        """Write a split held in memory; inputs are stored as float32."""
        for name, values in inputs.items():
            self.put(input_file(split, name), values, np.float32)
        for name, values in (extras or {}).items():
            self.put(extra_file(split, name), values, values.dtype)
        self.put(labels_file(split), labels_N, np.int64)

    def finish(
        self,
        *,
        task: str,
        options: Mapping[str, Any],
        inputs: Mapping[str, Input],
        class_names: tuple[str, ...],
        rows: Mapping[str, int],
        extras: tuple[str, ...],
        sources: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write meta.json, which marks the folder as complete."""
        for name in inputs:
            check_input_name(name, f"task {task}")
        assert all(rows[split] > 0 for split in SPLITS), rows
        described = [
            [m.name, list(m.shape), m.kind, m.dtype, m.vocabulary]
            + ([] if m.stored is None else [list(m.stored)])
            for m in inputs.values()
        ]
        content = self._content.hexdigest()
        write_json(
            self.folder / "meta.json",
            {
                "version": PREPARED_VERSION,
                "task": task,
                "options": dict(options),
                "inputs": [_input_json(m) for m in inputs.values()],
                "class_names": list(class_names),
                "rows": dict(rows),
                "extras": list(extras),
                "scaling": self._scaling,
                "alphabets": self._alphabets,
                "sources": list(sources),
                "files": self.files,
                "fingerprint": digest([PREPARED_VERSION, task, described, content]),
            },
        )


def _input_json(described: Input) -> dict[str, Any]:
    """JSON form of an input for meta.json; the inverse of `input_from_json`."""
    value = asdict(described)
    if described.stored is None:
        del value["stored"]
    for name in ("mean", "scale"):
        if value[name] is not None:
            value[name] = value[name].tolist()
    return value


def input_from_json(value: Mapping[str, Any]) -> Input:
    arrays = {
        name: None if value[name] is None else np.asarray(value[name], np.float32)
        for name in ("mean", "scale")
    }
    stored = None if value.get("stored") is None else tuple(value["stored"])
    return Input(**{**value, "shape": tuple(value["shape"]), "stored": stored, **arrays})


def input_file(split: str, name: str) -> str:
    return f"{split}_{name}"


def labels_file(split: str) -> str:
    return f"{split}_labels"


def extra_file(split: str, name: str) -> str:
    """Two underscores avoid collisions with inputs, whose names cannot begin with one."""
    return f"{split}__{name}"
