"""Names, sizes and times of the files below a path, to detect changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modmix.base.errors import DataError
from modmix.base.home import Home, is_taken
from modmix.tasks.files import DATA_FOLDERS, data_home


def states_of(path: Path) -> list[Any]:
    """[name, size in bytes, time of modification in ns] of a file, or of all files in a folder.

    Links are followed. Left out is what changes during a study although its data do not:
    folders of modmix's results and prepared arrays (if ``path`` itself is one, what modmix always
    keeps there), compiled Python code and hidden files. So is what does not exist.

    Raises:
        DataError: a file or folder cannot be accessed.
    """
    try:
        found = []
        for file in sorted(_files(path)):
            try:
                state = file.stat()
            except FileNotFoundError:  # removed meanwhile, or a link to nothing
                continue
            found.append([str(file), state.st_size, state.st_mtime_ns])
        return found
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot be accessed ({error.strerror or error}); change "
            "its permissions, or give the task a folder without it"
        ) from error


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    results, data = Home.from_environment().path.resolve(), data_home().resolve()
    seen: set[Path] = set()  # a link may lead to a folder above itself
    for folder, folders, files in os.walk(path, followlinks=True, onerror=_raise):
        real = Path(folder).resolve()
        # A results folder with another name is known by its ledger.
        is_ours = real in (results, data) or "ledger.db" in files
        is_ours = is_ours or ("report.html" in files and "figures" in folders)  # of a study
        if real in seen or (is_ours and Path(folder) != path):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if _counts(name, is_ours)]
        yield from (Path(folder, name) for name in files if _counts(name, is_ours))


def _counts(name: str, is_ours: bool) -> bool:
    if is_ours and (is_taken(name) or name in DATA_FOLDERS):
        return False
    return not name.startswith(".") and name != "__pycache__"


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
