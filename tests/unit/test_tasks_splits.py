"""Seeded orders, stratified choices and standardisation, against independent computations."""

from __future__ import annotations

import numpy as np
import pytest

from modmix.tasks.splits import Moments, absent, chunks, generator, permutation, stratified


def test_permutation_is_pinned() -> None:
    # Stored results depend on these orders: they must never change.
    assert permutation(10, 0, "test").tolist() == [2, 8, 0, 6, 7, 4, 9, 1, 5, 3]
    assert permutation(10, 1, "test").tolist() == [3, 5, 1, 9, 0, 2, 4, 7, 6, 8]
    assert sorted(permutation(1000, 3, "a").tolist()) == list(range(1000))
    assert permutation(50, 3, "a").tolist() != permutation(50, 3, "b").tolist()
    assert permutation(0, 0).tolist() == []


def test_generators_of_other_purposes_differ() -> None:
    assert generator(0, "a").random() == generator(0, "a").random()
    assert generator(0, "a").random() != generator(0, "b").random()


@pytest.mark.parametrize("rows", [1, 7, 100, 333])
def test_stratified_keeps_proportions_and_is_exact(rows: int) -> None:
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])
    chosen = stratified(labels, rows, 0, "x")
    assert chosen.sum() == rows
    counts = np.bincount(labels[chosen], minlength=4)
    assert (np.abs(counts - rows * np.array([0.4, 0.3, 0.2, 0.1])) <= 1).all()


def test_stratified_leaves_one_of_each_class() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    chosen = stratified(labels, 6, 0, "x")
    assert np.bincount(labels[~chosen]).tolist() == [1, 1, 1]
    assert not stratified(np.array([0, 1, 3]), 2, 0, "x").any()  # class 2 does not occur


def test_absent_classes_are_named() -> None:
    labels, splits = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 0, 0, 2])
    names = ("a", "b", "c", "never")
    assert absent(labels, splits, names) == (
        "classes without examples in a split: 'b' (1 example) in val and test, 'c' (2 examples) in "
        "val; metrics of that split do not cover them: add examples, or leave these classes out"
    )
    assert absent(labels[:3], splits[:3], names) is None
    many = absent(np.arange(9), np.zeros(9), [str(n) for n in range(9)])
    assert many is not None
    assert "'2' (1 example) in val and test, and 6 more; metrics" in many


@pytest.mark.parametrize("seed", range(3))
def test_moments_merge_to_the_moments_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(1000, 5)) * [1, 10, 1e-3, 1e4, 1] + [0, 1e3, 1, -1e6, 7]).astype(
        np.float32
    )
    moments = Moments(5)
    for cut in (slice(0, 1), slice(1, 1), slice(1, 700), slice(700, 1000)):
        moments.add(values[cut])
    exact = values.astype(np.longdouble)
    np.testing.assert_allclose(moments.mean_D, exact.mean(axis=0).astype(float), rtol=1e-12)
    np.testing.assert_allclose(moments.scale_D, exact.std(axis=0).astype(float), rtol=1e-10)
    standard = moments.apply(values)
    assert standard.dtype == np.float32
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=1e-5)


def test_a_constant_feature_becomes_zero_and_is_not_blown_up() -> None:
    values = np.stack([np.full(1000, 0.1), np.zeros(1000), np.full(1000, 1e7)], axis=1)
    moments = Moments(3)
    for part in np.array_split(values, 7):
        moments.add(part)
    assert moments.scale_D.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(moments.apply(values), 0, atol=1e-6)


def test_chunks_cover_all_rows_once() -> None:
    for rows, width in ((0, 3), (5, 1 << 30), (10_000_000, 28)):
        parts = list(chunks(rows, width))
        assert [i.start for i in parts[1:]] == [i.stop for i in parts[:-1]]
        assert sum(part.stop - part.start for part in parts) == rows
