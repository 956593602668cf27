"""Free memory of the host, and an allocator that keeps freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from functools import cache
from pathlib import Path

# Numbers and limits of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEGABYTE = 1 << 20


@cache
def keep_freed_memory() -> None:
    """Make glibc's allocator keep up to 256 MB of freed memory; no effect on other systems.

    Training steps and file parsers allocate and free the same megabytes again and again. By default
    they are returned to the system each time, and page faults then cost more than the computation.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, 32 * _MEGABYTE)  # the largest it accepts
    mallopt(_TRIM_THRESHOLD, 256 * _MEGABYTE)
    mallopt(_TOP_PAD, 64 * _MEGABYTE)


def free_memory() -> int:
    """Free memory in bytes of this machine or container."""
    free = 4 << 30  # if unknown
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 1 << 28)
