"""Synthetic users of the task ``gender``, block by block; `modmix.tasks.gender` says how.

Every number comes from a generator of its own for each seed, split, block and purpose, and is
drawn whether the options use it or not: users that two settings share differ only where the
settings do. Shapes: N users, L token ids, F features, V first names, G genders (male, female).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.tasks.characters import alphabet_of, codes_of, ids_of, text_of, vocabulary_of
from modmix.tasks.data import Array
from modmix.tasks.gender_names import Names
from modmix.tasks.splits import generator

BLOCK_ROWS = 1 << 16

# Each count's median, and the female minus the male mean of its logarithm. The first 6 are the
# features of gender-6, all of them those of gender-22.
FEATURES: Mapping[str, tuple[int, float]] = {
    "female_friends": (20, 0.95),
    "male_friends": (20, -0.95),
    "messages_sent": (150, 0.75),
    "stories_posted": (12, 0.85),
    "close_friend_chats": (60, 0.75),
    "videos_watched": (90, -0.7),
    "messages_received": (180, 0.4),
    "photos_sent": (80, 0.5),
    "groups": (16, -0.35),
    "group_messages": (110, -0.45),
    "story_views": (240, 0.45),
    "story_replies": (15, 0.4),
    "filters_used": (40, 0.55),
    "stickers_sent": (25, 0.45),
    "voice_calls": (15, -0.3),
    "video_calls": (14, 0.3),
    "night_sessions": (30, -0.45),
    "sessions": (220, -0.3),
    "new_friends": (12, 0.35),
    "blocked_users": (12, 0.4),
    "maps_opened": (14, -0.4),
    "games_played": (16, -0.5),
}
LOAD = 0.7  # standard deviation of a user's overall activity, shared by the logarithms of all
SPREAD = 0.8  # and of each one's own noise
_LARGEST_LOG = 20.0

WHOLE_NAME = 0.6  # odds that a user ID that shows the name has all of it, not its first letters
FIRST_LETTERS = (3, 4, 5)

# What stands around the name or around what stands in its place: odds of each form, and whether
# it has a word before, a word behind, digits.
FORMS: Sequence[tuple[float, bool, bool, bool]] = (
    (0.10, False, False, False),
    (0.35, False, False, True),
    (0.20, False, True, False),
    (0.10, False, True, True),
    (0.20, True, False, False),
    (0.05, True, False, True),
)
SEPARATORS = ("", "", ".", "_", "-")
DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    *("its", "the", "real", "sky", "blue", "cool", "wolf", "star", "moon", "rock", "fox", "cat"),
    *("dog", "lion", "ice", "fire", "sun", "rain", "snow", "king", "ace", "max", "zen", "pix"),
    *("dj", "mr", "x", "xx", "yo", "hey", "im", "just", "lol", "snap", "jet", "neon", "echo"),
    *("nova", "pizza", "taco", "mango", "west", "east", "lake", "river", "hill", "smith", "jones"),
    *("lee", "kim", "cruz", "park", "stone", "young"),
)
_RANDOM_LETTERS = (4, 8)


@dataclass(frozen=True, kw_only=True)
class Users:
    """A block of users. Padding is 0; counts are whole numbers.

    ``informative_N3``: whether the name is there and the user's own, whether the user ID shows
    the name, whether the activity depends on gender.
    """

    labels_N: npt.NDArray[np.int64]
    name_NL: Array
    user_id_NL: Array
    counts_NF: npt.NDArray[np.int32]
    informative_N3: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Texts to draw from, as ids padded with 0, and their lengths."""

    ids_VL: Array
    lengths_V: npt.NDArray[np.int64]

    def take(self, index_N: Array) -> tuple[Array, npt.NDArray[np.int64]]:
        return self.ids_VL[index_N], self.lengths_V[index_N]


