"""Device-specific behaviour: CPU or GPU code paths, free memory, random generators, precision.

``MODMIX_FORCE_GPU_PATHS=1`` makes the CPU take the GPU code paths: the broadcast optimizer update,
batches streamed by threads, steps as graphs (a "replay" just runs the step). Results stay the same,
so tests can cover these paths without a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from modmix._version import VERSION

_OUT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED", "out of memory")


def forced() -> bool:
    """Whether the CPU takes the GPU code paths (``MODMIX_FORCE_GPU_PATHS``)."""
    return os.environ.get("MODMIX_FORCE_GPU_PATHS", "") not in ("", "0")


def like_gpu(device: torch.device) -> bool:
    """Whether this device takes the GPU code paths."""
    return device.type != "cpu" or forced()


def named(name: str) -> torch.device:
    """The device of this name, with an explicit index for "cuda", as on tensors' ``.device``."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def environment(device: torch.device) -> dict[str, str]:
    """What is recorded beside results: the device and host, and versions."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "host": socket.gethostname(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or ""),
        "modmix": VERSION,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means out of memory, on the device or on the host.

    cuBLAS and cuDNN report a failed allocation by their own status codes, not by torch's exception.
    During CUDA graph capture, ending the capture then fails too, so ``__context__`` is checked.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if any(text in str(error) for text in _OUT_OF_MEMORY):
        return True
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def release(device: torch.device) -> None:
    """Return cached CUDA blocks to the device, e.g. before a retry after out of memory."""
    if device.type == "cuda":
        gc.collect()  # a compiled step and its stack are a reference cycle
        torch.cuda.empty_cache()


def available(device: torch.device, share: float) -> int:
    """Bytes this process may still allocate, given its ``share`` of the device's memory.

    On a GPU, ``share`` is of the total, and blocks in torch's cache count as free; on the host it
    is of the free memory.
    """
    if device.type != "cuda":
        return int(share * _free_on_host())
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    return int(max(0, min(free + cached, share * total - allocated)))


def _free_on_host() -> int:
    """Free bytes on this machine, or within this container's memory limit."""
    free = 4 << 30  # if unknown
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
    """Restore the state of torch's global generators (CPU and this device) on exit."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators of the CPU and of this device.

    `torch.manual_seed` would seed all devices, and until CUDA is initialised it also captures a
    traceback on every call (0.15 ms).
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Set how float32 products are computed (on a GPU convolutions and RNNs, too) until exit.

    On a GPU in TF32 if ``precision`` is "tf32"; otherwise in IEEE float32. Uses only torch's
    `fp32_precision` settings: torch raises if they are mixed with the older `allow_tf32`.
    """
    backends: Any = torch.backends  # missing from torch's type stubs
    if device.startswith("cuda") or forced():
        places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        value = "tf32" if precision == "tf32" else "ieee"
    else:
        places = [backends.mkldnn.matmul]
        value = "bf16" if prefers_onednn() else "ieee"
    with _set(places, value):
        yield


@contextmanager
def _set(places: Sequence[Any], value: str) -> Iterator[None]:
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = value
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.fp32_precision = was


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN should compute this processor's float32 products, instead of MKL.

    On AMD processors MKL does not use AVX-512, which makes large products half as fast. torch
    leaves float32 to oneDNN only where factors may be rounded to bfloat16. oneDNN does that only if
    the processor has matrix units; otherwise it computes in float32. A few products show which.
    """
    features = torch.cpu.get_capabilities()
    if not str(features.get("cpu_name")).startswith("AMD") or not features.get("avx512_f"):
        return False
    backends: Any = torch.backends
    with _set([backends.mkldnn.matmul], "bf16"):
        return all(keeps_digits(*shape) for shape in ((1, 4, 8), (16, 32, 64), (2, 512, 512)))


def keeps_digits(models: int, rows: int, columns: int) -> bool:
    """Whether products of this shape keep digits that bfloat16 does not have."""
    x_KMN = torch.full((models, rows, columns), 1 + 2**-10)
    products = [x_KMN @ x_KMN.mT, torch.nn.functional.linear(x_KMN[0], x_KMN[0])]
    expected = columns * (1 + 2**-10) ** 2
    return all(bool(((y.double() - expected).abs() < 1e-5 * expected).all()) for y in products)
