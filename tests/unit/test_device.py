"""Free memory by hand, and process-wide settings of torch and numpy that training leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modmix.training import device
from modmix.training.device import arithmetic, available, keeps_digits, prefers_onednn

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


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["highest", "high", "medium"])
def test_products_on_a_processor_are_float32_whatever_the_user_has_set(switch: str) -> None:
    run(
        """
import sys, torch
from modmix.training.device import arithmetic
torch.set_float32_matmul_precision(sys.argv[1])
torch.manual_seed(0)
for k, m, n, r in ((1, 3, 5, 2), (28, 64, 32, 128), (28, 10, 64, 32), (4, 128, 300, 300)):
    a, b = torch.randn(k, m, n), torch.randn(k, r, n)
    exact, size = a.double() @ b.double().mT, a.double().abs() @ b.double().abs().mT
    with arithmetic("float32", "cpu"):
        found = [a @ b.mT, (b @ a.mT).mT, torch.stack([x @ y.T for x, y in zip(a, b)])]
        found.append(torch.stack([torch.nn.functional.linear(x, y) for x, y in zip(a, b)]))
    for product in found:  # bfloat16 has 8 bits
        assert ((product - exact).abs() <= 2e-6 * size).all()
assert torch.get_float32_matmul_precision() == sys.argv[1]
""",
        switch,
    )


def test_rounded_products_are_recognised() -> None:
    assert keeps_digits(16, 32, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not keeps_digits(16, 32, 64)


@pytest.mark.parametrize(
    ("name", "wide", "exact", "expected"),
    [
        ("AMD EPYC 9B45", True, True, True),
        ("AMD EPYC 9B45", True, False, False),
        ("AMD EPYC 7302", False, True, False),
        ("Intel(R) Xeon(R) Platinum 8280", True, True, False),
        (None, False, True, False),
    ],
)
def test_onednn_computes_where_mkl_is_slow_and_it_is_exact(
    name: str | None, wide: bool, exact: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    can = {"avx512_f": wide} if name is None else {"cpu_name": name, "avx512_f": wide}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    monkeypatch.setattr(device, "keeps_digits", lambda *_: exact)
    assert prefers_onednn.__wrapped__() is expected


@pytest.mark.parametrize(("better", "value"), [(True, "bf16"), (False, "ieee")])
def test_the_setting_is_restored(better: bool, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = place.fp32_precision
    monkeypatch.setattr(device, "forced", lambda: False)
    monkeypatch.setattr(device, "prefers_onednn", lambda: better)
    context = arithmetic("float32", "cpu")
    with context:
        assert place.fp32_precision == value
    assert place.fp32_precision == before
