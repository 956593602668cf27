"""Free memory by hand, and process-wide settings of torch and numpy that training leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modmix.training.device import available

GIB = 1 << 30
TESTS = Path(__file__).parents[1]


def run(code: str, *arguments: str, **environment: str) -> None:
    """Run code in a process of its own, in which warnings are errors."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "platform")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("free", "allocated", "reserved", "share", "expected"),
    [
        (50, 4, 10, 1.0, 56),  # 6 GiB in torch's cache are free, too
        (50, 4, 10, 0.25, 16),  # a quarter of 80 GiB, less the 4 in use
        (5, 4, 10, 0.25, 11),  # others use the rest
        (50, 30, 30, 0.25, 0),  # more in use than the share
    ],
)
def test_available_on_a_gpu(
    free: int, allocated: int, reserved: int, share: float, expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved * GIB)
    assert available(torch.device("cuda:0"), share) == expected * GIB


@pytest.mark.slow
def test_training_leaves_the_threads_of_numpys_blas() -> None:
    run(
        """
import numpy, threadpoolctl
def blas():
    return [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
before = blas()
assert before and set(before) == {2}, before
from modmix.training.trainer import train_pack
from toypack import make_data, make_pack, make_replicates
data = make_data()
events = train_pack(make_pack(make_replicates("add", data=data, epochs=1)), data, threads=1)
during = [blas() for _ in events]
assert during == [before] * 4, during  # the start, an epoch, and the ends of two models
assert blas() == before, blas()
""",
        OMP_NUM_THREADS="2",
        OPENBLAS_NUM_THREADS="2",
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", ["the user", "training"])
def test_precision_where_users_set_the_older_switches(first: str) -> None:
    run(
        """
import sys, torch
from modmix.training.device import arithmetic
cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
def train():
    for precision, expected in (("tf32", "tf32"), ("float32", "ieee")):
        with arithmetic(precision, "cuda:0"):
            found = cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
        assert found == (expected,) * 3, found
if sys.argv[1] == "training":
    train()
for allowed in (True, False):
    cuda.allow_tf32 = cudnn.allow_tf32 = allowed
    train()
    assert cuda.allow_tf32 == cudnn.allow_tf32 == allowed  # raises if left inconsistent
""",
        first,
    )
