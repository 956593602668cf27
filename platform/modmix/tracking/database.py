"""Writes to MLflow's SQLite file directly: many runs in one transaction, without importing mlflow.

MLflow's Python API takes 30 to 40 ms of CPU time per configuration (about 60 statements), this one
or two. Only for the schema `KNOWN_SCHEMA`, where a test compares every table with what the API
writes; all other databases and servers go through `store`.

A run is replaced as a whole in one transaction; notes and tags added by users are kept.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modmix.base.errors import TrackingError
from modmix.base.home import sqlite_path
from modmix.tracking.store import Dataset, Experiment, RefusedError, Run, Value

KNOWN_SCHEMA = "dc11669786a5"  # MLflow 3.17
_VARIABLES = 500  # of one statement

# MLflow keeps the latest value of each metric in a second table, for lists of runs.
_LATEST = """
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
VALUES (:key, :value, :time, :step, 0, :run)
ON CONFLICT (key, run_uuid) DO UPDATE
SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step,
    is_nan = excluded.is_nan
WHERE (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)
"""
_METRIC = """
INSERT OR IGNORE INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
VALUES (:key, :value, :time, :run, :step, 0)
"""
_TAG = """
INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)
ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value
"""
_RUN = """
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status,
    start_time, end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
VALUES (:id, :name, 'UNKNOWN', '', '', :user, :status, :started, :ended, '', 'active', :place,
    :experiment)
ON CONFLICT (run_uuid) DO UPDATE
SET name = excluded.name, status = excluded.status, start_time = excluded.start_time,
    end_time = excluded.end_time, lifecycle_stage = 'active', deleted_time = NULL
"""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The content of a run. ``stale``: tags to remove. ``files``: text artifacts by name."""

    id: str
    name: str
    status: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    stale: Sequence[str]
    params: Mapping[str, str]
    metrics: Sequence[Value]
    files: Mapping[str, str] = field(default_factory=dict)


def is_known(uri: str) -> bool:
    """Whether a tracking URI is an SQLite file of the known schema."""
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return False
    try:
        database = sqlite3.connect(path, timeout=20)
        try:
            return database.execute("SELECT version_num FROM alembic_version").fetchall() == [
                (KNOWN_SCHEMA,)
            ]
        finally:
            database.close()
    except sqlite3.Error:
        return False


