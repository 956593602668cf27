"""The task ``ucf101`` on trees in the official layout, with colours and flows known by frame."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modmix.base.errors import DataError
from modmix.tasks.base import load_task, make_task, prepare_task
from modmix.tasks.data import Augmentation
from modmix.tasks.media_decode import Item
from modmix.tasks.media_read import Unreadable, middle_pixels
from modmix.tasks.ucf101 import clip_frames
from modmix.tasks.ucf101_lists import Video, read_classes, read_videos, validation_videos
from modmix.training.batches import Examples

CLASSES = ("Archery", "HandstandPushups", "YoYo")
SIZES = {"frames": 4, "size": 20, "stored": 24}
LENGTH = 9  # frames of a video


def colour(frame: int) -> tuple[int, int, int]:
    return 10 * frame, 200 - 10 * frame, 90


def flow(frame: int) -> dict[str, int]:
    return {"u": 128 + 10 * frame, "v": 127 - 10 * frame}


def make_video(
    root: Path, name: str, length: int = LENGTH, size: tuple[int, int] = (34, 26)
) -> None:
    """Frames of one colour; size is (width, height)."""
    for folder in ("jpegs_256", "tvl1_flow/u", "tvl1_flow/v"):
        (root / folder / name).mkdir(parents=True)
    for frame in range(1, length + 1):
        file = f"{name}/frame{frame:06}.jpg"
        Image.new("RGB", size, colour(frame)).save(root / "jpegs_256" / file, quality=95)
        for kind, value in flow(frame).items():
            Image.new("L", size, value).save(root / "tvl1_flow" / kind / file, quality=95)


def spelt(name: str, *, on_disk: bool) -> str:
    """The official lists have HandStandPushups in the videos' names, the frames have not."""
    return name if on_disk else name.replace("v_Handstand", "v_HandStand")


