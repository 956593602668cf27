"""Random crops and mirror images against a loop over pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modmix.base.messages import Progress
from modmix.encoders.base import Encoder
from modmix.methods.draws import bits
from modmix.methods.model import build_model, derive_seed, model_spec
from modmix.tasks.data import Augmentation, Data, Input, Split
from modmix.training.augment import augment
from modmix.training.batches import Examples
from modmix.training.trainer import train_pack
from toypack import (
    Dropping,
    add_encoder,
    add_method,
    finished,
    is_stacked,
    make_pack,
    make_replicates,
    train,
)

H, W, C = 6, 5, 2
BOTH = Augmentation(pad=2, flip=True)
SEEDS = torch.tensor([derive_seed(s, "augmentation", 0) for s in range(3)])


def pictures(*shape: int) -> Tensor:
    """No pixel is 0, so that padding can be told."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (*shape, H, W, C), generator=generator, dtype=torch.uint8)


def draw(seed: int, row: int, salt: int, pad: int) -> tuple[int, int, bool]:
    """Where the window is cut, from the top and from the left, and whether it is mirrored."""
    number = int(bits(torch.tensor(seed), torch.tensor(row), salt))
    places = 2 * pad + 1
    return number % places, number // places % places, bool(number >> 20 & 1)


def by_loop(
    picture: NDArray[Any], settings: Augmentation, top: int, left: int, mirrored: bool
) -> NDArray[Any]:
    pad = settings.pad
    padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
    cut = padded[top : top + H, left : left + W]
    return cut[:, ::-1] if settings.flip and mirrored else cut


@pytest.mark.parametrize(
    "settings", [BOTH, Augmentation(pad=3), Augmentation(flip=True), Augmentation(pad=9, flip=True)]
)
def test_windows_are_those_of_a_loop(settings: Augmentation) -> None:
    images = pictures(3, 20)
    index = torch.stack([torch.randperm(1000, generator=torch.Generator().manual_seed(s))[:20]
                         for s in range(3)])  # fmt: skip
    found = augment(images, settings, index.int(), SEEDS, salt=1)
    assert found.dtype == torch.uint8
    for s in range(3):
        for b in range(20):
            place = draw(int(SEEDS[s]), int(index[s, b]), 1, settings.pad)
            expected = by_loop(images[s, b].numpy(), settings, *place)
            np.testing.assert_array_equal(found[s, b].numpy(), expected)


def test_nothing_to_do_changes_nothing() -> None:
    images = pictures(1, 4)
    index = torch.arange(4).unsqueeze(0)
    assert torch.equal(augment(images, Augmentation(), index, SEEDS[:1], 0), images)


