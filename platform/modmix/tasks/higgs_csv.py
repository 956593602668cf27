"""Read a file of HIGGS's layout in parallel: label, 21 low-level, 7 high-level columns, no header.

The text is cut into blocks at line ends, which a pool of threads parses (pyarrow releases the
interpreter's lock); blocks come out in the order of the file, a fixed number of them in flight,
whatever its size. Of a plain file each thread reads its own blocks; a gzip stream is decompressed
by one thread for all.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from modmix.base.allocator import keep_freed_memory
from modmix.base.errors import DataError
from modmix.tasks.files import Progress, silent

COLUMNS = 29  # the label and 28 features
_READ = 1 << 20  # bytes read from the file at a time
_LONGEST_LINE = 1 << 16  # an official line has 725 characters

_LARGEST = float(np.finfo(np.float32).max)

Rows = npt.NDArray[np.float32]


class _BlockError(Exception):
    """A block that could not be parsed; `explain` says why."""


def read_rows(
    path: Path, progress: Progress = silent, *, block_bytes: int = 2 << 20, threads: int = 0
) -> Iterator[Rows]:
    """Yield the rows of a plain or gzip CSV file, block by block, each (n, 29) float32.

    Column 0 is the label, 0 or 1; every number is finite. ``threads`` 0 means one per core, 16 at
    most; ``threads + 3`` blocks of ``block_bytes`` characters are held at a time.

    Raises:
        DataError: a damaged gzip stream, or a line that is not 29 numbers with a label of 0 or 1;
            the message names the line.
    """
    threads = threads or min(16, os.cpu_count() or 1)
    keep_freed_memory()
    waiting: queue.Queue[Future[Rows] | Exception | None] = queue.Queue(threads + 1)
    stop = threading.Event()
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error
    # The file closes after the last thread that reads from it.
    with file, ThreadPoolExecutor(threads, thread_name_prefix="modmix-parse") as pool:
        producer = threading.Thread(
            target=_produce,
            args=(file, block_bytes, progress, pool, waiting, stop),
            name="modmix-cut",
            daemon=True,
        )
        producer.start()
        try:
            yield from _in_order(path, block_bytes, waiting)
        finally:
            stop.set()
            producer.join()


def _in_order(path: Path, block_bytes: int, waiting: queue.Queue[Any]) -> Iterator[Rows]:
    number = 0
    while (item := waiting.get()) is not None:
        if isinstance(item, DataError):
            lines, _ = _look_again(path, block_bytes, number)
            raise DataError(f"{path}: {item} (after line {lines:,})")
        if isinstance(item, OSError):
            raise _unreadable(path, item)
        if isinstance(item, Exception):
            raise item
        try:
            yield item.result()
        except _BlockError as error:
            lines, block = _look_again(path, block_bytes, number)
            raise DataError(f"{path}: {explain(block, lines, str(error))}") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        number += 1


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror}); look at its disk")


def _look_again(path: Path, block_bytes: int, number: int) -> tuple[int, bytes]:
    """How many lines stand before a block, and its text; read once more, for it is seldom asked."""
    lines, block = 0, b""
    with path.open("rb") as file:
        if _is_gzip(file):
            blocks = _blocks(_text(file, silent), block_bytes)
        else:
            cuts = _cuts(file.fileno(), block_bytes)
            blocks = (os.pread(file.fileno(), stop - start, start) for start, stop in cuts)
        with suppress(DataError):
            for i, block in enumerate(islice(blocks, number + 1)):
                lines += block.count(b"\n") if i < number else 0
    return lines, block


def _produce(
    file: IO[bytes],
    block_bytes: int,
    progress: Progress,
    pool: ThreadPoolExecutor,
    waiting: queue.Queue[Any],
    stop: threading.Event,
) -> None:
    """Cut the file into blocks, hand each to the pool, and queue what comes of them in order."""

    def put(item: Any) -> None:
        waits = True
        while waits and not stop.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                waits = False

    try:
        for future in _submitted(file, block_bytes, progress, pool):
            put(future)
            if stop.is_set():
                return
        put(None)
    except Exception as error:
        put(error)


def _submitted(
    file: IO[bytes], block_bytes: int, progress: Progress, pool: ThreadPoolExecutor
) -> Iterator[Future[Rows]]:
    if _is_gzip(file):
        for block in _blocks(_text(file, progress), block_bytes):
            yield pool.submit(parse, block)
        return
    total = os.fstat(file.fileno()).st_size
    for start, stop in _cuts(file.fileno(), block_bytes):
        yield pool.submit(_read_and_parse, file.fileno(), start, stop)
        progress("read", stop, total)


def _is_gzip(file: IO[bytes]) -> bool:
    found = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return found


def _cuts(file: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """First byte of each block of an open file, and the one after its last line's end."""
    size, start = os.fstat(file).st_size, 0
    while start < size:
        stop = start + block_bytes
        stop = size if stop >= size else _line_end(file, stop, size)
        yield start, stop
        start = stop


