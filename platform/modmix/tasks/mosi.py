"""The tasks ``mosi`` and ``mosei``: sentiment of spoken opinions from text, audio and vision.

CMU-MOSI (Zadeh et al. 2016) and CMU-MOSEI (Zadeh et al. 2018) as published in prepared form: a
pickle {train, valid, test} of {text, audio, vision, labels}. Inputs are arrays (N, T, D) of T
frames, one per word where the file is aligned; labels are sentiment scores from -3 to 3, the first
number of each row. The pickle is read without running code from it.

Rows with empty text are dropped, -inf in ``audio`` is 0, and empty frames before a row's first word
are moved to its end, as padding. Features are divided by their root mean square, without
subtracting a mean, so that all-zero frames (padding, or no face found) stay zero.

Scores become classes as the field's accuracies define them: Acc-2 has negative against
non-negative, or against positive without the neutral rows; Acc-7 rounds the score, clipped to
-3 … 3, to the nearest whole number (halves to even).

Shapes: N rows, T frames, L frames kept, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import Array, Input
from modmix.tasks.files import Progress, Source
from modmix.tasks.restricted_pickle import read_pickle
from modmix.tasks.splits import chunks
from modmix.tasks.writer import Writer, input_file, labels_file

INPUTS = ("text", "audio", "vision")
KEYS: Mapping[str, str] = {"train": "train", "val": "valid", "test": "test"}
SCORES = ("labels", "regression_labels")  # the first that is there
LAYOUT = (
    "the option `path` must be a pickle {train, valid, test} of {text, audio, vision, labels} with "
    "inputs (rows, frames, features)"
)
_DROPPED = -1

Labels = npt.NDArray[np.int64]  # (N,); `_DROPPED`: not used
Scores = npt.NDArray[np.float64]  # (N,)


def _without_neutral(scores_N: Scores) -> Array:
    return np.where(scores_N == 0, _DROPPED, scores_N > 0)


# By value of the option `classes`: the names, and the labels of scores.
CLASSES: Mapping[str, tuple[tuple[str, ...], Callable[[Scores], Array]]] = {
    "non_negative": (("negative", "non-negative"), lambda scores_N: scores_N >= 0),
    "positive": (("negative", "positive"), _without_neutral),
    "three": (("negative", "neutral", "positive"), lambda scores_N: np.sign(scores_N) + 1),
    "seven": (
        ("-3", "-2", "-1", "0", "1", "2", "3"),
        lambda scores_N: np.rint(np.clip(scores_N, -3, 3)) + 3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a split that are used: inputs (N, T, D), their first frames and labels (N,)."""

    inputs: Mapping[str, Array]
    kept_N: npt.NDArray[np.int64]  # row numbers in ``inputs``
    first_N: Mapping[str, npt.NDArray[np.int64]]  # by input, of the kept rows
    labels_N: Labels  # of the kept rows

    def chunks(self, name: str, length: int) -> Iterator[npt.NDArray[np.float32]]:
        """Kept rows (n, L, D), from their first frames on, a bounded number at a time."""
        values_NTD = self.inputs[name]
        frames, features = values_NTD.shape[1:]
        for part in chunks(len(self.kept_N), frames * features):
            index_nL = self.first_N[name][part, None] + np.arange(length)
            chosen_nLD = np.take_along_axis(
                _finite(values_NTD[self.kept_N[part]]),
                np.minimum(index_nL, frames - 1)[:, :, None],
                axis=1,
            )
            chosen_nLD[index_nL >= frames] = 0
            yield chosen_nLD


