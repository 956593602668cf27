"""The task ``cifar100``: a small set in the official layout, read, split and normalised.

The files are pickles as Python 2 wrote them, put together by hand; torchvision's checksums are
replaced by theirs.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.datasets import CIFAR100

from modmix.base.errors import DataError
from modmix.base.settings import TRAINING, selection, training_defaults
from modmix.encoders.resnet import ResNet
from modmix.tasks import cifar100, table
from modmix.tasks.base import check_task, describe_task, get_task, load_task, prepare_task
from modmix.tasks.data import Augmentation, Data
from modmix.tasks.files import Source
from modmix.training.batches import Examples
from modmix.training.optimizers import Optimizer

CLASSES, TRAIN_EACH, TEST_EACH = 100, 3, 1
ROWS = {"train": CLASSES * TRAIN_EACH, "test": CLASSES * TEST_EACH}
NAMES = [f"thing {k}" for k in range(CLASSES)]


def pickled(value: Any) -> bytes:
    """A pickle of Python 2's protocol 2: strings of bytes, and types by their old names."""
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value: Any) -> bytes:
    match value:
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            raw = value.encode("latin1")
            return b"T" + struct.pack("<i", len(raw)) + raw
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            pairs = (opcodes(key) + opcodes(each) for key, each in value.items())
            return b"}(" + b"".join(pairs) + b"u"
        case np.ndarray():
            return array_opcodes(value)
    raise AssertionError(value)


def array_opcodes(array: np.ndarray) -> bytes:
    """Rows of bytes, as NumPy pickled them then: `align` of its type is 0, not False."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + opcodes(0) + b"\x85"
    empty += opcodes("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + opcodes("u1") + opcodes(0) + opcodes(1) + b"\x87R"
    dtype += b"(" + opcodes(3) + opcodes("|") + b"NNN" + opcodes(-1) * 2 + opcodes(0) + b"tb"
    shape = b"".join(map(opcodes, array.shape)) + b"\x86"
    numbers = opcodes(array.tobytes().decode("latin1"))
    return empty + b"(" + opcodes(1) + shape + dtype + b"\x89" + numbers + b"tb"


@dataclass
class Official:
    """A small set: ``folder`` has the files, ``pixels`` (N, 3072) and labels by split."""

    folder: Path
    pixels: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def accept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the files the ones that torchvision knows."""

        def md5(name: str) -> str:
            return hashlib.md5((self.folder / name).read_bytes()).hexdigest()

        monkeypatch.setattr(CIFAR100, "train_list", [["train", md5("train")]])
        monkeypatch.setattr(CIFAR100, "test_list", [["test", md5("test")]])
        monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5("meta")})


def write(folder: Path) -> Official:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels, labels = {}, {}
    for split, rows in ROWS.items():
        pixels[split] = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        labels[split] = rng.permutation(np.arange(rows) % CLASSES)
        content = {
            "filenames": [f"{split}_{n}.png" for n in range(rows)],
            "batch_label": f"{split}ing batch 1 of 1",
            "fine_labels": labels[split].tolist(),
            "coarse_labels": (labels[split] // 5).tolist(),
            "data": pixels[split],
        }
        (folder / split).write_bytes(pickled(content))
    names = {"fine_label_names": NAMES, "coarse_label_names": [f"kind {k}" for k in range(20)]}
    (folder / "meta").write_bytes(pickled(names))
    return Official(folder, pixels, labels)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Official:
    found = write(tmp_path / "my data" / "cifar-100-python")
    found.accept(monkeypatch)
    return found


def load(official: Official, **options: Any) -> Data:
    return load_task("cifar100", {"path": str(official.folder), "val_rows": 100, **options})


# ---------------------------------------------------------------- what is read


def test_pixels_labels_and_names(official: Official) -> None:
    data = load(official)
    described = data.inputs["image"]
    assert list(data.inputs) == ["image"]
    assert (described.shape, described.dtype, described.kind) == ((32, 32, 3), "uint8", "image")
    assert data.class_names == tuple(NAMES)
    assert [split.rows for split in data.splits.values()] == [200, 100, 100]
    images = data.test.inputs["image"]
    assert images.dtype == np.uint8
    for row, y, x, channel in np.random.default_rng(1).integers(0, (100, 32, 32, 3), (200, 4)):
        # A row is all of red, then green, then blue, each line by line.
        expected = official.pixels["test"][row, channel * 1024 + y * 32 + x]
        assert images[row, y, x, channel] == expected
    np.testing.assert_array_equal(data.test.labels, official.labels["test"])


def test_training_rows_are_divided_between_train_and_val(official: Official) -> None:
    data = load(official)
    where = {row.tobytes(): n for n, row in enumerate(official.pixels["train"])}
    rows = {}
    for split in ("train", "val"):
        images = np.asarray(data.splits[split].inputs["image"])
        rows[split] = [where[i.transpose(2, 0, 1).tobytes()] for i in images]
        labels = data.splits[split].labels
        np.testing.assert_array_equal(labels, official.labels["train"][rows[split]])
        assert rows[split] == sorted(rows[split])
    assert sorted(rows["train"] + rows["val"]) == list(range(300))
    assert np.bincount(data.val.labels).tolist() == [1] * CLASSES
    assert np.bincount(data.train.labels).tolist() == [2] * CLASSES


def test_the_split_depends_on_its_seed_alone(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = load(official), load(official, split_seed=1)
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "another home"))
    again = load(official)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    for split in ("train", "val"):
        images = [data.splits[split].inputs["image"] for data in (first, again, other)]
        assert np.array_equal(images[0], images[1])
        assert not np.array_equal(images[0], images[2])
    assert load(official, val_rows=200).val.rows == 200


