"""Streaming CSV reader (plain or gzip) on pyarrow, in bounded memory; errors name the line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from modmix.base.errors import DataError
from modmix.tasks.files import Progress, silent

BLOCK_BYTES = 16 << 20  # decompressed; a row must fit into one block
_DELIMITERS = ",;\t"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Any]]:
    """Open the raw file and its decompressed bytes; gzip is detected by its magic number."""
    with path.open("rb") as raw:
        if raw.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=raw) as text:
                yield raw, text
        else:
            yield raw, raw


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: is damaged or truncated ({error}); write or copy the file again"
        ) from error


def read_header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter: comma, semicolon or tab, whichever gives the most columns.

    Raises:
        DataError: the file is empty or not UTF-8, or a column name is repeated.
    """
    with _damage(path), _opened(path) as (_, text):
        lines = io.TextIOWrapper(text, encoding="utf-8-sig", errors="replace", newline="")
        start = "".join(islice(lines, 10))  # quoted names may contain line breaks
    headers = [
        next(csv.reader(io.StringIO(start, newline=""), delimiter=d), []) for d in _DELIMITERS
    ]
    best = max(range(len(headers)), key=lambda i: len(headers[i]))  # the first on ties
    names = headers[best]
    repeated = next((n for n, count in Counter(names).items() if count > 1), None)
    if any("\ufffd" in name for name in names):
        raise DataError(f"{path}: must be UTF-8 text, its first line is not; convert the file")
    if not names or repeated is not None:
        came = "an empty file" if repeated is None else f"{repeated!r} more than once"
        raise DataError(f"{path}: must begin with a line of distinct column names, got {came}")
    return names, _DELIMITERS[best]


def read_blocks(
    path: Path,
    types: Mapping[str, str],
    *,
    delimiter: str = ",",
    names: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Iterator[Any]:
    """Yield record batches of the columns in ``types`` (name -> pyarrow type).

    ``names`` are the column names of a file without a header. Blank lines are skipped.

    Raises:
        DataError: the file is damaged, or a line has the wrong number of columns or a value that is
            not of its column's type.
    """
    import pyarrow  # type: ignore[import-untyped, unused-ignore]
    from pyarrow import csv as arrow_csv

    rows, total = 0, path.stat().st_size
    with _damage(path), _opened(path) as (raw, text):
        if not text.peek(1):
            return
        try:
            # A single thread: memory grows with the number of threads.
            blocks = arrow_csv.open_csv(
                text,
                arrow_csv.ReadOptions(
                    use_threads=False, block_size=BLOCK_BYTES, column_names=names
                ),
                arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                arrow_csv.ConvertOptions(
                    include_columns=list(types), column_types=dict(types), null_values=[]
                ),
            )
            for block in blocks:
                rows += block.num_rows
                yield block
                progress("read", raw.tell(), total)
        except pyarrow.ArrowInvalid as error:
            reason = "".join(c if c.isprintable() else "?" for c in str(error)[:200])
        else:
            return
    problem = _first_problem(path, types, delimiter, names, rows)
    if problem is None:
        is_open = '"' in reason or "straddling" in reason
        mend = "is a quotation mark missing?" if is_open else "correct the file"
        problem = f"after row {rows:,}: {reason}; {mend}"
    raise DataError(f"{path}: {problem}")


def rows_of(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the first line number (from 1) and the cells of each row, by Python's csv reader."""
    with _damage(path), _opened(path) as (_, text):
        lines = io.TextIOWrapper(text, encoding="utf-8-sig", errors="replace", newline="")
        reader = csv.reader(lines, delimiter=delimiter)
        before = 0
        for cells in reader:
            if cells:
                yield before + 1, cells
            before = reader.line_num


def line_of(path: Path, row: int, delimiter: str = ",") -> int:
    """Line number (from 1) at which a row begins; row 0 is the header if there is one."""
    return next(islice(rows_of(path, delimiter), row, None))[0]


def _first_problem(
    path: Path,
    types: Mapping[str, str],
    delimiter: str,
    names: Sequence[str] | None,
    right: int,
) -> str | None:
    """Describe the first invalid row after ``right`` valid ones, or None if there is none."""
    with suppress(csv.Error):
        rows = rows_of(path, delimiter)
        header = list(names or next(rows)[1])
        numeric = [i for i, name in enumerate(header) if types.get(name, "string") != "string"]
        for line, cells in islice(rows, right, None):
            if len(cells) != len(header):
                came = f"{len(header)} columns, got {len(cells)}"
                return f"line {line:,} must have {came}; correct or remove it"
            for i in numeric:
                if not _is_number(cells[i]):
                    where = f"column {i + 1 if names else repr(header[i])}"
                    mend = "fill it in or remove the line"
                    if _is_number(cells[i].replace(",", ".")):
                        mend = "write a point, not a comma, before decimals"
                    elif names and line == 1 and not _is_number(cells[0]):
                        mend = "the file must have no header"
                    came = f"a number in {where}, got {cells[i][:40]!r}"
                    return f"line {line:,} must hold {came}; {mend}"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text