def test_every_place_and_both_sides_are_equally_likely() -> None:
    rows = torch.arange(50 * 400)

    def places(seed: Tensor) -> list[tuple[int, int, int]]:
        number = bits(seed, rows, 0)
        columns = (number % 5, number // 5 % 5, number >> 20 & 1)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    mine, others = places(SEEDS[0]), places(SEEDS[1])
    assert mine[:9] == [draw(int(SEEDS[0]), row, 0, 2) for row in range(9)]
    found = Counter(mine)
    assert set(found) == {(y, x, m) for y in range(5) for x in range(5) for m in (0, 1)}
    assert all(abs(count - 400) < 5 * 20 for count in found.values())
    same = sum(one == other for one, other in zip(mine, others, strict=True))
    assert abs(same - 400) < 5 * 20  # another seed's epoch is independent


def test_a_row_looks_the_same_whatever_is_beside_it() -> None:
    images = pictures(1, 30)
    index = torch.arange(30).unsqueeze(0)
    whole = augment(images, BOTH, index, SEEDS[:1], 0)[0]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    other = augment(images[:, order], BOTH, index[:, order], SEEDS[:1], 0)[0]
    assert torch.equal(other, whole[order])
    part = augment(images[:, 4:9].expand(3, -1, -1, -1, -1), BOTH, index[:, 4:9].expand(3, -1),
                   SEEDS, 0)  # fmt: skip
    assert torch.equal(part[0], whole[4:9])
    assert not torch.equal(part[1], part[0])


# ---------------------------------------------------------------- in training


class Convolution(Encoder):
    """A convolution with batch norm, then the mean over the picture."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(shape[2], 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.features = 4

    def forward(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.norm(self.convolution(inputs.permute(0, 3, 1, 2)))
        return x.relu().mean((2, 3))


def make_pictures(augmentation: Mapping[str, Augmentation]) -> Data:
    """Pictures as bytes, brighter or darker on one side by class, and some numbers."""
    generator = np.random.default_rng(2)

    def split(count: int) -> Split:
        labels = np.arange(count) % 3
        values = generator.integers(1, 128, (count, H, W, C))
        values[np.arange(count), labels] += 100
        dense = generator.normal(size=(count, 3)).astype(np.float32)
        inputs = {"dense": dense, "picture": values.astype(np.uint8)}
        return Split(inputs=inputs, labels=labels.astype(np.int64))

    mean = np.full((1, 1, C), 90.0, np.float32)
    mean[..., 1] = 120.0
    inputs = {
        "dense": Input(name="dense", shape=(3,)),
        "picture": Input(
            name="picture", shape=(H, W, C), kind="image", dtype="uint8",
            mean=mean, scale=np.full((1, 1, C), 50.0, np.float32),
        ),
    }  # fmt: skip
    return Data(
        name="pictures", inputs=inputs, classes=3, class_names=("a", "b", "c"),
        train=split(48), val=split(30), test=split(30), fingerprint="p", augmentation=augmentation,
    )  # fmt: skip


DATA = make_pictures({"picture": BOTH})


def test_padding_is_the_raw_value_zero_before_normalising() -> None:
    data = make_pictures({"picture": Augmentation(pad=H)})  # most windows see padding
    examples = Examples(data, "train", ["picture"], torch.device("cpu"))
    index = torch.arange(48).unsqueeze(0)
    raw = examples.take(index).inputs
    found = examples.prepare(raw, index, SEEDS[:1])["picture"]
    assert found.dtype == torch.float32
    padding = torch.tensor([(0 - 90) / 50, (0 - 120) / 50])
    outside = (found[0] == padding).all(-1)  # no pixel is raw 0
    assert 0.2 < outside.double().mean() < 0.95
    expected = augment(raw["picture"], Augmentation(pad=H), index, SEEDS[:1], 0)
    mean, scale = torch.tensor([90.0, 120.0]), 50.0
    torch.testing.assert_close(found, (expected.float() - mean) / scale)


def test_evaluation_sees_the_pictures_as_they_are() -> None:
    for split in ("train", "val", "test"):
        examples = Examples(DATA, split, ["dense", "picture"], torch.device("cpu"))
        seen = torch.cat([inputs["picture"] for inputs, _ in examples.chunks(7)])
        raw = DATA.splits[split].inputs["picture"].astype(np.float64)
        np.testing.assert_allclose(seen.numpy(), (raw - [90, 120]) / 50, rtol=1e-6, atol=1e-6)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> str:
    add_encoder(monkeypatch, "convolution", Convolution)
    return "convolution"


def replicates(name: str, **fields: Any) -> tuple[Any, ...]:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "seeds": (0, 1, 2), **fields}
    made = make_replicates("early", data=DATA, **settings)
    encoders = {"dense": {"name": "mlp", "hidden": [4]}, "picture": {"name": name}}
    return tuple(replace(r, method="add", params=ADD, encoders=encoders) for r in made)


def fast(replicate: Any) -> dict[str, Any]:
    return {**replicate.training, "learning_rate": 0.02}


ADD = {"merge": "concat", "project": None, "hidden": [4], "depth": 1, "width": 4}


def test_stacked_and_alone_see_the_same_pictures(encoder: str) -> None:
    """With batch norm, whose statistics show every difference."""
    assert is_stacked(replicates(encoder), DATA)
    together = train(replicates(encoder), DATA)
    apart = train(replicates(encoder, stack="never"), DATA)
    alone = train(replicates(encoder, seeds=[1]), DATA)
    for found in (apart, alone):
        for key, end in found.items():
            for name in ("train/loss", "val/nll"):
                expected = together[key].history[name]
                assert list(end.history[name]) == pytest.approx(list(expected), rel=1e-4)
    assert len(alone) == 1


def test_configurations_share_the_pictures_of_a_seed(encoder: str) -> None:
    made = replicates(encoder)
    others = [replace(r, key=f"{r.key}-fast", configuration="fast", training=fast(r)) for r in made]
    both = train((*others, *made), DATA)
    for few in (made, others):
        for key, end in train(tuple(few), DATA).items():
            expected = list(both[key].history["train/loss"])
            assert list(end.history["train/loss"]) == pytest.approx(expected, rel=1e-4)


def test_models_that_remain_in_the_middle_of_an_epoch_go_on(
    encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their order, their pictures and their dropout masks are still their own."""
    add_method(monkeypatch, "dropping", Dropping)
    made = replicates(encoder, seeds=range(5), evaluations_per_epoch=3)
    made = tuple(replace(r, method="dropping", params={}) for r in made)
    wild = {**made[0].training, "learning_rate": 1e38}
    mixed = tuple(replace(r, training=wild) if r.seed in (0, 1, 3) else r for r in made)
    ends = train(mixed, DATA)
    assert [end.state for _, end in sorted(ends.items())] == [
        *("failed", "failed", "done", "failed", "done")
    ]
    for r in (made[2], made[4]):
        (alone,) = train([r], DATA).values()
        expected = list(alone.history["train/loss"])
        assert list(ends[r.key].history["train/loss"]) == pytest.approx(expected, rel=1e-4)


def test_training_is_a_hand_written_loop_over_augmented_pictures(encoder: str) -> None:
    (replicate,) = replicates(encoder, seeds=[4], epochs=2)
    (end,) = train([replicate], DATA).values()
    model = build_model(model_spec(replicate, DATA), 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pictures, dense = DATA.train.inputs["picture"], torch.tensor(DATA.train.inputs["dense"])
    labels = torch.tensor(DATA.train.labels)
    for epoch in range(2):
        seed = derive_seed(4, "augmentation", epoch)
        generator = torch.Generator().manual_seed(derive_seed(4, "batches", epoch))
        losses = []
        for rows in torch.randperm(48, generator=generator).split(16):
            seen = [by_loop(pictures[r], BOTH, *draw(seed, r, 1, 2)) for r in rows.tolist()]
            normalised = torch.tensor((np.array(seen, np.float32) - [90, 120]) / 50).float()
            outputs = model({"dense": dense[rows], "picture": normalised})
            loss = model.loss(outputs, labels[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert end.history["train/loss"][epoch] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_resumed_model_sees_the_same_pictures(
    encoder: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    made = replicates(encoder, evaluations_per_epoch=3)
    expected = train(made, DATA, keep_weights=True)
    for count in (1, 3, 5):
        pack = make_pack(made, keep_weights=True, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        left = count
        while left:
            left -= isinstance(next(events), Progress)
        events.close()
        for key, end in finished(train_pack(pack, DATA)).items():
            assert end.history == expected[key].history
            assert end.weights == expected[key].weights
