"""The task ``ave``: small videos in the official layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mediafiles import BLUE, GREEN, RED, write_video
from modmix.base.errors import DataError
from modmix.tasks.ave import Ave
from modmix.tasks.base import load_task, make_task
from modmix.tasks.media import Listed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


HEADER = "Category&VideoID&Quality&StartTime&EndTime"
SPEECH = "Female speech, woman speaking"
ROWS = {
    "train": [
        HEADER,
        "Truck&aaaaaaaaaaa&good&0&3",
        f"{SPEECH}&-bb_b-bbbb_&good&1&2",
        "Truck&-bb_b-bbbb_&good&2&3",  # another event of the same video
    ],
    "val": ["\ufeffTruck&cccccccccc1&good&1&3"],
    "test": [f"{SPEECH}&cccccccccc1&good&0&1", "Truck&aaaaaaaaaaa&good&1&3"],
}


def write_lists(folder: Path, rows: dict[str, list[str]] = ROWS) -> Path:
    (folder / "AVE").mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        (folder / f"{split}Set.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def listed(folder: Path) -> Listed:
    task = make_task("ave", {"path": str(folder)})
    assert isinstance(task, Ave)
    return task.listed()


def test_rows_of_the_lists(tmp_path: Path) -> None:
    found = listed(write_lists(tmp_path / "set"))
    assert found.class_names == (SPEECH, "Truck")
    rows = [(i.split, i.files, i.label, i.start, i.end) for i in found.items]
    assert rows == [
        ("train", ("AVE/aaaaaaaaaaa.mp4",), 1, 0, 3),
        ("train", ("AVE/-bb_b-bbbb_.mp4",), 0, 1, 2),
        ("train", ("AVE/-bb_b-bbbb_.mp4",), 1, 2, 3),
        ("val", ("AVE/cccccccccc1.mp4",), 1, 1, 3),
        ("test", ("AVE/cccccccccc1.mp4",), 0, 0, 1),
        ("test", ("AVE/aaaaaaaaaaa.mp4",), 1, 1, 3),
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("Truck&a&good&3&3", "Truck&a&good&0", "Truck&a&good&x&3", "Truck a good 0 3", HEADER),
        *("Truck&a&good&0&inf", "Truck&a&good&nan&3", "Truck&../a&good&0&3", "Truck&&good&0&3"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str) -> None:
    folder = write_lists(tmp_path / "set", {**ROWS, "val": [*ROWS["val"], line]})
    with pytest.raises(DataError) as caught:
        listed(folder)
    assert str(caught.value).startswith(
        f"{folder / 'valSet.txt'}: line 2 must be Category&VideoID&Quality&Start&End with a start "
        f"before the end, got {line!r}"
    )


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trainSet\.txt: a data file must be here, found nothing"):
        load_task("ave", {"path": str(tmp_path)})
    folder = write_lists(tmp_path / "set")
    with pytest.raises(DataError, match=r"files of 6 of 6 items are missing, such as AVE/-bb_b-bb"):
        load_task("ave", {"path": str(folder)})
    (folder / "AVE").rmdir()
    with pytest.raises(DataError, match=r"AVE: must be a folder; set `path` to the folder of the"):
        load_task("ave", {"path": str(folder)})


@pytest.mark.slow
def test_events_have_frames_and_sound_of_their_time(tmp_path: Path) -> None:
    folder = write_lists(tmp_path / "set")
    settings: dict[str, Any] = {"codec": "mpeg4", "sound": "aac", "rate": 22_050, "layout": "mono"}
    for name, frequency in (("aaaaaaaaaaa", 1000), ("-bb_b-bbbb_", 2000), ("cccccccccc1", 3000)):
        write_video(folder / "AVE" / f"{name}.mp4", frequency=frequency, **settings)
    data = load_task("ave", {"path": str(folder), "size": 16, "standardise": False})
    assert data.shapes == {"audio": (257, 1004, 1), "video": (4, 16, 16, 3)}
    assert [split.labels.tolist() for split in data.splits.values()] == [[1, 0, 1], [1], [0, 1]]
    expected = {
        "train": [[RED, GREEN, GREEN, BLUE], [GREEN] * 4, [BLUE] * 4],
        "val": [[GREEN, GREEN, BLUE, BLUE]],
        "test": [[RED] * 4, [GREEN, GREEN, BLUE, BLUE]],
    }
    # The moments of 4 frames in 3 s: 0.375, 1.125, 1.875 and 2.625 s.
    bins = {"train": [32, 64, 64], "val": [96], "test": [96, 32]}
    for split, given in data.splits.items():
        colours = given.inputs["video"].astype(int).mean((2, 3))
        np.testing.assert_allclose(colours, expected[split], atol=14)
        peaks = given.inputs["audio"][..., 0].astype(np.float32).argmax(1)
        assert np.median(peaks, axis=1).tolist() == bins[split]
        # Tiled: no silence follows, but for what the encoder puts before the sound.
        assert (given.inputs["audio"][..., 0].max(1) < -12).mean() < 0.1
