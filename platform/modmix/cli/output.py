"""Standard output and error of the command line; failing to write them never stops a study.

When a reader has closed the pipe (``modmix run … | head -1``), a disk is full or a console's
encoding lacks a character, the command continues; `Outputs.finish` returns what was lost.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Replacements on consoles without these characters; others become question marks.
_SIMPLER = {
    "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "…": "...", "±": "+/-", "β": "beta",
    "≤": "<=", "≥": ">=", "→": "->", "“": '"', "”": '"', "’": "'",
}  # fmt: skip
_HANDLER = "modmix.simpler"


def simpler(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: replace characters that an encoding lacks by plain ones."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(character, "?") for character in missing), error.end


class Outputs:
    """Replaces ``sys.stdout`` and ``sys.stderr`` by streams that never fail.

    Closed descriptors (``>&-``) are opened on the null device: otherwise the next opened file, such
    as a database, would get their number, and with it whatever libraries print.
    """

    def __init__(self) -> None:
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
        codecs.register_error(_HANDLER, simpler)
        self._files: list[_File] = []
        sys.stdout = self._replace(sys.stdout)
        sys.stderr = self._replace(sys.stderr)

    def _replace(self, stream: TextIO) -> TextIO:
        if not isinstance(stream, io.TextIOWrapper):  # closed, or replaced by the caller
            return stream
        with suppress(OSError):
            stream.flush()
        file = _File(stream.fileno())
        self._files.append(file)
        return io.TextIOWrapper(
            io.BufferedWriter(file),
            encoding=stream.encoding,
            errors=_HANDLER,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def finish(self) -> str:
        """Flush; return why some output could not be written, or "".

        A closed pipe is not an error: its reader has read what it wanted.
        """
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
        for file in self._files:
            if file.error is not None and file.error.errno not in (errno.EPIPE, errno.ECONNRESET):
                return file.error.strerror or str(file.error)
        return ""


class _File(io.FileIO):
    """A descriptor that accepts all writes; after the first error it discards them."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes
