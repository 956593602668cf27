"""Words of texts as token ids: 0 is padding at the end, 1 unknown, then the most frequent words.

A word is a run of letters, digits and underscores, lower-cased, with apostrophes inside ("don't");
all else separates words.

Example:
    >>> known = frequent_words(["Pie, apple pie!", "A pie"], 2)
    >>> known
    ('pie', 'a')
    >>> word_ids(["apple pie", ""], known, 3).tolist()
    [[1, 2, 0], [0, 0, 0]]
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from modmix.tasks.characters import FIRST, UNKNOWN, id_type
from modmix.tasks.data import Array

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in their order; both forms of the apostrophe are the same."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower().replace("’", "'"))


def frequent_words(texts: Iterable[str], size: int) -> tuple[str, ...]:
    """The ``size`` most frequent words, or all if there are fewer; ties go by the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:size])


def word_vocabulary(known: Sequence[str]) -> int:
    """Number of ids: the known words, padding and unknown."""
    return len(known) + FIRST


def word_ids(texts: Sequence[str], known: Sequence[str], length: int) -> Array:
    """Token ids (N, length) of the first words of texts, in the smallest type for ``known``."""
    numbers = {word: number for number, word in enumerate(known, start=FIRST)}
    ids_NL = np.zeros((len(texts), length), dtype=id_type(word_vocabulary(known)))
    for row, text in enumerate(texts):
        ids = [numbers.get(word, UNKNOWN) for word in words_of(text)[:length]]
        ids_NL[row, : len(ids)] = ids
    return ids_NL
