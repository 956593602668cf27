"""Inputs of a user's file: infer the kind of each array, check it, write it split by split.

A `View` is an array with the shape of its kind. Conversion happens while writing, in chunks of
bounded size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import Loaded
from modmix.tasks.arrays_tokens import characters, token_ids
from modmix.tasks.data import SPLITS, Array, Input, Kind, check_input_name
from modmix.tasks.signals import mu_law_decoded, spectrogram, spectrogram_shape
from modmix.tasks.splits import Moments, chunks
from modmix.tasks.writer import Writer, input_file

Splits = npt.NDArray[np.uint8]

# Sums of squares of larger numbers overflow float64.
_LARGEST_TO_STANDARDISE = 1e150
_ID_TYPES = ("uint8", "int16", "int32", "int64")  # torch supports few unsigned types
_LARGEST = float(np.finfo(np.float32).max)


def _as_it_is(values: Array) -> Array:
    return values


@dataclass(frozen=True, kw_only=True)
class View:
    """One input to be written; ``convert`` maps rows of ``values`` to (n, *shape)."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    values: Array
    dtype: str = "float32"
    vocabulary: int | None = None
    alphabet: str | None = None  # for character tokens: the characters of ids 2, 3, …
    convert: Callable[[Array], Array] = _as_it_is

    def parts(self, rows_n: npt.NDArray[np.int64]) -> Iterator[Array]:
        """Yield these rows converted, in order, in chunks of bounded size."""
        numbers = max(int(np.prod(self.shape)), self.values[0].size)
        for part in chunks(len(rows_n), numbers):
            yield self.convert(self.values[rows_n[part]])


def view_of(loaded: Loaded, name: str, splits_N: Splits, options: Mapping[str, Any]) -> View:
    """Infer the kind of an array, reshape it accordingly and check its values.

    Raises:
        DataError: not numeric, not one row per label, NaN or infinite values, too many dimensions,
            or invalid tokens or audio.
    """
    values, where = loaded.inputs[name], f"{loaded.path}: {name!r}"
    check_input_name(name, str(loaded.path))
    rows = len(splits_N)
    if values.ndim == 0 or len(values) != rows:
        came = f"{len(values):,} rows" if values.ndim else "a single number"
        raise DataError(
            f"{where} must have one row per label ({rows:,}), got {came}; correct it or leave it "
            "out by the option `inputs`"
        )
    if name in (options["tokens"] or ()) or name in loaded.lengths:
        return _tokens(loaded, name, splits_N, options["token_length"])
    if values.dtype.kind not in "biuf":
        came = f"{values.dtype}; convert it or leave it out by the option `inputs`"
        if values.dtype.kind in "US":
            came = "text; name it in the option `tokens` to use its characters"
        raise DataError(f"{where} must hold real numbers, got {came}")
    if values.ndim > 4 or 0 in values.shape:
        raise DataError(
            f"{where} must have rows of shape (D,), (T, D) or (H, W, C), got {values.shape[1:]}"
        )
    _check_numbers(loaded, name, values, options["standardise"])
    settings = (options["spectrogram"] or {}).get(name)
    return (
        _numbers(name, values) if settings is None else _spectrogram(where, name, values, settings)
    )


def _numbers(name: str, values: Array) -> View:
    kind: Kind = "dense"
    if values.ndim == 1:
        values = values[:, None]
    elif values.ndim == 3 and values.dtype.kind == "f":
        kind = "sequence"
    elif values.ndim >= 3:
        kind = "image"
        values = values[..., None] if values.ndim == 3 else values
    bytes_stay = kind == "image" and values.dtype == np.uint8
    dtype = "uint8" if bytes_stay else "float32"
    return View(name=name, kind=kind, shape=values.shape[1:], values=values, dtype=dtype)


def _spectrogram(where: str, name: str, values: Array, settings: Mapping[str, Any]) -> View:
    if values.ndim != 2:
        raise DataError(f"{where} must be (N, samples) for a spectrogram, got {values.shape}")
    samples, window, overlap = values.shape[1], settings["window"], settings["overlap"]
    if window > samples or (overlap is not None and overlap >= window):
        raise DataError(
            f"{where}: the spectrogram's window must be at most the {samples} samples and longer "
            f"than its overlap, got window {window} and overlap {overlap}"
        )
    levels = settings["mu_law"]
    if levels is not None and (
        values.dtype.kind not in "iu" or values.min() < 0 or values.max() > levels
    ):
        raise DataError(
            f"{where} must hold whole numbers from 0 to {levels} for mu_law: {levels}, got "
            f"{values.dtype} from {values.min()} to {values.max()}"
        )

    def convert(rows_NS: Array) -> Array:
        signal_NS = rows_NS if levels is None else mu_law_decoded(rows_NS, levels)
        return spectrogram(signal_NS, settings["rate"], window, overlap)

    return View(
        name=name,
        kind="image",
        shape=spectrogram_shape(samples, window, overlap),
        values=values,
        convert=convert,
    )


