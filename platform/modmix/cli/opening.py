"""The ledger and the name of the study that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modmix.base.errors import InputError

if TYPE_CHECKING:
    from modmix.ledger.ledger import Ledger


def open_ledger() -> Ledger:
    """The ledger of the results folder.

    Raises:
        InputError: there is none, or it cannot be opened.
    """
    from modmix.base.home import Home, sqlite_path
    from modmix.ledger.ledger import Ledger

    home = Home.from_environment()
    if not home.has_ledger:
        path = sqlite_path(home.ledger_url)
        where = home.path if path == home.path / "ledger.db" else path
        raise InputError(
            f"there are no studies in {where}: run one first, or set MODMIX_HOME to the folder "
            "where they ran"
        )
    ledger = Ledger(home.ledger_url)
    ledger.retry_seconds = 20.0  # somebody waits for the answer
    return ledger


def study_name(name: str) -> str:
    """The name of a study given by its name or its file."""
    if name.endswith((".yaml", ".yml")) and Path(name).exists():
        from modmix.study import files

        return str(files.read(Path(name)).raw.get("study"))
    return name
