"""The task ``cremad``: small clips in the official layout, with what goes wrong in the real set."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mediafiles import BLUE, GREEN, RED, sine, write_video, write_wav
from modmix.base.errors import DataError
from modmix.base.settings import TRAINING
from modmix.tasks.base import describe_task, get_task, load_task, make_task
from modmix.tasks.clips import IMAGENET_MEAN, IMAGENET_SCALE
from modmix.tasks.cremad import CremaD
from modmix.tasks.data import Augmentation, Data
from modmix.tasks.media_decode import Item
from modmix.tasks.table import TASKS, default_encoders

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
SMALL = {"size": 16, "test_actors": 1, "val_actors": 1}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def stems(actors: int, sentences: tuple[str, ...] = ("DFA",)) -> list[str]:
    return [
        f"{1001 + actor}_{sentence}_{emotion}_XX"
        for actor in range(actors)
        for sentence in sentences
        for emotion in EMOTIONS
    ]


def empty_files(folder: Path, names: list[str]) -> Path:
    """The layout with files that no test reads."""
    for stem in names:
        for name in (f"AudioWAV/{stem}.wav", f"VideoFlash/{stem}.flv"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    return folder


def items(folder: Path, **options: Any) -> list[Item]:
    task = make_task("cremad", {"path": str(folder), **options})
    assert isinstance(task, CremaD)
    found = task.listed()
    assert found.class_names == ("neutral", "happy", "sad", "fear", "disgust", "anger")
    return list(found.items)


def stem(item: Item) -> str:
    return Path(item.files[0]).stem


# ---------------------------------------------------------------- splits


def test_speakers_are_in_one_split_each(tmp_path: Path) -> None:
    folder = empty_files(tmp_path / "set", stems(91, ("DFA", "IEO")))
    (folder / "VideoFlash" / ".DS_Store").touch()
    (folder / "VideoFlash" / "copy of 1001_DFA_NEU_XX.flv").touch()
    found = items(folder)
    assert sorted(map(stem, found)) == sorted(stems(91, ("DFA", "IEO")))
    actors = {split: {stem(i)[:4] for i in found if i.split == split} for split in ("train", "val")}
    actors["test"] = {stem(i)[:4] for i in found if i.split == "test"}
    assert [len(actors[split]) for split in ("train", "val", "test")] == [63, 9, 19]
    assert len(set.union(*actors.values())) == 91
    for item in found:
        assert EMOTIONS[item.label] == stem(item).split("_")[2]
        assert item.files == (f"VideoFlash/{stem(item)}.flv", f"AudioWAV/{stem(item)}.wav")
    assert items(folder) == found
    other = items(folder, split_seed=1)
    assert {stem(i)[:4] for i in other if i.split == "test"} != actors["test"]
    fewer = Counter(i.split for i in items(folder, test_actors=1, val_actors=2))
    assert fewer == {"train": 88 * 12, "val": 2 * 12, "test": 12}


def test_the_clip_with_a_level_of_one_letter(tmp_path: Path) -> None:
    """1040_ITH_SAD_X, one of the 7,442 of the release."""
    names = [*stems(40), "1040_ITH_SAD_X"]
    folder = empty_files(tmp_path / "set", names)
    found = items(folder)
    assert sorted(map(stem, found)) == sorted(names)
    (odd,) = (i for i in found if stem(i) == "1040_ITH_SAD_X")
    assert odd.label == EMOTIONS.index("SAD")
    lists = {
        "train_list": write_list(tmp_path / "train.csv", [*stems(20), "1040_ITH_SAD_X"]),
        "test_list": write_list(tmp_path / "test.csv", stems(40)[120:]),
    }
    assert "1040_ITH_SAD_X" in {stem(i) for i in items(folder, **lists)}


def test_too_few_actors(tmp_path: Path) -> None:
    folder = empty_files(tmp_path / "set", stems(28))
    with pytest.raises(DataError, match=r"clips of more than 28 actors .* found 28; complete it"):
        items(folder)


def write_list(path: Path, names: list[str], start: str = "") -> str:
    lines = [f"{name},{name.split('_')[2]}" for name in names]
    path.write_bytes((start + "\r\n".join(lines) + "\r\n\r\n").encode())
    return str(path)


def test_lists_of_others(tmp_path: Path) -> None:
    names = stems(20)
    folder = empty_files(tmp_path / "set", names)
    train, test = names[::2] + names[1::4], names[3::4]
    lists = {
        "train_list": write_list(tmp_path / "train.csv", train, start="\ufeff"),
        "test_list": write_list(tmp_path / "test.csv", test),
    }
    found = items(folder, **lists)
    assert {stem(i) for i in found if i.split == "test"} == set(test)
    val = [i for i in found if i.split == "val"]
    assert {stem(i) for i in found if i.split == "train"} == set(train) - {stem(i) for i in val}
    assert len(val) == 9  # a tenth of 90, of every class in proportion
    shares = Counter(name.split("_")[2] for name in train)
    for emotion, count in Counter(EMOTIONS[i.label] for i in val).items():
        assert abs(count - shares[emotion] / 10) < 1
    assert items(folder, **lists, split_seed=3) != found
    given = {**lists, "val_list": write_list(tmp_path / "val.csv", names[1::4])}
    lists["train_list"] = given["train_list"] = write_list(tmp_path / "train.csv", names[::2])
    found = items(folder, **given)
    assert {stem(i) for i in found if i.split == "val"} == set(names[1::4])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clip,EMO", "line 2 must be a clip and its emotion, such as 1001_DFA_ANG_XX,ANG, got 'c"),
        ("1001_DFA_ANG_XX", "line 2 must be a clip and its emotion"),
        ("1001_DFA_ANG_XX,HAP", "line 2 must be a clip and its emotion"),
        ("1001_DFA_NEU_XX,NEU", "line 2 must not name a clip again, got 1001_DFA_NEU_XX, which is"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, message: str) -> None:
    folder = empty_files(tmp_path / "set", stems(2))
    (tmp_path / "train.csv").write_text(f"1001_DFA_NEU_XX,NEU\n{line}\n")
    test = write_list(tmp_path / "test.csv", stems(2)[6:])
    with pytest.raises(DataError) as caught:
        items(folder, train_list=str(tmp_path / "train.csv"), test_list=test)
    assert str(caught.value).startswith(f"{tmp_path / 'train.csv'}: {message}")


def test_wrong_paths_and_lists(tmp_path: Path) -> None:
    folder = empty_files(tmp_path / "set", stems(2))
    one = write_list(tmp_path / "a.csv", stems(1))

    def message(path: Path, **options: str) -> str:
        with pytest.raises(DataError) as caught:
            load_task("cremad", {"path": str(path), **options})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "found no AudioWAV; set `path` to the folder that holds both" in message(tmp_path)
    assert "must be given both or neither, got train_list alone" in message(folder, train_list=one)
    assert "got train_list, val_list alone" in message(folder, train_list=one, val_list=one)
    missing = message(folder, train_list=one, test_list=str(tmp_path / "none.csv"))
    assert "none.csv: a data file must be here, found nothing; the list must have" in missing
    with pytest.raises(DataError, match="option 'path' is required: the folder that holds AudioWA"):
        make_task("cremad", {})
    assert describe_task("cremad", {"path": str(tmp_path)}).folder is None
    assert get_task("cremad", {"path": str(tmp_path)}) == []


def test_windows_must_fit(tmp_path: Path) -> None:
    folder = empty_files(tmp_path / "set", stems(30))
    for options in ({"overlap": 512}, {"window": 4096, "seconds": 0.1}):
        with pytest.raises(DataError, match=r"overlap \(\d+\) must be less than window"):
            load_task("cremad", {"path": str(folder), **options})


# ---------------------------------------------------------------- what is decoded


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four actors; the sound's frequency says the emotion: 500 Hz for NEU, 1000 for HAP, …"""
    folder = tmp_path_factory.mktemp("my data") / "CREMA-D"
    for name in stems(4):
        frequency = 500 * (1 + EMOTIONS.index(name.split("_")[2]))
        write_video(folder / "VideoFlash" / f"{name}.flv", sound="libmp3lame", frequency=90)
        write_wav(folder / "AudioWAV" / f"{name}.wav", sine(frequency, 1.5, 16_000))
    return folder


