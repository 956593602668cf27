"""The task ``mvsa``: tweets, an image with a text; positive, neutral or negative.

MVSA-Single and MVSA-Multiple (Niu et al. 2016). labelResultAll.txt has a header and rows
``ID<tab>text,image``, the labels of text and image by one annotator; in MVSA-Multiple three such
pairs. The text is data/ID.txt, the image data/ID.jpg.

One label follows from them as in Xu & Mao (2017), which most of the field uses: of three
annotators, the label that two or more give the text, and the one that they give the image; rows
without such a majority are dropped. If text and image have equal labels, that is the row's label;
if one is neutral, the other counts; a row with positive and negative is dropped. With ``labels:
agree``, only rows with equal labels are used. The split is random, stratified by class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.data import SPLITS
from modmix.tasks.files import Source
from modmix.tasks.media import Listed
from modmix.tasks.media_decode import Item
from modmix.tasks.splits import stratified
from modmix.tasks.text_images import TextImageTask, decoded, plain_path

CLASS_NAMES = ("negative", "neutral", "positive")
FILE = "labelResultAll.txt"
LAYOUT = (
    f"the option `path` must be the folder of MVSA-Single or MVSA-Multiple, with {FILE} (a header "
    "and rows of ID<tab>text,image) and data/ID.txt, data/ID.jpg"
)

Pair = tuple[str, str]  # labels of text and image


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the label file: the pairs of one annotator or three."""

    id: str
    pairs: tuple[Pair, ...]


class Mvsa(TextImageTask):
    name: ClassVar[str] = "mvsa"

    def sources(self) -> tuple[Source, ...]:
        return (Source(path=self.root / FILE, mend=LAYOUT),)

    def listed(self) -> Listed:
        path = self.root / FILE
        rows = read_labels(path)
        found = [(row.id, label_of(row.pairs, self.options["labels"])) for row in rows]
        used = [(each, CLASS_NAMES.index(label)) for each, label in found if label is not None]
        labels_N = np.array([label for _, label in used], dtype=np.int64)
        for number, name in enumerate(CLASS_NAMES):
            if (count := int((labels_N == number).sum())) < len(SPLITS):
                raise DataError(
                    f"{path}: must have {len(SPLITS)} rows or more of every class, got {count} of "
                    f"{name!r} in {len(rows):,}; {LAYOUT}"
                )
        splits_N = self._splits(labels_N)
        items = tuple(
            Item(files=(f"data/{each}.jpg", f"data/{each}.txt"), label=label, split=str(split))
            for (each, label), split in zip(used, splits_N, strict=True)
        )
        return Listed(items=items, class_names=CLASS_NAMES)

    def _splits(self, labels_N: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
        """Split of each row: test and validation are stratified samples, training the rest."""
        seed, rows = self.options["split_seed"], len(labels_N)
        splits_N = np.full(rows, "train")
        for split in ("test", "val"):
            rest = np.flatnonzero(splits_N == "train")
            share = max(1, round(self.options[f"{split}_fraction"] * rows))
            splits_N[rest[stratified(labels_N[rest], share, seed, "mvsa", split)]] = split
        return splits_N


def read_labels(path: Path) -> list[Row]:
    """The rows of a label file.

    Raises:
        DataError: no header or rows, a row without the header's columns, an ID that is no file's
            name or is repeated, or an unknown label.
    """
    lines = decoded(path.read_bytes()).splitlines()
    header = lines[0].split("\t") if lines else [""]
    if header[0].strip().lower() != "id" or len(header) < 2:
        raise DataError(
            f"{path}: must begin with a header, ID<tab>text,image, got "
            f"{(lines[0] if lines else '')[:60]!r}; {LAYOUT}"
        )
    rows = list(_rows(path, lines, len(header)))
    counts = Counter(row.id for row in rows)
    if (repeated := next((each for each, count in counts.items() if count > 1), None)) is not None:
        raise DataError(f"{path}: IDs must be distinct, got {repeated!r} twice; remove one")
    return rows


def _rows(path: Path, lines: list[str], width: int) -> Iterator[Row]:
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, *cells = (cell.strip() for cell in line.rstrip("\t").split("\t"))
        pairs = [tuple(part.strip().lower() for part in cell.split(",")) for cell in cells]
        file = plain_path(name)
        if file is None or "/" in file:
            raise DataError(
                f"{path}: line {number:,} must begin with an ID, got {name[:40]!r}; correct or "
                "remove it"
            )
        if len(pairs) != width - 1 or any(len(pair) != 2 for pair in pairs):
            raise DataError(
                f"{path}: line {number:,} must have an ID and {width - 1} pairs text,image, got "
                f"{line[:60]!r}; correct or remove it"
            )
        for label in (label for pair in pairs for label in pair if label not in CLASS_NAMES):
            raise DataError(
                f"{path}: line {number:,} must have the labels {', '.join(CLASS_NAMES)}, got "
                f"{label[:40]!r}; correct or remove it"
            )
        yield Row(id=file, pairs=tuple((pair[0], pair[1]) for pair in pairs))


def label_of(pairs: tuple[Pair, ...], rule: str) -> str | None:
    """The label of a row, or None if it is dropped; ``rule`` is merge or agree.

    Example:
        >>> label_of((("neutral", "positive"),), "merge")
        'positive'
        >>> label_of((("negative", "positive"),), "merge")
    """
    text, image = (_majority([pair[side] for pair in pairs]) for side in (0, 1))
    if text is None or image is None:
        return None
    if text == image or rule == "agree":
        return text if text == image else None
    return None if "neutral" not in (text, image) else image if text == "neutral" else text


def _majority(labels: list[str]) -> str | None:
    """The label given by more than half of the annotators."""
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else None
