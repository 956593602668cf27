"""Token ids of a user's file, from integers or from the characters of text; 0 is end padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import strings
from modmix.tasks.characters import lookup, text_of
from modmix.tasks.data import Array
from modmix.tasks.splits import chunks

Ids = npt.NDArray[np.int64]


def token_ids(
    values: Array,
    lengths: Array | None,
    where: str,
    place: Callable[[int], str],
    length: int | None,
) -> Ids:
    """Token ids (N, L) from integers (N, L), truncated to ``length``.

    With ``lengths`` (N,), 1 is added to the ids and positions beyond a row's length become 0.
    Without, 0 is already padding.

    Raises:
        DataError: fractional or negative ids, 0 before other ids, or invalid lengths.
    """
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "iuf":
        raise DataError(
            f"{where} must be whole numbers (N, length) or text (N,) to be tokens, got "
            f"{values.dtype} of shape {values.shape}"
        )
    if (row := _first(values < 0)) is not None or (row := _first(values % 1 != 0)) is not None:
        raise DataError(
            f"{where} must hold whole numbers from 0 to be tokens, got {values[row].min():g} or "
            f"fractions in {place(row)}; number the tokens from 1, 0 is padding"
        )
    ids_NL: Ids = values.astype(np.int64)
    if lengths is not None:
        if (
            lengths.shape not in ((len(ids_NL),), (len(ids_NL), 1))
            or lengths.dtype.kind not in "iu"
        ):
            raise DataError(
                f"{where}: its lengths must be one whole number per row ({len(ids_NL):,}), got "
                f"{lengths.dtype} of shape {lengths.shape}"
            )
        lengths_N1 = lengths.reshape(-1, 1)
        if (row := _first((lengths_N1 < 0) | (lengths_N1 > ids_NL.shape[1]))) is not None:
            raise DataError(
                f"{where}: lengths must be from 0 to {ids_NL.shape[1]}, got "
                f"{int(lengths_N1[row, 0])} in {place(row)}"
            )
        ids_NL = np.where(np.arange(ids_NL.shape[1]) < lengths_N1, ids_NL + 1, 0)
    elif (row := _first((ids_NL[:, :-1] == 0) & (ids_NL[:, 1:] != 0))) is not None:
        raise DataError(
            f"{where} must have 0 only at the end, as padding, got it before other tokens in "
            f"{place(row)}; add 1 to all ids, or save their numbers as NAME_lengths"
        )
    return ids_NL[:, :length]


def characters(
    texts_N: Array,
    where: str,
    place: Callable[[int], str],
    training_N: npt.NDArray[np.bool_],
    length: int | None,
) -> tuple[Ids, str]:
    """Character ids (N, L) of texts (N,), and the characters of ids 2, 3, … as a string.

    Only texts of length L become a rectangular array: one text may be far longer than all others.

    Texts are stripped and lower-cased. The alphabet is that of the training rows, sorted by code
    point; 1 is any other character, 0 is padding. L is ``length``, but at most the width of the
    texts; by default it is the length of the longest training text. Longer texts are truncated.

    Raises:
        DataError: not one text per row, bytes that are not UTF-8, or all training texts are empty.
    """
    if texts_N.ndim != 1:
        raise DataError(f"{where} must be one text per row, got the shape {texts_N.shape}")
    given = strings(texts_N, where, place)
    # Without NULs at the end, which arrays of text do not keep.
    texts = [text.strip().rstrip("\0").strip().lower() for text in given]
    training = [texts[row] for row in np.flatnonzero(training_N)]
    found = set[str]().union(*training)
    if not found:
        raise DataError(f"{where} must have text in the training rows, got none")
    known = np.array(sorted(map(ord, found)), np.uint32)
    width = texts_N.dtype.itemsize // 4 if texts_N.dtype.kind == "U" else max(map(len, given))
    kept = min(length, width) if length else max(map(len, training))
    ids_NL = np.zeros((len(texts), kept), np.int64)
    for part in chunks(len(texts), kept):
        cut = [text[:kept] for text in texts[part]]
        codes_nL = np.array(cut, f"=U{kept}").view(np.uint32).reshape(len(cut), kept)
        # By length: a NUL inside a text is not padding.
        inside_nL = np.arange(kept) < np.array([[len(text)] for text in cut])
        ids_NL[part] = np.where(inside_nL, lookup(codes_nL, known), 0)
    return ids_NL, text_of(known)


def _first(wrong_NL: npt.NDArray[np.bool_]) -> int | None:
    """Index of the first row with any True value, or None."""
    rows = np.flatnonzero(wrong_NL.any(axis=1))
    return int(rows[0]) if rows.size else None
