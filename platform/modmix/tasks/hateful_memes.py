"""The task ``hateful_memes``: memes, images with the text on them; hateful or not.

Kiela et al. (2020). Rows of train.jsonl, dev_seen.jsonl, test_seen.jsonl (or others) are
{"id", "img", "label", "text"}, with the image's path below the folder and a label of 0 or 1. The
first release's test.jsonl has no labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from modmix.base.errors import DataError
from modmix.tasks.data import Augmentation
from modmix.tasks.files import Source
from modmix.tasks.media import Listed
from modmix.tasks.media_checks import in_two_splits
from modmix.tasks.media_decode import Item
from modmix.tasks.text_images import TextImageTask, plain_path

CLASS_NAMES = ("not hateful", "hateful")
LAYOUT = (
    "the option `path` must be the folder of Hateful Memes, with img/ and train.jsonl, "
    "dev_seen.jsonl, test_seen.jsonl (or those that `val` and `test` name), rows of {id, img, "
    "label, text}"
)


class HatefulMemes(TextImageTask):
    name: ClassVar[str] = "hateful_memes"
    # Larger crops than for photographs, and no flips: there is text on the images.
    augmented: ClassVar[Augmentation] = Augmentation(crop=(0.5, 1.0))

    def sources(self) -> tuple[Source, ...]:
        return tuple(Source(path=path, mend=LAYOUT) for path in self._files().values())

    def _files(self) -> dict[str, Path]:
        names = {"train": "train", "val": self.options["val"], "test": self.options["test"]}
        return {split: self.root / f"{name}.jsonl" for split, name in names.items()}

    def listed(self) -> Listed:
        if self.options["val"] == self.options["test"]:
            raise DataError(
                f"task {self.name}: `val` and `test` must be different rows, got "
                f"{self.options['val']} for both; change one of them"
            )
        items = tuple(
            item for split, path in self._files().items() for item in read_memes(path, split)
        )
        if shared := in_two_splits(items):
            files = ", ".join(path.name for path in self._files().values())
            raise DataError(
                f"task {self.name}: no image may be in two of {files}, got {len(shared):,}, such "
                f"as {shared[0]}; choose other rows as `val` or `test`"
            )
        return Listed(items=items, class_names=CLASS_NAMES)


def read_memes(path: Path, split: str) -> Iterator[Item]:
    """The rows of a split file as items.

    Raises:
        DataError: a line is not JSON, or lacks an image, a text or a label of 0 or 1.
    """
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            raw = content.strip().removeprefix(b"\xef\xbb\xbf")
            if raw:
                yield _item(f"{path}: line {line:,}", _parsed(path, line, raw), split)


def _parsed(path: Path, line: int, raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        start = raw[:40].decode("utf-8", errors="replace")
        raise DataError(
            f"{path}: line {line:,} must be JSON, {{id, img, label, text}}, got {start!r}…; is the "
            "file truncated?"
        ) from None


def _item(place: str, row: Any, split: str) -> Item:
    values = row if isinstance(row, dict) else {}
    for name in ("img", "text", "label"):
        if name not in values:
            came = ", ".join(map(str, values)) or f"a {type(row).__name__}"
            mend = "; the first release's test.jsonl has no labels" if name == "label" else ""
            raise DataError(f"{place} must have {name!r}, got {came[:120]}{mend}; {LAYOUT}")
    image, text, label = (values[name] for name in ("img", "text", "label"))
    file = plain_path(image) if isinstance(image, str) else None
    if file is None or not isinstance(text, str):
        wrong = image if file is None else text
        raise DataError(
            f"{place} must have the path of an image below the folder and a text, got "
            f"{str(wrong)[:40]!r}; correct or remove it"
        )
    if label not in (0, 1, "0", "1") or isinstance(label, bool):
        raise DataError(
            f"{place} must have a label of 0 or 1, got {str(label)[:40]!r}; correct or remove it"
        )
    return Item(files=(file,), label=int(label), split=split, text=text)
