"""Paths of a user's results.

$MODMIX_HOME (default ./modmix_runs)
├── ledger.db            all studies (unless MODMIX_LEDGER names a database)
├── mlflow.db            the MLflow store (unless MLFLOW_TRACKING_URI names a server)
├── optuna.db            copies of searches for optuna-dashboard (modmix ui --optuna)
├── artifacts/           MLflow's artifacts
├── checkpoints/<pack>/  checkpoints of packs in training; removed when a pack ends
├── weights/             best weights of final runs, one safetensors file per replicate
├── <study>/             figures/  tables/  best/  report.html
└── @<owner>/<study>/    the same of other people's studies
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from modmix.base.errors import InputError

# Characters, as many as the ledger's columns hold: PostgreSQL refuses longer values.
NAME_LENGTH = 100
METHOD_LENGTH = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{NAME_LENGTH - 1}}}")
NAME_RULE = (
    f"letters, digits, '_', '-' and '.', at most {NAME_LENGTH}, beginning with a letter or digit"
)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)  # as in os.path.expandvars
_ROOM = 8 << 20  # free bytes required: enough for the databases and figures of a small study
_OURS = ("artifacts", "checkpoints", "weights", "ledger.db", "mlflow.db", "optuna.db")


def is_name(text: str) -> bool:
    """Whether a text is a valid name, safe to use in a path."""
    return _NAME.fullmatch(text) is not None


def is_taken(text: str) -> bool:
    """Whether a study's folder of this name would clash with modmix's own files.

    Case-insensitive, as some file systems are.
    """
    name = text.lower()
    return name in _OURS or name.startswith(("ledger.db-", "mlflow.db-", "optuna.db-"))  # SQLite's


@dataclass(frozen=True)
class Home:
    """The results folder and the paths inside it."""

    path: Path

    @staticmethod
    def from_environment() -> Home:
        """The folder set by MODMIX_HOME.

        Raises:
            InputError: a ~ or $VARIABLE in MODMIX_HOME cannot be expanded.
        """
        return Home(environment_folder("MODMIX_HOME", "modmix_runs"))

    def make(self) -> None:
        """Create the folder and check that it is writable.

        Raises:
            InputError: it cannot be created or written to, or MLflow would misread its path.
        """
        if unquote(str(self.path)) != str(self.path):
            raise InputError(
                f"the results folder {self.path} has a % and two digits in its path, which MLflow "
                "takes for a quoted character: set MODMIX_HOME to another folder"
            )
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
        return _environment_url("MODMIX_LEDGER") or sqlite_url(self.path / "ledger.db")

    @property
    def has_ledger(self) -> bool:
        """Whether the ledger exists. (Opening a missing SQLite file would create it.)"""
        path = sqlite_path(self.ledger_url)
        return path is None or path.exists()

    @property
    def tracking_uri(self) -> str:
        return _environment_url("MLFLOW_TRACKING_URI") or sqlite_url(self.path / "mlflow.db")

    @property
    def optuna_url(self) -> str:
        return sqlite_url(self.path / "optuna.db")

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
        """The folder of one study; of somebody else's, ``owner/name``, one beside one's own.

        Raises:
            InputError: an invalid name, or one that modmix uses itself.
        """
        owner, _, plain = name.rpartition("/")
        if is_name(owner) and is_name(plain):
            return self.path / f"@{owner}" / plain
        if not is_name(name) or is_taken(name):
            raise InputError(
                f"a study's name must be {NAME_RULE}, and none of {', '.join(_OURS)}, got {name!r}"
            )
        return self.path / name


# ---------------------------------------------------------------- paths from the environment


def environment_folder(name: str, default: str) -> Path:
    """The absolute path in an environment variable, with ~ and $VARIABLES expanded.

    An empty variable counts as unset.

    Raises:
        InputError: a $VARIABLE in it is not set, or the home directory is unknown.
    """
    return Path(_expand(name, os.environ.get(name) or default)).absolute()


def _environment_url(name: str) -> str:
    """A database URL from the environment, with the path of an SQLite file expanded.

    Other URLs are returned unchanged, since a ``$`` may be part of a password.

    Raises:
        InputError: the path cannot be expanded, or contains a question mark.
    """
    url = os.environ.get(name, "")
    scheme, slashes, path = url.partition(":///")
    if not slashes or scheme.partition("+")[0] != "sqlite":
        return url
    if "?" in path:
        raise InputError(
            f"{name} {url} has a question mark, after which a database's options begin: write %3F "
            "for one in the path (and %25 for a per cent sign), and no options"
        )
    return f"{scheme}:///{_expand(name, path)}"


def _expand(name: str, text: str) -> str:
    for match in _VARIABLE.finditer(text):
        if (variable := match.group(1) or match.group(2)) not in os.environ:
            raise InputError(
                f"{name} is {text!r}, and the environment variable {variable} is not set: export "
                f"it, or set {name} to an absolute path"
            )
    expanded = os.path.expandvars(text)
    if not expanded.startswith("~"):
        return expanded
    try:
        return str(Path(expanded).expanduser())
    except RuntimeError as error:  # HOME unset and no passwd entry, or no such user
        raise InputError(
            f"the home directory in {text!r} is not known: set {name} to an absolute path, or "
            "HOME to a folder that can be written"
        ) from error


def user_path(text: str) -> Path:
    """A path that a user gave, with ``~`` and ``~USER`` expanded.

    Raises:
        InputError: the home directory is unknown, or there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"must be an absolute path, because the home directory in {text!r} is not known"
        ) from error


# ---------------------------------------------------------------- SQLite URLs


def sqlite_url(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file, with special characters in its path quoted.

    URLs with quoted paths also name the driver: otherwise MLflow would take the quoted path
    literally and create a folder of that name.
    """
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL; None for other databases and for ``:memory:``."""
    scheme, slashes, rest = url.partition(":///")
    if not slashes or scheme.partition("+")[0] != "sqlite":
        return None
    path = unquote(rest.partition("?")[0])
    return Path(path) if path and path != ":memory:" else None


# ---------------------------------------------------------------- files


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see either the old or the new content."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
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
