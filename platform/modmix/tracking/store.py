"""MLflow's client behind a small interface: experiments, runs, metrics, files.

Errors become a `TrackingError` if MLflow is unreachable (a retry may help) or a `RefusedError` if
it rejects a request. mlflow is imported inside functions.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modmix.base.errors import InputError, TrackingError
from modmix.base.home import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

_ROWS = 1000  # MLflow's limit of values per request
_PAIRS = 100  # MLflow's limit of params, or tags
_PAGE = 500  # runs per search request
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
    """MLflow rejects a request; a retry does not help."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of one metric. ``time``: milliseconds since 1970."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The data set of a run. ``source`` and ``profile`` are JSON."""

    name: str
    digest: str
    source: str
    profile: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment; deleted ones keep their name. ``artifacts`` is a URI."""

    id: str
    artifacts: str
    tags: Mapping[str, str]
    deleted: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is not deleted. ``status``: RUNNING, FINISHED, KILLED, FAILED or SCHEDULED."""

    id: str
    experiment: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


# ---------------------------------------------------------------- checks


def redacted(text: str) -> str:
    """A URI or message without passwords."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def check(uri: str) -> None:
    """Check within seconds that MLflow can be used.

    SQLite files are inspected without importing MLflow; others are connected to.

    Raises:
        InputError: unsupported kind of store, or a database of another MLflow version.
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
    else:
        _check_sqlite(path, uri)


def _check_sqlite(path: Path, uri: str) -> None:
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(
            f"{path} is not writable: change the permissions of its folder, or unset "
            "MLFLOW_TRACKING_URI to use a database in the results folder"
        )
    if not path.exists():
        return
    found = None
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=5)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            if "alembic_version" in tables:
                row = database.execute("SELECT version_num FROM alembic_version").fetchone()
                found = row and str(row[0])
    except sqlite3.Error as error:
        raise InputError(
            f"{path} cannot be read as an SQLite database ({error}): move it away and run the "
            "command again; its content is rebuilt from the ledger"
        ) from error
    latest = _latest_schema()
    if found and latest and found != latest:
        raise InputError(
            f"{path} was created by another version of MLflow (its schema is {found}, the "
            f"installed version needs {latest}): back it up and run 'mlflow db upgrade {uri}'; or "
            "move it away to rebuild it from the ledger"
        )


def _latest_schema() -> str | None:
    """The schema version of the installed MLflow, from its migrations, without importing it."""
    package = importlib.util.find_spec("mlflow")
    if package is None or package.origin is None:
        raise InputError("MLflow is not installed: reinstall modmix with its dependencies")
    folder = Path(package.origin).parent / "store" / "db_migrations" / "versions"
    revisions: set[str] = set()
    older: set[str] = set()
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        revisions |= set(re.findall(r"^revision = [\"'](\w+)", text, re.M))
        older |= set(re.findall(r"^down_revision = [\"'](\w+)", text, re.M))
    heads = revisions - older
    return heads.pop() if len(heads) == 1 else None


# ---------------------------------------------------------------- errors


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Convert errors of MLflow and its dependencies to `TrackingError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except TrackingError:
        raise
    except MlflowException as error:
        if error.error_code not in _TEMPORARY or "out-of-date database schema" in str(error):
            raise RefusedError(_refusal(uri, str(error.error_code), error)) from error
        raise TrackingError(_unreachable(uri, error)) from error
    except Exception as error:  # of requests, sqlalchemy, botocore
        raise TrackingError(_unreachable(uri, error)) from error


def _refusal(uri: str, code: str, error: BaseException) -> str:
    if code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return (
            f"MLflow at {redacted(uri)} rejects the login: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to a valid account"
        )
    if code == "PERMISSION_DENIED":
        return (
            f"MLflow at {redacted(uri)} denies access ({_first_line(error)}): ask its "
            "administrator for write permission; MLFLOW_SERVER_ALLOWED_HOSTS must have this address"
        )
    return (
        f"MLflow at {redacted(uri)} rejects the request ({_first_line(error)}): check "
        "MLFLOW_TRACKING_URI and the server's log"
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

    ``api`` is MLflow's client, for `models`.

    Raises:
        TrackingError: by every method, if MLflow is unreachable or refuses.
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
        with translated_errors(uri):
            if not self.places_artifacts:
                _prepare_database(uri)
            self.api: MlflowClient = MlflowClient(uri, registry_uri=uri)

    @property
    def places_artifacts(self) -> bool:
        """Whether it has an artifact store. A database used directly would use ./mlruns."""
        return self.uri.startswith(("http://", "https://", "databricks"))

    def ping(self) -> None:
        with translated_errors(self.uri):
            self.api.search_experiments(max_results=1)

    # ------------------------------------------------------------ experiments

    def experiment(self, name: str) -> Experiment | None:
        with translated_errors(self.uri):
            found = self.api.get_experiment_by_name(name)
        if found is None:
            return None
        deleted = found.lifecycle_stage != "active"
        return Experiment(
            id=str(found.experiment_id),
            artifacts=found.artifact_location or "",
            tags=found.tags,
            deleted=deleted,
        )

    def create_experiment(
        self, name: str, artifacts: str | None, tags: Mapping[str, str]
    ) -> Experiment:
        with translated_errors(self.uri):
            made = self.api.create_experiment(name, artifact_location=artifacts, tags=dict(tags))
        return Experiment(id=str(made), artifacts=artifacts or "", tags=tags, deleted=False)

    def rename_experiment(self, experiment: str, name: str) -> None:
        with translated_errors(self.uri):
            self.api.rename_experiment(experiment, name)

    def restore_experiment(self, experiment: str) -> None:
        """Restore a deleted experiment with all its runs."""
        with translated_errors(self.uri):
            self.api.restore_experiment(experiment)

    # ------------------------------------------------------------ runs

    def run(self, run: str) -> Run | None:
        """A run, or None if it does not exist or is deleted."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.uri):
            try:
                found = self.api.get_run(run)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return _run(found) if found.info.lifecycle_stage == "active" else None

    def runs(self, experiment: str, *, running: bool = False) -> Iterator[Run]:
        """The runs of an experiment that are not deleted, optionally only running ones."""
        condition = "attributes.status = 'RUNNING'" if running else ""
        token = None
        while True:
            with translated_errors(self.uri):
                page = self.api.search_runs(
                    [experiment], condition, max_results=_PAGE, page_token=token
                )
            yield from map(_run, page)
            token = page.token
            if not token:
                return

    def create_run(
        self, experiment: str, name: str, *, started: int, tags: Mapping[str, str]
    ) -> str:
        with translated_errors(self.uri):
            run = self.api.create_run(
                experiment, start_time=started, tags=dict(tags), run_name=name
            )
        return str(run.info.run_id)

    def delete_run(self, run: str) -> None:
        with translated_errors(self.uri):
            self.api.delete_run(run)

    def reopen_run(self, run: str) -> None:
        with translated_errors(self.uri):
            self.api.update_run(run, status="RUNNING")

    def end_run(self, run: str, status: str, ended: int | None) -> None:
        with translated_errors(self.uri):
            self.api.set_terminated(run, status, ended)

    # ------------------------------------------------------------ content of runs

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, str],
        metrics: Sequence[Value],
        tags: Mapping[str, str],
    ) -> None:
        """Log to a run in as few requests as possible; the tags with the last one."""
        from mlflow.entities import Metric, Param, RunTag

        assert len(tags) <= _PAIRS, f"{len(tags)} tags"
        pairs = [Param(key, value) for key, value in params.items()]
        rows = [Metric(v.key, v.value, v.time, v.step) for v in metrics]
        labels = [RunTag(key, value) for key, value in tags.items()]
        with translated_errors(self.uri):
            while len(pairs) > _PAIRS or len(pairs) + len(rows) + len(labels) > _ROWS:
                room = _ROWS - min(len(pairs), _PAIRS)
                self.api.log_batch(run, metrics=rows[:room], params=pairs[:_PAIRS])
                rows, pairs = rows[room:], pairs[_PAIRS:]
            self.api.log_batch(run, metrics=rows, params=pairs, tags=labels)

    def log_dataset(self, run: str, dataset: Dataset) -> None:
        """Log the data set of a run; idempotent."""
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput

        data = MlflowDataset(
            name=dataset.name,
            digest=dataset.digest,
            source_type="modmix",
            source=dataset.source,
            profile=dataset.profile,
        )
        with translated_errors(self.uri):
            self.api.log_inputs(run, datasets=[DatasetInput(data)])

    def log_text(self, run: str, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory(prefix="modmix-") as folder:
            file = Path(folder) / name
            file.write_text(text, encoding="utf-8")
            self.log_file(run, file)

    def log_file(self, run: str, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact below ``folder``."""
        with translated_errors(self.uri):
            self.api.log_artifact(run, str(file), folder)


def _run(run: MlflowRun) -> Run:
    return Run(
        id=run.info.run_id,
        experiment=run.info.experiment_id,
        status=run.info.status,
        tags=run.data.tags,
        params=run.data.params,
    )


def _prepare_database(uri: str) -> None:
    from mlflow.store.db import utils

    # MLflow would retry an unreachable database for 100 seconds; whole updates are retried instead.
    utils.MAX_RETRY_COUNT = 2
    if path := sqlite_path(uri):
        # Write-ahead logging: the UI can read during writes, and commits are cheaper.
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=20)) as database:
            database.execute("PRAGMA journal_mode=WAL")
