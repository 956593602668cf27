"""Paths of a user's results.

$MODMIX_HOME (default ./modmix_runs)
├── ledger.db            all studies (unless MODMIX_LEDGER names a database)
├── mlflow.db            the MLflow store (unless MLFLOW_TRACKING_URI names a server)
├── artifacts/           MLflow's artifacts
├── checkpoints/<pack>/  of packs in training; removed when a pack ends
├── weights/             best weights of final runs, one safetensors file per replicate
└── <study>/             figures/  tables/  best/  report.html
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modmix.base.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
NAME_RULE = "letters, digits, '_', '-' and '.', at most 100, beginning with a letter or digit"
_ROOM = 8 << 20  # bytes that must be free: databases and figures of a small study
_OURS = ("artifacts", "checkpoints", "weights", "ledger.db", "mlflow.db")


def is_name(text: str) -> bool:
    """Whether a text is a valid name, which may become part of a path."""
    return _NAME.fullmatch(text) is not None


def is_taken(text: str) -> bool:
    """Whether a study of this name would clash with another file (on any file system)."""
    name = text.lower()
    return name in _OURS or name.startswith(("ledger.db-", "mlflow.db-"))  # SQLite's own files


@dataclass(frozen=True)
class Home:
    """The results folder and the paths inside it."""

    path: Path

    @staticmethod
    def from_environment() -> Home:
        return Home(Path(os.environ.get("MODMIX_HOME") or "modmix_runs").absolute())

    def make(self) -> None:
        """Create the folder and check that it is writable.

        Raises:
            InputError: it cannot be created or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(bytes(_ROOM))
                probe.flush()
        except OSError as error:
            raise InputError(
                f"the results folder {self.path} cannot be written ({error.strerror}): free some "
                "space, change its permissions, or set MODMIX_HOME to another folder"
            ) from error

    @property
    def ledger_url(self) -> str:
        return os.environ.get("MODMIX_LEDGER") or f"sqlite:///{self.path / 'ledger.db'}"

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    def study(self, name: str) -> Path:
        """The folder of one study.

        Raises:
            InputError: the name could leave the folder.
        """
        if not is_name(name) or is_taken(name):
            raise InputError(
                f"a study's name must be {NAME_RULE}, and none of {', '.join(_OURS)}, got {name!r}"
            )
        return self.path / name


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new content."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """`write_text` for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
