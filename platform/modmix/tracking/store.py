"""MLflow's client, with errors translated and without surprises.

Errors become a `TrackingError` if MLflow is unreachable (a retry may help) or a `RefusedError` if
it rejects a request. mlflow is imported inside functions.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from modmix.base.errors import InputError, TrackingError
from modmix.base.home import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ROWS = 1000  # MLflow's limit of values per request
_PAIRS = 100  # MLflow's limit of params, or tags
_PAGE = 500  # runs per search request
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_TEMPORARY = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
}

# MLflow would retry requests for four minutes, and may repeat ones that succeeded. Whole updates
# are retried instead. Variables set by the user are kept.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # do not add files of the current folder to models
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are raised as exceptions
}


class RefusedError(TrackingError):
    """MLflow rejects a request; a retry does not help. ``code`` is MLflow's."""

    code = ""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of one metric. ``time``: milliseconds since 1970."""

    key: str
    value: float
    time: int
    step: int


# ---------------------------------------------------------------- checks


def redacted(text: str) -> str:
    """A URI or message without passwords.

    Redacts too much rather than too little, since passwords may contain "/" and "@".
    """
    # An @ stays, so that the user name and password before a host are found next.
    text = re.sub(r"(?i)(password|passwd|secret|token)=[^&@\s]*(@?)[^&\s]*", r"\1=***\2", text)
    return re.sub(r"//(?:[^/\s]*:\S*|[^/@\s]*)@", "//***@", text)


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def local_folder(uri: str) -> Path | None:
    """The local folder that an artifact URI refers to; None if the artifacts are on a server."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    return Path(url2pathname(parts.path))


def page(address: str, experiment: str) -> str:
    """The page of an experiment's runs in the UI at an address.

    MLflow 3.17's UI takes an experiment for one of GenAI, whatever its tags say, unless the page's
    address says otherwise.
    """
    place = redacted(address).replace("***@", "").rstrip("/")
    return f"{place}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def check(uri: str) -> None:
    """Check within seconds that MLflow can be used.

    An SQLite file is only looked at, without importing MLflow; servers are connected to.

    Raises:
        InputError: unsupported kind of store, or not a database.
        TrackingError: unreachable, or it refuses.
    """
    if ("://" not in uri and not uri.startswith("databricks")) or uri.startswith("file:"):
        raise InputError(
            f"MLFLOW_TRACKING_URI {redacted(uri)} is a folder, which MLflow 3 does not support: "
            "unset it to use a database in the results folder, or set it to http://… or sqlite:///…"
        )
    path = sqlite_path(uri)
    if path is None:
        Store(uri).ping()
        return
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(
            f"{path} is not writable: change the permissions of its folder, or unset "
            "MLFLOW_TRACKING_URI to use a database in the results folder"
        )
    if path.exists():
        with path.open("rb") as file:
            header = file.read(16)
        if header not in (b"", b"SQLite format 3\0"):
            raise InputError(
                f"{path} cannot be read as an SQLite database (it starts with {header[:8]!r}): "
                "move it away and run the command again; its content is rebuilt from the ledger"
            )