def _tokens(loaded: Loaded, name: str, splits_N: Splits, length: int | None) -> View:
    values, where = loaded.inputs[name], f"{loaded.path}: {name!r}"
    alphabet = None
    if values.dtype.kind in "USO":
        ids_NL, alphabet = characters(values, where, loaded.place, splits_N == 0, length)
        vocabulary = len(alphabet) + 2
    else:
        ids_NL = token_ids(values, loaded.lengths.get(name), where, loaded.place, length)
        vocabulary = int(ids_NL.max()) + 1
    dtype = next(t for t in _ID_TYPES if vocabulary - 1 <= np.iinfo(t).max)
    return View(
        name=name,
        kind="tokens",
        shape=ids_NL.shape[1:],
        values=ids_NL,
        dtype=dtype,
        vocabulary=vocabulary,
        alphabet=alphabet,
    )


def _check_numbers(loaded: Loaded, name: str, values: Array, standardise: bool) -> None:
    if values.dtype.kind != "f":
        return
    limit = _LARGEST_TO_STANDARDISE if standardise else _LARGEST
    limit = min(limit, float(np.finfo(values.dtype).max))
    for part in chunks(len(values), values[0].size):
        flat = values[part].reshape(len(values[part]), -1)
        wrong = ~(np.abs(flat) <= limit)
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            came, place = flat[row, column], loaded.place(part.start + row)
            rule, mend = "must hold finite numbers", "fill in or leave out such rows"
            if np.isfinite(came):
                rule, mend = (
                    f"must hold numbers up to {limit:.3g}",
                    "rescale or leave out such rows",
                )
                if not standardise:
                    mend = "standardise, rescale or leave out such rows"
            raise DataError(f"{loaded.path}: {name!r} {rule}, got {came} in {place}; {mend}")


# ---------------------------------------------------------------- writing


def write_view(
    loaded: Loaded, writer: Writer, view: View, splits_N: Splits, standardise: bool
) -> Input:
    """Write all splits of an input and return its description.

    With ``standardise``, inputs other than tokens are standardised per feature (images: channel) by
    training statistics; without, integer images are divided by their training maximum (uint8: 255).
    uint8 images are stored raw, with mean and scale in the returned `Input`.
    """
    rows = {split: np.flatnonzero(splits_N == n) for n, split in enumerate(SPLITS)}
    width = view.shape[-1]
    mean_D, scale_D = np.zeros(width), np.ones(width)
    if view.kind == "image" and view.values.dtype.kind in "iu" and view.convert is _as_it_is:
        top = 255 if view.dtype == "uint8" else max(1, view.values[rows["train"]].max())
        scale_D = np.full(width, float(top))
    if standardise and view.kind != "tokens":
        moments = Moments(width)
        for part in view.parts(rows["train"]):
            moments.add(part.reshape(-1, width))
        mean_D, scale_D = moments.mean_D, moments.scale_D
    is_raw = view.dtype != "float32"
    for split, rows_n in rows.items():
        with writer.array(
            input_file(split, view.name), (len(rows_n), *view.shape), view.dtype
        ) as file:
            for part in view.parts(rows_n):
                file.append(part if is_raw else _scaled(loaded, view, part, mean_D, scale_D))
    if not is_raw and (mean_D.any() or (scale_D != 1).any()):
        writer.scaled(view.name, mean_D, scale_D)
    on_device = view.kind == "image" and is_raw
    return Input(
        name=view.name,
        shape=view.shape,
        kind=view.kind,
        dtype=view.dtype,
        vocabulary=view.vocabulary,
        mean=mean_D.astype(np.float32) if on_device else None,
        scale=scale_D.astype(np.float32) if on_device else None,
    )


def _scaled(loaded: Loaded, view: View, part: Array, mean_D: Array, scale_D: Array) -> Array:
    with np.errstate(over="ignore"):
        scaled: Array = ((part.astype(np.float64) - mean_D) / scale_D).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise DataError(
            f"{loaded.path}: {view.name!r} has values in validation or test that are over 1e38 "
            "training deviations from the training mean, too large for float32; leave them out"
        )
    return scaled
