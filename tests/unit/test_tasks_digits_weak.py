"""The tasks ``digits`` and ``weak``, against independent computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.tasks.base import load_task
from modmix.tasks.data import Data
from modmix.tasks.digits import views_of
from modmix.tasks.table import resolve_options
from modmix.tasks.weak import class_means


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path))


# ---------------------------------------------------------------- digits


def test_views_are_what_their_names_say() -> None:
    image = np.random.default_rng(0).integers(0, 17, size=(8, 8)).astype(float)
    views = {name: view[0] for name, view in views_of(image[None]).items()}
    assert views["left"].tolist() == [v for row in image for v in row[:4]]
    assert views["right"].tolist() == [v for row in image for v in row[4:]]
    sums = [sum(row) for row in image] + [sum(image[i][j] for i in range(8)) for j in range(8)]
    assert views["profile"].tolist() == sums
    angles = np.exp(-2j * np.pi * np.outer(np.arange(8), np.arange(8)) / 8)
    np.testing.assert_allclose(
        views["fourier"], np.abs(angles @ image @ angles).ravel(), rtol=1e-9, atol=1e-9
    )


@pytest.mark.slow  # the first import of scikit-learn
def test_digits_are_scikit_learns_standardised_with_training_statistics() -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    data = load_task("digits", {})
    assert data.shapes == {"left": (32,), "right": (32,), "profile": (16,), "fourier": (64,)}
    assert {name: split.rows for name, split in data.splits.items()} == {
        "train": 1079,
        "val": 359,
        "test": 359,
    }
    assert data.class_names == tuple("0123456789")
    scans = load_digits()
    raw = scans.images[:, :, :4].reshape(-1, 32)
    both = np.concatenate([split.inputs["left"] for split in data.splits.values()])
    labels = np.concatenate([split.labels for split in data.splits.values()])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(scans.target))
    np.testing.assert_allclose(data.train.inputs["left"].mean(axis=0), 0, atol=1e-6)
    deviation = np.asarray(data.train.inputs["left"], dtype=float).std(axis=0)
    assert ((np.abs(deviation - 1) < 1e-5) | (deviation == 0)).all()
    # Standardising is affine per column, so ranks within a column give back the scans as a set.
    for column in (5, 17):
        _, ours = np.unique(np.round(both[:, column], 4), return_inverse=True)
        _, theirs = np.unique(raw[:, column], return_inverse=True)
        np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))
    for split in data.splits.values():
        counts = np.bincount(split.labels)
        assert counts.max() - counts.min() <= 0.1 * counts.max()


@pytest.mark.slow
def test_digits_options() -> None:
    whole = load_task("digits", {})
    few = load_task("digits", {"train_rows": 50, "inputs": ["profile", "left"]})
    assert list(few.inputs) == ["profile", "left"]
    assert few.train.rows == 50
    assert np.bincount(few.train.labels).tolist() == [5] * 10
    np.testing.assert_array_equal(few.test.labels, whole.test.labels)
    np.testing.assert_allclose(few.train.inputs["profile"].mean(axis=0), 0, atol=1e-6)
    other = load_task("digits", {"split_seed": 1})
    assert (other.test.labels != whole.test.labels).any()
    assert len({whole.fingerprint, few.fingerprint, other.fingerprint}) == 3


# ---------------------------------------------------------------- weak

SMALL: dict[str, Any] = {"train_rows": 400, "val_rows": 20, "test_rows": 4000, "dim": 6}


def residuals(data: Data, options: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Test inputs of a modality minus their class mean, and where it was informative."""
    resolved = resolve_options("weak", options)
    index = list(data.inputs).index(name)
    means = resolved["signal"] * class_means(resolved)[index]
    informative = np.asarray(data.test.extras["informative"])[:, index]
    return data.test.inputs[name] - means[data.test.labels], informative


def test_weak_is_deterministic_and_splits_are_independent_of_each_others_size() -> None:
    one = load_task("weak", SMALL)
    more = load_task("weak", {**SMALL, "train_rows": 500})
    other = load_task("weak", {**SMALL, "seed": 1})
    np.testing.assert_array_equal(one.test.inputs["m2"], more.test.inputs["m2"])
    np.testing.assert_array_equal(one.test.labels, more.test.labels)
    assert (one.test.inputs["m2"] != other.test.inputs["m2"]).all()
    assert len({one.fingerprint, more.fingerprint, other.fingerprint}) == 3


