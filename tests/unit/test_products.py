"""Products of K pairs of matrices by every library against loops in float64."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modmix.training import products
from modmix.training.products import Product, product

LIBRARIES = [products._bmm, products._numpy, products._onednn_each]
# (models, rows, inner, columns); b is transposed in memory in the second half: pieces of 32 columns
# where both are short, and all at once where they are not
SHAPES = [(3, 5, 7, 2), (2, 64, 1, 1), (1, 130, 70, 65), (4, 32, 64, 96), (2, 9, 65, 64)]


def as_it_lies(models: int, rows: int, columns: int, layout: str) -> Tensor:
    """Random (K, M, N) in one of the ways in which matrices lie in memory."""
    match layout:
        case "rows":
            return torch.randn(models, rows, columns)
        case "columns":
            return torch.randn(models, columns, rows).mT
        case "part of a row":  # as parameters lie, one model behind the other
            whole = torch.randn(models, rows * columns + 11)
            return whole[:, 3 : 3 + rows * columns].view(models, rows, columns)
        case "shared":
            return torch.randn(1, rows, columns).expand(models, rows, columns)
        case "every other":  # no library takes it as it is
            return torch.randn(models, rows, 2 * columns)[:, :, ::2]
        case "a constant":
            return torch.randn(models, 1, 1).expand(models, rows, columns)
    raise AssertionError(layout)


LAYOUTS = ["rows", "columns", "part of a row", "shared", "every other", "a constant"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", LIBRARIES, ids=lambda how: how.__name__)
def test_products_of_matrices_however_they_lie(
    how: Product, shape: tuple[int, int, int, int]
) -> None:
    if how is products._onednn_each and products._onednn is None:
        pytest.skip("this build of torch has no oneDNN")
    torch.manual_seed(1)
    models, rows, inner, columns = shape
    for of_a in LAYOUTS:
        for of_b in LAYOUTS:
            a, b = as_it_lies(models, rows, inner, of_a), as_it_lies(models, inner, columns, of_b)
            expected = torch.stack([x.double() @ y.double() for x, y in zip(a, b, strict=True)])
            place = torch.full((models, rows * columns + 5), 7.0)
            for out in (
                torch.empty(models, rows, columns),
                place[:, 5:].view(models, rows, columns),
            ):
                how(a, b, out)
                torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
            assert (place[:, :5] == 7).all()  # nothing beside it is touched


def test_other_types_and_places() -> None:
    a, b = torch.randn(2, 3, 4).double(), torch.randn(2, 4, 5).double()
    out = torch.empty(2, 3, 5).double()
    assert product(a, b, out) is out
    torch.testing.assert_close(out, torch.einsum("kmn,knr->kmr", a, b))
    torch.testing.assert_close(product(a, b), out)
    assert product(a.float(), b.float()).dtype == torch.float32


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is settled yet, neither here nor on disk."""
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path))
    products._settled.cache_clear()
    yield tmp_path / "products"
    products._settled.cache_clear()


class Race:
    """Libraries that cost what they are said to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.runs = 0.0, 0
        self.cost = {"_bmm": 1.0, "_numpy": 0.9, "_onednn_each": 1.2}
        for name in self.cost:
            monkeypatch.setattr(products, name, self.library(name))
        monkeypatch.setattr(products, "_onednn", object())
        monkeypatch.setattr(products.time, "perf_counter", lambda: self.now)

    def library(self, name: str) -> Product:
        def how(a: Tensor, b: Tensor, out: Tensor) -> None:
            self.runs += 1
            self.now += self.cost[name]

        how.__name__ = name
        return how


def test_a_library_must_win_clearly(monkeypatch: pytest.MonkeyPatch, fresh: Path) -> None:
    race = Race(monkeypatch)
    for numpy, onednn, large in [(0.9, 1.2, "bmm"), (0.5, 0.45, "numpy"), (0.5, 0.3, "onednn")]:
        race.cost.update(_numpy=numpy, _onednn_each=onednn)
        shutil.rmtree(fresh, ignore_errors=True)
        products._settled.cache_clear()
        assert products.names() == {"small": "bmm" if numpy == 0.9 else "numpy", "large": large}


def test_all_processes_of_a_machine_use_what_the_first_one_found(
    monkeypatch: pytest.MonkeyPatch, fresh: Path
) -> None:
    race = Race(monkeypatch)
    race.cost["_numpy"] = 0.1
    first, runs = products.names(), race.runs
    assert products.names() == first == {"small": "numpy", "large": "numpy"}
    race.cost["_numpy"] = 10.0
    products._settled.cache_clear()  # as in another process
    assert products.names() == first
    assert race.runs == runs
    for note in fresh.iterdir():  # left by a machine that died, say
        note.write_text("{")
    products._settled.cache_clear()
    assert products.names() == {"small": "bmm", "large": "bmm"}


def test_the_first_note_stays_when_two_race_at_once(
    monkeypatch: pytest.MonkeyPatch, fresh: Path
) -> None:
    Race(monkeypatch)
    real = products._race

    def overtaken(runners: Mapping[str, Product], *, large: bool) -> str:
        monkeypatch.setattr(products, "_race", real)
        products._settled(large, 99)  # the other process, to the end
        for note in fresh.iterdir():
            note.write_text('{"fastest": "numpy"}')
        return "bmm"

    monkeypatch.setattr(products, "_race", overtaken)
    assert products._settled(False, 99) is products._numpy


def test_a_data_folder_that_cannot_be_written_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, fresh: Path
) -> None:
    race = Race(monkeypatch)
    race.cost["_numpy"] = 0.1
    fresh.write_text("a file where the folder should be")
    assert products.names() == {"small": "numpy", "large": "numpy"}


def test_numpy_gets_one_thread_whatever_the_environment_says() -> None:
    """In a process of its own, with all processors allowed."""
    script = """if True:
        import time, torch
        from modmix.training import products
        torch.set_num_threads(1)
        products.names()
        a = torch.randn(4, 600, 600)
        out = torch.empty_like(a)
        from threadpoolctl import threadpool_info
        print([i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"])
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(20):
            products._numpy(a, a, out)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(processor < 1.2 * wall)
    """
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    threads, alone = done.stdout.split("\n")[:2]
    assert set(json.loads(threads)) == {1}
    assert alone == "True"  # a thread beside it would add its own processor time


def test_without_a_way_to_limit_it_numpy_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert not products._limit_numpy()


def test_what_is_large() -> None:
    assert products._is_large(128, 300, 300)
    assert not products._is_large(32, 64, 64)  # few multiplications
    assert not products._is_large(4096, 1024, 10)  # many, but narrow