class Database:
    """`store.Store` with `replace`, for a database that `is_known`.

    Raises:
        TrackingError: by every method, if it cannot be read or written (full disk, or locked for 20
            seconds).
        RefusedError: there is no such run.
    """

    places_artifacts = False

    def __init__(self, uri: str) -> None:
        path = sqlite_path(uri)
        assert path is not None, uri
        self.uri, self._path = uri, path
        with self._translated_errors():
            # Transactions are explicit.
            self._db = sqlite3.connect(path, timeout=20, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")  # the UI can read during writes

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise TrackingError(
                f"MLflow's database {self._path} cannot be used ({error}): free some space or "
                "check its permissions"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translated_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    # ------------------------------------------------------------ experiments

    def experiment(self, name: str) -> Experiment | None:
        with self._translated_errors():
            row = self._db.execute(
                "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments "
                "WHERE name = ? AND workspace = 'default'",
                (name,),
            ).fetchone()
            if row is None:
                return None
            tags = self._db.execute(
                "SELECT key, value FROM experiment_tags WHERE experiment_id = ?", row[:1]
            ).fetchall()
        return Experiment(
            id=str(row[0]), artifacts=row[2] or "", tags=dict(tags), deleted=row[1] != "active"
        )

    def create_experiment(
        self, name: str, artifacts: str | None, tags: Mapping[str, str]
    ) -> Experiment:
        now = _now()
        with self._transaction() as db:
            made = db.execute(
                "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, "
                "last_update_time, workspace) VALUES (?, ?, 'active', ?, ?, 'default')",
                (name, artifacts, now, now),
            ).lastrowid
            db.executemany(
                "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)",
                [(key, value, made) for key, value in tags.items()],
            )
        return Experiment(id=str(made), artifacts=artifacts or "", tags=tags, deleted=False)

    def rename_experiment(self, experiment: str, name: str) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE experiments SET name = ?, last_update_time = ? WHERE experiment_id = ?",
                (name, _now(), int(experiment)),
            )

    def restore_experiment(self, experiment: str) -> None:
        """Restore a deleted experiment with all its runs."""
        number, now = int(experiment), _now()
        with self._transaction() as db:
            db.execute(
                "UPDATE experiments SET lifecycle_stage = 'active', last_update_time = ? "
                "WHERE experiment_id = ?",
                (now, number),
            )
            db.execute(
                "UPDATE runs SET lifecycle_stage = 'active', deleted_time = NULL "
                "WHERE experiment_id = ?",
                (number,),
            )

    # ------------------------------------------------------------ runs

    def run(self, run: str) -> Run | None:
        """A run, or None if it does not exist or is deleted."""
        with self._translated_errors():
            row = self._db.execute(
                "SELECT run_uuid, experiment_id, status FROM runs "
                "WHERE run_uuid = ? AND lifecycle_stage = 'active'",
                (run,),
            ).fetchone()
            return None if row is None else next(self._runs([row]))

    def runs(self, experiment: str, *, running: bool = False) -> Iterator[Run]:
        """The runs of an experiment that are not deleted, optionally only running ones."""
        condition = "AND status = 'RUNNING'" if running else ""
        with self._translated_errors():
            rows = self._db.execute(
                "SELECT run_uuid, experiment_id, status FROM runs "
                f"WHERE experiment_id = ? AND lifecycle_stage = 'active' {condition}",
                (int(experiment),),
            ).fetchall()
            yield from self._runs(rows)

    def _runs(self, rows: Sequence[tuple[str, int, str]]) -> Iterator[Run]:
        for first in range(0, len(rows), _VARIABLES):
            part = rows[first : first + _VARIABLES]
            held = {
                table: self._pairs(table, [row[0] for row in part]) for table in ("tags", "params")
            }
            for run, experiment, status in part:
                yield Run(
                    id=run,
                    experiment=str(experiment),
                    status=status,
                    tags=held["tags"].get(run, {}),
                    params=held["params"].get(run, {}),
                )

    def _pairs(self, table: str, runs: Sequence[str]) -> dict[str, dict[str, str]]:
        marks = ", ".join("?" * len(runs))
        found: dict[str, dict[str, str]] = {}
        for run, key, value in self._db.execute(
            f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN ({marks})", list(runs)
        ):
            found.setdefault(run, {})[key] = value
        return found

    def create_run(
        self, experiment: str, name: str, *, started: int, tags: Mapping[str, str]
    ) -> str:
        run = new_id()
        row = Rows(
            id=run, name=name, status="RUNNING", started=started, ended=None, tags=tags, stale=(),
            params={}, metrics=(),
        )  # fmt: skip
        self.replace(experiment, [row], None)
        return run

    def delete_run(self, run: str) -> None:
        self._update(run, "lifecycle_stage = 'deleted', deleted_time = ?", _now())

    def reopen_run(self, run: str) -> None:
        self._update(run, "status = 'RUNNING'")

    def end_run(self, run: str, status: str, ended: int | None) -> None:
        end = _now() if ended is None else ended
        self._update(run, "status = ?, end_time = ?", status, end)

    def _update(self, run: str, change: str, *values: object) -> None:
        with self._transaction() as db:
            done = db.execute(f"UPDATE runs SET {change} WHERE run_uuid = ?", [*values, run])
            if done.rowcount != 1:
                raise RefusedError(f"MLflow's database {self._path} has no run {run}")

    # ------------------------------------------------------------ content of runs

    def replace(self, experiment: str, runs: Sequence[Rows], dataset: Dataset | None) -> None:
        """Create or replace runs in one transaction, after writing their files."""
        number = int(experiment)
        with self._translated_errors():
            place = self._db.execute(
                "SELECT artifact_location FROM experiments WHERE experiment_id = ?", (number,)
            ).fetchone()
            if place is None:
                raise RefusedError(f"MLflow's database {self._path} has no experiment {experiment}")
            for run in runs:
                if run.files:
                    folder = local_path(place[0]) / run.id / "artifacts"
                    folder.mkdir(parents=True, exist_ok=True)
                for name, text in run.files.items():
                    (folder / name).write_text(text, encoding="utf-8")
        with self._transaction() as db:
            ids = [(run.id,) for run in runs]
            for table in ("metrics", "latest_metrics", "params"):
                db.executemany(f"DELETE FROM {table} WHERE run_uuid = ?", ids)
            db.executemany(
                _RUN,
                [
                    {
                        "id": run.id,
                        "name": run.name,
                        "user": run.tags.get("mlflow.user", "unknown"),
                        "status": run.status,
                        "started": run.started,
                        "ended": run.ended,
                        "place": f"{place[0]}/{run.id}/artifacts",
                        "experiment": number,
                    }
                    for run in runs
                ],
            )
            for run in runs:
                self._add(db, run.id, run.params, run.metrics, run.tags)
                db.executemany(_TAG, [("mlflow.runName", run.name, run.id)])
                db.executemany(
                    "DELETE FROM tags WHERE run_uuid = ? AND key = ?",
                    [(run.id, key) for key in run.stale if key not in run.tags],
                )
            if dataset is not None:
                self._attach(db, number, [run.id for run in runs], dataset)

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, str],
        metrics: Sequence[Value],
        tags: Mapping[str, str],
    ) -> None:
        """Log to a run."""
        with self._transaction() as db:
            there = db.execute(
                "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'", (run,)
            ).fetchone()
            if there is None:
                raise RefusedError(f"MLflow's database {self._path} has no run {run}")
            self._add(db, run, params, metrics, tags)

    def _add(
        self,
        db: sqlite3.Connection,
        run: str,
        params: Mapping[str, str],
        metrics: Sequence[Value],
        tags: Mapping[str, str],
    ) -> None:
        rows = [
            {"key": v.key, "value": v.value, "time": v.time, "step": v.step, "run": run}
            for v in metrics
        ]
        latest: dict[str, Value] = {}
        for v in metrics:
            known = latest.get(v.key)
            if known is None or (v.step, v.time, v.value) > (known.step, known.time, known.value):
                latest[v.key] = v
        db.executemany(_METRIC, rows)
        db.executemany(
            _LATEST,
            [
                {"key": v.key, "value": v.value, "time": v.time, "step": v.step, "run": run}
                for v in latest.values()
            ],
        )
        db.executemany(
            "INSERT OR IGNORE INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, run) for key, value in params.items()],
        )
        db.executemany(_TAG, [(key, value, run) for key, value in tags.items()])

    def log_dataset(self, run: str, dataset: Dataset) -> None:
        """Log the data set of a run; idempotent."""
        with self._transaction() as db:
            row = db.execute("SELECT experiment_id FROM runs WHERE run_uuid = ?", (run,)).fetchone()
            if row is None:
                raise RefusedError(f"MLflow's database {self._path} has no run {run}")
            self._attach(db, row[0], [run], dataset)

    def _attach(
        self, db: sqlite3.Connection, experiment: int, runs: Sequence[str], dataset: Dataset
    ) -> None:
        names = (experiment, dataset.name, dataset.digest)
        db.execute(
            "INSERT OR IGNORE INTO datasets (dataset_uuid, experiment_id, name, digest, "
            "dataset_source_type, dataset_source, dataset_profile) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (new_id(), *names, "modmix", dataset.source, dataset.profile),
        )
        (data,) = db.execute(
            "SELECT dataset_uuid FROM datasets WHERE experiment_id = ? AND name = ? AND digest = ?",
            names,
        ).fetchone()
        db.executemany(
            "INSERT OR IGNORE INTO inputs (input_uuid, source_type, source_id, destination_type, "
            "destination_id, step) VALUES (?, 'DATASET', ?, 'RUN', ?, 0)",
            [(new_id(), data, run) for run in runs],
        )

    # ------------------------------------------------------------ files

    def log_text(self, run: str, name: str, text: str) -> None:
        with self._translated_errors():
            folder = self._folder(run)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")

    def log_file(self, run: str, file: Path, folder: str | None = None) -> None:
        """Log a file as an artifact below ``folder``."""
        with self._translated_errors():
            target = self._folder(run) / (folder or "")
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.name)

    def _folder(self, run: str) -> Path:
        row = self._db.execute(
            "SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run,)
        ).fetchone()
        if row is None:
            raise RefusedError(f"MLflow's database {self._path} has no run {run}")
        return local_path(row[0])


def local_path(uri: str) -> Path:
    """The path of a file: URI.

    Raises:
        RefusedError: it is another kind of URI.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise RefusedError(f"the artifacts of this MLflow database are at {uri}, not in a folder")
    return Path(unquote(parts.path))


def new_id() -> str:
    """A new run id in MLflow's format."""
    return uuid.uuid4().hex


def _now() -> int:
    return int(time.time() * 1000)
