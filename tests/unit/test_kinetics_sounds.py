"""The task ``kinetics_sounds``: lists, files found wherever they are, and their sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mediafiles import BLUE, GREEN, RED, sine, write_video, write_wav
from modmix.base.errors import DataError
from modmix.tasks.base import load_task, make_task
from modmix.tasks.kinetics_sounds import KineticsSounds
from modmix.tasks.media import Listed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def lists(folder: Path, **lines: list[str]) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    options = {}
    for split, rows in lines.items():
        path = folder / f"{split}.csv"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
        options[f"{split}_list"] = str(path)
    return options


def listed(path: Path, **options: Any) -> Listed:
    task = make_task("kinetics_sounds", {"path": str(path), **options})
    assert isinstance(task, KineticsSounds)
    return task.listed()


TRAIN = [
    "aaaaaaaaaaa_000010_000020,10,playing organ",
    "bb_12_bb_34_000000,10,tap dancing",  # an identifier with numbers
    "ccccccccccc_7,10,playing organ",
    'ddddddddddd_000123_000133,10,"blowing, with noise"',
    "eeeeeeeeeee_000123_000133,10,blowing, with noise",
]
TEST = ["fffffffffff_000001,10,tap dancing", "ggggggggggg_000001_000011,10,playing organ"]


def test_clips_are_found_wherever_they_are(tmp_path: Path) -> None:
    root = tmp_path / "clips"
    for name in (
        "aaaaaaaaaaa_000010_000020.mp4",
        "train/tap dancing/bb_12_bb_34_000000_000010.mkv",
        "train/playing organ/ccccccccccc_000007_000017.MP4",
        "audio/ccccccccccc_000007_000017.wav",
        "deep/er/ddddddddddd_123.webm",
        "eeeeeeeeeee_000123_000133.mp4",
        "eeeeeeeeeee_000999_001009.mp4",  # another part of the video
        "notes.txt",
        "zzzzzzzzzzz_000001_000011.mp4",
    ):
        touch(root / name)
    options = lists(tmp_path / "lists", train=TRAIN, val=TEST[:1], test=TEST[1:])
    found = listed(root, **options)
    assert found.class_names == ("blowing, with noise", "playing organ", "tap dancing")
    assert [(i.files, i.label, i.split) for i in found.items] == [
        (("aaaaaaaaaaa_000010_000020.mp4",), 1, "train"),
        (("train/tap dancing/bb_12_bb_34_000000_000010.mkv",), 2, "train"),
        (
            (
                "train/playing organ/ccccccccccc_000007_000017.MP4",
                "audio/ccccccccccc_000007_000017.wav",
            ),
            1,
            "train",
        ),
        (("deep/er/ddddddddddd_123.webm",), 0, "train"),
        (("eeeeeeeeeee_000123_000133.mp4",), 0, "train"),
        (("fffffffffff_000001.mp4",), 2, "val"),  # missing: named as in the list
        (("ggggggggggg_000001_000011.mp4",), 1, "test"),
    ]


def test_validation_is_drawn_from_training(tmp_path: Path) -> None:
    rows = [f"{n:011}_000000,10,{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "clips").mkdir()
    options = lists(tmp_path / "lists", train=rows, test=["ccccccccccc_1,10,a"])
    found = listed(tmp_path / "clips", **options)
    val = [i for i in found.items if i.split == "val"]
    assert sorted(i.label for i in val) == [0, 0, 1, 1]
    assert [i.files for i in found.items[:-1]] == [(f"{n:011}_000000.mp4",) for n in range(40)]
    more = listed(tmp_path / "clips", **options, val_fraction=0.5)
    assert sum(i.split == "val" for i in more.items) == 20
    assert listed(tmp_path / "clips", **options, split_seed=1) != found


def test_clips_of_a_video_are_not_in_training_and_in_validation(tmp_path: Path) -> None:
    rows = [
        f"{n // 4:011}_{start}_{start + 10},10,{'ab'[n // 2 % 2]}"
        for n in range(80)
        for start in [10 * (n % 2)]  # two lines a clip, two clips a video
    ]
    (tmp_path / "clips").mkdir()
    options = lists(tmp_path / "lists", train=rows, test=["ccccccccccc_1,10,a"])
    found = listed(tmp_path / "clips", **options).items
    videos = {s: {i.files[0][:11] for i in found if i.split == s} for s in ("train", "val")}
    assert videos["val"]
    assert not videos["val"] & videos["train"]
    assert len(found) == 81


@pytest.mark.parametrize(
    "line", ["aaaaaaaaaaa_1", "aaaaaaaaaaa_1,10", "a,b,c", "youtube_id,time,", "../a,10,b"]
)
def test_wrong_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "clips").mkdir()
    options = lists(tmp_path / "lists", train=[*TRAIN, line], test=TEST)
    with pytest.raises(DataError) as caught:
        listed(tmp_path / "clips", **options)
    assert str(caught.value).startswith(
        f"{options['train_list']}: line 6 must be ID_START,10,LABEL, got {line!r}; correct"
    )


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    options = lists(tmp_path / "lists", train=TRAIN, test=TEST)
    with pytest.raises(DataError, match=r"none: must be a folder with the clips of Kinetics-Soun"):
        load_task("kinetics_sounds", {"path": str(tmp_path / "none"), **options})


@pytest.mark.slow
def test_frames_and_sound(tmp_path: Path) -> None:
    root = tmp_path / "clips"
    settings: dict[str, Any] = {"codec": "mpeg4", "sound": "aac", "seconds_each": 3}
    names = ["aaaaaaaaaaa_000010_000020", "bbbbbbbbbbb_000010_000020", "ccccccccccc_000010_000020"]
    for n, name in enumerate(names):
        write_video(root / f"{name}.mp4", frequency=1000 * (n + 1), **settings)
    write_wav(root / f"{names[2]}.wav", np.stack([sine(5000, 11, 44_100)] * 2, 1), 44_100)
    rows = [f"{name},10,{label}" for name, label in zip(names, "xyx", strict=True)]
    options = lists(tmp_path / "lists", train=rows[:1], val=rows[1:2], test=rows[2:])
    data = load_task(
        "kinetics_sounds", {"path": str(root), "size": 16, "standardise": False, **options}
    )
    assert data.shapes == {"audio": (257, 1004, 1), "video": (3, 16, 16, 3)}
    assert [split.labels.tolist() for split in data.splits.values()] == [[0], [1], [0]]
    for split, peak in zip(data.splits.values(), (32, 64, 160), strict=True):
        colours = split.inputs["video"][0].astype(int).mean((1, 2))
        np.testing.assert_allclose(colours, [RED, GREEN, BLUE], atol=14)
        found = split.inputs["audio"][0, ..., 0].astype(np.float32).argmax(0)
        assert np.median(found) == peak
