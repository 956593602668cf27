"""What reaches encoders: bytes normalised, tokens as integers, from the device or streamed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modmix.encoders.base import Encoder
from modmix.tasks.data import Augmentation, Data, Input, Split
from modmix.training import batches, trainer
from modmix.training.batches import Examples, Order
from modmix.training.trainer import train_pack
from toypack import add_encoder, finished, is_stacked, make_pack, make_replicates, train

CPU = torch.device("cpu")
MEAN = np.linspace(60, 140, 12, dtype=np.float32).reshape(4, 3, 1)
SCALE = np.linspace(10, 50, 12, dtype=np.float32).reshape(4, 3, 1)


def make_mixed() -> Data:
    """Floats with a mean that must not be used, bytes of images, and tokens of two sizes."""
    generator = np.random.default_rng(4)

    def split(count: int) -> Split:
        labels = np.arange(count) % 2
        image = generator.integers(0, 200, (count, 4, 3, 1)) + 50 * labels[:, None, None, None]
        inputs = {
            "dense": generator.normal(size=(count, 3)).astype(np.float32),
            "image": image.astype(np.uint8),
            "words": generator.integers(0, 9, (count, 5)).astype(np.int32),
            "bytes": (generator.integers(1, 200, (count, 6)) + 50 * labels[:, None]).astype(
                np.uint8
            ),
        }
        return Split(inputs=inputs, labels=labels.astype(np.int64))

    inputs = {
        "dense": Input(
            name="dense",
            shape=(3,),
            mean=np.full(3, 9.0, np.float32),
            scale=np.full(3, 2.0, np.float32),
        ),
        "image": Input(
            name="image", shape=(4, 3, 1), kind="image", dtype="uint8", mean=MEAN, scale=SCALE
        ),
        "words": Input(name="words", shape=(5,), kind="tokens", dtype="int32", vocabulary=9),
        "bytes": Input(name="bytes", shape=(6,), kind="tokens", dtype="uint8", vocabulary=256),
    }
    return Data(
        name="mixed", inputs=inputs, classes=2, class_names=("a", "b"), train=split(40),
        val=split(26), test=split(20), fingerprint="m",
        augmentation={"image": Augmentation(pad=1, flip=True)},
    )  # fmt: skip


DATA = make_mixed()
NAMES = list(DATA.inputs)


class Bag(Encoder):
    """The mean of the tokens' vectors."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.vectors = nn.Embedding(256, 4)
        self.features = 4

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.dtype == torch.int64
        vectors_BLD: Tensor = self.vectors(inputs)
        return vectors_BLD.mean(1)


def expected(split: str, name: str) -> Any:
    raw = DATA.splits[split].inputs[name].astype(np.float64)
    return (raw - MEAN) / SCALE if name == "image" else raw


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_chunks_are_normalised(split: str, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", str(int(streamed)))
    examples = Examples(DATA, split, NAMES, CPU)
    chunks = list(examples.chunks(7))
    assert [len(labels) for _, labels in chunks[:-1]] == [7] * (len(chunks) - 1)
    labels = torch.cat([labels for _, labels in chunks])
    np.testing.assert_array_equal(labels.numpy(), DATA.splits[split].labels)
    for name in NAMES:
        found = torch.cat([inputs[name] for inputs, _ in chunks])
        tokens = DATA.inputs[name].kind == "tokens"
        assert found.dtype == (torch.int64 if tokens else torch.float32)
        np.testing.assert_allclose(found.numpy(), expected(split, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_are_normalised(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", str(int(streamed)))
    data = replace(DATA, augmentation={})
    examples = Examples(data, "train", NAMES, CPU)
    assert examples.streamed == streamed
    order = Order(40, 6, CPU)
    epoch = order.epoch([3, 8], 0)
    rows = [order.step(epoch, step) for step in range(order.steps)]
    seen = 0
    for index, batch in zip(rows, examples.batches(rows), strict=True):
        raw, labels = batch.inputs, batch.labels_SB
        assert raw["image"].dtype == torch.uint8  # as stored, until it is on the device
        found = examples.prepare(raw, index, torch.zeros(2, dtype=torch.int64))
        np.testing.assert_array_equal(labels.numpy(), DATA.train.labels[index.numpy()])
        for name in NAMES:
            wanted = expected("train", name)[index.numpy()]
            np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-6, atol=1e-6)
        seen += 1
    assert seen == order.steps == 6


def replicates(method: str = "early", **fields: Any) -> tuple[Any, ...]:
    made = make_replicates("late", data=DATA, epochs=2, batch_size=8, **fields)
    mlp = {"name": "mlp", "hidden": [4]}
    encoders = {"dense": mlp, "image": mlp, "words": {"name": "bag"}, "bytes": {"name": "bag"}}
    return tuple(replace(r, encoders=encoders) for r in made)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("cuda_graphs", ["never", "always"])
def test_the_branches_of_a_gpu_give_the_same_numbers(
    cuda_graphs: str, stack: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed data, updates of all rows at once, and recorded steps."""
    add_encoder(monkeypatch, "bag", Bag)
    made = replicates(
        stack=stack, optimizer=optimizer, cuda_graphs=cuda_graphs, clip_norm=1.0, weight_decay=0.01
    )
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "0")
    assert is_stacked(made, DATA) == (stack == "always")
    plain = train(made, DATA)
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    forced = train(made, DATA)
    for key, end in plain.items():
        for name, column in end.history.items():
            assert list(forced[key].history[name]) == pytest.approx(list(column), rel=1e-4), name
        assert forced[key].metrics == pytest.approx(end.metrics, rel=1e-4)


def test_recorded_steps_are_counted_once(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's bias correction of a resumed pack is that of an undisturbed one."""
    add_encoder(monkeypatch, "bag", Bag)
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    made = replicates(cuda_graphs="always")
    undisturbed = train(made, DATA)
    pack = make_pack(made, checkpoint=f"{tmp_path}/c")
    events = train_pack(pack, DATA)
    next(events)
    next(events)
    events.close()
    for key, end in finished(train_pack(pack, DATA)).items():
        assert end.history == undisturbed[key].history


def test_a_split_stays_on_the_device_if_it_fits_into_the_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row is 12 + 12 + 20 + 6 bytes: 40 of them are 2000, and 0.4 of the memory may be taken."""
    monkeypatch.setattr(batches, "available", lambda device, share: int(share * 10_000))
    device = torch.device("meta")
    for share, streamed in ((1.0, False), (0.51, False), (0.49, True)):
        assert Examples(DATA, "train", NAMES, device, share).streamed == streamed


def test_training_tells_every_split_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def noted(data: Data, split: str, names: Any, device: torch.device, share: float) -> Examples:
        shares.append(share)
        return Examples(data, split, names, device, share)

    monkeypatch.setattr(trainer, "Examples", noted)
    add_encoder(monkeypatch, "bag", Bag)
    next(train_pack(make_pack(replicates()), DATA, share=0.25))
    assert shares == [0.25] * 3
