"""Noise on normalised inputs, in training and in evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modmix.base.errors import DataError
from modmix.base.messages import digest
from modmix.encoders.transformer import Transformer
from modmix.methods.model import derive_seed
from modmix.tasks.base import load_task, prepare_task
from modmix.tasks.data import Augmentation, Data, Input, Split
from modmix.training import augment
from modmix.training.augment import add_noise
from modmix.training.batches import Examples
from toypack import is_stacked, make_replicates, train

CPU = torch.device("cpu")
SEEDS = torch.tensor([derive_seed(s, "augmentation", 0) for s in range(3)])
NOISE = {"image": Augmentation(noise=0.3), "dense": Augmentation(noise=2.0)}


def make_data(augmentation: dict[str, Augmentation], rows: int = 60) -> Data:
    """Bytes with one mean and scale per channel, numbers, and a sequence without noise."""
    generator = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = np.arange(count) % 3
        inputs = {
            "image": generator.integers(0, 256, (count, 7, 5, 3), dtype=np.uint8),
            "dense": generator.normal(labels[:, None], 1, (count, 11)).astype(np.float32),
            "other": generator.normal(size=(count, 4, 2)).astype(np.float32),
        }
        return Split(inputs=inputs, labels=labels.astype(np.int64))

    image = Input(
        name="image",
        shape=(7, 5, 3),
        kind="image",
        dtype="uint8",
        mean=np.array([123.675, 116.28, 103.53], np.float32),
        scale=np.array([58.395, 57.12, 57.375], np.float32),
    )
    inputs = {
        "image": image,
        "dense": Input(name="dense", shape=(11,)),
        "other": Input(name="other", shape=(4, 2), kind="sequence"),
    }
    return Data(
        name="noisy", inputs=inputs, classes=3, class_names=("a", "b", "c"), train=split(rows),
        val=split(rows // 2), test=split(rows // 2), fingerprint="n", augmentation=augmentation,
    )  # fmt: skip


DATA, QUIET = make_data(NOISE), make_data({})


def seen(data: Data, split: str, size: int) -> dict[str, Tensor]:
    examples = Examples(data, split, list(data.inputs), CPU)
    chunks = [inputs for inputs, _ in examples.chunks(size)]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in data.inputs}


def batch(data: Data, index_SB: Tensor, draw_S: Tensor) -> dict[str, Tensor]:
    examples = Examples(data, "train", list(data.inputs), CPU)
    return examples.prepare(examples.take(index_SB).inputs, index_SB, draw_S)


def test_noise_has_this_deviation_and_is_normal() -> None:
    index = torch.arange(50).unsqueeze(0)
    zero = torch.zeros(1, 50, 40, 40)
    for deviation in (0.1, 3.0):
        noise = (add_noise(zero, deviation, index, SEEDS[:1], 1) / deviation).flatten()
        assert float(noise.mean()) == pytest.approx(0, abs=4 / noise.numel() ** 0.5)
        assert float(noise.std()) == pytest.approx(1, abs=0.01)
        for width, expected in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
            share = float((noise.abs() < width).double().mean())
            assert share == pytest.approx(expected, abs=0.005)
        # Neighbours, examples and channels are not correlated.
        pixels = noise.view(50, 40, 40)
        for one, other in (
            (pixels[1:], pixels[:-1]),
            (pixels[:, 1:], pixels[:, :-1]),
            (pixels[..., 1:], pixels[..., :-1]),
        ):
            assert float((one * other).mean()) == pytest.approx(0, abs=0.015)


def test_training_noise_is_a_function_of_seed_epoch_and_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = torch.arange(60).unsqueeze(0)
    whole = batch(DATA, index, SEEDS[:1])
    quiet = batch(QUIET, index, SEEDS[:1])
    assert torch.equal(whole["other"], quiet["other"])
    for name, deviation in (("image", 0.3), ("dense", 2.0)):
        noise = whole[name] - quiet[name]
        assert float(noise.std()) == pytest.approx(deviation, rel=0.1)
        assert not torch.equal(noise[0, 0], noise[0, 1])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:13]
    some = batch(DATA, order.expand(3, -1), SEEDS)
    monkeypatch.setattr(augment, "_NUMBERS_AT_ONCE", 100)  # piece by piece
    pieces = batch(DATA, order.expand(3, -1), SEEDS)
    for name in NOISE:
        assert torch.equal(some[name][0], whole[name][0][order])
        assert torch.equal(some[name], pieces[name])
        assert not torch.equal(some[name][0], some[name][1])
    later = torch.tensor([derive_seed(0, "augmentation", 1)])
    assert not torch.equal(batch(DATA, index, later)["dense"], whole["dense"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_noise_is_the_same_every_time(split: str) -> None:
    first, again, quiet = seen(DATA, split, 7), seen(DATA, split, 1000), seen(QUIET, split, 7)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert torch.equal(first["other"], quiet["other"])
    for name, deviation in (("image", 0.3), ("dense", 2.0)):
        noise = first[name] - quiet[name]
        assert float(noise.std()) == pytest.approx(deviation, rel=0.1)
    stored = torch.from_numpy(np.array(DATA.splits[split].inputs["dense"]))
    assert torch.equal(quiet["dense"], stored)  # noise is never written to the stored array


def test_noise_differs_between_splits_and_inputs() -> None:
    noises = [
        (seen(DATA, split, 30)[name][:30] - seen(QUIET, split, 30)[name][:30]).flatten()[:300]
        for split in ("train", "val", "test")
        for name, deviation in (("image", 0.3), ("dense", 2.0))
    ]
    for i, one in enumerate(noises):
        for other in noises[:i]:
            assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.25


def test_padding_of_a_sequence_stays_padding() -> None:
    """So a transformer's features do not depend on the amount of padding."""
    noisy = {"other": Augmentation(noise=0.5)}
    padded = make_data(noisy)
    for split in padded.splits.values():
        split.inputs["other"][:, 2:] = 0
        split.inputs["other"][1, 3, 0] = 1  # a frame with one number is no padding
    index = torch.arange(60).unsqueeze(0)
    trained, evaluated = batch(padded, index, SEEDS[:1])["other"][0], seen(padded, "train", 7)
    torch.manual_seed(0)
    encoder = Transformer((4, 2), width=8, heads=2, dropout=0.0)
    shorter = Transformer((2, 2), width=8, heads=2, dropout=0.0)
    weights = encoder.state_dict()
    shorter.load_state_dict({**weights, "positions_LD": weights["positions_LD"][:2]})
    for found in (trained, evaluated["other"]):
        assert (found[:, :2] != torch.from_numpy(padded.train.inputs["other"][:, :2])).all()
        assert torch.equal(found[0, 2:], torch.zeros(2, 2))
        assert torch.equal(found[1, 2], torch.zeros(2))
        assert (found[1, 3] != torch.tensor([1.0, 0.0])).all()
        with torch.no_grad():
            assert torch.allclose(encoder(found)[2:], shorter(found[:, :2])[2:], atol=1e-6)


