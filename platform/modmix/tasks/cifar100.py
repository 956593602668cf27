"""The task ``cifar100``: photographs of 32×32 pixels in 100 classes.

Krizhevsky (2009), the official release for Python, read by torchvision: 50,000 training and 10,000
test images with their fine labels. Validation is drawn from the training rows, class by class.
Images stay bytes; models see (x − m) / 255, where m is the mean image of the training split.

The files are pickles, which can run code when they are read. So only the official ones are read:
those whose MD5 torchvision knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import Augmentation, Input
from modmix.tasks.download import fetch
from modmix.tasks.files import Progress, Source, data_home, locked
from modmix.tasks.splits import stratified
from modmix.tasks.writer import Writer, input_file, labels_file

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
BYTES = 169_001_437
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"

FOLDER = "cifar-100-python"
FILES = ("train", "test", "meta")
INPUT = "image"
AUGMENTATION = Augmentation(pad=2, flip=True)

Images = npt.NDArray[np.uint8]  # (N, 32, 32, 3)
Labels = npt.NDArray[np.int64]  # (N,)


class Cifar100(Task):
    name: ClassVar[str] = "cifar100"

    def sources(self) -> tuple[Source, ...]:
        mend = "run `modmix data get cifar100`"
        if self.options["path"] is not None:
            mend = f"the option `path` must be the official folder {FOLDER} or one that holds it"
        return tuple(Source(path=self._root() / FOLDER / name, mend=mend) for name in FILES)

    def _root(self) -> Path:
        """The folder that holds `FOLDER`."""
        if self.options["path"] is None:
            return data_home() / "downloads" / "cifar100"
        path = Path(self.options["path"])
        is_it = path.name == FOLDER and not (path / FOLDER).is_dir()
        return path.parent if is_it else path

    def get(self, progress: Progress) -> list[Path]:
        if self.options["path"] is not None:
            return []
        from torchvision.datasets.utils import extract_archive

        root, sources = self._root(), self.sources()
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        with locked(root / FOLDER, progress):
            if any(_problem(source.path) for source in sources):
                archive = Source(
                    path=root / f"{FOLDER}.tar.gz", mend="", bytes=BYTES, sha256=SHA256
                )
                extract_archive(fetch(URL, archive, progress), root)
        return [source.path for source in sources]

    def augmentation(self) -> Mapping[str, Augmentation]:
        return {INPUT: AUGMENTATION} if self.options["augment"] else {}

    def write(self, writer: Writer, progress: Progress) -> Contents:
        for source in self.sources():
            if (problem := _problem(source.path)) is not None:
                raise DataError(f"{source.path}: {problem}; {source.mend}")
        train_NHWC, train_N, class_names = self._read(train=True)
        test_NHWC, test_N, _ = self._read(train=False)
        rows, seed = self.options["val_rows"], self.options["split_seed"]
        val_N = stratified(train_N, rows, seed, "cifar100", "val")
        writer.content("class_names", list(class_names))
        for name, values in (
            ("train", train_NHWC),
            ("train_labels", train_N),
            ("val", val_N),
            ("test", test_NHWC),
            ("test_labels", test_N),
        ):
            writer.content(name, values)
        splits = {
            "train": (train_NHWC[~val_N], train_N[~val_N]),
            "val": (train_NHWC[val_N], train_N[val_N]),
            "test": (test_NHWC, test_N),
        }
        done = 0
        for split, (images, labels) in splits.items():
            writer.put(input_file(split, INPUT), images, np.uint8)
            writer.put(labels_file(split), labels, np.int64)
            progress("write", done := done + len(labels), len(train_N) + len(test_N))
        return Contents(
            inputs=(_described(splits["train"][0]),),
            class_names=class_names,
            rows={split: len(labels) for split, (_, labels) in splits.items()},
        )

    def _read(self, *, train: bool) -> tuple[Images, Labels, tuple[str, ...]]:
        """Images and fine labels of an official split, and the names of the classes."""
        from torchvision.datasets import CIFAR100

        with warnings.catch_warnings():  # some NumPy versions warn of types in old pickles
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            given: Any = CIFAR100(self._root(), train=train, download=False)
        return given.data, np.asarray(given.targets, dtype=np.int64), tuple(given.classes)


def _described(train_NHWC: Images) -> Input:
    """The input, with the mean image of the training rows."""
    return Input(
        name=INPUT,
        shape=train_NHWC.shape[1:],
        kind="image",
        dtype="uint8",
        mean=train_NHWC.mean(0, dtype=np.float64).astype(np.float32),
        scale=np.full(train_NHWC.shape[-1], 255, dtype=np.float32),
    )


def _problem(path: Path) -> str | None:
    """Why a file is not the official one by torchvision's checksums, as a clause, or None."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import calculate_md5, check_integrity

    official = dict([*CIFAR100.train_list, *CIFAR100.test_list])
    official[CIFAR100.meta["filename"]] = CIFAR100.meta["md5"]
    expected = official[path.name]
    if check_integrity(path, expected):
        return None
    came = calculate_md5(path) if path.is_file() else "nothing"
    return f"the official file has md5 {expected}, this one {came}, and no other pickle is read"