class UserGenerator:
    """Draws users by a task's options; holds the names as token ids and their distribution."""

    def __init__(self, options: Mapping[str, Any], names: Names) -> None:
        self._options = options
        self._length = options["length"]
        fixed = codes_of([DIGITS, LETTERS, *SEPARATORS, *WORDS], len(LETTERS))
        name_codes = codes_of(names.texts, self._length)
        alphabet_A = alphabet_of(fixed, name_codes)
        self.alphabet = text_of(alphabet_A)
        self.vocabulary = vocabulary_of(alphabet_A)

        def pieces(texts: Sequence[str], length: int) -> _Pieces:
            ids_VL = ids_of(codes_of(texts, length), alphabet_A)
            return _Pieces(ids_VL=ids_VL, lengths_V=(ids_VL != 0).sum(axis=1))

        self._names = pieces(names.texts, self._length)
        self._words = pieces(WORDS, max(map(len, WORDS)))
        self._separators = pieces(SEPARATORS, 1)
        self._letters = pieces(list(LETTERS), 1).ids_VL[:, 0]
        self._digits = pieces(list(DIGITS), 1).ids_VL[:, 0]
        shares_VG = names.counts_VG / names.counts_VG.sum(axis=0)
        odds_G = np.array([1.0 - options["female"], options["female"]])
        self._cumulative_GV = [_cumulative(shares_VG[:, g]) for g in (0, 1)]
        self._cumulative_V = _cumulative(shares_VG @ odds_G)

    def draw(self, split: str, block: int, rows: int) -> Users:
        """Draw a block of a split, the same for the same arguments and options."""

        def stream(purpose: str) -> np.random.Generator:
            return generator(self._options["seed"], "gender", split, str(block), purpose)

        labels_N = (stream("label").random(rows) < self._options["female"]).astype(np.int64)
        place_N = stream("first name").random(rows)
        first_N = np.where(
            labels_N == 1,
            np.searchsorted(self._cumulative_GV[1], place_N, side="right"),
            np.searchsorted(self._cumulative_GV[0], place_N, side="right"),
        )
        name_NL, is_own_N = self._name(stream("name"), first_N)
        user_id_NL, is_shown_N = self._user_id(stream("user_id"), first_N)
        counts_NF, is_active_N = self._activity(stream("activity"), labels_N)
        return Users(
            labels_N=labels_N,
            name_NL=name_NL,
            user_id_NL=user_id_NL,
            counts_NF=counts_NF,
            informative_N3=np.stack([is_own_N, is_shown_N, is_active_N], axis=1),
        )

    def _name(self, rng: np.random.Generator, first_N: Array) -> tuple[Array, Array]:
        """The inferred names (N, L): some missing, some anybody's; and which are right (N,)."""
        is_missing_N, is_wrong_N = (
            rng.random(len(first_N)) < self._options[odds] for odds in ("missing", "wrong")
        )
        others_N = np.searchsorted(self._cumulative_V, rng.random(len(first_N)), side="right")
        name_NL, _ = self._names.take(np.where(is_wrong_N, others_N, first_N))
        name_NL[is_missing_N] = 0
        return name_NL, ~is_missing_N & ~is_wrong_N

    def _user_id(self, rng: np.random.Generator, first_N: Array) -> tuple[Array, Array]:
        """User IDs (N, L), and which of them show the name (N,)."""
        rows = len(first_N)
        is_shown_N = rng.random(rows) >= self._options["hidden"]
        name, instead = self._shown_name(rng, first_N), self._anything(rng, rows)
        form_N = np.searchsorted(
            _cumulative(np.array([form[0] for form in FORMS])), rng.random(rows), side="right"
        )
        has_front_N, has_back_N, has_digits_N = (
            np.array([form[i] for form in FORMS])[form_N] for i in (1, 2, 3)
        )
        parts = [
            _if(has_front_N, self._words.take(rng.integers(len(WORDS), size=rows))),
            _if(has_front_N, self._separators.take(rng.integers(len(SEPARATORS), size=rows))),
            _if(is_shown_N, name),
            _if(~is_shown_N, instead),
            _if(has_back_N, self._separators.take(rng.integers(len(SEPARATORS), size=rows))),
            _if(has_back_N, self._words.take(rng.integers(len(WORDS), size=rows))),
            _if(
                has_digits_N,
                (self._digits[rng.integers(10, size=(rows, 4))], rng.integers(1, 5, size=rows)),
            ),
        ]
        return _joined(parts, self._length), is_shown_N

    def _shown_name(self, rng: np.random.Generator, first_N: Array) -> tuple[Array, Array]:
        """First names (N, L) and how many of their letters a user ID has (N,)."""
        ids_NL, lengths_N = self._names.take(first_N)
        is_whole_N = rng.random(len(first_N)) < WHOLE_NAME
        letters_N = np.array(FIRST_LETTERS)[rng.integers(len(FIRST_LETTERS), size=len(first_N))]
        return ids_NL, np.where(is_whole_N, lengths_N, np.minimum(letters_N, lengths_N))

    def _anything(self, rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
        """A word or random letters, with their lengths."""
        low, high = _RANDOM_LETTERS
        letters_NL = self._letters[rng.integers(len(LETTERS), size=(rows, high))]
        lengths_N = rng.integers(low, high + 1, size=rows)
        words_NL, of_words_N = self._words.take(rng.integers(len(WORDS), size=rows))
        is_word_N = rng.random(rows) < 0.5
        width = words_NL.shape[1]
        letters_NL[is_word_N, :width] = words_NL[is_word_N]
        return letters_NL, np.where(is_word_N, of_words_N, lengths_N)

    def _activity(self, rng: np.random.Generator, labels_N: Array) -> tuple[Array, Array]:
        """Counts (N, F), and whether they depend on gender (N,)."""
        rows, features = len(labels_N), self._options["features"]
        is_active_N = rng.random(rows) >= self._options["idle"]
        level_N = rng.standard_normal(rows)
        noise_NF = rng.standard_normal((rows, len(FEATURES)))[:, :features]
        medians_F, shifts_F = feature_table(features)
        side_N = np.where(labels_N == 1, 0.5, -0.5) * is_active_N
        logs_NF = np.log(medians_F) + side_N[:, None] * shifts_F
        logs_NF += LOAD * level_N[:, None] + SPREAD * noise_NF
        return np.exp(np.minimum(logs_NF, _LARGEST_LOG)).astype(np.int32), is_active_N


def feature_table(features: int) -> tuple[Array, Array]:
    """Medians (F,) of the first counts, and what being female adds to their logarithms (F,)."""
    table_F2 = np.array(list(FEATURES.values())[:features])
    return table_F2[:, 0], table_F2[:, 1]


def activity_scaling(options: Mapping[str, Any]) -> tuple[Array, Array]:
    """Mean and standard deviation (F,) of log(1 + count), by the distribution, not by a sample."""
    medians_F, shifts_F = feature_table(options["features"])
    active = 1.0 - options["idle"]
    mean_side = active * (options["female"] - 0.5)
    variance = active / 4 - mean_side**2
    scale_F = np.sqrt(LOAD**2 + SPREAD**2 + variance * shifts_F**2)
    return np.log1p(medians_F) + mean_side * shifts_F, scale_F


def _cumulative(shares_V: Array) -> Array:
    sums_V = np.cumsum(shares_V)
    normal_V: Array = sums_V / sums_V[-1]
    return normal_V


def _if(is_there_N: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
    ids_NL, lengths_N = part
    return ids_NL, lengths_N * is_there_N


def _joined(parts: Sequence[tuple[Array, Array]], length: int) -> Array:
    """Write the first ``lengths_N`` ids of each part behind those of the part before it, (N, L)."""
    joined_NL = np.zeros((len(parts[0][0]), length), dtype=parts[0][0].dtype)
    start_N = np.zeros(len(joined_NL), dtype=np.int64)
    for ids_NL, lengths_N in parts:
        columns_L = np.arange(ids_NL.shape[1])
        places_NL = start_N[:, None] + columns_L
        rows, columns = np.nonzero((columns_L < lengths_N[:, None]) & (places_NL < length))
        joined_NL[rows, places_NL[rows, columns]] = ids_NL[rows, columns]
        start_N += lengths_N
    return joined_NL
