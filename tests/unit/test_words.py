"""Words of texts as token ids."""

from __future__ import annotations

import numpy as np
import pytest

from modmix.tasks.words import frequent_words, word_ids, word_vocabulary, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\r\n", []),
        ('"Best, apple-pie!", 2 eggs', ["best", "apple", "pie", "2", "eggs"]),
        ("Don't 'quote' rock'n'roll", ["don't", "quote", "rock'n'roll"]),
        ("Grandma’s Crème brûlée", ["grandma's", "crème", "brûlée"]),
        ("Cre\u0300me", ["crème"]),  # a letter and its accent apart
        ("\ufeffRT @you: #Fun_day t.co :)", ["rt", "you", "fun_day", "t", "co"]),
        ("ПИРОГ 餃子", ["пирог", "餃子"]),
        ("a\0b", ["a", "b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_the_most_frequent_words_are_known() -> None:
    texts = ["b a c", "c, C b", "", "d"]
    assert frequent_words(texts, 99) == ("c", "b", "a", "d")
    assert frequent_words(reversed(texts), 3) == ("c", "b", "a")
    assert frequent_words([], 5) == ()


def test_ids_are_padded_and_cut() -> None:
    known = ("pie", "a")
    ids_NL = word_ids(["A pie is a pie", "", "PIE"], known, 4)
    assert ids_NL.tolist() == [[3, 2, 1, 3], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert word_vocabulary(known) == 4


@pytest.mark.parametrize(("size", "dtype"), [(254, "uint8"), (255, "int16"), (40_000, "int32")])
def test_the_smallest_type_holds_all_ids(size: int, dtype: str) -> None:
    known = [f"w{n}" for n in range(size)]
    ids_NL = word_ids([known[-1]], known, 1)
    assert ids_NL.dtype == np.dtype(dtype)
    assert ids_NL.item() == size + 1
