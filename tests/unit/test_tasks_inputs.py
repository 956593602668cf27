"""Images, sounds and tokens of the task ``arrays``, against numpy and scipy by hand."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modmix.base.errors import DataError
from modmix.tasks.base import check_task, describe_task, load_task, prepare_task
from modmix.tasks.data import Augmentation, Data

REAL = Path(os.environ.get("MODMIX_TEST_DATA", "/nowhere"))
SOUND = {"rate": 8000, "window": 256, "overlap": 128, "mu_law": 255}


def needs(name: str) -> Any:
    return pytest.mark.skipif(not (REAL / name).exists(), reason=f"MODMIX_TEST_DATA has no {name}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))


def load(path: Path, **options: Any) -> Data:
    return load_task("arrays", {"path": str(path), **options})


def save(path: Path, rows: int = 60, **arrays: Any) -> Path:
    """Arrays with labels 0, 1, 2, …; the last third of the rows is test, the one before val."""
    split = np.repeat([0, 1, 2], rows // 3)
    np.savez(path, **{"labels": np.arange(rows) % 3, "split": split, **arrays})
    return path


def meta(path: Path, **options: Any) -> Any:
    folder = prepare_task("arrays", {"path": str(path), **options})
    return json.loads((folder / "meta.json").read_text())


# ---------------------------------------------------------------- images


def test_images_of_bytes_stay_bytes_and_have_a_mean_and_a_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = (rng.random((60, 5, 4, 3)) * [80, 200, 255]).astype(np.uint8)
    images[..., 1] = 7  # a constant channel becomes 0, not NaN
    path = save(tmp_path / "x.npz", image=images)
    data = load(path)
    described = data.inputs["image"]
    assert (described.dtype, described.kind, described.shape) == ("uint8", "image", (5, 4, 3))
    for split, rows in (("train", slice(0, 20)), ("val", slice(20, 40)), ("test", slice(40, 60))):
        stored = data.splits[split].inputs["image"]
        assert isinstance(stored, np.memmap)
        assert stored.dtype == np.uint8
        np.testing.assert_array_equal(stored, images[rows])
    expected = images[:20].reshape(-1, 3).astype(np.float64)
    assert described.mean is not None
    assert described.scale is not None
    assert described.mean.dtype == described.scale.dtype == np.float32
    np.testing.assert_allclose(described.mean, expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(described.scale, [expected.std(0)[0], 1, expected.std(0)[2]], 1e-6)
    plain = load(path, standardise=False).inputs["image"]
    assert plain.mean is not None
    assert plain.scale is not None
    assert (plain.mean.tolist(), plain.scale.tolist()) == ([0, 0, 0], [255, 255, 255])
    assert meta(path)["scaling"] == {}  # a model is given the bytes
    assert meta(path)["inputs"][0]["dtype"] == "uint8"
    assert describe_task("arrays", {"path": str(path)}).inputs == data.inputs


def test_floats_are_standardised_when_they_are_prepared(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(3, 2, (60, 5, 4, 2))
    data = load(save(tmp_path / "x.npz", image=images))
    assert data.inputs["image"].dtype == "float32"
    assert data.inputs["image"].mean is None
    train = images[:20].reshape(-1, 2)
    expected = (images[40:] - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(data.test.inputs["image"], expected, atol=1e-6)
    scaling = meta(tmp_path / "x.npz")["scaling"]["image"]
    np.testing.assert_allclose(scaling["mean"], train.mean(0))
    np.testing.assert_allclose(scaling["scale"], train.std(0))


@needs("cifar100_subset.npz")
@pytest.mark.slow
def test_real_images_with_splits_apart() -> None:
    data = load(REAL / "cifar100_subset.npz")
    with np.load(REAL / "cifar100_subset.npz") as file:
        images, test = file["train_images"], file["test_images"]
        labels, names = file["test_labels"], file["class_names"]
    assert list(data.inputs) == ["images"]
    described = data.inputs["images"]
    assert (described.shape, described.dtype, data.classes) == ((32, 32, 3), "uint8", 100)
    assert data.class_names == tuple(names.tolist())
    assert [split.rows for split in data.splits.values()] == [4800, 1200, 2000]
    np.testing.assert_array_equal(data.test.inputs["images"], test)
    np.testing.assert_array_equal(data.test.labels, labels)
    assert np.bincount(data.train.labels).tolist() == [48] * 100
    train = np.asarray(data.train.inputs["images"])
    both = [*train, *data.val.inputs["images"]]
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in images)
    assert described.mean is not None
    assert described.scale is not None
    np.testing.assert_allclose(described.mean, train.mean((0, 1, 2), dtype=float), rtol=1e-6)
    np.testing.assert_allclose(described.scale, train.std((0, 1, 2), dtype=float), rtol=1e-6)


# ---------------------------------------------------------------- augmentation


def test_augmentation_is_of_the_data_but_not_of_the_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    path = save(tmp_path / "x.npz", image=images, a=rng.normal(size=(60, 2)))
    plain = load(path)
    assert plain.augmentation == {}
    options = {"augment": {"image": {"pad": 2, "flip": True}}}
    data = load(path, **options)
    assert data.augmentation == {"image": Augmentation(pad=2, flip=True)}
    other = load(path, augment={"image": {"pad": 1}})
    assert other.augmentation == {"image": Augmentation(pad=1, flip=False)}
    assert len({plain.fingerprint, data.fingerprint, other.fingerprint}) == 3
    folder = prepare_task("arrays", {"path": str(path), **options})
    assert folder == prepare_task("arrays", {"path": str(path)})
    assert check_task("arrays", {"path": str(path), **options}) == folder
    told = describe_task("arrays", {"path": str(path), **options})
    assert told.fingerprint == data.fingerprint
    with pytest.raises(
        DataError, match="`augment` must name images, got 'a'; the images are: image"
    ):
        load(path, augment={"a": {"pad": 1}})


# ---------------------------------------------------------------- sounds


def test_a_spectrogram_by_hand(tmp_path: Path) -> None:
    """Windows, detrending and densities as scipy documents them, computed with numpy's rfft."""
    rng = np.random.default_rng(0)
    sound = rng.normal(size=(60, 500))
    path = save(tmp_path / "x.npz", audio=sound)
    window, overlap, rate = 64, 24, 100.0
    settings = {"rate": rate, "window": window, "overlap": overlap}
    data = load(path, spectrogram={"audio": settings}, standardise=False)
    ramp = 0.25 * window / 2  # a Tukey window: cosine ramps over a quarter of it, periodic
    place = np.arange(window)
    distance = np.minimum(place, window - place)
    tukey = np.where(distance < ramp, 0.5 * (1 - np.cos(np.pi * distance / ramp)), 1.0)
    starts = range(0, 500 - window + 1, window - overlap)
    frames = np.stack([sound[40:, s : s + window] for s in starts], axis=-1)
    frames = (frames - frames.mean(axis=1, keepdims=True)) * tukey[:, None]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 / (rate * np.square(tukey).sum())
    power[:, 1:-1] *= 2
    described = data.inputs["audio"]
    assert (described.shape, described.kind) == ((33, len(starts), 1), "image")
    assert described.dtype == "float32"
    expected = np.log(power + 1e-7)[..., None]
    np.testing.assert_allclose(data.test.inputs["audio"], expected, rtol=1e-4, atol=1e-4)