class Mosi(Task):
    name: ClassVar[str] = "mosi"

    def sources(self) -> tuple[Source, ...]:
        return (Source(path=Path(self.options["path"]), mend=LAYOUT),)

    def write(self, writer: Writer, progress: Progress) -> Contents:
        path = Path(self.options["path"])
        class_names, rule = CLASSES[self.options["classes"]]
        splits = read_rows(path, rule, self.options["replace_nan"])
        names = self.options["inputs"] or list(INPUTS)
        inputs = tuple(self._described(name, splits["train"].inputs[name]) for name in names)
        writer.content("inputs", [[one.name, list(one.shape)] for one in inputs])
        writer.content("standardise", self.options["standardise"])
        total = len(inputs) * sum(len(rows.labels_N) for rows in splits.values())
        done = 0
        for one in inputs:
            length, features = one.shape
            scale_D = np.ones(features)
            if self.options["standardise"]:
                scale_D = _root_mean_square(splits["train"].chunks(one.name, length), features)
            writer.scaled(one.name, np.zeros(features), scale_D)
            for split, rows in splits.items():
                shape = (len(rows.labels_N), length, features)
                with writer.array(input_file(split, one.name), shape) as file:
                    for values_nLD in rows.chunks(one.name, length):
                        writer.content_bytes(values_nLD.tobytes())
                        file.append(values_nLD / scale_D)
                        progress("write", done := done + len(values_nLD), total)
        for split, rows in splits.items():
            writer.content(f"{split} labels", rows.labels_N)
            writer.put(labels_file(split), rows.labels_N, np.int64)
        return Contents(
            inputs=inputs,
            class_names=class_names,
            rows={split: len(rows.labels_N) for split, rows in splits.items()},
        )

    def _described(self, name: str, values_NTD: Array) -> Input:
        frames, features = values_NTD.shape[1:]
        length = min(self.options["length"] or frames, frames)
        return Input(name=name, shape=(length, features), kind="sequence")


class Mosei(Mosi):
    name: ClassVar[str] = "mosei"


