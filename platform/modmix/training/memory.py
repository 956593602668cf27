"""How much memory there is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch


def available(device: torch.device, share: float) -> int:
    """Bytes that this process may use: its share of what is free on the device or the host."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(free, share * total))
    return int(share * _host_memory())


def _host_memory() -> int:
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
