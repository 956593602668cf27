"""The task ``modelnet40`` on trees in the official layout, each view with its own colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modmix.base.errors import DataError
from modmix.tasks.base import load_task, make_task, prepare_task
from modmix.tasks.data import Augmentation
from modmix.tasks.media_decode import Item

CLASSES = ("airplane", "night_stand")
COUNTS = {"train": 8, "test": 3}


def colour(number: int, view: int) -> tuple[int, int, int]:
    return 20 * view, 255 - 20 * view, number


def file(name: str, split: str, number: int, view: int) -> str:
    return f"{name}/{split}/{name}_{number:04}.obj.shaded_v{view:03}.png"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that holds the official one; objects of training are numbered from 1."""
    folder = tmp_path / "data" / "modelnet40_images_new_12x"
    for name in CLASSES:
        first = 1
        for split, count in COUNTS.items():
            (folder / name / split).mkdir(parents=True)
            for number in range(first, first + count):
                for view in range(1, 13):
                    image = Image.new("RGB", (20, 20), colour(number, view))
                    image.save(folder / file(name, split, number, view))
            first += count
    (folder / "readme.txt").touch()
    return folder.parent


def made(root: Path, **options: Any) -> Any:
    return make_task("modelnet40", {"path": str(root), "size": 20, **options})


def test_objects_labels_and_splits(root: Path) -> None:
    listed = made(root).listed()
    assert listed.class_names == CLASSES
    counts = [sum(i.split == s for i in listed.items) for s in ("train", "val", "test")]
    assert counts == [14, 2, 6]  # a tenth of 16 for validation
    tested = [item for item in listed.items if item.split == "test"]
    assert [item.label for item in tested] == [0, 0, 0, 1, 1, 1]
    expected = tuple(file("airplane", "test", 9, view) for view in (1, 7))
    assert tested[0].files == expected
    assert made(root).listed() == listed
    quarter = made(root, val_fraction=0.25)
    assert [i.label for i in quarter.listed().items if i.split == "val"] == [0, 0, 1, 1]
    other = made(root, val_fraction=0.25, split_seed=3)
    assert other.listed() != quarter.listed()


def test_the_official_folder_itself_is_a_path_as_well(root: Path) -> None:
    inner = made(root / "modelnet40_images_new_12x")
    outer = made(root)
    assert inner.listed() == outer.listed()
    assert inner.listing() == outer.listing()  # so that both are prepared only once


def test_views_are_inputs(root: Path) -> None:
    task = made(root, views=[12, 3, 4])
    inputs = {one.name: one for one in task.inputs()}
    assert list(inputs) == ["view12", "view3", "view4"]
    assert inputs["view3"].shape == (20, 20, 3)
    assert (inputs["view3"].kind, inputs["view3"].dtype) == ("image", "uint8")
    np.testing.assert_allclose(inputs["view3"].mean, 255 * np.array([0.485, 0.456, 0.406]), 1e-6)
    np.testing.assert_allclose(inputs["view3"].scale, 255 * np.array([0.229, 0.224, 0.225]), 1e-6)
    item = next(i for i in task.listed().items if i.split == "test")
    found = task.decode(item)
    for view in (12, 3, 4):
        expected = np.broadcast_to(colour(9, view), (20, 20, 3))
        np.testing.assert_array_equal(found[f"view{view}"], expected)


def test_images_are_resized(root: Path) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 200
    path = root / "modelnet40_images_new_12x" / file("airplane", "test", 9, 1)
    Image.fromarray(image).save(path)
    task = made(root)
    item = next(i for i in task.listed().items if i.split == "test")
    found = task.decode(item)["view1"]
    assert found.shape == (20, 20, 3)
    assert found[:, :9].max() == 0
    assert found[:, 11:].min() == 200


def test_augmentation_is_that_of_images(root: Path) -> None:
    settings = Augmentation(crop=(0.08, 1.0), flip=True)
    assert made(root).augmentation() == {"view1": settings, "view7": settings}
    assert made(root, augment=False).augmentation() == {}


@pytest.mark.parametrize("views", [[], [3, 3]])
def test_views_differ(root: Path, views: list[int]) -> None:
    with pytest.raises(DataError, match="views must be different numbers from 1 to 12, got"):
        made(root, views=views).inputs()


def test_wrong_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="option 'views' must be at most 12, got 13"):
        made(root, views=[13])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold a folder for each class with the folders train"):
        made(tmp_path / "empty").listed()
    with pytest.raises(DataError, match=r"nowhere: cannot be read .*; correct the option `path`"):
        made(tmp_path / "nowhere").listed()


@pytest.mark.slow
def test_the_prepared_arrays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = root / "modelnet40_images_new_12x"
    (folder / file("airplane", "test", 9, 7)).unlink()
    broken = folder / file("night_stand", "test", 10, 1)
    broken.write_bytes(broken.read_bytes()[:60])
    options = {"path": str(root), "size": 20, "val_fraction": 0.25, "max_unreadable": 0.4}
    data = load_task("modelnet40", options)
    assert "2 of 22 items of task modelnet40 cannot be read" in caplog.text
    assert {name: split.rows for name, split in data.splits.items()} == {
        "train": 12, "val": 4, "test": 4,
    }  # fmt: skip
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    for view in (1, 7):
        seen = data.test.inputs[f"view{view}"][:, 4, 5]
        np.testing.assert_array_equal(seen, [colour(n, view) for n in (10, 11, 9, 11)])
    lines = (prepare_task("modelnet40", options) / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0].rpartition("/")[2] for line in lines] == [
        "airplane_0009.obj.shaded_v001.png",  # an item is named by its first file
        "night_stand_0010.obj.shaded_v001.png",
    ]


def test_items_are_known_by_any_of_their_views(root: Path) -> None:
    folder = root / "modelnet40_images_new_12x"
    (folder / file("airplane", "test", 9, 1)).unlink()
    listed: tuple[Item, ...] = made(root).listed().items
    assert sum(item.split == "test" for item in listed) == 6
