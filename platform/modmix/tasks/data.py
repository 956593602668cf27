"""The data a task provides to the trainer: inputs, splits, labels and a fingerprint.

Arrays are read-only memory maps in their stored type, with examples on the first axis.

Shapes: N examples of a split, M inputs, D features, H × W pixels, C channels, T steps, L tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError

Kind = Literal["dense", "image", "sequence", "tokens", "video"]
Array = npt.NDArray[Any]

SPLITS = ("train", "val", "test")
ROWS = "rows"  # of `Split.extras`

_AXES: Mapping[Kind, int] = {"dense": 1, "image": 3, "sequence": 2, "tokens": 1, "video": 4}
# Kinds that can be cropped and flipped.
PICTURES = ("image", "video")
# Input names are used in file names, column prefixes and, joined by "+", names of mixtures.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_input_name(name: str, source: str) -> None:
    """Check that an input's name is usable as a file name and is not reserved.

    Raises:
        DataError: it is not; ``source`` begins the message.
    """
    if not _NAME.fullmatch(name) or name == "labels":
        raise DataError(
            f"{source}: an input's name must be 1 to 64 letters, digits, '_', '-' or '.', begin "
            f"with a letter or a digit and not be 'labels', got {name!r}; rename it"
        )


@dataclass(frozen=True, kw_only=True)
class Input:
    """Description of one input array of a task.

    Shape of one example by kind: dense (D,), image (H, W, C), sequence (T, D), tokens (L,), video
    (T, H, W, C).
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "dense"
    dtype: str = "float32"
    """Type of the array on disk and when transferred to the device."""

    vocabulary: int | None = None
    """Tokens only: ids are 0 … vocabulary − 1, and 0 is padding at the end."""

    mean: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    scale: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    """Normalisation (x − mean) / scale, applied on the device to integer images and videos: per
    channel (C,) or per pixel and channel (H, W, C). None for floats, which are standardised in
    preparation.
    """

    stored: tuple[int, ...] | None = None
    """Shape of one stored example if it is larger in height and width than ``shape``, which then is
    its centre crop (or a random one, see `Augmentation.shift`). None: the same as ``shape``.
    """

    def __post_init__(self) -> None:
        assert len(self.shape) == _AXES[self.kind], self
        if self.stored is not None:
            assert self.kind in PICTURES, self
            assert self.stored[:-3] == self.shape[:-3], self
            assert self.stored[-1] == self.shape[-1], self
            assert self.stored[-3] >= self.shape[-3], self
            assert self.stored[-2] >= self.shape[-2], self
        assert all(size > 0 for size in self.shape), self
        assert (self.kind == "tokens") == (self.vocabulary is not None), self
        assert (self.mean is None) == (self.scale is None), self

    @property
    def size(self) -> int:
        """Number of elements of one example."""
        return int(np.prod(self.shape))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one example in the prepared array."""
        return self.stored or self.shape


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of an input, applied on the device.

    Images and videos are cropped and flipped in training only, before normalisation, all frames of
    a video in the same way. Noise is added after normalisation, in training and in evaluation.
    """

    pad: int = 0
    """Pixels of zero padding on each side, followed by a random crop to the original size."""

    flip: bool = False
    """Whether to flip horizontally with probability 1/2."""

    shift: bool = False
    """Whether the crop of an input that is stored larger than models see it is random."""

    crop: tuple[float, float] | None = None
    """Range of the area fraction of a random resized crop (bilinear), whose aspect ratio is between
    3/4 and 4/3. None: no such crop.
    """

    negate: tuple[int, ...] = ()
    """Channels whose sign changes with a flip, such as horizontal optical flow: x becomes 255 − x
    in uint8 and −x otherwise.
    """

    noise: float = 0.0
    """Standard deviation of Gaussian noise, in units of the normalised input. It is a function of
    seed, epoch and example in training, and of the example alone in evaluation. All-zero frames of
    a sequence are padding and stay zero.
    """

    def __post_init__(self) -> None:
        assert self.pad >= 0, self
        assert self.noise >= 0, self
        assert self.crop is None or 0 < self.crop[0] <= self.crop[1] <= 1, self

    @property
    def moves(self) -> bool:
        """Whether pixels are moved, which only images and videos allow."""
        return bool(self.pad or self.flip or self.shift or self.crop or self.negate)

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on, for digests: ``pad``, ``flip`` and non-default values."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in ("pad", "flip") or getattr(self, f.name) != f.default
        }


@dataclass(frozen=True, kw_only=True)
class Split:
    """The examples of one split.

    ``inputs`` has one array (N, *shape) per input, in the task's order and the input's type;
    ``labels`` is (N,) int64 in 0..classes-1. ``extras`` are further arrays for analysis only:
    ``informative``, (N, M) bool, of the tasks ``weak`` and ``gender``; ``rows``, (N,) int64, the
    row numbers of the examples in the source, from 0, where the task draws its splits from one file
    (``arrays``, ``digits``, ``gender`` from a CSV).
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
    """The data of a task with its options resolved: all that training and evaluation read.

    ``fingerprint`` is a digest of the task, its prepared content and the augmentation. It is the
    same on every machine and part of the key of every result.
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
        for name, settings in self.augmentation.items():
            kind = self.inputs[name].kind
            assert kind in PICTURES or not settings.moves, name
            assert kind != "tokens", name
        for split in (self.train, self.val, self.test):
            assert list(split.inputs) == list(self.inputs), list(split.inputs)
            for name, described in self.inputs.items():
                assert split.inputs[name].shape[1:] == described.stored_shape, name

    @property
    def splits(self) -> Mapping[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Input -> shape of one example, in the task's order."""
        return {name: described.shape for name, described in self.inputs.items()}
