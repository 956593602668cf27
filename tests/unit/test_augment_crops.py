"""Resized crops, windows, mirrored optical flow and videos, against torchvision and loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from modmix.methods.model import derive_seed
from modmix.tasks.data import Augmentation, Data, Input, Split
from modmix.tasks.writer import input_from_json
from modmix.training.augment import augment, random_boxes, resized
from modmix.training.batches import Examples
from toypack import is_stacked, make_replicates, train

SEEDS = torch.tensor([derive_seed(s, "augmentation", 0) for s in range(3)])
CROP = Augmentation(crop=(0.08, 1.0), flip=True)


def pictures(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def rows(count: int, seeds: int = 1) -> Tensor:
    return torch.arange(count).expand(seeds, count)


def by_torchvision(image_HWC: Tensor, box: list[int], size: tuple[int, int]) -> Tensor:
    """One image, or the frames of a video (T, H, W, C)."""
    moved = image_HWC.float().movedim(-1, -3)
    made: Tensor = resized_crop(
        moved, *box, size=list(size), interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return made.movedim(-3, -1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("frames", [(), (3,)])
def test_boxes_are_resized_as_by_torchvision(frames: tuple[int, ...], dtype: torch.dtype) -> None:
    images = pictures(2, 20, *frames, 21, 17, 3).to(dtype)
    boxes = random_boxes((0.05, 1.0), 21, 17, rows(20, 2), SEEDS[:2], 0)
    boxes[0, 0] = torch.tensor([0, 0, 21, 17])
    boxes[0, 1] = torch.tensor([20, 16, 1, 1])
    found = resized(images, boxes, 21, 17)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, 0], images[0, 0].float())
    for s in range(2):
        for b in range(20):
            expected = by_torchvision(images[s, b], boxes[s, b].tolist(), (21, 17))
            torch.testing.assert_close(found[s, b], expected, rtol=0, atol=1e-3)


def test_a_batch_is_cropped_and_then_mirrored() -> None:
    images = pictures(1, 30, 12, 15, 2)
    found = augment(images, CROP, rows(30), SEEDS[:1], 4)
    boxes = random_boxes((0.08, 1.0), 12, 15, rows(30), SEEDS[:1], 4)
    mirrored = 0
    for b in range(30):
        expected = by_torchvision(images[0, b], boxes[0, b].tolist(), (12, 15))
        other = expected.flip(1)
        is_other = bool((found[0, b] - other).abs().max() < (found[0, b] - expected).abs().max())
        mirrored += is_other
        torch.testing.assert_close(found[0, b], other if is_other else expected, rtol=0, atol=1e-3)
    assert 5 < mirrored < 25


@pytest.mark.parametrize("share", [(0.08, 1.0), (0.5, 0.6)])
def test_boxes_are_distributed_as_those_of_torchvision(share: tuple[float, float]) -> None:
    high, wide, count = 96, 128, 20_000
    boxes = random_boxes(share, high, wide, rows(count), SEEDS[:1], 0)[0]
    top, left, height, width = boxes.double().unbind(-1)
    assert bool((boxes >= 0).all())
    assert bool((top + height <= high).all())
    assert bool((left + width <= wide).all())
    torch.manual_seed(0)
    image = torch.zeros(1, high, wide)
    drawn = torch.tensor(
        [RandomResizedCrop.get_params(image, list(share), [3 / 4, 4 / 3]) for _ in range(4000)]
    ).double()
    for name, mine, theirs in (
        ("area", height * width / (high * wide), drawn[:, 2] * drawn[:, 3] / (high * wide)),
        ("aspect", (width / height).log(), (drawn[:, 3] / drawn[:, 2]).log()),
        ("top", top, drawn[:, 0]),
        ("left", left, drawn[:, 1]),
    ):
        error = theirs.std() / 4000**0.5 + mine.std() / count**0.5
        assert abs(mine.mean() - theirs.mean()) < 4 * error, name
        assert float(mine.std()) == pytest.approx(float(theirs.std()), rel=0.05), name
        quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        difference = (mine.quantile(quantiles) - theirs.quantile(quantiles)).abs()
        assert float(difference.max()) < 8 * error, name


def test_small_shares_have_uniform_areas_and_aspects() -> None:
    """Where every box fits: the share is uniform, and so is the logarithm of the aspect."""
    boxes = random_boxes((0.1, 0.3), 400, 400, rows(20_000), SEEDS[:1], 0)[0].double()
    share = boxes[:, 2] * boxes[:, 3] / 400**2
    aspect = (boxes[:, 3] / boxes[:, 2]).log() / np.log(4 / 3)
    assert float(share.mean()) == pytest.approx(0.2, abs=0.002)
    assert float(share.std()) == pytest.approx(0.2 / 12**0.5, rel=0.02)
    assert float(aspect.mean()) == pytest.approx(0, abs=0.02)
    assert float(aspect.std()) == pytest.approx(2 / 12**0.5, rel=0.02)
    assert (float(aspect.min()), float(aspect.max())) == pytest.approx((-1, 1), abs=0.05)


@pytest.mark.parametrize(
    ("high", "wide", "expected"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (10, 10, None)],
)
def test_where_no_box_fits_the_centre_is_taken(
    high: int, wide: int, expected: list[int] | None
) -> None:
    boxes = random_boxes((1.0, 1.0), high, wide, rows(50), SEEDS[:1], 0)[0]
    if expected is None:
        assert bool((boxes == torch.tensor([0, 0, 10, 10])).all(-1).any())
        return
    image = torch.zeros(1, high, wide)
    assert list(RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])) == expected
    assert boxes.tolist() == [expected] * 50


@pytest.mark.parametrize("frames", [(), (2,)])
@pytest.mark.parametrize("size", [None, (9, 8)])
def test_an_example_looks_the_same_whatever_is_beside_it(
    size: tuple[int, int] | None, frames: tuple[int, ...]
) -> None:
    """Bit by bit, alone, in another order, and beside other seeds."""
    settings = Augmentation(crop=(0.08, 1.0), flip=True, pad=1)
    images = pictures(1, 33, *frames, 13, 11, 3)
    whole = augment(images, settings, rows(33), SEEDS[:1], 2, size)[0]
    assert whole.shape == (33, *frames, *(size or (13, 11)), 3)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(3))
    other = augment(images[:, order], settings, rows(33)[:, order], SEEDS[:1], 2, size)
    assert torch.equal(other[0], whole[order])
    part = augment(
        images[:, 4:5].expand(3, *[-1] * (images.dim() - 1)),
        settings,
        rows(33, 3)[:, 4:5],
        SEEDS,
        2,
        size,
    )
    assert torch.equal(part[0], whole[4:5])
    assert not torch.equal(part[1], part[0])
    again = SEEDS[:1].clone()
    again[0] = derive_seed(0, "augmentation", 1)  # the next epoch
    assert not torch.equal(augment(images, settings, rows(33), again, 2, size)[0], whole)


def test_a_video_is_moved_as_each_of_its_frames() -> None:
    video = pictures(2, 6, 4, 10, 12, 3)
    for settings in (CROP, Augmentation(pad=2, flip=True), Augmentation(flip=True, negate=(1,))):
        whole = augment(video, settings, rows(6, 2), SEEDS[:2], 0)
        for frame in range(4):
            one = augment(video[:, :, frame], settings, rows(6, 2), SEEDS[:2], 0)
            assert torch.equal(whole[:, :, frame], one)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mirrored_flow_changes_the_sign_of_u(dtype: torch.dtype) -> None:
    """Channels u, v, u, v: the place is mirrored, and u is negated about 127.5."""
    flow = pictures(1, 40, 5, 6, 4).to(dtype)
    settings = Augmentation(flip=True, negate=(0, 2))
    found = augment(flow, settings, rows(40), SEEDS[:1], 0)[0]
    assert found.dtype == dtype
    mirrored = flow[0].flip(2).clone()
    zero = 255 if dtype == torch.uint8 else 0
    for channel in (0, 2):
        mirrored[..., channel] = zero - mirrored[..., channel]
    counts = [0, 0]
    for b in range(40):
        same, other = torch.equal(found[b], flow[0, b]), torch.equal(found[b], mirrored[b])
        assert same != other
        counts[other] += 1
    assert min(counts) > 8


# ---------------------------------------------------------------- windows


def windows(count: int = 300, **settings: Any) -> Data:
    """Images of 8 × 9 pixels with the place as their value, of which 4 × 6 are seen."""
    place = np.arange(72, dtype=np.uint8).reshape(1, 8, 9, 1).repeat(count, 0)
    split = Split(inputs={"image": place}, labels=np.arange(count) % 2)
    image = Input(
        name="image",
        shape=(4, 6, 1),
        stored=(8, 9, 1),
        kind="image",
        dtype="uint8",
        mean=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )
    return Data(
        name="windows", inputs={"image": image}, classes=2, class_names=("a", "b"),
        train=split, val=split, test=split, fingerprint="w",
        augmentation={"image": Augmentation(**settings)} if settings else {},
    )  # fmt: skip


def test_windows_are_anywhere_in_training_and_in_the_middle_in_evaluation() -> None:
    examples = Examples(windows(shift=True), "train", ["image"], torch.device("cpu"))
    found = examples.prepare(examples.take(rows(300)).inputs, rows(300), SEEDS[:1])["image"][0]
    corners = {tuple(divmod(int(x), 9)) for x in found[:, 0, 0, 0]}
    assert corners == {(y, x) for y in range(5) for x in range(4)}
    for window in found:
        expected = window[0, 0, 0] + torch.arange(4)[:, None] * 9 + torch.arange(6)
        assert torch.equal(window[..., 0], expected)
    still = Examples(windows(flip=True), "train", ["image"], torch.device("cpu"))
    fixed = still.prepare(still.take(rows(300)).inputs, rows(300), SEEDS[:1])["image"][0]
    assert {tuple(sorted(ends)) for ends in fixed[:, 0, [0, 5], 0].tolist()} == {(19.0, 24.0)}
    ((seen, _),) = [(inputs["image"], labels) for inputs, labels in examples.chunks(300)]
    middle = (2 * 9 + 1) + torch.arange(4)[:, None] * 9 + torch.arange(6)
    assert torch.equal(seen[..., 0], middle.float().expand(300, 4, 6))


def test_resized_boxes_of_what_is_stored_have_the_size_of_the_window() -> None:
    data = windows(40, crop=(0.3, 0.5))
    examples = Examples(data, "train", ["image"], torch.device("cpu"))
    raw = examples.take(rows(40)).inputs
    found = examples.prepare(raw, rows(40), SEEDS[:1])["image"][0]
    boxes = random_boxes((0.3, 0.5), 8, 9, rows(40), SEEDS[:1], 0)[0]
    assert found.shape == (40, 4, 6, 1)
    for image, box, one in zip(raw["image"][0], boxes, found, strict=True):
        torch.testing.assert_close(one, resized(image[None, None], box[None, None], 4, 6)[0, 0])


def test_a_description_with_a_window_is_read_back() -> None:
    described = windows().inputs["image"]
    read = input_from_json(
        {
            "name": "image",
            "shape": [4, 6, 1],
            "stored": [8, 9, 1],
            "kind": "image",
            "dtype": "uint8",
            "vocabulary": None,
            "mean": [0],
            "scale": [1],
        }
    )
    assert read == described


@pytest.mark.parametrize("settings", [{"shift": True, "flip": True}, {"crop": (0.2, 1.0)}])
def test_models_trained_together_or_alone_see_the_same_windows(settings: dict[str, Any]) -> None:
    data = windows(40, **settings)
    made = make_replicates("early", data=data, epochs=2, batch_size=8, seeds=(0, 1))
    alone = make_replicates("early", data=data, epochs=2, batch_size=8, seeds=(0, 1), stack="never")
    assert is_stacked(made, data)
    together, apart = train(made, data), train(alone, data)
    for key, end in apart.items():
        for name in ("train/loss", "val/nll"):
            expected = list(together[key].history[name])
            assert list(end.history[name]) == pytest.approx(expected, rel=1e-5)
