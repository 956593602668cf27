"""Tasks whose sources are thousands of media files: audio, images, video.

A subclass of `MediaTask` lists its items from the official split files (`listed`), describes its
inputs (`inputs`) and decodes one item (`decode`); preparing, resuming, leaving out
unreadable items and standardising are done here. `decode` runs in other processes, on a task built
anew from its name and options.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modmix.base import sources as own
from modmix.base.errors import DataError
from modmix.base.wording import counted
from modmix.tasks.base import Contents, Task, array_options
from modmix.tasks.data import SPLITS, Array, Input
from modmix.tasks.files import Progress, data_home
from modmix.tasks.media_checks import (
    excess,
    excess_of_prepared,
    in_two_splits,
    last_change,
    reason_of,
    sample_of,
    some,
)
from modmix.tasks.media_decode import Item, Shard, decode, shards_of
from modmix.tasks.splits import Moments, absent
from modmix.tasks.writer import Writer, input_file, labels_file

UNREADABLE = "unreadable.txt"
MAX_UNREADABLE = 0.1  # share of all items and of each split, without an option of this name
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What the split files say: the items in a fixed order, and the names of the classes."""

    items: tuple[Item, ...]
    class_names: tuple[str, ...]


class MediaTask(Task):
    """Base class of tasks whose items are media files below the folder of the option ``path``.

    The option ``path`` must be declared; ``max_unreadable``, a fraction of the items, may be.

    Files are identified by their names and sizes and the beginnings of a few (`listing`), and by
    the checksums of the split files (`sources`), not by hashing terabytes: replacing a single file
    by another of the same size is not noticed.
    """

    @abstractmethod
    def listed(self) -> Listed:
        """Read the split files.

        Raises:
            DataError: a file is missing or a line is wrong.
        """

    @abstractmethod
    def inputs(self) -> tuple[Input, ...]:
        """The inputs, described from the options alone."""

    @abstractmethod
    def decode(self, item: Item) -> Mapping[str, Array]:
        """The arrays of one item, by input.

        Raises:
            Unreadable: a file of the item cannot be used; the item is left out.
        """

    def standardised(self) -> tuple[str, ...]:
        """Float inputs whose channels are standardised with the training split's mean and scale."""
        return ()

    def write_beside(
        self,
        items: Sequence[Item],  # noqa: ARG002 - used by overrides
        writer: Writer,  # noqa: ARG002
    ) -> tuple[Input, ...]:
        """Write further inputs, which need no decoding, of these items, ordered by split.

        An override passes to `Writer.content` what determines them.
        """
        return ()

    @property
    def root(self) -> Path:
        return Path(self.options["path"])

    @cached_property
    def _found(self) -> Listed:
        """`listed`, with the items ordered by split."""
        found = self.listed()
        order = {split: number for number, split in enumerate(SPLITS)}
        items = tuple(sorted(found.items, key=lambda item: order[item.split]))
        return Listed(items=items, class_names=found.class_names)

    def listing(self) -> list[Any]:
        """[name, size] of every file that an item names, and a digest of a sample of them.

        The size of a folder is the number of its entries, that of a missing file null.
        """
        return [*self._sizes(), {"sample": sample_of(self.root, self._found.items)}]

    def _sizes(self) -> list[list[Any]]:
        names = sorted({name for item in self._found.items for name in item.files})
        return [[name, _size(self.root / name)] for name in names]

    def write(self, writer: Writer, progress: Progress) -> Contents:
        items, listing = self._found.items, self.listing()
        self._check_missing(items)
        if shared := in_two_splits(items):
            _log.warning(
                "warning: the lists of task %s have %s in more than one split (%s): errors on them "
                "may be too low",
                own.place(self.name),
                counted(len(shared), "file"),
                some(shared),
            )
        shards = shards_of(writer.scratch, len(items), self._bytes_per_item())
        for shard in shards:
            if shard.is_older(last_change(self.root, items[shard.first : shard.last])):
                shard.path.unlink()
        self._check_space(items, shards, progress)
        writer.scratch.mkdir(parents=True, exist_ok=True)
        decode(self.name, self.options, items, shards, progress)
        reasons = {n: reason for shard in shards for n, reason in shard.reasons().items()}
        self._report(items, reasons, writer)
        kept = [item for n, item in enumerate(items) if n not in reasons]
        for name, value in (
            ("options", array_options(self)),
            ("class_names", list(self._found.class_names)),
            ("listing", listing),
            ("items", [[list(i.files), i.label, i.split, i.start, i.end] for i in kept]),
        ):
            writer.content(name, value)
        splits_N = np.array([SPLITS.index(item.split) for item in kept])
        labels_N = np.array([item.label for item in kept], dtype=np.int64)
        self._check_splits(splits_N)
        if (lost := absent(labels_N, splits_N, self._found.class_names)) is not None:
            _log.warning("warning: task %s: %s", own.place(self.name), lost)
        for number, split in enumerate(SPLITS):
            writer.put(labels_file(split), labels_N[splits_N == number], np.int64)
        self._write_inputs(shards, splits_N, writer, progress)
        return Contents(
            inputs=(*self.inputs(), *self.write_beside(kept, writer)),
            class_names=self._found.class_names,
            rows={split: int((splits_N == n).sum()) for n, split in enumerate(SPLITS)},
        )

    def refuses(self, folder: Path, rows: Mapping[str, int]) -> str | None:
        more = excess_of_prepared(self._found.items, rows, self._share)
        if more is None:
            return None
        return (
            f"{more} of task {own.place(self.name)} could not be read when they were prepared; "
            f"{folder / UNREADABLE} lists them; repair the files and delete its folder, or set "
            f"`max_unreadable` (now {self._share:g} of the items of any split) higher"
        )

    def _write_inputs(
        self, shards: Sequence[Shard], splits_N: Array, writer: Writer, progress: Progress
    ) -> None:
        """Copy the inputs from the shards, one input after the other."""
        done, total = 0, len(splits_N) * len(self.inputs())
        for one in self.inputs():
            moments = self._moments(one, shards, splits_N, writer)
            with ExitStack() as stack:
                files = []
                for number, split in enumerate(SPLITS):
                    shape = int((splits_N == number).sum()), *one.stored_shape
                    array = writer.array(input_file(split, one.name), shape, one.dtype)
                    files.append(stack.enter_context(array))
                for values_n, split_n in _rows(one.name, shards, splits_N):
                    for number, file in enumerate(files):
                        chosen = values_n[split_n == number]
                        file.append(chosen if moments is None else _scaled(chosen, moments))
                    progress("write", done := done + len(split_n), total)

    def _bytes_per_item(self) -> int:
        sizes = (
            math.prod(one.stored_shape) * np.dtype(one.dtype).itemsize for one in self.inputs()
        )
        return sum(sizes)

    def _check_space(
        self, items: Sequence[Item], shards: Sequence[Shard], progress: Progress
    ) -> None:
        """Show the disk space that is needed: for the shards and the arrays made of them.

        Raises:
            DataError: less is free.
        """
        there = sum(s.path.stat().st_size for s in shards if s.path.exists())
        needed = max(0, 2 * len(items) * self._bytes_per_item() - there)
        free = shutil.disk_usage(data_home()).free
        progress("space", needed, free)
        if needed > free:
            raise DataError(
                f"{data_home()}: {needed / 1e9:.1f} GB must be free to prepare task "
                f"{own.place(self.name)} (half of it temporarily), {free / 1e9:.1f} GB are; "
                "free some space or set MODMIX_DATA to a folder on another disk"
            )

    def _check_missing(self, items: Sequence[Item]) -> None:
        """Refuse before decoding what would otherwise be refused hours later."""
        missing = {name for name, size in self._sizes() if size is None}
        without = {n for n, item in enumerate(items) if missing & set(item.files)}
        if (more := excess(items, without, self._share)) is not None:
            names = sorted({name for n in more[1] for name in items[n].files} & missing)
            raise DataError(
                f"{self.root}: files of {more[0]} are missing, such as {some(names[:3])}; "
                f"{self._remedy()}"
            )

    @property
    def _share(self) -> float:
        share: float = self.options.get("max_unreadable", MAX_UNREADABLE)
        return share

    def _remedy(self) -> str:
        return (
            "correct the option `path` or get the files, or set `max_unreadable` (now "
            f"{self._share:g} of the items of any split) higher"
        )

    def _report(self, items: Sequence[Item], reasons: Mapping[int, str], writer: Writer) -> None:
        """List the items that could not be read in a file, and summarise them in one warning.

        Raises:
            DataError: there are too many.
        """
        lines = [f"{items[n].files[0]}\t{reason}" for n, reason in sorted(reasons.items())]
        text = "".join(f"{line}\n" for line in lines)
        if not reasons:
            return
        task = f"of task {own.place(self.name)}"
        if (more := excess(items, reasons, self._share)) is not None:
            path = writer.scratch / UNREADABLE
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            names = some([items[n].files[0] for n in more[1][:3]])
            raise DataError(
                f"{more[0]} {task} cannot be read, such as {names} "
                f"({reason_of(items[more[1][0]], reasons[more[1][0]])}); {path} has all; "
                f"{self._remedy()}"
            )
        writer.text(UNREADABLE, text)
        path = data_home() / "prepared" / writer.scratch.name / UNREADABLE
        _log.warning(
            "warning: %s of %s items %s cannot be read and are left out: %s; reasons in %s",
            f"{len(reasons):,}",
            f"{len(items):,}",
            task,
            some([items[n].files[0] for n in sorted(reasons)]),
            path,
        )

    def _check_splits(self, splits_N: Array) -> None:
        for number, split in enumerate(SPLITS):
            if not (splits_N == number).any():
                raise DataError(
                    f"{self.root}: no item of the {split} split can be read; {self._remedy()}"
                )

    def _moments(
        self, one: Input, shards: Sequence[Shard], splits_N: Array, writer: Writer
    ) -> Moments | None:
        """Mean and standard deviation of the channels in training; None: not standardised."""
        if one.name not in self.standardised():
            return None
        moments = Moments(one.shape[-1])
        for values_n, split_n in _rows(one.name, shards, splits_N):
            for values in values_n[split_n == 0]:
                moments.add(values.reshape(-1, one.shape[-1]))
        writer.scaled(one.name, moments.mean_D, moments.scale_D)
        return moments


def _rows(name: str, shards: Sequence[Shard], splits_N: Array) -> Iterator[tuple[Array, Array]]:
    """An input's rows (n, ...) of each shard, with the numbers of their splits (n,)."""
    before = 0
    for shard in shards:
        values_n = shard.read(name)
        yield values_n, splits_N[before : before + len(values_n)]
        before += len(values_n)


def _scaled(values_N: Array, moments: Moments) -> npt.NDArray[np.float32]:
    return moments.apply(values_N.reshape(-1, values_N.shape[-1])).reshape(values_N.shape)


def _size(path: Path) -> int | None:
    try:
        status = path.stat()
        if not path.is_dir():
            return status.st_size
        with os.scandir(path) as entries:
            return sum(1 for _ in entries)
    except OSError:
        return None
