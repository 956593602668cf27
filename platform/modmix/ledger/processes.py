"""Whether a process is still there, where that can be told for sure.

Process ids mean something only among the processes that share them: containers on one machine may
have equal host names and different process ids. `process_space` identifies these processes.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from pathlib import Path


def process_space() -> str | None:
    """Identifies the processes that share this one's ids; None where that is unknown.

    On Linux the boot of the kernel and the namespace of process ids; on macOS, which has no
    namespaces, the machine.
    """
    if sys.platform == "darwin":
        return f"{socket.gethostname()} {uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def process_start(pid: int) -> float | None:
    """When a process started, in a unit that a changed clock does not move; None if unknown.

    Comparable within one `process_space`: ticks since boot on Linux, else seconds since 1970.
    """
    if sys.platform == "linux":
        fields = _linux_fields(pid)
        return None if fields is None else float(fields[19])
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_gone(pid: int, started: float | None) -> bool:
    """Whether the process of this id and start has certainly ended, in this process space."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        pass
    fields = _linux_fields(pid)
    if fields is not None and fields[0] in "ZX":  # killed, and its parent has not noticed
        return True
    now = process_start(pid)
    return None not in (now, started) and now != started


def _linux_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field, the state, on; see proc(5). None if unreadable."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