def test_the_mean_image_is_of_the_training_rows(official: Official) -> None:
    data = load(official)
    described = data.inputs["image"]
    total = np.zeros((32, 32, 3))
    for image in data.train.inputs["image"]:
        total += image
    assert described.mean is not None
    assert described.scale is not None
    assert described.mean.shape == (32, 32, 3)
    np.testing.assert_allclose(described.mean, total / 200, rtol=1e-6)
    assert described.scale.tolist() == [255, 255, 255]
    # What a model sees of the test images.
    examples = Examples(data, "test", ["image"], torch.device("cpu"), 1.0)
    ((inputs, _),) = examples.chunks(100)
    expected = (np.asarray(data.test.inputs["image"], dtype=np.float64) - total / 200) / 255
    np.testing.assert_allclose(inputs["image"], expected, atol=1e-6)


def test_augmentation_is_declared_and_can_be_left_out(official: Official) -> None:
    data, plain = load(official), load(official, augment=False)
    assert data.augmentation == {"image": Augmentation(pad=2, flip=True)}
    assert plain.augmentation == {}
    assert data.fingerprint != plain.fingerprint
    options = {"path": str(official.folder), "val_rows": 100}
    folder = prepare_task("cifar100", options)
    assert prepare_task("cifar100", {**options, "augment": False}) == folder
    assert check_task("cifar100", options) == folder
    assert describe_task("cifar100", options).rows == {"train": 200, "val": 100, "test": 100}


def test_the_folder_and_the_one_that_holds_it(official: Official, tmp_path: Path) -> None:
    nested = tmp_path / "cifar-100-python"  # unpacked into a folder of the same name
    shutil.copytree(official.folder, nested / "cifar-100-python")
    found = {
        prepare_task("cifar100", {"path": str(path), "val_rows": 100})
        for path in (official.folder, official.folder.parent, nested)
    }
    assert len(found) == 1


# ---------------------------------------------------------------- what is refused


def refused(path: Path, home: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare_task("cifar100", {"path": str(path)})
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    left = list((home / "prepared").iterdir()) if (home / "prepared").exists() else []
    assert [p for p in left if p.suffix != ".lock"] == []
    end = "; the option `path` must be the official folder cifar-100-python or one that holds it"
    assert message.endswith(end)
    return message.removesuffix(end)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_missing_file(official: Official, home: Path, name: str) -> None:
    (official.folder / name).unlink()
    expected = f"{official.folder / name}: a data file must be here, found nothing"
    assert refused(official.folder, home) == expected


def test_a_missing_folder_or_a_file_in_its_place(tmp_path: Path, home: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"packed")
    for path in (tmp_path / "nowhere", tmp_path / "x.tar.gz"):
        expected = f"{path}/cifar-100-python/train: a data file must be here, found nothing"
        assert refused(path, home) == expected


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_truncated_file(official: Official, home: Path, name: str) -> None:
    path = official.folder / name
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-100])
    came = hashlib.md5(path.read_bytes()).hexdigest()
    assert refused(official.folder, home) == (
        f"{path}: the official file has md5 {md5}, this one {came}, and no other pickle is read"
    )


def test_a_pickle_of_somebody_else_is_not_loaded(
    official: Official, home: Path, tmp_path: Path
) -> None:
    for name in ("meta", "test", "train"):
        code = f"cos\nmkdir\n(S'{tmp_path / 'loaded'}'\ntR."
        (official.folder / name).write_bytes(code.encode())
        assert "this one" in refused(official.folder, home)
    assert not (tmp_path / "loaded").exists()


# ---------------------------------------------------------------- downloads