def test_mu_law_by_its_definition(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (60, 300), dtype=np.uint8)
    linear = [
        (1 if y >= 0 else -1) * (256.0 ** abs(y) - 1) / 255
        for y in (2 * level / 255 - 1 for level in levels.ravel().tolist())
    ]
    one = load(save(tmp_path / "x.npz", audio=levels), spectrogram={"audio": {"mu_law": 255}})
    sound = np.reshape(linear, levels.shape)
    two = load(save(tmp_path / "y.npz", audio=sound), spectrogram={"audio": {}})
    assert one.shapes == {"audio": (129, 1, 1)}
    np.testing.assert_allclose(one.test.inputs["audio"], two.test.inputs["audio"], atol=1e-5)


@needs("spoken_written_digits.npz")
@pytest.mark.slow
def test_real_sounds_and_images() -> None:
    from scipy.signal import spectrogram

    data = load(REAL / "spoken_written_digits.npz", spectrogram={"audio_mulaw": SOUND})
    with np.load(REAL / "spoken_written_digits.npz") as file:
        arrays = dict(file)
    assert data.shapes == {"audio_mulaw": (129, 30, 1), "image": (28, 28, 1)}
    assert {n: (i.kind, i.dtype) for n, i in data.inputs.items()} == {
        "audio_mulaw": ("image", "float32"),
        "image": ("image", "uint8"),
    }
    assert [split.rows for split in data.splits.values()] == [2160, 540, 300]
    np.testing.assert_array_equal(
        data.test.inputs["image"][..., 0], arrays["image"][arrays["is_test"]]
    )
    y = arrays["audio_mulaw"][arrays["is_test"]] / 127.5 - 1
    sound = np.sign(y) * (np.power(256.0, np.abs(y)) - 1) / 255
    _, _, power = spectrogram(sound, 8000, nperseg=256, noverlap=128)
    raw, found = np.log(power + 1e-7), data.test.inputs["audio_mulaw"][..., 0]
    slope, offset = np.polyfit(raw.ravel(), found.ravel(), 1)  # one mean and one scale for all
    np.testing.assert_allclose(found, slope * raw + offset, atol=1e-4)
    train = np.asarray(data.train.inputs["audio_mulaw"], dtype=np.float64)
    assert abs(train.mean()) < 1e-6
    assert abs(train.std() - 1) < 1e-6
    plain = load(REAL / "spoken_written_digits.npz", inputs=["audio_mulaw"])
    assert plain.inputs["audio_mulaw"].kind == "dense"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {}}, "has no 'a'; it has audio"),
        ({"audio": {"window": 400}}, "window must be at most the 300 samples and longer than its"),
        ({"audio": {"window": 64, "overlap": 64}}, "got window 64 and overlap 64"),
        ({"audio": {"mu_law": 255}}, "must hold whole numbers from 0 to 255 for mu_law: 255, got"),
    ],
)
def test_spectrograms_that_cannot_be(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "x.npz", audio=np.zeros((60, 300)))
    with pytest.raises(DataError, match=message):
        load(path, spectrogram=settings)


