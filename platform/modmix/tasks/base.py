"""What a task is, and how its data are prepared once and mapped ever after.

    load_task("digits", {})      prepares if needed, maps the arrays, returns `Data`
    prepare_task, get_task       the same in steps, with progress
    check_task                   reads everything again and compares checksums
    describe_task                for people

A prepared folder is named by its task, options and source files' content. It is written under
another name while a lock is held, meta.json last, then renamed: whoever sees it sees all of it.
"""

from __future__ import annotations

import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from modmix.base import sources as own
from modmix.base.errors import DataError
from modmix.base.messages import digest
from modmix.tasks.data import SPLITS, Array, Data, Input, Kind, Split
from modmix.tasks.files import (
    Progress,
    Source,
    check_source,
    data_home,
    disk_errors,
    hash_file,
    if_free,
    locked,
    read_json,
    remembered_sha256,
    silent,
    stamp,
)
from modmix.tasks.table import TaskEntry, resolve_options, task_entry
from modmix.tasks.writer import (
    PREPARED_VERSION,
    Writer,
    extra_file,
    input_file,
    labels_file,
)

# A user's file of at least this size is read once for its content and its checksum.
_LARGE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a task has written: inputs in order, classes, rows per split, names of extras."""

    inputs: tuple[Input, ...]
    class_names: tuple[str, ...]
    rows: Mapping[str, int]
    extras: tuple[str, ...] = ()


class Task(ABC):
    """One task with its options resolved.

    A subclass says which files it reads (`sources`) and writes its arrays (`write`). A user's own
    one is built with its options as keyword-only arguments, whose annotations and defaults
    declare them, and ``self.options`` holds them, too.
    """

    name: ClassVar[str]

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def sources(self) -> tuple[Source, ...]:
        """The files this task reads; none for generated data and data of a library."""
        return ()

    def get(self, progress: Progress) -> list[Path]:  # noqa: ARG002 - for those that fetch
        """Fetch what can be fetched; nothing by default."""
        return []

    @abstractmethod
    def write(self, writer: Writer, progress: Progress) -> Contents:
        """Read the sources and write every split.

        Raises:
            DataError: the sources are not what they should be.
        """


@dataclass(frozen=True, kw_only=True)
class Description:
    """A task for people; ``data`` fields are empty until it is prepared."""

    name: str
    entry: TaskEntry
    options: Mapping[str, Any]
    folder: Path | None = None  # of the prepared arrays
    bytes: int = 0
    fingerprint: str = ""
    inputs: Mapping[str, Input] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """Build a task with checked options.

    Raises:
        DataError: no such task or option, or a value that is not acceptable.
        InputError: a user's own class that is no task, or that cannot be built.
    """
    resolved = resolve_options(name, options)
    kind = own.load_subclass(task_entry(name).path, Task, "modmix.Task")
    if not own.is_reference(name):
        return cast(Task, kind(resolved))
    kind.name = name
    with own.explained(f"the task {own.place(name)} cannot be built"):
        takes_options = kind.__init__ is Task.__init__
        task = cast(Task, kind(resolved) if takes_options else kind(**resolved))
    task.options = resolved
    return task


def load_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> Data:
    """Prepare a task's data if needed and map them read-only; nothing is copied.

    Raises:
        DataError: see `prepare_task`.
    """
    folder = prepare_task(name, options, progress)
    return _map_folder(folder, read_json(folder / "meta.json"))


def prepare_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> Path:
    """Return the folder of a task's prepared arrays, writing it first where it is not there.

    Processes that ask at the same time wait for the one that writes. A folder with missing or
    truncated arrays is written anew.

    Raises:
        DataError: wrong options, wrong sources, or no room to write.
    """
    task = make_task(name, options)
    known = _known_sources(task)
    if known is not None and _intact(folder := _folder(task, known)):
        return folder
    with disk_errors(data_home()):
        if _is_large_and_unread(task):
            return _prepare_unread(task, progress)
        sums = [check_source(source, progress) for source in task.sources()]
        folder = _folder(task, sums)
        if not _intact(folder):
            _prepare_locked(task, folder, sums, progress)
    return folder


def get_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> list[Path]:
    """Download what a task needs, and return the files; an empty list when it needs none.

    Raises:
        DataError: the download failed; the message says how to get the file by hand.
    """
    task = make_task(name, options)
    with disk_errors(data_home()):
        return task.get(progress)


def check_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> Path:
    """Read sources and prepared arrays whole and compare their checksums; return the folder.

    Raises:
        DataError: not prepared, or something is not as it was written.
    """
    task = make_task(name, options)
    again = f"run `modmix data prepare {name}` with the same options"
    sums = [
        source.sha256  # an official file may have been deleted once it is prepared
        if source.sha256 is not None and not source.path.exists()
        else check_source(source, progress)
        for source in task.sources()
    ]
    folder = _folder(task, sums)
    if not folder.exists():
        raise DataError(f"{folder}: task {name} is not prepared with these options; {again}")
    if not _intact(folder):
        raise DataError(f"{folder}: prepared arrays are missing or truncated; {again}")
    for file, expected in read_json(folder / "meta.json")["files"].items():
        if (came := hash_file(folder / file, progress)) != expected["sha256"]:
            raise DataError(
                f"{folder / file}: sha256 must be {expected['sha256']}, got {came}; delete the "
                f"folder and {again}"
            )
    return folder


def describe_task(name: str, options: Mapping[str, Any] | None = None) -> Description:
    """Describe a task; with what is known of its data where it is prepared with these options.

    Without ``options``, a task with required ones is described in general.
    """
    entry = task_entry(name)
    if options is None and any(option.required for option in entry.options):
        return Description(name=name, entry=entry, options={})
    task = make_task(name, options or {})
    known = _known_sources(task)
    if known is None:
        with suppress(DataError):
            known = [check_source(source) for source in task.sources()]
    if known is None or not _intact(folder := _folder(task, known)):
        return Description(name=name, entry=entry, options=task.options)
    meta = read_json(folder / "meta.json")
    return Description(
        name=name,
        entry=entry,
        options=task.options,
        folder=folder,
        bytes=sum(file["bytes"] for file in meta["files"].values()),
        fingerprint=meta["fingerprint"],
        inputs=_inputs(meta),
        class_names=tuple(meta["class_names"]),
        rows=meta["rows"],
    )


# ---------------------------------------------------------------- folders


def _known_sources(task: Task) -> list[str] | None:
    """Checksums of the sources where none must be read for it: an official file may be gone."""
    sums = [source.sha256 for source in task.sources()]
    return [s for s in sums if s is not None] if None not in sums else None


def _folder(task: Task, sums: list[str]) -> Path:
    key = [PREPARED_VERSION, task.name, _without_paths(task), sums]
    return data_home() / "prepared" / digest(key)


def _without_paths(task: Task) -> dict[str, Any]:
    """Options that shape the data: where a file lies does not, its content does."""
    paths = [o.name for o in task_entry(task.name).options if o.kind == "path"]
    return {name: value for name, value in task.options.items() if name not in paths}


def _intact(folder: Path) -> bool:
    """Whether meta.json is there and every array has the size that it says."""
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("version") != PREPARED_VERSION:
        return False
    if "scaling" not in meta:  # written before it was kept
        return False
    try:
        return all(
            (folder / name).stat().st_size == file["bytes"] for name, file in meta["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _prepare_locked(task: Task, folder: Path, sums: list[str], progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, progress):
        if _intact(folder):  # another process was faster
            return
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        _sweep(folder.parent)
        temporary.mkdir()
        try:
            _write(task, temporary, lambda: sums, progress)
            if folder.exists():  # damaged; who has mapped it keeps what was mapped
                shutil.rmtree(folder)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _is_large_and_unread(task: Task) -> bool:
    """Whether a file of a user's own must be read whole before its checksum is known."""
    sources = task.sources()
    if not sources or any(s.sha256 is not None or not s.path.is_file() for s in sources):
        return False
    with suppress(OSError):
        large = sum(source.path.stat().st_size for source in sources) >= _LARGE_BYTES
        return large and any(remembered_sha256(source.path) is None for source in sources)
    return False