# ---------------------------------------------------------------- errors


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Convert errors of MLflow and its dependencies to `TrackingError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # also of requests, sqlalchemy, botocore
        code = str(getattr(error, "error_code", ""))
        old = "out-of-date database schema" in str(error)
        if not isinstance(error, MlflowException) or (code in _TEMPORARY and not old):
            raise TrackingError(_unreachable(uri, error)) from error
        refusal = RefusedError(_refusal(uri, "OLD" if old else code, error))
        refusal.code = code
        raise refusal from error


def _refusal(uri: str, code: str, error: BaseException) -> str:
    place = redacted(uri)
    if code == "OLD":
        return (
            f"the database {place} was created by another version of MLflow: back it up and run "
            f"'mlflow db upgrade {place}', or move it away to rebuild it from the ledger"
        )
    if code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return (
            f"MLflow at {place} rejects the login: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to a valid account"
        )
    if code == "PERMISSION_DENIED":
        return (
            f"MLflow at {place} denies access ({_first_line(error)}): ask its administrator for "
            "write permission; MLFLOW_SERVER_ALLOWED_HOSTS must have this address"
        )
    return (
        f"MLflow at {place} rejects the request ({_first_line(error)}): check MLFLOW_TRACKING_URI "
        "and the server's log"
    )


def _unreachable(uri: str, error: BaseException) -> str:
    return (
        f"MLflow at {redacted(uri)} is unreachable ({_first_line(error)}): start it or correct "
        "MLFLOW_TRACKING_URI"
    )


def _first_line(error: BaseException) -> str:
    """The first line of an error, shortened, without passwords."""
    while error.__cause__ is not None and "API request to" in str(error):
        error = error.__cause__
    lines = redacted(str(error)).strip().splitlines() or [type(error).__name__]
    known = re.search(r"Connection refused|Name or service not known|timed? ?out", str(error))
    if known:
        return known.group(0).lower()
    body = re.search(r"Response body: '(.+)'", lines[0])
    return (body.group(1) if body else lines[0])[:400]


# ---------------------------------------------------------------- the store


class Store:
    """A tracking server, or a database used directly (created if missing).

    ``client`` is MLflow's client, whose errors are translated.

    Raises:
        TrackingError: by every method and the client's, if MLflow is unreachable or refuses.
    """

    def __init__(self, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # Caused by MLflow's own use of SQLAlchemy.
        warnings.filterwarnings("ignore", ".*noload.*", DeprecationWarning)
        self.uri = uri
        # A database used directly would put artifacts into ./mlruns.
        self.places_artifacts = is_server(uri)
        with translated_errors(uri):
            _prepare_database(uri)
            client = MlflowClient(uri, registry_uri=uri)
        self.client = cast("MlflowClient", _Translated(client, uri))

    def ping(self) -> None:
        self.client.search_experiments(max_results=1)

    def run(self, run: str) -> Run | None:
        """A run, or None if it does not exist."""
        try:
            return self.client.get_run(run)
        except RefusedError as error:
            if error.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def runs(self, experiment: str, condition: str = "", *, deleted: bool = False) -> Iterator[Run]:
        """The runs of an experiment that meet a condition of MLflow's; deleted ones come last."""
        from mlflow.entities import ViewType

        for view in (ViewType.ACTIVE_ONLY, *([ViewType.DELETED_ONLY] if deleted else [])):
            token = None
            while True:
                page = self.client.search_runs([experiment], condition, view, _PAGE, None, token)
                yield from page
                if not (token := page.token):
                    break

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, str] | None = None,
        metrics: Sequence[Value] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log to a run in as few requests as possible; the tags with the last one."""
        from mlflow.entities import Metric, Param, RunTag

        pairs = [Param(key, value) for key, value in (params or {}).items()]
        rows = [Metric(v.key, v.value, v.time, v.step) for v in metrics]
        labels = [RunTag(key, value) for key, value in (tags or {}).items()]
        assert len(labels) <= _PAIRS, f"{len(labels)} tags"
        while len(pairs) > _PAIRS or len(pairs) + len(rows) + len(labels) > _ROWS:
            room = _ROWS - min(len(pairs), _PAIRS)
            self.client.log_batch(run, metrics=rows[:room], params=pairs[:_PAIRS])
            rows, pairs = rows[room:], pairs[_PAIRS:]
        self.client.log_batch(run, metrics=rows, params=pairs, tags=labels)

    def log_dataset(self, run: str, dataset: Mapping[str, str]) -> None:
        """Log the data set of a run: name, digest, and source and profile as JSON; idempotent."""
        from mlflow.entities import Dataset, DatasetInput

        data = Dataset(source_type="modmix", **dataset)
        self.client.log_inputs(run, datasets=[DatasetInput(data)])


class _Translated:
    """An object whose methods raise translated errors."""

    def __init__(self, wrapped: object, uri: str) -> None:
        self._wrapped, self._uri = wrapped, uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._wrapped, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with translated_errors(self._uri):
                return method(*args, **kwargs)

        return call


def _prepare_database(uri: str) -> None:
    """Make the folder of an SQLite file; see whether a database server answers.

    MLflow would try to connect for more than a minute; whole updates are retried instead.
    """
    if path := sqlite_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        _create_database(uri, path)
        with closing(sqlite3.connect(path, timeout=20)) as database:
            # Write-ahead log: the UI can read during writes, and commits are cheaper.
            database.execute("PRAGMA journal_mode=WAL")
    elif not is_server(uri):
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname and port:
            socket.create_connection((parts.hostname, port), timeout=5).close()


def _create_database(uri: str, path: Path) -> None:
    """Let MLflow make its tables under another name, and rename the file when they are complete.

    MLflow makes them in dozens of steps: a process that is killed between two of them would leave
    a database that MLflow takes for one of another version, and another process would see it.
    """
    from filelock import FileLock
    from mlflow import MlflowClient

    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and path.stat().st_size:
            return
        new = path.with_name(f".{path.name}.new")
        for name in (new, *(Path(f"{new}{end}") for end in ("-journal", "-wal", "-shm"))):
            name.unlink(missing_ok=True)
        place, mark, query = uri.partition("?")
        new_uri = f"{place.rpartition('/')[0]}/{new.name}{mark}{query}"
        MlflowClient(new_uri, registry_uri=new_uri).search_experiments(max_results=1)
        new.replace(path)
