"""Standard output and error of the command line, which never stop a study.

A reader that has gone (``modmix run … | head -1``), a disk that is full, a console whose encoding
lacks a character: the command goes on, and `Outputs.trouble` says in the end what was lost.
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

# What a console without these characters shows; anything else becomes a question mark.
_SIMPLER = {
    "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "…": "...", "±": "+/-", "β": "beta",
    "≤": "<=", "≥": ">=", "→": "->", "“": '"', "”": '"', "’": "'",
}  # fmt: skip
_HANDLER = "modmix.simpler"


def simpler(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: plain characters for those that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SIMPLER.get(character, "?") for character in lacking), error.end


class Outputs:
    """Puts streams in place of ``sys.stdout`` and ``sys.stderr`` that cannot fail.

    A descriptor that is closed (``>&-``) is opened on the null device: the next file that is
    opened, a database say, would get its number, and what a library prints there.
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
        if not isinstance(stream, io.TextIOWrapper):  # closed, or somebody's own
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
        """Write what is buffered; return why some of it could not be written, or "".

        A reader that has gone is no trouble: it has seen what it wanted.
        """
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
        for file in self._files:
            if file.error is not None and file.error.errno not in (errno.EPIPE, errno.ECONNRESET):
                return file.error.strerror or str(file.error)
        return ""


class _File(io.FileIO):
    """A descriptor that takes everything; after the first error nothing is written any more."""

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