def _prepare_unread(task: Task, progress: Progress) -> Path:
    """Prepare files while their checksums, which name the folder, are computed beside.

    Reading a large file once for its checksum and once for its content takes twice as long.
    """
    files = [[str(s.path.resolve()), *stamp(s.path)] for s in task.sources()]
    place = data_home() / "prepared" / digest(["unread", task.name, _without_paths(task), files])
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place, progress):
        known = [remembered_sha256(source.path) for source in task.sources()]
        sums = [sha256 for sha256 in known if sha256 is not None]
        if len(sums) == len(known) and _intact(folder := _folder(task, sums)):
            return folder  # another process was faster
        temporary = place.with_name(f".{place.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        _sweep(place.parent)
        temporary.mkdir()
        try:
            with _Checksums(task.sources()) as checksums:
                _write(task, temporary, checksums.wait, progress)
                sums = checksums.wait()
            for source, (_, *before) in zip(task.sources(), files, strict=True):
                if stamp(source.path) != before:
                    raise _changed(source)
            folder = _folder(task, sums)
            with locked(folder, progress):
                if not _intact(folder):
                    if folder.exists():
                        shutil.rmtree(folder)
                    temporary.rename(folder)
            return folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


class _Checksums:
    """Checks sources in a thread of its own. Leaving by an error stops it."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "modmix-checksum")
        self._sums = [self._pool.submit(check_source, s, self._watch) for s in sources]

    def _watch(self, *_: object) -> None:
        if self._stop.is_set():
            raise InterruptedError("the checksum is not wanted any more")

    def wait(self) -> list[str]:
        return [future.result() for future in self._sums]

    def __enter__(self) -> _Checksums:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def _sweep(prepared: Path) -> None:
    """Remove what killed processes have left: half-written folders whose lock is free."""
    for temporary in prepared.glob(".*.tmp"):
        folder = prepared / temporary.name.removeprefix(".").removesuffix(".tmp")
        with if_free(folder) as free:
            if free:
                shutil.rmtree(temporary, ignore_errors=True)


def _write(
    task: Task, folder: Path, checksums: Callable[[], list[str]], progress: Progress
) -> None:
    writer = Writer(folder)
    with (
        own.explained(f"the task {own.place(task.name)} cannot be written")
        if (own.is_reference(task.name))
        else nullcontext()
    ):
        contents = task.write(writer, progress)
    sums = checksums()
    sources = [
        {"name": source.path.name, "bytes": source.path.stat().st_size, "sha256": sha256}
        for source, sha256 in zip(task.sources(), sums, strict=True)
    ]
    for source, sha256 in zip(task.sources(), sums, strict=True):
        if check_source(source) != sha256:
            raise _changed(source)
    writer.finish(
        task=task.name,
        options=_without_paths(task),
        inputs={m.name: m for m in contents.inputs},
        class_names=contents.class_names,
        rows=contents.rows,
        extras=contents.extras,
        sources=sources,
    )


def _changed(source: Source) -> DataError:
    return DataError(f"{source.path}: was changed while it was read; run the command again")


# ---------------------------------------------------------------- mapping


def _inputs(meta: Mapping[str, Any]) -> dict[str, Input]:
    return {
        name: Input(name=name, shape=tuple(shape), kind=cast(Kind, kind))
        for name, shape, kind in meta["inputs"]
    }


def _map_folder(folder: Path, meta: Mapping[str, Any]) -> Data:
    inputs = _inputs(meta)

    def array(name: str) -> Array:
        mapped: Array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return mapped

    splits = {
        split: Split(
            inputs={name: array(input_file(split, name)) for name in inputs},
            labels=array(labels_file(split)),
            extras={name: array(extra_file(split, name)) for name in meta["extras"]},
        )
        for split in SPLITS
    }
    return Data(
        name=meta["task"],
        inputs=inputs,
        classes=len(meta["class_names"]),
        class_names=tuple(meta["class_names"]),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        fingerprint=meta["fingerprint"],
    )
