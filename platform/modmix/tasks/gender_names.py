"""First names of the task ``gender``, with how many males and females bear them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modmix.base.errors import DataError
from modmix.tasks.arrays_read import missing
from modmix.tasks.csv_file import line_of, read_blocks, read_header
from modmix.tasks.data import Array
from modmix.tasks.files import Progress

_COLUMNS = ("name", "male", "female")  # of a file; the counts in the order of the classes

# Syllables of made-up names with the log-odds of being female that each adds. Those in front are
# more frequent than those behind; what a name begins with says less than how it ends.
_STARTS = {
    "ma": 0.9, "jo": -1.0, "an": 1.0, "da": -1.3, "ka": 1.2, "ro": -1.2, "el": 1.3, "be": -0.6,
    "li": 1.5, "ti": -0.9, "sa": 1.1, "mi": 0.3, "ste": -0.8, "ja": -0.7, "cha": -0.4, "ki": 0.8,
    "bra": -1.4, "al": -0.3, "vi": 0.7, "de": -0.2, "ga": -1.1, "ni": 0.6, "hu": -1.5, "o": -0.5,
}  # fmt: skip
_MIDDLES = ("ri", "na", "le", "re", "mi", "", "sha", "ro", "di", "ta", "ve", "lo")
_ENDINGS = {
    "a": 5.5, "n": -4.5, "na": 6.0, "o": -5.5, "lyn": 5.5, "son": -6.0, "ne": 5.0, "rd": -6.0,
    "y": 1.0, "el": -3.5, "ie": 4.5, "us": -6.0, "ssa": 6.5, "th": -1.0, "lle": 5.5, "ton": -5.5,
}  # fmt: skip
_PEOPLE = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Names:
    """Distinct lower-cased names and how many people bear them, (V, 2): males, females."""

    texts: tuple[str, ...]
    counts_VG: npt.NDArray[np.float64]


def read_names(path: Path, progress: Progress) -> Names:
    """Read a CSV with the columns ``name``, ``female`` and ``male``; spellings are merged by case.

    Raises:
        DataError: no such columns, a row without a name or with a negative count, or nobody of
            one gender.
    """
    known, delimiter = read_header(path)
    for column in _COLUMNS:
        if column not in known:
            raise missing(path, column, known)
    types = {column: "string" if column == "name" else "float64" for column in _COLUMNS}
    texts: list[str] = []
    counts = [np.empty((0, 2))]
    for block in read_blocks(path, types, delimiter=delimiter, progress=progress):
        texts += (name.strip().lower() for name in block["name"].to_pylist())
        counts.append(np.stack([block[column].to_numpy() for column in _COLUMNS[1:]], axis=1))
    counts_VG = np.concatenate(counts)
    _check(path, texts, counts_VG, delimiter)
    return _merged(texts, counts_VG)


def _check(path: Path, texts: list[str], counts_VG: Array, delimiter: str) -> None:
    is_right_V = (np.isfinite(counts_VG) & (counts_VG >= 0)).all(axis=1)
    is_right_V &= np.array([bool(text) for text in texts], dtype=np.bool_)
    if not is_right_V.all():
        row = int(np.argmin(is_right_V))
        male, female = counts_VG[row]
        raise DataError(
            f"{path}: line {line_of(path, row + 1, delimiter):,} must hold a name and two counts "
            f"from 0, got {texts[row][:40]!r}, male {male:g}, female {female:g}; correct or "
            "remove it"
        )
    totals_G = counts_VG.sum(axis=0)
    if not (totals_G > 0).all():
        raise DataError(
            f"{path}: must have names of both genders, got {totals_G[0]:g} males and "
            f"{totals_G[1]:g} females in all; correct the counts"
        )


def made_up_names() -> Names:
    """Names of a start, a middle and an ending, whose log-odds of being female add up.

    4,608 names, 52 % of their bearers female; the most frequent gender of each name is wrong for
    3.6 % of them (2.1 % with US first names of 1960 to 2010).
    """
    texts: list[str] = []
    shares, log_odds = [], []
    for i, (start, of_start) in enumerate(_STARTS.items()):
        for j, middle in enumerate(_MIDDLES):
            for k, (ending, of_ending) in enumerate(_ENDINGS.items()):
                texts.append(start + middle + ending)
                shares.append(1.0 / ((i + 4) * (j + 4) * (k + 8)))
                log_odds.append(of_start + of_ending)
    female_V = 1.0 / (1.0 + np.exp(-np.array(log_odds)))
    share_V = np.array(shares) / sum(shares)
    counts_VG = np.stack([share_V * (1.0 - female_V), share_V * female_V], axis=1)
    return _merged(texts, np.rint(_PEOPLE * counts_VG))


def _merged(texts: list[str], counts_VG: Array) -> Names:
    """Each name once, in alphabetical order, without those that nobody bears."""
    distinct, place_V = np.unique(np.array(texts), return_inverse=True)
    sums_VG = np.zeros((len(distinct), 2))
    np.add.at(sums_VG, place_V, counts_VG)
    borne_V = sums_VG.sum(axis=1) > 0
    return Names(texts=tuple(distinct[borne_V].tolist()), counts_VG=sums_VG[borne_V])