def _line_end(file: int, place: int, size: int) -> int:
    """The end of the line that holds the byte before this place."""
    for begin in range(place - 1, place + _LONGEST_LINE, 4096):
        if (found := os.pread(file, 4096, begin).find(b"\n")) >= 0:
            return begin + found + 1
    if place + _LONGEST_LINE >= size:
        return size
    raise DataError(f"a line must have less than {_LONGEST_LINE:,} characters, got more")


def _read_and_parse(file: int, start: int, stop: int) -> Rows:
    block = os.pread(file, stop - start, start)
    if len(block) != stop - start:
        raise OSError(5, "it became shorter while it was read")
    return parse(block)


def _text(file: IO[bytes], progress: Progress) -> Iterator[bytes]:
    """Decompress a gzip file of one or more members, piece by piece."""
    total = os.fstat(file.fileno()).st_size
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while data := file.read(_READ):
        while data:
            if stream.eof:
                data = data.lstrip(b"\0")  # padding between or after members is allowed
                if not data:
                    break
                stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                yield stream.decompress(data, 4 * _READ)
            except zlib.error as error:
                raise DataError(f"the gzip stream is damaged ({error}); get the file again") from (
                    None
                )
            data = stream.unconsumed_tail or stream.unused_data
        progress("read", file.tell(), total)
    while not stream.eof and (rest := stream.decompress(b"", 4 * _READ)):
        yield rest
    if not stream.eof:
        raise DataError("the gzip stream ends too early, the file is truncated; get it again")


def _blocks(pieces: Iterator[bytes], block_bytes: int) -> Iterator[bytes]:
    """Join pieces of text into blocks of about ``block_bytes`` that end at a line's end."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size < block_bytes:
            continue
        text = b"".join(held)
        cut = text.rfind(b"\n") + 1
        if len(text) - cut > _LONGEST_LINE:
            raise DataError(f"a line must have less than {_LONGEST_LINE:,} characters, got more")
        if cut:
            yield text[:cut]
        held, size = [text[cut:]], len(text) - cut
    if last := b"".join(held):
        yield last


def parse(block: bytes) -> Rows:
    """Parse a block of whole lines into (n, 29) float32.

    Raises:
        _BlockError: a line is not what it should be.
    """
    from pyarrow import ArrowInvalid, BufferReader, csv, float32, py_buffer  # type: ignore[import-untyped, unused-ignore]

    if not block.strip():
        return np.empty((0, COLUMNS), dtype=np.float32)
    names = [str(i) for i in range(COLUMNS)]
    try:
        table = csv.read_csv(
            BufferReader(py_buffer(block)),
            read_options=csv.ReadOptions(
                use_threads=False, block_size=len(block) + 1, column_names=names
            ),
            parse_options=csv.ParseOptions(quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, float32()), null_values=[]
            ),
        )
    except ArrowInvalid as error:
        raise _BlockError(str(error)) from None
    rows = np.empty((table.num_rows, COLUMNS), dtype=np.float32)
    for i, column in enumerate(table.columns):
        rows[:, i] = column.to_numpy()
    labels = rows[:, 0]
    if not (np.isfinite(rows).all() and ((labels == 0) | (labels == 1)).all()):
        raise _BlockError("a value is not finite or a label not 0 or 1")
    return rows


def explain(block: bytes, lines_before: int, reason: str) -> str:
    """Find the first wrong line of a block that could not be parsed, and say what is wrong."""
    for number, line in enumerate(block.split(b"\n"), start=lines_before + 1):
        if line.strip() and (problem := _line_problem(line.strip(b"\r").decode("latin-1"))):
            return f"line {number:,} {problem}"
    return f"a line after {lines_before:,} cannot be parsed ({reason})"


def _line_problem(line: str) -> str | None:
    fields = line.split(",")
    if len(fields) != COLUMNS:
        return f"must have {COLUMNS} columns (label, 21 low, 7 high), got {len(fields)}"
    for column, text in enumerate(fields, start=1):
        try:
            value = float(text)
        except ValueError:
            hint = "; the file must have no header" if column == 1 and text[:1].isalpha() else ""
            return f"must hold numbers, got {text[:40]!r} in column {column}{hint}"
        if not math.isfinite(value) or abs(value) > _LARGEST:
            return f"must hold finite numbers, got {text[:40]!r} in column {column}"
    if float(fields[0]) not in (0.0, 1.0):
        return f"must begin with a label of 0 or 1, got {fields[0][:40]!r}"
    return None