@pytest.fixture
def shared_home(clips: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One data folder for the tests of `clips`."""
    found = clips.parent / "home"
    monkeypatch.setenv("MODMIX_DATA", str(found))
    return found


def load(folder: Path, **options: Any) -> Data:
    return load_task("cremad", {"path": str(folder), **SMALL, **options})


@pytest.mark.slow
def test_frames_and_spectrograms(clips: Path, shared_home: Path) -> None:
    data = load(clips, standardise=False)
    assert data.shapes == {"audio": (257, 299, 1), "video": (3, 16, 16, 3)}
    assert [data.inputs[name].kind for name in data.inputs] == ["image", "video"]
    assert [split.rows for split in data.splits.values()] == [12, 6, 6]
    for split in data.splits.values():
        audio, video = split.inputs["audio"], split.inputs["video"]
        assert (audio.dtype, video.dtype) == (np.float16, np.uint8)
        for n, label in enumerate(split.labels):
            peaks = audio[n, :, :, 0].astype(np.float32).argmax(0)
            # A bin is 16000 / 512 Hz; where the sound is joined to its repetition it may be off.
            assert np.median(peaks) == 16 * (label + 1)
            for frame, colour in zip(video[n], (RED, GREEN, BLUE), strict=True):
                np.testing.assert_allclose(frame.astype(int).mean((0, 1)), colour, atol=12)
    described = data.inputs["video"]
    np.testing.assert_allclose(described.mean, np.multiply((0.485, 0.456, 0.406), 255), rtol=1e-5)
    np.testing.assert_allclose(described.scale, np.multiply((0.229, 0.224, 0.225), 255), rtol=1e-5)
    assert described.mean.tolist() == pytest.approx(IMAGENET_MEAN)
    assert described.scale.tolist() == pytest.approx(IMAGENET_SCALE)


@pytest.mark.slow
def test_standardised_spectrograms(clips: Path, shared_home: Path) -> None:
    data = load(clips)
    raw = load(clips, standardise=False)
    plain = raw.train.inputs["audio"].astype(np.float64)
    for split in data.splits:
        expected = (raw.splits[split].inputs["audio"] - plain.mean()) / plain.std()
        np.testing.assert_allclose(data.splits[split].inputs["audio"], expected, atol=0.01)
    assert data.fingerprint != raw.fingerprint


@pytest.mark.slow
def test_short_sounds_repeat_or_end_in_silence(clips: Path, shared_home: Path) -> None:
    quiet = np.log(1e-7)
    tiled = load(clips, standardise=False).test.inputs["audio"][0, ..., 0]
    padded = load(clips, standardise=False, short_audio="pad").test.inputs["audio"][0, ..., 0]
    np.testing.assert_allclose(padded[:, 160:], quiet, atol=0.01)
    assert (tiled[:, 160:].max(0) > quiet + 5).all()
    np.testing.assert_array_equal(tiled[:, :145], padded[:, :145])


@pytest.mark.slow
def test_what_is_wrong_with_the_real_set(
    clips: Path, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No duration, much too long, cut off, missing, too short: left out by name."""
    folder = tmp_path / "set"
    for part in ("VideoFlash", "AudioWAV"):
        (folder / part).mkdir(parents=True)
        for file in (clips / part).iterdir():
            (folder / part / file.name).write_bytes(file.read_bytes())
    videos, sounds = folder / "VideoFlash", folder / "AudioWAV"
    write_video(videos / "1001_DFA_NEU_XX.flv", codec="mpeg4", container="m4v")
    write_video(videos / "1002_DFA_NEU_XX.flv", seconds_each=20, fps=2)
    (videos / "1003_DFA_NEU_XX.flv").write_bytes(b"FLV" + bytes(200))
    (sounds / "1004_DFA_NEU_XX.wav").unlink()
    write_wav(sounds / "1004_DFA_HAP_XX.wav", sine(500, 0.02, 16_000))
    with pytest.raises(DataError, match=r"5 of 24 items of task cremad cannot be read, such as V"):
        load(folder)
    data = load(folder, max_unreadable=0.25)
    (listed,) = (home / "prepared").glob("*/unreadable.txt")
    reasons = dict(line.split("\t") for line in listed.read_text().splitlines())
    named = {Path(name).stem.removesuffix("_XX"): reason for name, reason in reasons.items()}
    assert set(named) == {f"100{n}_DFA_NEU" for n in (1, 2, 3, 4)} | {"1004_DFA_HAP"}
    assert named["1001_DFA_NEU"].endswith(": has no duration")
    assert named["1002_DFA_NEU"].endswith(": lasts 60.0 s, at most 20 s are expected")
    assert named["1004_DFA_NEU"].endswith("1004_DFA_NEU_XX.wav: No such file or directory")
    assert named["1004_DFA_HAP"].endswith(": has 320 samples of audio, 512 are needed")
    assert sum(split.rows for split in data.splits.values()) == 19
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "5 of 24 items of task cremad" in record.getMessage()
    caplog.clear()
    load(folder, max_unreadable=0.3)  # affects no array
    assert caplog.records == []


def test_augmentation_and_noise(tmp_path: Path) -> None:
    def given(**options: Any) -> dict[str, Augmentation]:
        return dict(make_task("cremad", {"path": str(tmp_path), **options}).augmentation())

    crops = Augmentation(crop=(0.08, 1.0), flip=True)
    assert given() == {"video": crops}
    assert given(augment=False) == {}
    assert given(augment=False, image_noise=0.1) == {"video": Augmentation(noise=0.1)}
    assert given(image_noise=0.1) == {"video": replace(crops, noise=0.1)}
    assert "image_noise" not in {option.name for option in TASKS["ave"].options}


@pytest.mark.slow
def test_noise_is_no_reason_to_prepare_anew(clips: Path, shared_home: Path) -> None:
    plain = load(clips)
    before = sorted((shared_home / "prepared").glob("[0-9a-f]*"))
    noisy = load(clips, image_noise=0.2)
    assert sorted((shared_home / "prepared").glob("[0-9a-f]*")) == before
    assert noisy.augmentation["video"].noise == 0.2
    assert noisy.fingerprint != plain.fingerprint


def test_the_recipe_is_that_of_dimml() -> None:
    recipe = TASKS["cremad"].training
    assert all(TRAINING[name].problem(value) is None for name, value in recipe.items())
    assert (recipe["learning_rate"], recipe["batch_size"], recipe["epochs"]) == (0.001, 16, 150)
    assert default_encoders("cremad", ["audio", "video"]) == {
        "audio": {"name": "resnet18"},
        "video": {"name": "resnet18"},
    }
