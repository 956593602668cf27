"""Characters of texts as token ids: 0 is padding at the end, 1 unknown, then an alphabet's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from modmix.tasks.data import Array

Codes = npt.NDArray[np.uint32]  # code points, (N, L), 0 behind a text's end
UNKNOWN = 1
FIRST = 2  # the id of an alphabet's first character
_REPLACEMENT = "\ufffd"  # for NUL, whose code is that of padding
_ID_TYPES = ("uint8", "int16", "int32")  # torch lacks most unsigned ones


def codes_of(texts: Iterable[str], length: int) -> Codes:
    """Code points (N, length) of texts: lower-cased, without blanks around, cut to ``length``."""
    cut = [text.strip().lower().replace("\0", _REPLACEMENT)[:length] for text in texts]
    return np.array(cut, dtype=f"=U{length}").view(np.uint32).reshape(len(cut), length)


def alphabet_of(*codes: Codes) -> Codes:
    """The distinct code points (A,) of texts in ascending order."""
    found: Codes = np.unique(np.concatenate([np.unique(each) for each in codes]))
    present: Codes = found[found != 0]
    return present


def ids_of(codes_NL: Codes, alphabet_A: Codes) -> Array:
    """Token ids (N, L) of code points, in the smallest type that holds the alphabet's."""
    ids_NL = np.where(codes_NL == 0, 0, lookup(codes_NL, alphabet_A))
    return ids_NL.astype(id_type(vocabulary_of(alphabet_A)))


def lookup(codes_NL: Codes, alphabet_A: Codes) -> npt.NDArray[np.int64]:
    """Token ids (N, L) of code points, padding included: `UNKNOWN` if not in the alphabet."""
    found_NL = np.minimum(np.searchsorted(alphabet_A, codes_NL), len(alphabet_A) - 1)
    return np.where(alphabet_A[found_NL] == codes_NL, found_NL + FIRST, UNKNOWN)


def vocabulary_of(alphabet_A: Codes) -> int:
    return len(alphabet_A) + FIRST


def id_type(vocabulary: int) -> str:
    return next(t for t in _ID_TYPES if vocabulary - 1 <= np.iinfo(t).max)


def text_of(alphabet_A: Codes) -> str:
    """The alphabet as `Writer.alphabet` takes it."""
    return "".join(map(chr, alphabet_A.tolist()))
