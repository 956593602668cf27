"""Products of K pairs of matrices by every library against loops in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modmix import products
from modmix.products import Product, product

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


def test_the_race_is_run_once_and_a_library_must_win_clearly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = {"value": 0.0}
    cost = {"_bmm": 1.0, "_numpy": 0.9, "_onednn_each": 1.2}
    runs: list[str] = []

    def slow(name: str) -> Product:
        def how(a: Tensor, b: Tensor, out: Tensor) -> None:
            runs.append(name)
            ticks["value"] += cost[name]

        how.__name__ = name
        return how

    for name in cost:
        monkeypatch.setattr(products, name, slow(name))
    monkeypatch.setattr(products, "_onednn", object())
    monkeypatch.setattr(products.time, "perf_counter", lambda: ticks["value"])
    products._race.cache_clear()
    try:
        assert products.names() == {"small": "bmm", "large": "bmm"}  # 10 % is not enough
        once = len(runs)
        assert products.names()
        assert len(runs) == once
        products._race.cache_clear()
        cost.update(_numpy=0.5, _onednn_each=0.45)  # nor between these two
        assert products.names() == {"small": "numpy", "large": "numpy"}
        products._race.cache_clear()
        cost.update(_onednn_each=0.3)
        assert products.names() == {"small": "numpy", "large": "onednn_each"}
    finally:
        products._race.cache_clear()


def test_what_is_large() -> None:
    assert products._is_large(128, 300, 300)
    assert not products._is_large(32, 64, 64)  # few multiplications
    assert not products._is_large(4096, 1024, 10)  # many, but narrow