def test_levels_below_0_are_none(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", audio=np.full((60, 300), -3, dtype=np.int8))
    with pytest.raises(DataError, match="from 0 to 255 for mu_law: 255, got int8 from -3 to -3"):
        load(path, spectrogram={"audio": {"mu_law": 255}})


# ---------------------------------------------------------------- tokens


def test_ids_with_padding_at_the_end(tmp_path: Path) -> None:
    ids = np.zeros((60, 5), dtype=np.int32)
    for i in range(60):
        ids[i, : i % 6] = np.arange(1, i % 6 + 1) * 70
    path = save(tmp_path / "x.npz", words=ids)
    data = load(path, tokens=["words"])
    described = data.inputs["words"]
    assert (described.kind, described.shape, described.vocabulary) == ("tokens", (5,), 351)
    assert described.dtype == data.test.inputs["words"].dtype == "int16"  # the smallest
    np.testing.assert_array_equal(data.test.inputs["words"], ids[40:])
    assert load(path).inputs["words"].kind == "dense"
    cut = load(path, tokens=["words"], token_length=3)
    np.testing.assert_array_equal(cut.test.inputs["words"], ids[40:, :3])
    assert meta(path, tokens=["words"])["inputs"][0]["vocabulary"] == 351


def test_ids_with_lengths_are_stored_plus_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(0, 9, (60, 4)), rng.integers(0, 5, 60)
    ids[0, 0], lengths[0] = 8, 4
    data = load(save(tmp_path / "x.npz", words=ids, words_lengths=lengths))
    assert list(data.inputs) == ["words"]
    expected = [[*(w + 1 for w in row[:n]), *[0] * (4 - n)] for row, n in zip(ids, lengths)]
    found = np.concatenate([split.inputs["words"] for split in data.splits.values()])
    np.testing.assert_array_equal(found, expected)
    assert data.inputs["words"].vocabulary == 10
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    ("ids", "more", "message"),
    [
        ([[1, 0, 2]], {}, "must have 0 only at the end, as padding, got it before other tokens in"),
        (
            [[-1, 0, 0]],
            {},
            "must hold whole numbers from 0 to be tokens, got -1 or fractions in row",
        ),
        ([[1.5, 0, 0]], {}, "must hold whole numbers from 0 to be tokens"),
        ([[1, 2, 3]], {"words_lengths": np.full(60, 4)}, "lengths must be from 0 to 3, got 4 in"),
        ([[1, 2, 3]], {"words_lengths": np.full(6, 1)}, "its lengths must be one whole number per"),
    ],
)
def test_ids_that_cannot_be_tokens(
    tmp_path: Path, ids: Any, more: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "x.npz", words=np.repeat(ids, 60, axis=0), **more)
    with pytest.raises(DataError, match=message):
        load(path, tokens=["words"])


