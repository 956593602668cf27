"""In which precision a device multiplies, as the study says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Products of float32 on a GPU are what the study says, whatever this process did before."""
    if not device.startswith("cuda"):
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        products.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
