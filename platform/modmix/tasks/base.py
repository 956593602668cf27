"""The `Task` contract, and the functions that prepare a task's data once and then memory-map it.

    get_task         downloads the source files
    prepare_task     writes the prepared arrays, unless they are cached
    load_task        prepares if needed, maps the arrays and returns `Data`
    check_task       verifies the checksums of sources and prepared arrays
    describe_task    describes a task and, if prepared, its data

A prepared folder is named by a digest of the task, its options and the content of its sources. It
is written under a temporary name while holding a lock, meta.json last, and then renamed, so that
it is always complete.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from modmix.base import sources as own
from modmix.base.errors import DataError
from modmix.base.messages import digest
from modmix.tasks.data import PICTURES, SPLITS, Array, Augmentation, Data, Input, Split
from modmix.tasks.entry import TaskEntry
from modmix.tasks.file_states import states_of
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
    silent,
)
from modmix.tasks.table import resolve_options, task_entry
from modmix.tasks.writer import (
    PREPARED_VERSION,
    Writer,
    extra_file,
    input_file,
    input_from_json,
    labels_file,
)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What `Task.write` has written: inputs in order, classes, rows per split, names of extras."""

    inputs: tuple[Input, ...]
    class_names: tuple[str, ...]
    rows: Mapping[str, int]
    extras: tuple[str, ...] = ()


class Task(ABC):
    """Base class of tasks; an instance has its options resolved.

    Subclasses define the files they read (`sources`) and write their arrays (`write`). A
    user-defined task declares its options as keyword-only constructor arguments with annotations
    and defaults; ``self.options`` holds them as well.
    """

    name: ClassVar[str]
    # Raised when files are added to the prepared folder and the fingerprint stays as it was.
    layout: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def sources(self) -> tuple[Source, ...]:
        """The files this task reads; none for synthetic data or data bundled with a library."""
        return ()

    def listing(self) -> list[Any] | None:
        """What identifies files that are too many to hash; None if there are none.

        A list of JSON values, by convention [relative name, size] of each file, read anew at every
        call. Together with the checksums of `sources` and the options it names the prepared folder.
        A file whose content changes while its name and size stay the same is not noticed: after
        such a change, delete the prepared folder.
        """
        return None

    def get(self, progress: Progress) -> list[Path]:  # noqa: ARG002 - used by overrides
        """Download the source files and return them; nothing by default."""
        return []

    def augmentation(self) -> Mapping[str, Augmentation]:
        """Augmentation by input; none by default."""
        return {}

    def refuses(self, folder: Path, rows: Mapping[str, int]) -> str | None:  # noqa: ARG002
        """Why prepared arrays with these rows per split may not be used, or None if they may.

        For options that do not affect the arrays themselves.
        """
        return None

    @abstractmethod
    def write(self, writer: Writer, progress: Progress) -> Contents:
        """Read the sources and write all splits.

        Raises:
            DataError: invalid source files.
        """


@dataclass(frozen=True, kw_only=True)
class Description:
    """A task's description; the fields from ``folder`` on are empty unless it is prepared."""

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
    """Build a task with validated options.

    Raises:
        DataError: no such task or option, or an invalid value.
        InputError: a user-defined class is not a `Task` or cannot be built.
    """
    resolved = resolve_options(name, options)
    kind = own.load_subclass(task_entry(name).path, Task, "modmix.Task")
    if not own.is_reference(name):
        return cast(Task, kind(resolved))
    kind.name = name
    with own.explained(f"the task {own.place(name)} cannot be built"):
        takes_options = kind.__init__ is Task.__init__
        task = cast(Task, kind(resolved) if takes_options else kind(**_arguments(name, resolved)))
    task.options = resolved
    return task


