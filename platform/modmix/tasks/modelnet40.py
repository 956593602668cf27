"""The task ``modelnet40``: 12,311 objects in 40 classes, from several views.

Wu et al., "3D ShapeNets" (2015), as the shaded images of Su et al.'s "A Deeper Look at 3D Shape
Classifiers" (2018): ``modelnet40_images_new_12x/CLASS/{train,test}/NAME.obj.shaded_v001.png``, to
v012, taken all around the object, 30 degrees apart. Each chosen view is an input. DI-MML (2024)
uses two, front and rear; 1 and 7 are opposite each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.clips import IMAGENET_MEAN, IMAGENET_SCALE
from modmix.tasks.data import Array, Augmentation, Input
from modmix.tasks.media import Listed, MediaTask
from modmix.tasks.media_decode import Item
from modmix.tasks.media_lists import with_validation
from modmix.tasks.media_read import image_pixels

FOLDER = "modelnet40_images_new_12x"
CROP = (0.08, 1.0)
_VIEW = re.compile(r"(?P<object>.+)\.obj\.shaded_v\d{3}\.png")


class ModelNet40(MediaTask):
    """An input (H, W, 3) of bytes by view: ``view1``, ``view7``, …"""

    name: ClassVar[str] = "modelnet40"

    def inputs(self) -> tuple[Input, ...]:
        size = self.options["size"]
        return tuple(
            Input(
                name=name,
                shape=(size, size, 3),
                kind="image",
                dtype="uint8",
                mean=np.array(IMAGENET_MEAN, dtype=np.float32),
                scale=np.array(IMAGENET_SCALE, dtype=np.float32),
            )
            for name in self._views()
        )

    def augmentation(self) -> Mapping[str, Augmentation]:
        if not self.options["augment"]:
            return {}
        return dict.fromkeys(self._views(), Augmentation(crop=CROP, flip=True))

    def listed(self) -> Listed:
        folder = self.root
        class_names = tuple(
            sorted(p.name for p in _entries(folder) if (p / "train").is_dir() and p.is_dir())
        )
        if len(class_names) < 2:
            raise DataError(
                f"{folder}: must hold a folder for each class with the folders train and test, got "
                f"{len(class_names)}; set `path` to {FOLDER} or the folder that holds it"
            )
        items = [
            Item(files=files, label=label, split=split)
            for label, name in enumerate(class_names)
            for split in ("train", "test")
            for files in self._objects(folder / name / split)
        ]
        options = self.options
        chosen = with_validation(items, options["val_fraction"], options["split_seed"], self.name)
        return Listed(items=tuple(chosen), class_names=class_names)

    def decode(self, item: Item) -> Mapping[str, Array]:
        size = self.options["size"]
        return {
            name: image_pixels(self.root / file, size)
            for name, file in zip(self._views(), item.files, strict=True)
        }

    @property
    def root(self) -> Path:
        outer = super().root
        return outer / FOLDER if (outer / FOLDER).is_dir() else outer

    def _objects(self, folder: Path) -> Iterator[tuple[str, ...]]:
        """The files of each object's views, relative to the root, there or not."""
        matches = (_VIEW.fullmatch(path.name) for path in _entries(folder))
        within = folder.relative_to(self.root).as_posix()
        for name in sorted({match["object"] for match in matches if match is not None}):
            yield tuple(f"{within}/{name}.obj.shaded_v{n:03}.png" for n in self._views().values())

    def _views(self) -> dict[str, int]:
        """Number of each view by the name of its input.

        Raises:
            DataError: none, or one twice.
        """
        numbers = self.options["views"]
        if not numbers or len(set(numbers)) < len(numbers):
            raise DataError(
                f"task {self.name}: views must be different numbers from 1 to 12, got {numbers}"
            )
        return {f"view{number}": number for number in numbers}


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror}); correct the option `path`"
        ) from error
