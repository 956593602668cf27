"""Data files: locations, locks, checksums, and disk errors as one-sentence messages.

Layout below `data_home`:

    downloads/<task>/   downloaded files
    prepared/<key>/     prepared arrays; meta.json is written last
    decoded/<key>/      decoded media files of a preparation that is not complete
    sources/            cached checksums of source files, so that large files are hashed once
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modmix.base.errors import DataError
from modmix.base.home import environment_folder, write_text
from modmix.base.messages import digest

# Progress callback: stage ("download", "read", "decode", "write", "check" or "wait"), amount done
# and total (None: unknown). In bytes for download, read and check; in rows or inputs for write; in
# items for decode. The stage "space" comes once, with the bytes needed on disk and the bytes free.
Progress = Callable[[str, int, "int | None"], None]

_BLOCK = 1 << 22
# A file modified this recently may change again within the resolution of its time stamps.
_SETTLED_SECONDS = 2.0


def silent(stage: str, done: int, total: int | None) -> None:
    """Progress callback that does nothing."""


DATA_FOLDERS = ("decoded", "downloads", "prepared", "sources")  # in the data folder


def data_home() -> Path:
    """The data folder: ``MODMIX_DATA``, by default ~/.cache/modmix."""
    return environment_folder("MODMIX_DATA", "~/.cache/modmix")


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn OSErrors (disk full, no permission, …) into a DataError with a remedy."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        move = "or set MODMIX_DATA to a folder on another disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{folder}: the disk is full; free some space {move}, then run the same command"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(
                f"{where}: modmix must be able to write here, got {error.strerror!r}; change the "
                f"permissions {move}"
            ) from error
        raise DataError(f"{where}: {error.strerror or error}; look at the disk {move}") from error


@contextmanager
def locked(path: Path, progress: Progress = silent) -> Iterator[None]:
    """Hold the lock of a file or folder; the OS releases it if the process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("wait", 0, None)
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Try to lock a file or folder without waiting; yield whether the lock is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it is missing or invalid."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that a task reads.

    ``bytes`` and ``sha256`` are the expected size and checksum of an official file; ``mend`` is a
    clause for error messages that says how to get or correct the file.
    """

    path: Path
    mend: str
    bytes: int | None = None
    sha256: str | None = None


def check_source(source: Source, progress: Progress = silent) -> str:
    """Check that a source exists with the expected size and content; return its sha256.

    Raises:
        DataError: missing, not a file, not readable, or unexpected content.
    """
    path = source.path
    try:
        if not path.is_file():
            came = "a folder" if path.is_dir() else "nothing"
            raise DataError(f"{path}: a data file must be here, found {came}; {source.mend}")
        size = path.stat().st_size
        if source.bytes is not None and size != source.bytes:
            raise DataError(
                f"{path}: the official file has {source.bytes:,} bytes, this one {size:,}; "
                f"{source.mend}"
            )
        sha256 = file_sha256(path, progress)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {source.mend}") from error
    if source.sha256 is not None and sha256 != source.sha256:
        raise DataError(
            f"{path}: the official file has sha256 {source.sha256}, this one {sha256}; delete it "
            f"and {source.mend}"
        )
    return sha256


def file_sha256(path: Path, progress: Progress = silent) -> str:
    """The sha256 of a file, cached until its size, time stamps or inode change."""
    before = _stamp(path)
    note = data_home() / "sources" / f"{digest(str(path.resolve()))}.json"
    known = read_json(note)
    if isinstance(known, dict) and known.get("stamp") == before:
        return str(known["sha256"])
    sha256 = hash_file(path, progress)
    settled = time.time() - max(before[1], before[2]) / 1e9 > _SETTLED_SECONDS
    if settled and _stamp(path) == before:
        with suppress(OSError):  # the cache is optional: the folder may be read-only
            write_json(note, {"path": str(path), "stamp": before, "sha256": sha256})
    return sha256


def _stamp(path: Path) -> list[int]:
    """Size, mtime, ctime and inode of a file: if equal, the content is taken as unchanged."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def hash_file(path: Path, progress: Progress = silent) -> str:
    """Compute the sha256 of a file."""
    hasher = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
            done += len(block)
            progress("check", done, total)
    return hasher.hexdigest()
