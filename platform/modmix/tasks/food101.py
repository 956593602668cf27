"""The task ``food101``: photographs of dishes, and the titles of the web pages they come from.

UPMC Food-101 (Wang et al. 2015): 101 classes, about 61,000 training images with noisy labels and
22,700 test images. Rows of texts/train_titles.csv and texts/test_titles.csv are an image's file
name, the title and the class, with or without a header; the image is images/train/CLASS/NAME or
images/test/CLASS/NAME. The validation split is a stratified sample of the training rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modmix.base.errors import DataError
from modmix.tasks.csv_file import rows_of
from modmix.tasks.files import Source
from modmix.tasks.media import Listed
from modmix.tasks.media_decode import Item
from modmix.tasks.media_lists import with_validation
from modmix.tasks.text_images import TextImageTask, plain_path

LAYOUT = (
    "the option `path` must be the folder of UPMC Food-101, with texts/train_titles.csv and "
    "texts/test_titles.csv (rows of image, title and class) and images/{train,test}/CLASS/"
)
# Names of the columns in a header, lower-cased.
_COLUMNS = {
    "image": ("image_path", "image", "img", "filename"),
    "text": ("text", "title"),
    "label": ("label", "class", "class_name"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a split file: image below its folder, title, class, and its line (from 1)."""

    image: str
    text: str
    label: str
    line: int


class Food101(TextImageTask):
    name: ClassVar[str] = "food101"

    def sources(self) -> tuple[Source, ...]:
        return tuple(Source(path=self._file(part), mend=LAYOUT) for part in ("train", "test"))

    def _file(self, part: str) -> Path:
        return self.root / "texts" / f"{part}_titles.csv"

    def listed(self) -> Listed:
        rows = {part: read_titles(self._file(part)) for part in ("train", "test")}
        class_names = tuple(sorted({row.label for row in rows["train"]}))
        if len(class_names) < 2:
            raise DataError(
                f"{self._file('train')}: must have rows of two classes or more, got "
                f"{', '.join(class_names) or 'no rows'}; {LAYOUT}"
            )
        numbers = {name: number for number, name in enumerate(class_names)}
        for row in rows["test"]:
            if row.label not in numbers:
                raise DataError(
                    f"{self._file('test')}: line {row.line:,} must have a class of the training "
                    f"rows, got {row.label[:40]!r}; correct or remove it"
                )
        items = [
            Item(
                files=(f"images/{part}/{row.label}/{row.image}",),
                label=numbers[row.label],
                split=part,
                text=row.text,
            )
            for part, found in rows.items()
            for row in found
        ]
        items = with_validation(
            items, self.options["val_fraction"], self.options["split_seed"], self.name
        )
        return Listed(items=tuple(items), class_names=class_names)


def read_titles(path: Path) -> list[Row]:
    """The rows of a split file.

    Raises:
        DataError: columns are missing, or a row has too few, or a name that is not that of a file
        or class.
    """
    try:
        rows = list(rows_of(path))
    except csv.Error as error:
        raise DataError(f"{path}: must be a CSV, got {error}; {LAYOUT}") from error
    order = [0, 1, 2]
    if rows and (header := _header(rows[0][1])) is not None:
        missing = [name for name, column in zip(_COLUMNS, header, strict=True) if column is None]
        if missing:
            raise DataError(
                f"{path}: a header must name the columns Image_path, text and label, got "
                f"{', '.join(rows[0][1])[:120]}; {LAYOUT}"
            )
        order = [column for column in header if column is not None]
        rows = rows[1:]
    return list(_checked(path, rows, order))


def _header(cells: list[str]) -> list[int | None] | None:
    """Columns of image, text and label if the first row is a header (None: missing), else None."""
    names = [cell.strip().lower() for cell in cells]
    found = [
        next((names.index(name) for name in known if name in names), None)
        for known in _COLUMNS.values()
    ]
    # A data row can have such a class or title, but no image of such a name.
    is_header = found[0] is not None or sum(column is not None for column in found) > 1
    return found if is_header else None


def _checked(path: Path, rows: list[tuple[int, list[str]]], order: list[int]) -> Iterator[Row]:
    width = max(3, max(order) + 1)
    for line, cells in rows:
        if len(cells) < width or (order == [0, 1, 2] and len(cells) != width):
            raise DataError(
                f"{path}: line {line:,} must have {width} columns, got {len(cells)}; put titles "
                "with commas into quotation marks"
            )
        name, text, label = (cells[column] for column in order)
        image, class_name = plain_path(name), plain_path(label)
        if image is None or class_name is None or "/" in class_name:
            wrong = name if image is None else label
            raise DataError(
                f"{path}: line {line:,} must have the name of an image and a class, got "
                f"{wrong[:40]!r}; correct or remove it"
            )
        # Some copies give the path from the root: the file's own name is what counts.
        yield Row(image=image.rpartition("/")[2], text=text, label=class_name, line=line)