def test_weak_counts_shapes_and_shares() -> None:
    data = load_task("weak", {**SMALL, "inputs": 2, "classes": 5, "share": 0.3})
    assert data.shapes == {"m1": (6,), "m2": (6,)}
    assert data.classes == 5
    assert np.bincount(data.test.labels).tolist() == [800] * 5
    informative = np.asarray(data.test.extras["informative"])
    assert informative.shape == (4000, 2)
    assert informative.dtype == np.bool_
    assert informative.any(axis=1).all()
    # Weak with probability .3 each, both weak (.09) gives one back.
    assert abs((~informative).mean() - (0.3 - 0.09 / 2)) < 0.015
    free = load_task("weak", {**SMALL, "inputs": 2, "share": 0.3, "always_one": False})
    none = ~np.asarray(free.test.extras["informative"]).any(axis=1)
    assert abs(none.mean() - 0.09) < 0.015


def test_an_informative_modality_is_class_mean_and_noise() -> None:
    options = {**SMALL, "noise": 0.5, "signal": 2.0}
    rest, informative = residuals(load_task("weak", options), options, "m1")
    assert abs(rest[informative].std() - 0.5) < 0.02
    assert abs(rest[~informative].std() - np.sqrt(0.25 + 4.0)) < 0.5


def test_noise_says_nothing_of_the_class() -> None:
    data = load_task("weak", {**SMALL, "always_one": False})
    weak = ~np.asarray(data.test.extras["informative"])[:, 0]
    values, labels = data.test.inputs["m1"][weak], data.test.labels[weak]
    means = np.stack([values[labels == k].mean(axis=0) for k in range(4)])
    assert np.abs(means).max() < 4 / np.sqrt(len(values) / 4)
    assert abs(values.std() - 1.0) < 0.03


def test_conflict_configurations_to_another_class() -> None:
    options = {**SMALL, "weakness": "conflict", "noise": 0.01, "signal": 1.0}
    data = load_task("weak", options)
    means = class_means(resolve_options("weak", options))[2]
    distance = np.linalg.norm(data.test.inputs["m3"][:, None] - means[None], axis=2)
    pointed = distance.argmin(axis=1)
    informative = np.asarray(data.test.extras["informative"])[:, 2]
    np.testing.assert_array_equal(pointed == data.test.labels, informative)
    steps = (pointed - data.test.labels)[~informative] % 4
    assert np.bincount(steps, minlength=4)[1:].min() > 0.28 * len(steps)


def test_missing_is_zeros_and_kept_interpolates() -> None:
    data = load_task("weak", {**SMALL, "weakness": "missing"})
    weak = ~np.asarray(data.test.extras["informative"])[:, 1]
    np.testing.assert_array_equal((data.test.inputs["m2"] == 0).all(axis=1), weak)
    for weakness in ("noise", "conflict", "missing"):
        full = load_task("weak", {**SMALL, "weakness": weakness, "kept": 1.0})
        none = load_task("weak", {**SMALL, "share": 0.0})
        np.testing.assert_allclose(full.test.inputs["m1"], none.test.inputs["m1"], rtol=1e-6)


def test_two_classes_and_one_modality_work() -> None:
    data = load_task("weak", {**SMALL, "classes": 2, "inputs": 1, "weakness": "conflict"})
    assert np.asarray(data.test.extras["informative"]).all()  # always_one


def test_the_default_leaves_room_between_methods() -> None:
    """One modality alone is far worse than all together, and all together is not perfect."""
    options = resolve_options("weak", {})
    data = load_task("weak", {})
    log_likelihood, errors = np.zeros((data.test.rows, 4)), []
    for means, values in zip(options["signal"] * class_means(options), data.test.inputs.values()):
        squares = np.square(values[:, None] - means[None]).sum(axis=2)
        informative = -squares / 2 + np.square(values).sum(axis=1, keepdims=True) / 2
        one = np.logaddexp(informative, 0.0)  # the exact likelihood: half of them are noise
        errors.append((one.argmax(axis=1) != data.test.labels).mean())
        log_likelihood += one
    best = (log_likelihood.argmax(axis=1) != data.test.labels).mean()
    assert min(errors) > 0.3
    assert 0.03 < best < 0.09
