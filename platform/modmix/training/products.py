"""Products of float32 matrices for K models on a processor, by the library that is fastest there.

Three can be had without one more dependency: the one behind ``torch.bmm``, oneDNN (also torch's),
and numpy's. Which is fastest differs by a factor of two to three between processors: on a core of
an AMD EPYC of 2024 the first reaches 85 GFLOP/s, the second 190 on large matrices and 20 on small
ones, the third 200 on small and 180 on large ones. So they race once on every kind of machine, on a
small and on a large product, and ``torch.bmm`` is left only for what is a good deal faster. The
winner is noted beside the data: the last digits of results depend on it, so all processes of a
study, and of the study tomorrow, shall use the same.

numpy's works on one thread: torch's threads are those that are counted and shared out.
``OPENBLAS_CORETYPE`` tells OpenBLAS, the one of numpy, to use the kernels of another processor: set
to one without wide vectors, it is as slow as the first and is not chosen.

Shapes: K models, M rows, N inner, R columns.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modmix.base.messages import digest
from modmix.tasks.files import data_home

Product = Callable[[Tensor, Tensor, Tensor], None]  # (K, M, N), (K, N, R), into (K, M, R)

# Multiplications of one model's product from which on it counts as large; oneDNN, which is called
# model by model, pays from there on. Measured on shapes between 32 x 64 x 64 and 128 x 500 x 500.
_LARGE = 1 << 21
_SHORTEST_SIDE = 64
# The shapes of the races: models, rows, inner, columns.
_SMALL_RACE, _LARGE_RACE = (16, 32, 64, 64), (2, 128, 256, 256)
# What a library must be faster by than the one before it.
_MARGIN = 1.25
_TRIES = 7
# OpenBLAS has a fast kernel for a · bᵀ up to this many rows of b and this many columns of both.
_FEW_ROWS, _SHORT = 32, 64

_onednn: Callable[..., Tensor] | None = None
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(a_KMN: Tensor, b_KNR: Tensor, out: Tensor | None = None) -> Tensor:
    """K products, (K, M, R), in the memory of ``out`` where that is given."""
    models, rows, inner = a_KMN.shape
    columns = b_KNR.shape[2]
    if a_KMN.dtype != torch.float32:
        result = torch.bmm(a_KMN, b_KNR)
        return result if out is None else out.copy_(result)
    if out is None:
        out = a_KMN.new_empty(models, rows, columns)
    fastest(large=_is_large(rows, inner, columns))(a_KMN, b_KNR, out)
    return out


def names() -> dict[str, str]:
    """Which library computes small and large products in this process."""
    return {
        size: fastest(large=size == "large").__name__.split("_")[1] for size in ("small", "large")
    }


def fastest(*, large: bool) -> Product:
    """The winner of the race among the libraries that can do it, with as many threads as now."""
    return _settled(large, torch.get_num_threads())


@cache
def _settled(large: bool, threads: int) -> Product:
    runners: dict[str, Product] = {"bmm": _bmm}
    if _limit_numpy():
        runners["numpy"] = _numpy
    if large and _onednn is not None:
        runners["onednn"] = _onednn_each
    machine = [_processor(), np.__version__, torch.__version__, threads, large, *runners]
    blas = sorted(item for item in os.environ.items() if item[0].startswith("OPENBLAS_"))
    note = data_home() / "products" / f"{digest([machine, blas])[:16]}.json"
    winner = _noted(note)
    if winner not in runners:
        winner = _race(runners, large=large)
        _note(note, winner)
        winner = _noted(note) or winner  # of another process, if that was first
    return runners.get(winner, _bmm)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line
    return platform.processor()


def _noted(note: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(note.read_text())["fastest"])
    return ""


def _note(note: Path, winner: str) -> None:
    """Write it down, whole or not at all; the first one stays."""
    temporary = note.with_name(f".{note.name}.{os.getpid()}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"fastest": winner}) + "\n")
        os.link(temporary, note)
    with suppress(OSError):
        temporary.unlink()


def _race(runners: Mapping[str, Product], *, large: bool) -> str:
    """Which of them is fastest; the first unless others are clearly so."""
    models, rows, inner, columns = _LARGE_RACE if large else _SMALL_RACE
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(models, rows, inner, generator=generator)
    b = torch.randn(models, inner, columns, generator=generator)
    out = torch.empty(models, rows, columns)

    def seconds(how: Product) -> float:
        found = []
        for _ in range(_TRIES):
            begun = time.perf_counter()
            how(a, b, out)
            found.append(time.perf_counter() - begun)
        return min(found)

    (winner, first), *others = runners.items()
    least = seconds(first)
    for name, other in others:
        if (taken := seconds(other)) * _MARGIN < least:
            winner, least = name, taken
    return winner


def _limit_numpy() -> bool:
    """Keep numpy's library to one thread; False where that cannot be done.

    It would take all processors whatever torch was told, and wait in a loop for those that another
    process has.
    """
    try:
        from threadpoolctl import (  # type: ignore[import-untyped, unused-ignore]
            threadpool_info,
            threadpool_limits,
        )
    except ImportError:  # where training runs on torch and numpy alone
        return False
    threadpool_limits(limits=1, user_api="blas")
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return bool(libraries) and all(library["num_threads"] == 1 for library in libraries)


def _is_large(rows: int, inner: int, columns: int) -> bool:
    return rows * inner * columns >= _LARGE and min(rows, inner, columns) >= _SHORTEST_SIDE


# ------------------------------------------------------------ the libraries


def _bmm(a_KMN: Tensor, b_KNR: Tensor, out_KMR: Tensor) -> None:
    if out_KMR.is_contiguous():
        torch.bmm(a_KMN, b_KNR, out=out_KMR)
    else:
        out_KMR.copy_(torch.bmm(a_KMN, b_KNR))


def _onednn_each(a_KMN: Tensor, b_KNR: Tensor, out_KMR: Tensor) -> None:
    assert _onednn is not None
    for a_MN, b_RN, y_MR in zip(a_KMN.unbind(), b_KNR.mT.unbind(), out_KMR.unbind(), strict=True):
        y_MR.copy_(_onednn(a_MN, b_RN, None, "none", [], ""))


def _numpy(a_KMN: Tensor, b_KNR: Tensor, out_KMR: Tensor) -> None:
    a, b = _as_library_takes(a_KMN).numpy(), _as_library_takes(b_KNR).numpy()
    out = out_KMR.numpy()
    _, inner, columns = b.shape
    transposed = b.strides[-1] != b.itemsize and inner > 1
    if transposed and inner <= _SHORT and columns > _FEW_ROWS and columns % _FEW_ROWS == 0:
        # a · bᵀ in pieces of few rows of b: 150 in place of 85 GFLOP/s.
        pieces = columns // _FEW_ROWS
        b = b.reshape(len(b), inner, pieces, _FEW_ROWS).transpose(0, 2, 1, 3)
        out = out.reshape(*out.shape[:2], pieces, _FEW_ROWS).transpose(0, 2, 1, 3)
        a = a[:, np.newaxis]
    np.matmul(a, b, out=out)


def _as_library_takes(x_KMN: Tensor) -> Tensor:
    """Rows or columns side by side in memory: of anything else numpy makes slow loops."""
    x_KMN = x_KMN.detach()
    _, rows, columns = x_KMN.shape
    _, down, right = x_KMN.stride()
    by_rows = (right == 1 or columns == 1) and down >= columns
    by_columns = (down == 1 or rows == 1) and right >= rows
    return x_KMN if by_rows or by_columns else x_KMN.contiguous()
