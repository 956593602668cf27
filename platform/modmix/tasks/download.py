"""Download a large file with pooch, verify its checksum and rename it when complete.

An interrupted download is not resumed but restarted, in the same call or a later one.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from modmix.base.errors import DataError
from modmix.tasks.files import Progress, Source, locked, silent

_ATTEMPTS = 3
_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30.0  # without receiving data


def fetch(url: str, source: Source, progress: Progress = silent) -> Path:
    """Download ``url`` to ``source.path`` unless the file is already there with this checksum.

    Raises:
        DataError: network error, not enough disk space, or unexpected content.
    """
    import pooch
    from requests import RequestException

    target, by_hand = source.path, f"download {url} elsewhere and put it at {source.path}"
    assert source.bytes is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    with locked(target, progress):
        if not target.exists():
            _check_room(target, source.bytes)
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{source.sha256}",
                fname=target.name,
                path=target.parent,
                downloader=_download(progress),
            )
        except RequestException as error:
            raise DataError(
                f"{target}: cannot be downloaded ({error}); run the command again when the network "
                f"works, or {by_hand}"
            ) from error
        except ValueError as error:  # raised by pooch if the checksum differs
            raise DataError(
                f"{target}: what {url} sent must have sha256 {source.sha256}, got other content, "
                f"which was deleted; run the command again or {by_hand}"
            ) from error
    return target


def _check_room(target: Path, size: int) -> None:
    for left in target.parent.glob(f"{tempfile.gettempprefix()}*"):  # left by a killed run
        left.unlink()
    if (free := shutil.disk_usage(target.parent).free) < size:
        raise DataError(
            f"{target.parent}: {size:,} bytes must be free for {target.name}, got {free:,}; free "
            "some space or set MODMIX_DATA to a folder on another disk"
        )


def _download(progress: Progress) -> Any:
    """A pooch downloader that retries and reports progress."""
    import pooch
    from requests import RequestException

    def download(url: str, file: Any, caller: Any) -> None:
        for left in reversed(range(_ATTEMPTS)):
            http = pooch.HTTPDownloader(
                progressbar=_Bar(progress), chunk_size=_BLOCK, timeout=_TIMEOUT_SECONDS
            )
            try:
                http(url, file, caller)
                return
            except RequestException:
                if not left:
                    raise

    return download


class _Bar:
    """Adapter from `Progress` to pooch's progress bar interface."""

    def __init__(self, progress: Progress) -> None:
        self.total = self._done = 0
        self._progress = progress

    def update(self, count: int) -> None:
        self._done += count  # pooch counts whole blocks; the last one may be shorter
        self._progress("download", min(self._done, self.total or self._done), self.total or None)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass
