"""What depends on the device: which branches are taken, how much memory there is, precision.

``MODMIX_FORCE_GPU_PATHS=1`` makes a processor take every branch that only a GPU would take: the
update of all rows at once, data gathered and sent by threads, steps recorded as graphs (replayed
here by running them). The numbers stay the same, so tests can check these branches anywhere.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED", "out of memory")


def forced() -> bool:
    """Whether a processor shall take a GPU's branches."""
    return os.environ.get("MODMIX_FORCE_GPU_PATHS", "") not in ("", "0")


def like_gpu(device: torch.device) -> bool:
    """Whether the branches of a GPU are taken on this device."""
    return device.type != "cpu" or forced()


def named(name: str) -> torch.device:
    """The device of this name, with its number: tensors on "cuda" say that they are on "cuda:0"."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the host was too small.

    cuBLAS and cuDNN report a failed allocation as a status of theirs, not as torch's own error.
    One while a graph is recorded makes the end of the recording fail, too: with it as context.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if any(text in str(error) for text in _OUT_OF_MEMORY):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def release(device: torch.device) -> None:
    """Give cached blocks back, so that what did not fit may fit now."""
    if device.type == "cuda":
        gc.collect()  # a compiled step and its stack hold each other
        torch.cuda.empty_cache()


def available(device: torch.device, share: float) -> int:
    """Bytes that this process may still use: its ``share`` of the device's or the host's memory.

    Blocks that this process has freed and torch has cached are free to it.
    """
    if device.type != "cuda":
        return int(share * _free_on_host())
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    return int(max(0, min(free + cached, share * total - allocated)))


def _free_on_host() -> int:
    """Free memory of this machine, or of the container this process is in."""
    free = 4 << 30  # where the system does not say
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    return max(free, 1 << 28)


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were, whatever is drawn from them meanwhile."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators of processor and device.

    `torch.manual_seed` would seed those of all devices; where a GPU is not in use yet it notes the
    whole stack of calls each time, 0.15 ms.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Products of float32 on a GPU are what the study says, whatever this process did before.

    By the new switches alone: torch raises when the old ones (`allow_tf32`) are mixed with them.
    """
    if not device.startswith("cuda") and not forced():
        yield
        return
    backends: Any = torch.backends  # torch's own stubs do not know these switches yet
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
