"""Token ids of a user's file, from integers or from the characters of text; 0 is end padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import words
from modmix.tasks.characters import lookup, text_of
from modmix.tasks.data import Array

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

    Texts are stripped and lower-cased. The alphabet is that of the training rows, sorted by code
    point; 1 is any other character, 0 is padding. L is ``length``, by default that of the longest
    training text; longer texts are truncated.

    Raises:
        DataError: not one text per row, bytes that are not UTF-8, or all training texts are empty.
    """
    if texts_N.ndim != 1:
        raise DataError(f"{where} must be one text per row, got the shape {texts_N.shape}")
    lowered = np.char.lower(words(texts_N, where, place))
    width = max(1, lowered.dtype.itemsize // 4)
    codes_NL = lowered.astype(f"=U{width}").view(np.uint32).reshape(len(lowered), width)
    # True up to the last character: a NUL inside a text is not padding.
    inside_NL = np.cumsum(codes_NL[:, ::-1] != 0, axis=1)[:, ::-1] > 0
    known = np.unique(codes_NL[training_N][inside_NL[training_N]])
    if not known.size:
        raise DataError(f"{where} must have text in the training rows, got none")
    kept = length or int(inside_NL[training_N].sum(axis=1).max())
    codes_NL, inside_NL = codes_NL[:, :kept], inside_NL[:, :kept]
    return np.where(inside_NL, lookup(codes_NL, known), 0), text_of(known)


def _first(wrong_NL: npt.NDArray[np.bool_]) -> int | None:
    """Index of the first row with any True value, or None."""
    rows = np.flatnonzero(wrong_NL.any(axis=1))
    return int(rows[0]) if rows.size else None