class Archive:
    """In place of the download: an archive of the small set."""

    def __init__(self, official: Official, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = official.folder.parent / "served.tar.gz"
        with tarfile.open(self.file, "w:gz") as tar:
            tar.add(official.folder, "cifar-100-python")
        self.asked: list[str] = []
        monkeypatch.setattr(cifar100, "fetch", self.fetch)

    def fetch(self, url: str, source: Source, progress: Any) -> Path:
        self.asked.append(url)
        assert (source.bytes, source.sha256) == (cifar100.BYTES, cifar100.SHA256)
        shutil.copy(self.file, source.path)
        return source.path


def test_the_archive_is_downloaded_and_unpacked(
    official: Official, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Archive(official, monkeypatch)
    folder = home / "downloads" / "cifar100" / "cifar-100-python"
    with pytest.raises(DataError, match=r"train: .* found nothing; run `modmix data get cifar100`"):
        prepare_task("cifar100", {"val_rows": 100})
    assert get_task("cifar100", {}) == [folder / name for name in ("train", "test", "meta")]
    assert served.asked == [CIFAR100.url] == [table.CIFAR100.source]
    data = load_task("cifar100", {"val_rows": 100})
    assert data.fingerprint == load(official).fingerprint
    get_task("cifar100", {})
    assert len(served.asked) == 1  # all there
    (folder / "test").write_bytes(b"half")
    with pytest.raises(DataError, match=r"this one \w+, .*; run `modmix data get cifar100`"):
        load_task("cifar100", {"val_rows": 50})
    get_task("cifar100", {})
    assert load_task("cifar100", {"val_rows": 50}).val.rows == 50


def test_nothing_is_downloaded_where_a_folder_is_given(
    official: Official, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Archive(official, monkeypatch)
    assert get_task("cifar100", {"path": str(official.folder)}) == []
    (official.folder / "test").rename(official.folder / "elsewhere")
    refused(official.folder, home)
    (official.folder / "elsewhere").rename(official.folder / "test")
    load(official)
    assert served.asked == []
    assert not (home / "downloads").exists()


def test_torchvision_downloads_the_same_archive() -> None:
    """Ours is checked by SHA-256 as well; the files in it by torchvision's checksums."""
    assert cifar100.URL == CIFAR100.url == table.CIFAR100.source
    assert CIFAR100.base_folder == cifar100.FOLDER
    lists = [*CIFAR100.train_list, *CIFAR100.test_list]
    assert (*(name for name, _ in lists), CIFAR100.meta["filename"]) == cifar100.FILES


# ---------------------------------------------------------------- the recipe


def recipe() -> dict[str, Any]:
    normal = {name: TRAINING[name].normalise(v) for name, v in table.CIFAR100.training.items()}
    return {**training_defaults(), **normal}


def test_learning_rates_step_by_step() -> None:
    """50,000 images less 5,000 for validation make 450 batches of 100 in an epoch."""
    training = recipe()
    steps = 45_000 // training["batch_size"]
    optimizer = Optimizer([training], torch.zeros(1, 3), torch.ones(3))
    rates = []
    for epoch in range(training["epochs"]):
        optimizer.start_epoch(epoch, steps)
        for step in range(steps):
            optimizer.start_step(step)
            rates += optimizer.rates
    assert len(rates) == 80_100  # of whole epochs, the nearest to 80,000
    found = [rates[step] for step in (0, 39_999, 40_000, 59_999, 60_000, 79_999)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)
    counts = np.unique(np.round(rates, 6), return_counts=True)[1]
    assert counts.tolist() == [20_100, 20_000, 40_000]


def test_the_recipe_is_the_papers() -> None:
    training = recipe()
    assert (training["optimizer"], training["momentum"], training["nesterov"]) == (
        "sgd",
        0.9,
        False,
    )
    assert (training["batch_size"], training["weight_decay"]) == (100, 2e-4)
    assert training["clip_norm"] is None
    assert selection(training) == "last"
    assert training["decay"] == "weights"  # those of two or more dimensions
    settings = dict(table.CIFAR100.encoders["image"])
    assert settings.pop("name") == "resnet"
    encoder = ResNet((32, 32, 3), **settings)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {p.dim() for norm in norms for p in norm.parameters()} == {1}
    assert encoder.features == {"unit1": 32, "unit2": 32, "unit3": 64}
    assert sum(p.numel() for p in encoder.parameters()) == 463_504 + 13_952  # see its own tests


@pytest.mark.slow
def test_a_small_study_of_it(official: Official, tmp_path: Path) -> None:
    import modmix

    text = (
        "study: small\n"
        f"task: {{name: cifar100, path: '{official.folder}', val_rows: 100}}\n"
        "seeds: 1\n"
        "encoders: {image: {name: resnet, depth: 8, width: 4}}\n"
        "training: {epochs: 1, milestones: [0.5]}\n"
        "parts: {one: {methods: {mul: , base: {modality: unit3}}}}\n"
    )
    (tmp_path / "small.yaml").write_text(text)
    study = modmix.run(
        tmp_path / "small.yaml", runner="local", home=tmp_path / "runs", mlflow=False
    )
    frame = study.replicates()
    assert frame["state"].tolist() == ["done", "done"]