def names(name: str, groups: Iterable[int]) -> list[str]:
    return [f"v_{name}_g{g:02}_c{c:02}" for g in groups for c in (1, 2)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Groups 1 and 2 are test, 8 to 11 training; lists with a BOM and with Windows line ends."""
    root = tmp_path / "ucf"
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    rows = "".join(f"{n} {name}\r\n" for n, name in enumerate(CLASSES, start=1))
    (lists / "classInd.txt").write_text(rows, encoding="utf-8-sig", newline="")
    training, testing = "", ""
    for number, name in enumerate(CLASSES, start=1):
        for video in names(name, range(8, 12)):
            make_video(root, video)
            training += f"{name}/{spelt(video, on_disk=False)}.avi {number}\r\n"
        for video in names(name, (1, 2)):
            make_video(root, video)
            testing += f"{name}/{spelt(video, on_disk=False)}.avi\n"
    (lists / "trainlist01.txt").write_text(training, encoding="utf-8", newline="")
    (lists / "testlist01.txt").write_text(f"{testing}\n\n", encoding="utf-8-sig")
    return root


def items(root: Path, **options: Any) -> tuple[Item, ...]:
    task = make_task("ucf101", {"path": str(root), **SIZES, **options})
    return task.listed().items  # type: ignore[attr-defined, no-any-return]


# ---------------------------------------------------------------- lists


def test_lists_give_labels_and_folders(root: Path) -> None:
    found = items(root)
    assert [sum(i.split == s for i in found) for s in ("train", "val", "test")] == [18, 6, 12]
    tested = [item for item in found if item.split == "test"]
    assert [item.label for item in tested] == [0] * 4 + [1] * 4 + [2] * 4
    assert tested[4].files == tuple(
        f"{folder}/v_HandstandPushups_g01_c01"
        for folder in ("jpegs_256", "tvl1_flow/u", "tvl1_flow/v")
    )
    assert all((root / file).is_dir() for item in found for file in item.files)


def test_lists_may_lie_beside_the_frames(root: Path) -> None:
    before = items(root)
    for path in (root / "ucfTrainTestlist").iterdir():
        path.rename(root / path.name)
    (root / "ucfTrainTestlist").rmdir()
    assert items(root) == before


def test_another_spelling_on_the_disk(root: Path) -> None:
    for folder in ("jpegs_256", "tvl1_flow/u"):
        there = root / folder / "v_HandstandPushups_g01_c01"
        there.rename(there.with_name("v_HandStandPushups_g01_c01"))
    (item,) = [i for i in items(root) if i.files[0].endswith("HandStandPushups_g01_c01")]
    assert item.files[2] == "tvl1_flow/v/v_HandstandPushups_g01_c01"
    assert all((root / file).is_dir() for file in item.files)


def test_no_group_is_in_training_and_in_validation(root: Path) -> None:
    def groups(split: str, **options: Any) -> set[str]:
        found = [i.files[0] for i in items(root, **options) if i.split == split]
        assert len(found) == len(set(found))
        return {name.rpartition("_")[0] for name in found}

    assert not groups("train") & groups("val")
    assert len(groups("train")) == 9
    assert len(groups("val")) == 3  # one of four groups of each class
    assert groups("val") == groups("val")
    assert any(groups("val") != groups("val", split_seed=seed) for seed in (1, 2, 3))
    assert len(groups("val", val_fraction=0.5)) == 6
    assert len(groups("val", val_fraction=0.9)) == 9  # one group of each class is left


def test_a_video_in_both_lists(root: Path) -> None:
    path = root / "ucfTrainTestlist" / "testlist01.txt"
    path.write_text(f"{path.read_text()}HandstandPushups/v_handstandpushups_g09_c02.avi\n")
    with pytest.raises(DataError, match=r"no videos of the training list, has 1, such as v_handst"):
        items(root)


def test_validation_needs_two_groups() -> None:
    videos = [Video(name=f"v_A_g01_c0{c}", label=0, group=1) for c in range(5)]
    with pytest.raises(DataError, match=r"groups \(gNN\) of classes that have two or more"):
        validation_videos(videos, ["A"], 0.5, 0)


@pytest.mark.parametrize(
    ("line", "came"),
    [
        ("Archery/v_Archery_g08_c01.avi 2", "line 2 .* got 'Archery/v_Archery_g08_c01.avi 2'"),
        ("Rowing/v_Rowing_g08_c01.avi 1", "must be a class of classInd.txt, a slash and v_NAME"),
        ("v_Archery_g08_c01.avi", "with or without the number of the class, got 'v_Arch"),
        ("Archery/Archery.avi", "use the official file"),
        ("YoYo/v_YoYo_g01_c01.avi 3", "lists v_YoYo_g01_c01 twice"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, came: str) -> None:
    path = tmp_path / "trainlist01.txt"
    path.write_text(f"YoYo/v_YoYo_g01_c01.avi 3\n{line}\n")
    with pytest.raises(DataError, match=came):
        read_videos(path, CLASSES)


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("1 Archery\n3 YoYo\n", "line 2 must be 2 and the name of a class, got '3 YoYo'"),
        ("1 Apply Eye\n", "line 1 must be 1 and the name of a class"),
        ("1 Archery\n", "must name at least 2 classes, got 1"),
    ],
)
def test_wrong_classes_are_named(tmp_path: Path, text: str, came: str) -> None:
    path = tmp_path / "classInd.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=came):
        read_classes(path)


# ---------------------------------------------------------------- clips


def decode(root: Path, item: Item, **options: Any) -> dict[str, Any]:
    task = make_task("ucf101", {"path": str(root), **SIZES, **options})
    return dict(task.decode(item))  # type: ignore[attr-defined]


def check_clip(found: dict[str, Any], first: int, frames: int) -> None:
    """The clip begins with frame ``first``, counted from 1; JPEG changes colours a little."""
    assert found["rgb"].shape == (24, 24, 3)
    assert found["flow"].shape == (24, 24, 2 * frames)
    assert found["rgb"].dtype == found["flow"].dtype == np.uint8
    np.testing.assert_allclose(found["rgb"][3, 4], colour(first + frames // 2), atol=3)
    expected = [flow(first + i)[kind] for i in range(frames) for kind in ("u", "v")]
    np.testing.assert_allclose(found["flow"][3, 4], expected, atol=2)


def test_the_middle_clip_of_a_test_video(root: Path) -> None:
    item = items(root)[-1]
    check_clip(decode(root, item), first=3, frames=4)  # 9 frames: 3, 4, 5, 6
    check_clip(decode(root, item, frames=9), first=1, frames=9)
    check_clip(decode(root, item, frames=1), first=5, frames=1)


def test_several_clips_of_a_training_video(root: Path) -> None:
    found = items(root, clips=3)
    assert [sum(i.split == s for i in found) for s in ("train", "val", "test")] == [54, 6, 12]
    clips = [item for item in found if item.split == "train"][:3]
    assert len({item.files for item in clips}) == 1
    for item, first in zip(clips, (1, 3, 5), strict=True):  # of the 6 possible ones: 0, 2, 4
        check_clip(decode(root, item, clips=3), first=first, frames=4)


def test_clips_are_of_frames_that_all_folders_have(tmp_path: Path) -> None:
    for name, numbers in (("a", range(1, 12)), ("b", range(1, 11)), ("c", range(2, 13))):
        (tmp_path / name).mkdir()
        for n in numbers:
            (tmp_path / name / f"frame{n:06}.jpg").touch()
    folders = tuple(tmp_path / name for name in "abc")  # frames 2 to 10
    middle = [f"frame{n:06}.jpg" for n in (5, 6, 7)]
    assert clip_frames(folders, 3, 0, 1) == middle
    assert clip_frames(folders, 3, 0, 100)[0] == "frame000002.jpg"
    assert clip_frames(folders, 3, 99, 100)[0] == "frame000007.jpg"
    with pytest.raises(Unreadable, match="a: has 9 frames with u and v, 10 are needed"):
        clip_frames(folders, 10, 0, 1)
    with pytest.raises(Unreadable, match="d: there is no such folder"):
        clip_frames((tmp_path / "d",), 1, 0, 1)


def test_the_middle_of_a_frame_is_stored(tmp_path: Path) -> None:
    place = np.arange(26 * 7, dtype=np.uint8).reshape(7, 26)
    Image.fromarray(place).save(tmp_path / "x.png")
    np.testing.assert_array_equal(
        middle_pixels(tmp_path / "x.png", 4, "L")[..., 0], place[1:5, 11:15]
    )
    with pytest.raises(Unreadable, match=r"x\.png: has 26 x 7 pixels, 8 x 8 are needed"):
        middle_pixels(tmp_path / "x.png", 8, "L")


# ---------------------------------------------------------------- the whole


def test_options_that_do_not_fit(root: Path) -> None:
    with pytest.raises(DataError, match=r"size \(25\) must be at most stored \(24\)"):
        make_task("ucf101", {"path": str(root), **SIZES, "size": 25}).inputs()  # type: ignore[attr-defined]
    with pytest.raises(
        DataError, match=r"trainlist02\.txt: a data file must be here, found nothing"
    ):
        prepare_task("ucf101", {"path": str(root), "split": 2})
    shutil.rmtree(root / "tvl1_flow/v")
    with pytest.raises(DataError, match="tvl1_flow/v: must be a folder of folders of frames"):
        items(root)


def test_augmentation_negates_u_where_it_mirrors(root: Path) -> None:
    task = make_task("ucf101", {"path": str(root), **SIZES})
    assert task.augmentation() == {
        "rgb": Augmentation(shift=True, flip=True),
        "flow": Augmentation(shift=True, flip=True, negate=(0, 2, 4, 6)),
    }
    plain = make_task("ucf101", {"path": str(root), **SIZES, "augment": False})
    assert plain.augmentation() == {}


@pytest.mark.slow
def test_the_prepared_arrays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged items are named and left out; the others have these values, labels and windows."""
    rgb, u, v = root / "jpegs_256", root / "tvl1_flow/u", root / "tvl1_flow/v"
    (rgb / "v_Archery_g01_c01/frame000005.jpg").write_bytes(b"not a picture")
    truncated = u / "v_Archery_g02_c01/frame000004.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    shutil.rmtree(v / "v_YoYo_g01_c01")
    for frame in range(4, LENGTH + 1):
        (u / f"v_YoYo_g02_c02/frame{frame:06}.jpg").unlink()
    shutil.rmtree(rgb / "v_YoYo_g02_c01")
    shutil.rmtree(u / "v_YoYo_g02_c01")
    shutil.rmtree(v / "v_YoYo_g02_c01")
    make_video(root, "v_YoYo_g02_c01", size=(34, 20))
    options = {"path": str(root), **SIZES}
    with pytest.raises(DataError, match="5 of 36 items of task ucf101 cannot be read"):
        prepare_task("ucf101", options)
    options["max_unreadable"] = 0.2
    with pytest.raises(DataError, match="5 of 12 items of the test split of task ucf101 cannot be"):
        prepare_task("ucf101", options)
    options["max_unreadable"] = 0.5
    with caplog.at_level(logging.WARNING):
        data = load_task("ucf101", options)
    assert "5 of 36 items of task ucf101 cannot be read" in caplog.text
    folder = prepare_task("ucf101", options)
    lines = (folder / "unreadable.txt").read_text().splitlines()
    reasons = dict(line.split("\t") for line in lines)
    assert sorted(name.rpartition("/")[2] for name in reasons) == [
        *("v_Archery_g01_c01", "v_Archery_g02_c01"),
        *("v_YoYo_g01_c01", "v_YoYo_g02_c01", "v_YoYo_g02_c02"),
    ]
    for name, reason in (
        ("v_Archery_g01_c01", "frame000005.jpg: cannot identify image file"),
        ("v_Archery_g02_c01", "frame000004.jpg: "),
        ("v_YoYo_g01_c01", "v/v_YoYo_g01_c01: there is no such folder"),
        ("v_YoYo_g02_c01", "has 34 x 20 pixels, 24 x 24 are needed"),
        ("v_YoYo_g02_c02", "has 3 frames with u and v, 4 are needed"),
    ):
        assert reason in reasons[f"jpegs_256/{name}"]
    assert data.class_names == CLASSES
    assert {name: split.rows for name, split in data.splits.items()} == {
        "train": 18, "val": 6, "test": 7,
    }  # fmt: skip
    assert data.test.labels.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert data.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for row in range(7):
        check_clip({name: data.test.inputs[name][row] for name in ("rgb", "flow")}, 3, 4)

    examples = Examples(data, "test", ["rgb", "flow"], torch.device("cpu"))
    ((seen, _),) = examples.chunks(100)
    assert seen["rgb"].shape == (7, 20, 20, 3)
    assert seen["flow"].shape == (7, 20, 20, 8)
    expected = (np.array(colour(5)) - [106.46, 101.47, 93.22]) / [68.28, 66.41, 67.59]
    np.testing.assert_allclose(seen["rgb"][0, 2, 3], expected, atol=3 / 66)
    assert float(seen["flow"][0, 2, 3, 0]) == pytest.approx(158 - 127.5, abs=2)

    training = Examples(data, "train", ["flow"], torch.device("cpu"))
    index = torch.arange(18).unsqueeze(0)
    moved = training.prepare(training.take(index).inputs, index, torch.tensor([7]))["flow"][0]
    u_N, v_N = moved[:, 5, 5, 0], moved[:, 5, 5, 1]
    assert set(u_N.sign().tolist()) == {-1, 1}  # mirrored or not
    np.testing.assert_allclose(u_N.abs(), 158 - 127.5, atol=2)
    np.testing.assert_allclose(v_N, 97 - 127.5, atol=2)

    same = prepare_task("ucf101", {**options, "augment": False, "max_unreadable": 0.45})
    assert same == folder
    message = (
        "5 of 12 items of the test split of task ucf101 could not be read when they were prepared; "
        f"{folder / 'unreadable.txt'} lists them; repair the files and delete its folder, or set "
        "`max_unreadable` (now 0.4 of the items of any split) higher"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        prepare_task("ucf101", {**options, "max_unreadable": 0.4})
    copied = root.with_name("copy")
    root.rename(copied)
    assert load_task("ucf101", {**options, "path": str(copied)}).fingerprint == data.fingerprint
