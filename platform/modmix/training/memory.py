"""How much memory there is."""

from __future__ import annotations

import torch

from modmix.base.allocator import free_memory


def available(device: torch.device, share: float) -> int:
    """Bytes that this process may use: its share of what is free on the device or the host."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(min(free, share * total))
    return int(share * free_memory())
