"""The host's memory: how much is free, and how what was freed is kept for what comes next."""

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
    """Tell glibc's allocator to keep up to 256 MB; elsewhere nothing happens.

    Every training step, and every block of a file that is parsed, allocates and frees the same
    megabytes. By default the allocator returns them to the system each time, and touching them
    again costs more than the work on them.
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
    """Free memory of this machine, or of the container this process is in."""
    free = 4 << 30  # where the system does not say
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 1 << 28)
