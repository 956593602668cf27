"""What a task hands to the trainer: inputs, splits, labels, and the data's fingerprint.

Arrays are read-only memory maps in the type they are stored in, first axis examples; nothing is
copied by loading. N is the number of examples of a split, M the number of inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError

Kind = Literal["dense", "image", "sequence", "tokens"]
Array = npt.NDArray[Any]

SPLITS = ("train", "val", "test")

_AXES: Mapping[Kind, int] = {"dense": 1, "image": 3, "sequence": 2, "tokens": 1}
# Names of inputs become file names, column prefixes and, joined by "+", names of subsets.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_input_name(name: str, source: str) -> None:
    """Refuse a name that could not be a file name or that a prepared file already has.

    Raises:
        DataError: names ``source`` and what is allowed.
    """
    if not _NAME.fullmatch(name) or name == "labels":
        raise DataError(
            f"{source}: an input's name must be 1 to 64 letters, digits, '_', '-' or '.', begin "
            f"with a letter or a digit and not be 'labels', got {name!r}; rename it"
        )


@dataclass(frozen=True, kw_only=True)
class Input:
    """One array that a task provides: its name, the shape of one example and what it holds.

    ``dense`` is (D,); ``image`` is (H, W, C); ``sequence`` is (T, D); ``tokens`` is (L,).
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "dense"
    dtype: str = "float32"
    """Type of the array, on disk and as it is sent to the device."""

    vocabulary: int | None = None
    """Of tokens: ids are 0 … vocabulary − 1, and 0 is padding at the end."""

    mean: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    scale: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    """(x − mean) / scale is applied on the device to images of integers, by channel (C,) or by
    pixel and channel (H, W, C). Floats are standardised when they are prepared, and have neither.
    """

    def __post_init__(self) -> None:
        assert len(self.shape) == _AXES[self.kind], self
        assert all(size > 0 for size in self.shape), self
        assert (self.kind == "tokens") == (self.vocabulary is not None), self
        assert (self.mean is None) == (self.scale is None), self

    @property
    def size(self) -> int:
        """How many numbers one example has."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of an image in training, applied on the device before normalisation."""

    pad: int = 0
    """Pixels of zeros added on each side, before a random crop of the old size."""

    flip: bool = False
    """Whether to mirror left and right with probability 1/2."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The examples of one split.

    ``inputs`` holds one array (N, *shape) per input, in the task's order and of the input's type;
    ``labels`` is (N,) int64 in 0..classes-1. ``extras`` holds what a task knows beside them, for
    analysis only: the task ``weak`` keeps ``informative``, (N, M) bool.
    """

    inputs: Mapping[str, Array]
    labels: npt.NDArray[np.int64]
    extras: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.labels.ndim == 1, self.labels.shape
        assert self.labels.dtype == np.int64, self.labels.dtype
        for name, array in {**self.inputs, **self.extras}.items():
            assert len(array) == self.rows, f"{name}: {len(array)} rows, {self.rows} labels"

    @property
    def rows(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A task with its options resolved: everything training and evaluation read.

    ``fingerprint`` is a digest of the content, of the options that shape it and of the
    augmentation. It is the same on every machine and enters every result's key.
    """

    name: str
    inputs: Mapping[str, Input]
    classes: int
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    augmentation: Mapping[str, Augmentation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.class_names) == self.classes >= 2, self.class_names
        assert all(self.inputs[name].kind == "image" for name in self.augmentation)
        for split in (self.train, self.val, self.test):
            assert list(split.inputs) == list(self.inputs), list(split.inputs)
            for name, described in self.inputs.items():
                assert split.inputs[name].shape[1:] == described.shape, name

    @property
    def splits(self) -> Mapping[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Input -> shape of one example, in order: what a model is built from."""
        return {name: described.shape for name, described in self.inputs.items()}
