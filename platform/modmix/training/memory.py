"""Keep freed host memory for the next step instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Numbers and limits of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MEGABYTE = 1 << 20


@cache
def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep up to 256 MB; elsewhere nothing happens.

    Every step allocates and frees the same megabytes. By default the allocator returns them to
    the system each time, and touching them again costs more than the arithmetic on them.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, 32 * _MEGABYTE)  # the largest it accepts
    mallopt(_TRIM_THRESHOLD, 256 * _MEGABYTE)
    mallopt(_TOP_PAD, 64 * _MEGABYTE)
