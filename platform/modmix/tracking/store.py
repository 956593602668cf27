"""MLflow's client behind a small interface: experiments, runs, metrics, files.

Errors become a `TrackingError` if MLflow is unreachable (a retry may help) or a `RefusedError` if
it rejects a request. mlflow is imported inside functions.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modmix.base.errors import InputError, TrackingError
from modmix.base.home import sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

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
    """A run. ``status``: RUNNING, FINISHED, KILLED, FAILED or SCHEDULED."""

    id: str
    experiment: str
    status: str
    deleted: bool
    tags: Mapping[str, str]
    params: Mapping[str, str]


# ---------------------------------------------------------------- checks


def redacted(text: str) -> str:
    """A URI or message without passwords."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


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
    except MlflowException as error:
        if "out-of-date database schema" in str(error):
            raise RefusedError(
                f"the database {redacted(uri)} was created by another version of MLflow: back it "
                f"up and run 'mlflow db upgrade {redacted(uri)}', or move it away to rebuild it "
                "from the ledger"
            ) from error
        if error.error_code not in _TEMPORARY:
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

    ``client`` is MLflow's client, for the model registry.

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
            _prepare_database(uri)
            self.client: MlflowClient = MlflowClient(uri, registry_uri=uri)

    @property
    def places_artifacts(self) -> bool:
        """Whether it has an artifact store. A database used directly would use ./mlruns."""
        return is_server(self.uri)

    def ping(self) -> None:
        with translated_errors(self.uri):
            self.client.search_experiments(max_results=1)

    # ------------------------------------------------------------ experiments

    def studies(self, most: int) -> list[tuple[str, str]]:
        """Names and ids of experiments with studies, the latest first."""
        with translated_errors(self.uri):
            found = self.client.search_experiments(
                max_results=most,
                filter_string="tags.`modmix.study` LIKE '%'",
                order_by=["last_update_time DESC"],
            )
        return [(one.name, str(one.experiment_id)) for one in found]

    def experiment(self, name: str) -> Experiment | None:
        with translated_errors(self.uri):
            found = self.client.get_experiment_by_name(name)
        if found is None:
            return None
        return Experiment(
            id=str(found.experiment_id),
            artifacts=found.artifact_location or "",
            tags=found.tags,
            deleted=found.lifecycle_stage != "active",
        )

    def create_experiment(
        self, name: str, artifacts: str | None, tags: Mapping[str, str]
    ) -> Experiment:
        with translated_errors(self.uri):
            made = self.client.create_experiment(name, artifact_location=artifacts, tags=dict(tags))
        return Experiment(id=str(made), artifacts=artifacts or "", tags=tags, deleted=False)

    def rename_experiment(self, experiment: str, name: str) -> None:
        with translated_errors(self.uri):
            self.client.rename_experiment(experiment, name)

    def restore_experiment(self, experiment: str) -> None:
        """Restore a deleted experiment with all its runs."""
        with translated_errors(self.uri):
            self.client.restore_experiment(experiment)

    def set_experiment_tag(self, experiment: str, key: str, value: str) -> None:
        with translated_errors(self.uri):
            self.client.set_experiment_tag(experiment, key, value)

    def experiment_tag(self, experiment: str, key: str) -> str | None:
        with translated_errors(self.uri):
            tags: Mapping[str, str] = self.client.get_experiment(experiment).tags
        return tags.get(key)

    # ------------------------------------------------------------ runs

    def run(self, run: str) -> Run | None:
        """A run, or None if it does not exist."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.uri):
            try:
                return _run(self.client.get_run(run))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def runs(self, experiment: str, condition: str = "") -> Iterator[Run]:
        """The runs of an experiment that are not deleted and meet a condition of MLflow's."""
        token = None
        while True:
            with translated_errors(self.uri):
                page = self.client.search_runs(
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
            run = self.client.create_run(
                experiment, start_time=started, tags=dict(tags), run_name=name
            )
        return str(run.info.run_id)

    def remove_run(self, run: str) -> None:
        """Delete a run that was created by mistake and holds nothing."""
        with translated_errors(self.uri):
            self.client.delete_run(run)

    def restore_run(self, run: str) -> None:
        with translated_errors(self.uri):
            self.client.restore_run(run)

    def reopen_run(self, run: str) -> None:
        with translated_errors(self.uri):
            self.client.update_run(run, status="RUNNING")

    def end_run(self, run: str, status: str, ended: int | None) -> None:
        with translated_errors(self.uri):
            self.client.set_terminated(run, status, ended)

    # ------------------------------------------------------------ content of runs

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
        with translated_errors(self.uri):
            while len(pairs) > _PAIRS or len(pairs) + len(rows) + len(labels) > _ROWS:
                room = _ROWS - min(len(pairs), _PAIRS)
                self.client.log_batch(run, metrics=rows[:room], params=pairs[:_PAIRS])
                rows, pairs = rows[room:], pairs[_PAIRS:]
            self.client.log_batch(run, metrics=rows, params=pairs, tags=labels)

    def delete_tag(self, run: str, key: str) -> None:
        with translated_errors(self.uri):
            self.client.delete_tag(run, key)

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
            self.client.log_inputs(run, datasets=[DatasetInput(data)])

    def log_text(self, run: str, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory(prefix="modmix-") as folder:
            file = Path(folder) / name
            file.write_text(text, encoding="utf-8")
            self.log_file(run, file)

    def log_file(self, run: str, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact below ``folder``."""
        with translated_errors(self.uri):
            self.client.log_artifact(run, str(file), folder)


def _run(run: MlflowRun) -> Run:
    return Run(
        id=run.info.run_id,
        experiment=run.info.experiment_id,
        status=run.info.status,
        deleted=run.info.lifecycle_stage != "active",
        tags=run.data.tags,
        params=run.data.params,
    )


def _prepare_database(uri: str) -> None:
    """Make the folder of an SQLite file; see whether a database server answers.

    MLflow would try to connect for more than a minute; whole updates are retried instead.
    """
    if path := sqlite_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=20)) as database:
            # Write-ahead log: the UI can read during writes, and commits are cheaper.
            database.execute("PRAGMA journal_mode=WAL")
    elif not is_server(uri):
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname and port:
            socket.create_connection((parts.hostname, port), timeout=5).close()
