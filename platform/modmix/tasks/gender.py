"""The task ``gender``: a user's gender from the first name, the user ID and activity counts.

A stand-in for the Snapchat data of "Learn to Combine Modalities" (2018), which is not public:
synthetic users with the same three inputs, or a CSV of yours (`modmix.tasks.gender_csv`).

    name       the inferred first name: its first 15 characters as tokens; empty (all padding) where
               it is ``missing``, anybody's where it is ``wrong``
    user_id    a string that shows the first name, whole or its first 3 to 5 letters, among words,
               digits and separators; or, where it is ``hidden``, a word or random letters instead
    activity   6 or 22 counts, as log(1 + count), standardised: log-normal, with a common level per
               user and a shift by gender; without the shift where a user is ``idle``

A first name is drawn from the names of a user's gender. What is missing, wrong, hidden or idle is
drawn per user, independently of everything else; ``Split.extras["informative"]`` (N, 3) bool says
which inputs say something of this user. Blocks of users have generators of their own, memory does
not grow with the rows, and more training rows leave the other splits as they are.

Test error in percent with the default odds, and what the paper reports:

                                    name  user_id  activity 6, 22    all 6, 22
    made-up names, Bayes            18.7     33.8     15.1    9.8    5.6   3.9
                   n-grams          18.4     34.7     15.4   10.0    6.7   4.7
    US first names, Bayes           17.7     28.0     15.1    9.8    4.7   3.3
                   n-grams          18.6     30.5     15.4   10.0    6.9   5.0
    paper: best single, best of all                   15.4   10.1    5.9   3.7

Bayes: the most probable gender by the distributions above, if one is told which letters of a user
ID are of the name, and with counts that need not be whole (400,000 users): no method can be
better. n-grams: logistic regression on 1- to 4-grams of the texts and on the activity, 60,000
training and 10,000 test users, so that 18 % has a standard deviation of 0.4 points.
tests/unit/test_gender.py computes both. The paper does not report the three inputs one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.base import Contents, Task
from modmix.tasks.data import SPLITS, Input
from modmix.tasks.files import Progress, Source
from modmix.tasks.gender_csv import CLASS_NAMES, TEXTS, activity_input, token_inputs, write_csv
from modmix.tasks.gender_generator import (
    BLOCK_ROWS,
    FEATURES,
    UserGenerator,
    Users,
    activity_scaling,
)
from modmix.tasks.gender_names import made_up_names, read_names
from modmix.tasks.writer import Writer, extra_file, input_file, labels_file

# A hundredth of the paper's rows.
ROWS: Mapping[str, int] = {"train": 60_000, "val": 5_000, "test": 10_000}


class Gender(Task):
    name: ClassVar[str] = "gender"
    layout: ClassVar[int] = 2  # with row numbers

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        is_csv = options["source"] == "csv"
        if is_csv != (options["path"] is not None):
            came = "no path" if is_csv else f"path {options['path']}"
            raise DataError(
                "task gender: `path` must be given with source: csv, and only then, got "
                f"source: {options['source']} and {came}; correct one of the two"
            )
        if is_csv and options["names"] is not None:
            raise DataError(
                f"task gender: `names` must not be given with source: csv, got "
                f"{options['names']}; it is for synthetic users: leave it out"
            )
        if not is_csv and options["features"] > len(FEATURES):
            raise DataError(
                f"task gender: `features` must be at most {len(FEATURES)} for synthetic users, got "
                f"{options['features']}; set it lower"
            )

    def sources(self) -> tuple[Source, ...]:
        return tuple(
            Source(path=Path(self.options[option]), mend=f"correct the option `{option}`")
            for option in ("path", "names")
            if self.options[option] is not None
        )

    def write(self, writer: Writer, progress: Progress) -> Contents:
        if (path := self.options["path"]) is not None:
            return write_csv(Path(path), self.options, writer, progress)
        path = self.options["names"]
        names = made_up_names() if path is None else read_names(Path(path), progress)
        users = UserGenerator(self.options, names)
        vocabularies = dict.fromkeys(TEXTS, users.vocabulary)
        inputs = (*token_inputs(vocabularies, self.options), activity_input(self.options))
        for name in TEXTS:
            writer.alphabet(name, users.alphabet)
        writer.content("alphabet", users.alphabet)
        writer.scaled("activity", *activity_scaling(self.options))
        rows = {split: self.options[f"{split}_rows"] or ROWS[split] for split in SPLITS}
        for split in SPLITS:
            self._write_split(writer, users, inputs, split, rows[split], progress)
        return Contents(inputs=inputs, class_names=CLASS_NAMES, rows=rows, extras=("informative",))

    def _write_split(
        self,
        writer: Writer,
        users: UserGenerator,
        inputs: tuple[Input, ...],
        split: str,
        rows: int,
        progress: Progress,
    ) -> None:
        mean_F, scale_F = activity_scaling(self.options)
        with ExitStack() as stack:
            files = [
                stack.enter_context(
                    writer.array(input_file(split, one.name), (rows, *one.shape), one.dtype)
                )
                for one in inputs
            ]
            labels = stack.enter_context(writer.array(labels_file(split), (rows,), np.int64))
            informative = stack.enter_context(
                writer.array(extra_file(split, "informative"), (rows, len(inputs)), np.bool_)
            )
            for number, first in enumerate(range(0, rows, BLOCK_ROWS)):
                block = users.draw(split, number, min(BLOCK_ROWS, rows - first))
                _take_in(writer, block)
                activity_NF = (np.log1p(block.counts_NF) - mean_F) / scale_F
                values = (block.name_NL, block.user_id_NL, activity_NF)
                for file, each in zip(files, values, strict=True):
                    file.append(each)
                labels.append(block.labels_N)
                informative.append(block.informative_N3)
                progress("write", first + len(block.labels_N), rows)


def _take_in(writer: Writer, block: Users) -> None:
    """Take a block into the fingerprint, before its logarithms."""
    for values in (block.labels_N, block.name_NL, block.user_id_NL, block.counts_NF):
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        writer.content_bytes(np.ascontiguousarray(little).data.cast("B"))