def read_rows(path: Path, rule: Callable[[Scores], Array], replace_nan: bool) -> dict[str, Rows]:
    """The rows of every split, with the labels that ``rule`` gives their scores.

    Raises:
        DataError: not such a pickle, values that are not numbers, or a split without rows.
    """
    whole = read_pickle(path, LAYOUT)
    found = {split: _split(path, whole, key) for split, key in KEYS.items()}
    for name in INPUTS:
        shapes = {KEYS[s]: inputs[name].shape[1:] for s, (inputs, _) in found.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(
                f"{path}: {name!r} must have the same frames and features in all splits, got "
                f"{shapes}; {LAYOUT}"
            )
    rows = {}
    for split, (inputs, scores_N) in found.items():
        for name in INPUTS:
            _check_numbers(path, KEYS[split], name, inputs[name], replace_nan)
        rows[split] = _rows(inputs, rule(scores_N).astype(np.int64))
        if not len(rows[split].labels_N):
            raise DataError(
                f"{path}: {KEYS[split]!r} must have rows with text and a class, got none of "
                f"{len(scores_N):,}; {LAYOUT}"
            )
    return rows


def _split(path: Path, whole: Any, key: str) -> tuple[dict[str, Array], Scores]:
    """Inputs (N, T, D) and scores (N,) of a split, of the right types and shapes."""
    given = _member(path, whole, key, "the pickle")
    inputs = {name: np.asarray(_member(path, given, name, repr(key))) for name in INPUTS}
    scores_name = next((n for n in SCORES if isinstance(given, dict) and n in given), SCORES[0])
    scores = np.asarray(_member(path, given, scores_name, repr(key)))
    for name, values in {**inputs, scores_name: scores}.items():
        axes = 3 if name in inputs else max(1, scores.ndim)
        if values.dtype.kind not in "fiu" or values.ndim != axes or 0 in values.shape[1:]:
            shape = "(rows, frames, features)" if name in inputs else "(rows, …)"
            raise DataError(
                f"{path}: {name!r} of {key!r} must be numbers {shape}, got {values.dtype} of "
                f"shape {values.shape}; {LAYOUT}"
            )
        if len(values) != len(inputs["text"]):
            raise DataError(
                f"{path}: {name!r} of {key!r} must have as many rows as 'text', "
                f"{len(inputs['text']):,}, got {len(values):,}; {LAYOUT}"
            )
    scores_N = scores.reshape(len(scores), -1)[:, 0] if len(scores) else scores.reshape(0)
    if (wrong := np.flatnonzero(~np.isfinite(scores_N))).size:
        raise DataError(
            f"{path}: {scores_name!r} of {key!r} must be finite scores, got "
            f"{scores_N[wrong[0]]:g} in row {wrong[0]} (from 0); remove such rows"
        )
    return inputs, scores_N.astype(np.float64)


def _member(path: Path, given: Any, key: str, whose: str) -> Any:
    if not isinstance(given, dict) or key not in given:
        came = f"a {type(given).__name__}"
        if isinstance(given, dict):
            came = ", ".join(str(each)[:40] for each in list(given)[:12]) or "nothing"
        raise DataError(f"{path}: {whose} must have {key!r}, got {came}; {LAYOUT}")
    return given[key]


def _check_numbers(path: Path, key: str, name: str, values_NTD: Array, replace_nan: bool) -> None:
    """Refuse NaN (unless it is replaced) and infinities, but for -inf in audio, which is 0."""
    for part in chunks(len(values_NTD), int(np.prod(values_NTD.shape[1:]))):
        values = values_NTD[part]
        right = np.isfinite(values)
        if name == "audio":
            right |= np.isneginf(values) if values.dtype.kind == "f" else False
        if replace_nan:
            right |= np.isnan(values)
        if not right.all():
            row, frame, feature = (int(i) for i in np.argwhere(~right)[0])
            value = values[row, frame, feature]
            mend = "set replace_nan: true to read NaN as 0" if np.isnan(value) else "correct it"
            raise DataError(
                f"{path}: {name!r} of {key!r} must be finite numbers, got {value:g} in row "
                f"{part.start + row} (from 0), frame {frame}, feature {feature}; {mend}"
            )


def _finite(values: Array) -> npt.NDArray[np.float32]:
    """Values as float32; those that are not finite, and were admitted, become 0."""
    return np.where(np.isfinite(values), values, 0).astype(np.float32)


def _rows(inputs: Mapping[str, Array], labels_N: Labels) -> Rows:
    """Drop the rows without text or class, and find the first frames of the others.

    Where all inputs have the same number of frames, they are aligned and begin with the first
    word; otherwise each begins with its own first frame that is not empty.
    """
    filled = {name: _filled(values) for name, values in inputs.items()}
    kept_N = np.flatnonzero(filled["text"].any(axis=1) & (labels_N != _DROPPED))
    is_aligned = len({each.shape[1] for each in filled.values()}) == 1
    first_N = {
        name: np.argmax((filled["text"] if is_aligned else each)[kept_N], axis=1)
        for name, each in filled.items()
    }
    return Rows(inputs=inputs, kept_N=kept_N, first_N=first_N, labels_N=labels_N[kept_N])


def _filled(values_NTD: Array) -> npt.NDArray[np.bool_]:
    """Whether frames have a number other than 0, (N, T)."""
    rows, frames, features = values_NTD.shape
    filled_NT = np.zeros((rows, frames), dtype=np.bool_)
    for part in chunks(rows, frames * features):
        filled_NT[part] = (_finite(values_NTD[part]) != 0).any(axis=2)
    return filled_NT


def _root_mean_square(parts: Iterator[npt.NDArray[np.float32]], features: int) -> Array:
    """Root mean square (D,) over the frames that are not empty; 1 where it is 0."""
    count, squares_D = 0, np.zeros(features)
    for values_nLD in parts:
        frames_FD = values_nLD.reshape(-1, features).astype(np.float64)
        count += int((frames_FD != 0).any(axis=1).sum())
        squares_D += np.square(frames_FD).sum(axis=0)
    scale_D = np.sqrt(squares_D / max(1, count))
    return np.where(scale_D > 0, scale_D, 1.0)
