"""Tasks of images with text: pixels and words.

The text is in the split file (`Item.text`) or in a file of its own, the item's second one. The
vocabulary is made of the training texts whose images can be read.

Shapes: N examples, H × W pixels, L words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.clips import IMAGENET_MEAN, IMAGENET_SCALE
from modmix.tasks.data import SPLITS, Array, Augmentation, Input
from modmix.tasks.media import MediaTask
from modmix.tasks.media_decode import Item
from modmix.tasks.media_read import Unreadable, image_pixels
from modmix.tasks.words import frequent_words, word_ids, word_vocabulary
from modmix.tasks.writer import Writer, input_file

IMAGE, TEXT = "image", "text"


class TextImageTask(MediaTask):
    """Inputs ``image`` (H, W, 3) of bytes and ``text`` (L,), the ids of its words.

    Options: size, vocabulary, length, augment.
    """

    augmented: ClassVar[Augmentation] = Augmentation(crop=(0.08, 1.0), flip=True)

    def inputs(self) -> tuple[Input, ...]:
        size = self.options["size"]
        return (
            Input(
                name=IMAGE,
                shape=(size, size, 3),
                kind="image",
                dtype="uint8",
                mean=np.array(IMAGENET_MEAN, dtype=np.float32),
                scale=np.array(IMAGENET_SCALE, dtype=np.float32),
            ),
        )

    def augmentation(self) -> Mapping[str, Augmentation]:
        return {IMAGE: self.augmented} if self.options["augment"] else {}

    def decode(self, item: Item) -> Mapping[str, Array]:
        if len(item.files) > 1:
            text_of(self.root, item)  # an item without its text is left out
        return {IMAGE: image_pixels(self.root / item.files[0], self.options["size"])}

    def write_beside(self, items: Sequence[Item], writer: Writer) -> tuple[Input, ...]:
        texts = [text_of(self.root, item) for item in items]
        training = (t for t, item in zip(texts, items, strict=True) if item.split == SPLITS[0])
        known = frequent_words(training, self.options["vocabulary"])
        if not known:
            raise DataError(
                f"{self.root}: the training texts must have words, got none in {len(items):,} "
                "items; correct the option `path`"
            )
        length = self.options["length"]
        ids_NL = word_ids(texts, known, length)
        writer.content("words", list(known))
        writer.content("ids", ids_NL)
        writer.alphabet(TEXT, known)
        splits_N = np.array([item.split for item in items])
        for split in SPLITS:
            writer.put(input_file(split, TEXT), ids_NL[splits_N == split], ids_NL.dtype)
        return (
            Input(
                name=TEXT,
                shape=(length,),
                kind="tokens",
                dtype=str(ids_NL.dtype),
                vocabulary=word_vocabulary(known),
            ),
        )


def text_of(root: Path, item: Item) -> str:
    """The text of an item: from its second file, if it has one.

    Raises:
        Unreadable: there is no such file.
    """
    if len(item.files) == 1:
        return item.text
    try:
        return decoded((root / item.files[1]).read_bytes())
    except OSError as error:
        raise Unreadable(f"{Path(item.files[1]).name}: {error.strerror or error}") from error


def decoded(content: bytes) -> str:
    """Text of bytes: UTF-8, or else Latin-1, in which every byte is a character."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def plain_path(text: str) -> str | None:
    """A relative path of a split file with slashes, or None if it leaves its folder."""
    whole = text.strip().replace("\\", "/")
    parts = [part for part in whole.split("/") if part not in ("", ".")]  # much faster than pathlib
    if not parts or whole.startswith("/") or ".." in parts or "\0" in whole:
        return None
    return "/".join(parts)