def replicates(data: Data, **fields: Any) -> tuple[Any, ...]:
    made = make_replicates("late", data=data, epochs=3, batch_size=16, **fields)
    encoders = {name: {"name": "mlp", "hidden": [6]} for name in data.inputs}
    return tuple(replace(r, encoders=encoders) for r in made)


def test_stacked_and_alone_see_the_same_noise() -> None:
    made = replicates(DATA, seeds=(0, 1, 2))
    assert is_stacked(made, DATA)
    together, apart = (
        train(made, DATA),
        train(replicates(DATA, seeds=(0, 1, 2), stack="never"), DATA),
    )
    quiet = train(made, QUIET)
    for key, end in apart.items():
        for name in ("train/loss", "val/nll"):
            column = list(end.history[name])
            assert column == pytest.approx(list(together[key].history[name]), rel=1e-5)
            assert column != pytest.approx(list(quiet[key].history[name]), rel=1e-4)


# ---------------------------------------------------------------- the option of `arrays`


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        labels=np.arange(60) % 3,
        image=rng.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8),
        dense=rng.normal(size=(60, 4)),
        words=rng.integers(1, 5, (60, 7)),
        clip=rng.normal(size=(60, 4, 2)),
    )
    return lambda **options: load_task(
        "arrays", {"path": str(tmp_path / "x.npz"), "tokens": ["words"], **options}
    )


def test_noise_is_an_option_that_shares_the_arrays(arrays: Any, tmp_path: Path) -> None:
    plain, noisy = arrays(), arrays(noise={"image": 0.1})
    assert noisy.augmentation == {"image": Augmentation(noise=0.1)}
    both = arrays(noise={"image": 0.1, "dense": 1}, augment={"image": {"pad": 1, "crop": 0.5}})
    assert both.augmentation == {
        "image": Augmentation(pad=1, crop=(0.5, 1.0), noise=0.1),
        "dense": Augmentation(noise=1.0),
    }
    none = arrays(noise={"image": 0})
    assert none.augmentation == {}
    assert none.fingerprint == plain.fingerprint
    found = {plain.fingerprint, noisy.fingerprint, both.fingerprint}
    assert len(found | {arrays(noise={"image": 0.2}).fingerprint}) == 4
    options = {"path": str(tmp_path / "x.npz"), "tokens": ["words"]}
    folder = prepare_task("arrays", options)
    assert prepare_task("arrays", {**options, "noise": {"image": 0.1}}) == folder


def test_results_in_which_padding_had_noise_are_not_reused(arrays: Any) -> None:
    content, settings = arrays().fingerprint, {"pad": 0, "flip": False, "noise": 0.1}
    assert arrays(noise={"dense": 0.1}).fingerprint == digest([content, {"dense": settings}])
    assert arrays(noise={"clip": 0.1}).fingerprint != digest([content, {"clip": settings}])


@pytest.mark.parametrize("name", ["words", "picture"])
def test_noise_names_inputs_that_are_no_tokens(arrays: Any, name: str) -> None:
    message = (
        f"task arrays: the option `noise` must name inputs other than tokens, got '{name}'; they "
        "are: image, dense, clip"
    )
    with pytest.raises(DataError, match=message):
        arrays(noise={name: 0.1})


def test_only_images_are_cropped(arrays: Any) -> None:
    message = "the option `augment` must name images, got 'dense'; the images are: image"
    with pytest.raises(DataError, match=message):
        arrays(augment={"dense": {"crop": 0.5}}, noise={"dense": 0.5})
    with pytest.raises(DataError, match="'noise' must be at least 0, got -1"):
        arrays(noise={"image": -1})


def test_settings_at_their_defaults_are_not_part_of_a_result() -> None:
    """So results of earlier versions, which had only these two, stay valid."""
    assert Augmentation(pad=2, flip=True).identity == {"pad": 2, "flip": True}
    assert Augmentation(crop=(0.5, 1.0), negate=(0,), noise=0.1).identity == {
        "pad": 0, "flip": False, "crop": (0.5, 1.0), "negate": (0,), "noise": 0.1,
    }  # fmt: skip