TEXTS = ["Zoë", "bob", " Al ", "x"]  # training knows the letters of the first three


def by_hand(text: str, alphabet: str, length: int) -> list[int]:
    text = text.strip().lower()[:length]
    ids = [alphabet.index(c) + 2 if c in alphabet else 1 for c in text]
    return ids + [0] * (length - len(ids))


@pytest.mark.parametrize("kind", ["csv", "npz", "bytes"])
def test_text_becomes_lower_case_characters(tmp_path: Path, kind: str) -> None:
    rows = [TEXTS[i % 3] for i in range(20)] + ["Xavier the bob", "Zoé"] * 20
    split = ["train"] * 20 + ["val"] * 20 + ["test"] * 20
    options: dict[str, Any] = {"tokens": ["name"]}
    if kind == "csv":
        path = tmp_path / "x.csv"
        lines = [f"{i % 3},{s},{row}" for i, (s, row) in enumerate(zip(split, rows, strict=True))]
        path.write_text("\n".join(["label,split,first", *lines]), encoding="utf-8")
        options["columns"] = {"name": ["first"]}
    else:
        values = np.array([row.encode() for row in rows] if kind == "bytes" else rows)
        path = save(tmp_path / "x.npz", name=values, split=np.array(split))
    data = load(path, **options)
    described = data.inputs["name"]
    assert (described.kind, described.shape, described.dtype) == ("tokens", (3,), "uint8")
    assert described.vocabulary == 2 + len("abloëz")
    for begin, name in ((0, "train"), (20, "val"), (40, "test")):
        expected = [by_hand(row, "abloz\u00eb", 3) for row in rows[begin : begin + 20]]
        np.testing.assert_array_equal(data.splits[name].inputs["name"], expected)
    assert meta(path, **options)["alphabets"] == {"name": "abloz\u00eb"}
    longer = load(path, **options, token_length=14)
    expected = [by_hand(row, "abloz\u00eb", 14) for row in rows[40:]]
    np.testing.assert_array_equal(longer.test.inputs["name"], expected)


@pytest.mark.parametrize("length", [None, 6])
def test_one_long_text_does_not_set_the_memory_of_all_rows(
    tmp_path: Path, length: int | None
) -> None:
    """An array of all texts would take 500 rows of 100,000 characters, 200 MB."""
    path = tmp_path / "x.csv"
    rows = [f"{i % 2},{'test' if i > 399 else 'train'},name {i % 10}" for i in range(499)]
    path.write_text("\n".join(["label,split,first", *rows, "0,test," + "name" * 25_000]))
    tracemalloc.start()
    try:
        data = load(path, tokens=["t"], columns={"t": ["first"]}, token_length=length)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    assert data.test.rows == 100
    assert data.test.inputs["t"].shape == (100, 6)
    alphabet = " 0123456789aemn"
    np.testing.assert_array_equal(data.test.inputs["t"][-1], by_hand("namena", alphabet, 6))


def test_ids_in_columns_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "label,t1,t2,x\n" + "".join(f"{i % 2},{i + 1},{i % 3},0.5\n" for i in range(40))
    )
    data = load(path, columns={"t": ["t*"], "x": ["x"]}, tokens=["t"])
    found = np.concatenate([split.inputs["t"] for split in data.splits.values()])
    assert sorted(found.tolist()) == [[i + 1, i % 3] for i in range(40)]
    assert data.inputs["t"].vocabulary == 41
    assert data.inputs["x"].kind == "dense"


def test_a_column_of_text_and_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("label,name,x\n" + "0,ab,1\n1,b,2\n" * 20)
    columns = {"t": ["name"], "again": ["name"]}
    data = load(path, columns=columns, tokens=["t", "again"])
    np.testing.assert_array_equal(data.test.inputs["t"], data.test.inputs["again"])
    with pytest.raises(
        DataError, match="column 'name' must be text or numbers, got it in `tokens`"
    ):
        load(path, columns={"t": ["name"], "n": ["x", "name"]}, tokens=["t"])


def test_text_without_any_in_training_is_refused(tmp_path: Path) -> None:
    texts = np.array([""] * 40 + ["x"] * 20)
    with pytest.raises(DataError, match="'name' must have text in the training rows, got none"):
        load(save(tmp_path / "x.npz", name=texts), tokens=["name"])
    with pytest.raises(DataError, match=r"has no 'names' \(did you mean 'name'"):
        load(save(tmp_path / "x.npz", name=texts), tokens=["names"])
