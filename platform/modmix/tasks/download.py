"""Fetch one big file: resumed after a break, its size and checksum verified, renamed when whole."""

from __future__ import annotations

import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from modmix.base.errors import DataError
from modmix.tasks.files import Progress, Source, hash_file, locked, silent

_BLOCK = 1 << 20
_FRUITLESS = 3  # attempts in a row that bring nothing before giving up
_TIMEOUT_SECONDS = 30.0


def fetch(
    url: str, source: Source, progress: Progress = silent, *, pause_seconds: float = 2.0
) -> Path:
    """Download ``url`` to ``source.path`` unless the right file is already there.

    What arrives is kept in ``<name>.part``; a broken download goes on where it stopped, in this
    call (waiting ``pause_seconds`` in between) or in a later one.

    Raises:
        DataError: no network, no such address, no room, or not the expected content.
    """
    target, size, sha256 = source.path, source.bytes, source.sha256
    assert size is not None
    assert sha256 is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target, progress):
        if _is_right(target, size, sha256, progress):
            return target
        part = target.with_name(target.name + ".part")
        _fill(url, part, target, size, progress, pause_seconds)
        if (came := hash_file(part, progress)) != sha256:
            part.unlink()
            raise DataError(
                f"{part}: what {url} sent must have sha256 {sha256}, got {came}; it was deleted, "
                f"run the command again or {_by_hand(url, target)}"
            )
        part.replace(target)
    return target


def _is_right(target: Path, size: int, sha256: str, progress: Progress) -> bool:
    return (
        target.is_file() and target.stat().st_size == size and hash_file(target, progress) == sha256
    )


def _by_hand(url: str, target: Path) -> str:
    return f"download {url} elsewhere and put it at {target}"


def _fill(
    url: str, part: Path, target: Path, size: int, progress: Progress, pause_seconds: float
) -> None:
    """Append to ``part`` until it has ``size`` bytes."""
    fruitless = best = 0
    while (have := _have(part, size)) < size:
        free = shutil.disk_usage(part.parent).free
        if free < size - have:
            raise DataError(
                f"{part.parent}: {size - have:,} bytes must be free for {target.name}, got "
                f"{free:,}; free some space or set MODMIX_DATA to a folder on another disk"
            )
        best = max(best, have)
        why = _attempt(url, part, have, size, progress)
        # Against the best so far: a server that makes us start over must not keep us for ever.
        fruitless = 0 if _have(part, size) > best else fruitless + 1
        if fruitless >= _FRUITLESS:
            raise DataError(
                f"{target}: cannot be downloaded ({why}); run the command again when the network "
                f"works, or {_by_hand(url, target)}"
            )
        if _have(part, size) < size:
            time.sleep(pause_seconds)


def _have(part: Path, size: int) -> int:
    """Bytes already here; a part longer than the file cannot be one of it."""
    if not part.exists():
        return 0
    have = part.stat().st_size
    if have > size:
        part.unlink()
        return 0
    return have


def _attempt(url: str, part: Path, have: int, size: int, progress: Progress) -> str:
    """Receive what one connection brings; return why it ended early, if it did."""
    request = urllib.request.Request(url, headers={"User-Agent": "modmix"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            resumed = response.status == 206 and _starts_at(response, have)
            total = _total(response)
            if total is not None and total != size:
                return f"the server's file has {total:,} bytes, not {size:,}"
            _receive(response, part, have if resumed else 0, size, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is not of this file
            part.unlink(missing_ok=True)
        return f"the server answered {error.code} {error.reason}"
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        return str(getattr(error, "reason", None) or error or type(error).__name__)
    except (ConnectionError, ssl.SSLError) as error:
        return error.strerror or str(error)
    return "the connection ended early"


def _starts_at(response: Any, have: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _total(response: Any) -> int | None:
    """Size of the whole file, if the server says it."""
    name = "Content-Range" if response.status == 206 else "Content-Length"
    text = str(response.headers.get(name, "")).rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _receive(response: Any, part: Path, have: int, size: int, progress: Progress) -> None:
    with part.open("ab" if have else "wb") as file:
        while have <= size and (block := response.read(_BLOCK)):
            file.write(block)
            have += len(block)
            progress("download", min(have, size), size)