def _arguments(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A user's own class gets paths as `Path`, as its annotations say."""
    kinds = {option.name: option.kind for option in task_entry(name).options}
    return {
        option: Path(value) if kinds[option] == "path" and value is not None else value
        for option, value in options.items()
    }


def load_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> Data:
    """Prepare a task's data if needed and memory-map it read-only.

    Raises:
        DataError: see `prepare_task`.
    """
    folder = prepare_task(name, options, progress)
    return _map_folder(make_task(name, options), folder)


def prepare_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> Path:
    """Return the folder of a task's prepared arrays, writing it if needed.

    Concurrent callers wait for the process that is writing. A folder with missing or truncated
    arrays is rewritten.

    Raises:
        DataError: invalid options or sources, the disk is full or not writable, or the task
            refuses the prepared arrays (`Task.refuses`).
    """
    task = make_task(name, options)
    known = _known_sources(task)
    if known is not None and _intact(folder := _folder(task, known)):
        return _admitted(task, folder)
    with disk_errors(data_home()):
        sums = [check_source(source, progress) for source in task.sources()]
        folder = _folder(task, sums)
        if not _intact(folder):
            _prepare_locked(task, folder, sums, progress)
    return _admitted(task, folder)


def _admitted(task: Task, folder: Path) -> Path:
    _remove_scratch(folder)
    if (why := task.refuses(folder, read_json(folder / "meta.json")["rows"])) is not None:
        raise DataError(why)
    return folder


def get_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> list[Path]:
    """Download the files a task needs and return their paths; empty if it needs none.

    Raises:
        DataError: the download failed; the message says how to get the file manually.
    """
    task = make_task(name, options)
    with disk_errors(data_home()):
        return task.get(progress)


def check_task(name: str, options: Mapping[str, Any], progress: Progress = silent) -> Path:
    """Verify the checksums of sources and prepared arrays; return the folder of the arrays.

    Raises:
        DataError: not prepared, or a checksum does not match.
    """
    task = make_task(name, options)
    again = f"run `modmix data prepare` on the study file (or on {name} with the same options)"
    sums = [
        source.sha256  # an official file may be deleted after preparation
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
    """Describe a task, and its data if it is prepared with these options.

    Without ``options``, only the table entry of a task with required options is described.
    """
    entry = task_entry(name)
    if options is None and any(option.required for option in entry.options):
        return Description(name=name, entry=entry, options={})
    task = make_task(name, options or {})
    folder = None
    with suppress(DataError):
        known = _known_sources(task)
        folder = _folder(task, known or [check_source(source) for source in task.sources()])
    if folder is None or not _intact(folder):
        return Description(name=name, entry=entry, options=task.options)
    meta = read_json(folder / "meta.json")
    return Description(
        name=name,
        entry=entry,
        options=task.options,
        folder=folder,
        bytes=sum(file["bytes"] for file in meta["files"].values()),
        fingerprint=_fingerprint(task, meta),
        inputs=_inputs(meta),
        class_names=tuple(meta["class_names"]),
        rows=meta["rows"],
    )


# ---------------------------------------------------------------- folders


def _known_sources(task: Task) -> list[str] | None:
    """Checksums of the sources if all are declared, else None; the files need not exist."""
    sums = [source.sha256 for source in task.sources()]
    return [s for s in sums if s is not None] if None not in sums else None


def _folder(task: Task, sums: list[str]) -> Path:
    key: list[Any] = [PREPARED_VERSION, task.name, array_options(task), sums]
    if task.layout > 1:
        key.append(task.layout)
    if (listing := task.listing()) is not None:
        key.append({"listing": listing})
    elif not task.sources() and (files := _files_of(task)):
        key.append({"files": files})
    return data_home() / "prepared" / digest(key)


def _files_of(task: Task) -> list[Any]:
    """What the path options of a task that declares no files lead to: names, sizes and times."""
    kinds = {option.name: option.kind for option in task_entry(task.name).options}
    found: list[Any] = []
    for name, value in task.options.items():
        if kinds[name] != "path" or value is None:
            continue
        found.append([name, value, states_of(Path(value))])
    return found


def array_options(task: Task) -> dict[str, Any]:
    """Options that affect the arrays; paths do not, as sources are identified by content."""
    shape = {o.name: o.shapes_arrays and o.kind != "path" for o in task_entry(task.name).options}
    return {name: value for name, value in task.options.items() if shape[name]}


def _intact(folder: Path) -> bool:
    """Whether meta.json exists and every array has the size recorded there."""
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("version") != PREPARED_VERSION:
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
        if _intact(folder):  # another process wrote it meanwhile
            return
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        _sweep(folder.parent)
        temporary.mkdir()
        try:
            _write(task, Writer(temporary, _scratch(folder.name)), sums, progress)
            if _folder(task, sums) != folder:
                raise DataError(
                    f"the files of task {own.place(task.name)} were changed while they were read; "
                    "run the command again"
                )
            if folder.exists():  # damaged; processes that have mapped it keep their maps
                shutil.rmtree(folder)
            temporary.rename(folder)
            _remove_scratch(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _sweep(prepared: Path) -> None:
    """Remove the partial folders of killed processes: those whose lock is free.

    The scratch folder of a preparation that was not completed is kept, to be resumed.
    """
    for scratch in _scratch("").glob("*"):
        with if_free(prepared / scratch.name) as free:
            if free and (prepared / scratch.name / "meta.json").exists():
                shutil.rmtree(scratch, ignore_errors=True)
    for temporary in prepared.glob(".*.tmp"):
        folder = prepared / temporary.name.removeprefix(".").removesuffix(".tmp")
        with if_free(folder) as free:
            if free:
                shutil.rmtree(temporary, ignore_errors=True)


def _scratch(key: str) -> Path:
    return data_home() / "decoded" / key


def _remove_scratch(folder: Path) -> None:
    """Remove the scratch folder of a complete preparation, which a kill may have left."""
    shutil.rmtree(_scratch(folder.name), ignore_errors=True)


def _write(task: Task, writer: Writer, sums: Sequence[str], progress: Progress) -> None:
    with (
        own.explained(f"the task {own.place(task.name)} cannot be written")
        if (own.is_reference(task.name))
        else nullcontext()
    ):
        contents = task.write(writer, progress)
    sources = [
        {"name": source.path.name, "bytes": source.path.stat().st_size, "sha256": sha256}
        for source, sha256 in zip(task.sources(), sums, strict=True)
    ]
    for source, sha256 in zip(task.sources(), sums, strict=True):
        if check_source(source) != sha256:
            raise DataError(f"{source.path}: was changed while it was read; run the command again")
    writer.finish(
        task=task.name,
        options=array_options(task),
        inputs={m.name: m for m in contents.inputs},
        class_names=contents.class_names,
        rows=contents.rows,
        extras=contents.extras,
        sources=sources,
    )


# ---------------------------------------------------------------- mapping


def _inputs(meta: Mapping[str, Any]) -> dict[str, Input]:
    return {value["name"]: input_from_json(value) for value in meta["inputs"]}


def _fingerprint(task: Task, meta: Mapping[str, Any]) -> str:
    """Digest of the prepared content and, if there is any, of the augmentation."""
    content: str = meta["fingerprint"]
    inputs = _inputs(meta)
    augmentation = {}
    for name, value in task.augmentation().items():
        augmentation[name] = value.identity
        if value.noise and name in inputs and inputs[name].kind == "sequence":
            augmentation[name]["padding"] = "kept"  # earlier, padding got noise as well
    return digest([content, augmentation]) if augmentation else content


def _check_augmentation(
    task: str, inputs: Mapping[str, Input], name: str, settings: Augmentation
) -> None:
    pictures = [i.name for i in inputs.values() if i.kind in PICTURES]
    numbers = [i.name for i in inputs.values() if i.kind != "tokens"]
    if name not in pictures and (settings.moves or not settings.noise):
        raise DataError(
            f"task {task}: the option `augment` must name images, got {name!r}; the images are: "
            f"{', '.join(pictures) or 'none'}"
        )
    if name not in numbers:
        raise DataError(
            f"task {task}: the option `noise` must name inputs other than tokens, got {name!r}; "
            f"they are: {', '.join(numbers) or 'none'}"
        )


def _map_folder(task: Task, folder: Path) -> Data:
    meta = read_json(folder / "meta.json")
    inputs = _inputs(meta)
    augmentation = task.augmentation()
    for name, settings in augmentation.items():
        _check_augmentation(task.name, inputs, name, settings)

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
        fingerprint=_fingerprint(task, meta),
        augmentation=augmentation,
    )
