"""The mirror in MLflow: what the ledger holds, shown in an experiment per study.

`Mirror` writes in the background while a study runs; `sync` brings MLflow up to the ledger in the
foreground, and rebuilds everything when MLflow's database was lost. Both are a `_Writer`, whose
`update` may be repeated at will: run ids are kept in the ledger, each run carries its point's key
and a digest of what was written, and a run that a kill left behind is found by them and taken over.
So there is one run per point, whatever happened in between. Training never waits for MLflow.

This and `pyfunc` are the only files with mlflow, imported inside functions (it takes a second).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modmix.errors import InputError, LedgerError, TrackingError
from modmix.home import Home
from modmix.ledger import ENDED, Ledger, PointRecord, ReplicateRecord, StudyRecord
from modmix.mirrored import (
    STATUS,
    Content,
    parts_of,
    point_content,
    point_digest,
    point_status,
    study_content,
    to_json,
)
from modmix.packing import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

PARTIAL_SECONDS = 10.0  # how long the replicates of an unfinished point are waited for
STUDY_SECONDS = 10.0  # between two updates of the study's own run
BACKOFF_SECONDS = (1.0, 30.0)  # first and longest pause while MLflow cannot be reached
_CHUNK = 50  # points whose histories are read at once
_ROWS = 1000  # most metrics MLflow takes at once
_PAIRS = 100  # most params or tags MLflow takes at once
_AWAY = frozenset(
    ["INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"]
)

# MLflow's own patience is four minutes a request, and a request it repeats may be done twice. The
# mirror repeats whole updates instead. Set by the user, a variable stays as it is.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong comes to us as an exception
}


class _Refused(TrackingError):
    """MLflow can be reached, but does not take this; asking again would not help."""


def shown(uri: str) -> str:
    """A URI, or a message with URIs, without the passwords in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", uri)


# ---------------------------------------------------------------- the connection


def connect(uri: str) -> MlflowClient:
    """A client of a tracking server, or of the database itself (which is created when missing).

    Raises:
        TrackingError: it cannot be reached, or refuses.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _told(uri):
        if path := _sqlite_path(uri):
            _prepare_sqlite(path)
        return MlflowClient(uri, registry_uri=uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (TrackingError, InputError, LedgerError):
        raise
    except MlflowException as error:
        if error.error_code not in _AWAY:
            raise _Refused(_refusal(uri, error.error_code, str(error))) from error
        raise TrackingError(_absence(uri, error)) from error
    except Exception as error:  # requests, sqlalchemy, botocore: all mean that it did not work
        raise TrackingError(_absence(uri, error)) from error


def _refusal(uri: str, code: str, message: str) -> str:
    advice = {
        "UNAUTHENTICATED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        "CUSTOMER_UNAUTHORIZED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        "PERMISSION_DENIED": "ask its administrator for the right to write there (and whether its "
        "--allowed-hosts names this address)",
    }.get(code, "check MLFLOW_TRACKING_URI and the server's log")
    return f"MLflow at {shown(uri)} refuses ({_first_line(message)}): {advice}"


def _absence(uri: str, error: BaseException) -> str:
    return (
        f"MLflow at {shown(uri)} cannot be used ({_first_line(str(error))}): start the server or "
        "mend MLFLOW_TRACKING_URI; 'modmix sync' then catches up"
    )


def _first_line(message: str) -> str:
    lines = shown(message).strip().splitlines()
    return lines[0][:300] if lines else "no reason given"


def check(uri: str) -> None:
    """See whether MLflow can be used, within seconds.

    An SQLite file is looked at without importing MLflow; anything else is asked.

    Raises:
        InputError: no such kind of store, or a database of another version.
        TrackingError: it cannot be reached, or refuses.
    """
    scheme = uri.partition(":")[0] if "://" in uri or uri.startswith("databricks") else ""
    if scheme in ("", "file"):
        raise InputError(
            f"MLFLOW_TRACKING_URI {shown(uri)} is a folder, which MLflow 3 does not take: unset it "
            "(then a database in the results folder is used), or give http://… or sqlite:///…"
        )
    if path := _sqlite_path(uri):
        _check_sqlite(path, uri)
        return
    client = connect(uri)
    with _told(uri):
        client.search_experiments(max_results=1)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _prepare_sqlite(path: Path) -> None:
    """Write-ahead logging: the UI can read while we write, and a commit costs less."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path, timeout=20) as database:
        database.execute("PRAGMA journal_mode=WAL")
    database.close()


def _check_sqlite(path: Path, uri: str) -> None:
    if not path.exists():
        return
    try:
        with sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5
        ) as database:
            tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
            found = None
            if "alembic_version" in tables:
                row = database.execute("SELECT version_num FROM alembic_version").fetchone()
                found = row and str(row[0])
        database.close()
    except sqlite3.Error as error:
        raise InputError(
            f"{path} is no SQLite database that can be read ({error}): move it away and type "
            "the command again; what MLflow showed is rebuilt from the ledger"
        ) from error
    if found is not None and found != (latest := _latest_revision()) and latest is not None:
        raise InputError(
            f"{path} was made by another version of MLflow (schema {found}, this one has "
            f"{latest}): copy it, then type 'mlflow db upgrade {uri}'; or move it away, and it "
            "is rebuilt from the ledger"
        )


def _latest_revision() -> str | None:
    """The schema of the installed MLflow, from its migrations (importing it takes a second)."""
    package = importlib.util.find_spec("mlflow")
    if package is None or package.origin is None:
        raise InputError("MLflow is not installed: install modmix with its dependencies again")
    folder = Path(package.origin).parent / "store" / "db_migrations" / "versions"
    revisions, older = set(), set()
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        revisions |= set(re.findall(r'^revision = ["\'](\w+)', text, re.M))
        older |= set(re.findall(r'^down_revision = ["\'](\w+)', text, re.M))
    heads = revisions - older
    return heads.pop() if len(heads) == 1 else None


# ---------------------------------------------------------------- writing


@dataclass
class _Known:
    """The run of a point as far as we know. ``digest``: of what it surely holds, else None."""

    run: str
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A point whose run is to be written."""

    point: PointRecord
    replicates: Sequence[ReplicateRecord]
    parts: Sequence[str]
    digest: str


class _Writer:
    """Brings the runs of one study up to the ledger. Not shared between threads."""

    def __init__(self, ledger: Ledger, study: str, uri: str, home: Home) -> None:
        self._ledger, self._study, self._uri, self._home = ledger, study, uri, home
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._parent = ""
        self._known: dict[str, _Known] = {}
        self._parent_digest = ""
        self._parent_written = 0.0
        self.experiment_name = ""
        self.written = 0  # runs of points

    def lost(self) -> None:
        """Something went wrong: what is there must be looked at again before the next write."""
        self._experiment = ""

    def update(self, state: str, outputs: Sequence[Path] = (), *, rebuild: bool = False) -> bool:
        """Write what has changed; return whether nothing waits for its other replicates.

        Args:
            state: of the study: running, finished, stopped or failed.
            outputs: files and folders for the study's run.
            rebuild: trust nothing the ledger says about MLflow.

        Raises:
            TrackingError: MLflow went away or refused; `lost` and a later update go on.
        """
        record = self._ledger.study(self._study)
        points = self._ledger.points(self._study)
        replicates: dict[str, list[ReplicateRecord]] = {}
        for replicate in self._ledger.replicates(self._study):
            replicates.setdefault(replicate.point, []).append(replicate)
        if rebuild or not self._experiment:
            self._open(record, points, rebuild=rebuild)
        parts = parts_of(self._ledger.entries(self._study))
        jobs, waiting = self._jobs(points, replicates, parts, state)
        refused: _Refused | None = None
        for begin in range(0, len(jobs), _CHUNK):
            refused = self._write_points(record, jobs[begin : begin + _CHUNK], state) or refused
        self._write_study(study_content(record, points, replicates, state), record, outputs)
        if refused is not None:
            raise refused
        return not waiting

    def _jobs(
        self,
        points: Sequence[PointRecord],
        replicates: Mapping[str, Sequence[ReplicateRecord]],
        parts: Mapping[str, Sequence[str]],
        state: str,
    ) -> tuple[list[_Job], bool]:
        jobs, waiting, now = [], False, time.time()
        for point in points:
            mine = replicates.get(point.key, ())
            ended = [r.finished or 0.0 for r in mine if r.state in ENDED]
            if not ended:
                continue
            asked = parts.get(point.key, ())
            wanted = point_digest(point, mine, asked, state)
            known = self._known.get(point.key)
            if known is not None and known.digest == wanted:
                continue
            if point_status(mine, state) == "RUNNING" and now - max(ended) < PARTIAL_SECONDS:
                waiting = True
                continue
            jobs.append(_Job(point=point, replicates=mine, parts=asked, digest=wanted))
        return jobs, waiting

    def _write_points(
        self, record: StudyRecord, jobs: Sequence[_Job], state: str
    ) -> _Refused | None:
        keys = [r.key for job in jobs for r in job.replicates if r.state in ENDED]
        histories = self._ledger.histories(keys)
        refused = None
        for job in jobs:
            content = point_content(record, job.point, job.replicates, job.parts, histories, state)
            try:
                self._write_point(job, content)
            except _Refused as error:  # this point only: the others can still be written
                refused = error
        return refused

    def _write_point(self, job: _Job, content: Content) -> None:
        key = job.point.key
        tags = {**content.tags, "mlflow.parentRunId": self._parent, "modmix.curves": content.curves}
        known = self._known.get(key)
        with _told(self._uri):
            run = None if known is None else self._take_over(known.run, content)
            if run is None:
                run = self._create(content, tags)
            self._known[key] = _Known(run, None)
            self._ledger.set_point_run(self._study, key, run=run, mirrored=None)
            self._log_texts(run, {"replicates.json": to_json(content.artifact)})
            self._log(run, content, {**tags, "modmix.digest": job.digest})
            self._end(run, content)
        self._ledger.set_point_run(self._study, key, run=run, mirrored=job.digest)
        self._known[key] = _Known(run, job.digest)
        self.written += 1

    def _take_over(self, run: str, content: Content) -> str | None:
        """The run itself if its content can be added to; else it is deleted.

        What MLflow holds can be added to, not changed: curves that were means of fewer replicates
        would stay beside the new ones.
        """
        found = self._get(run)
        if found is None:
            return None
        curves = found.data.tags.get("modmix.curves", "")
        params = found.data.params
        if (curves and curves != content.curves) or any(
            params.get(key, value) != value for key, value in content.params.items()
        ):
            self._api.delete_run(run)
            return None
        if content.status == "RUNNING" and found.info.status != "RUNNING":
            self._api.update_run(run, status="RUNNING")
        return run

    def _write_study(self, content: Content, record: StudyRecord, outputs: Sequence[Path]) -> None:
        new = digest([content.status, dict(content.tags), [m.value for m in content.metrics]])
        closing = content.status != "RUNNING"
        early = time.monotonic() - self._parent_written < STUDY_SECONDS
        if not outputs and (new == self._parent_digest or (early and not closing)):
            return
        with _told(self._uri):
            self._log(self._parent, content, content.tags)
            for path in outputs:
                self._log_output(path)
            self._end(self._parent, content)
        self._parent_digest, self._parent_written = new, time.monotonic()

    def _log_output(self, path: Path) -> None:
        folder = self._home.study(self._study)
        inside = path.parent.relative_to(folder) if path.is_relative_to(folder) else Path()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                below = file.parent.relative_to(path.parent)
                place = (inside / below).as_posix()
                self._api.log_artifact(self._parent, str(file), None if place == "." else place)

    # ------------------------------------------------------------ finding what is there

    def _open(self, record: StudyRecord, points: Sequence[PointRecord], *, rebuild: bool) -> None:
        """Find or make the experiment and the study's run; find the runs of points."""
        if self._client is None:
            self._client = connect(self._uri)
        with _told(self._uri):
            experiment, restored = self._find_experiment(record)
            parent = None if record.mlflow_run is None else self._get(record.mlflow_run)
            if parent is not None and parent.info.experiment_id != experiment:
                parent = None
            if parent is not None and not rebuild and not restored:
                runs = list(self._search(experiment, "attributes.status = 'RUNNING'"))
                self._known = {
                    p.key: _Known(p.mlflow_run, p.mirrored) for p in points if p.mlflow_run
                }
            else:
                runs = list(self._search(experiment, ""))
                self._known = {}
            self._parent = self._find_parent(record, experiment, runs, parent)
            self._adopt(points, runs)
            if record.mlflow_run != self._parent:
                self._ledger.set_study_run(self._study, self._parent)
            self._log_texts(self._parent, {"study.yaml": record.text})
        self._parent_digest, self._parent_written = "", 0.0
        self._experiment = experiment

    def _find_experiment(self, record: StudyRecord) -> tuple[str, bool]:
        """The id of the study's experiment, and whether it was deleted and is restored.

        An experiment of that name may be another person's, whose ledger is another one: then ours
        gets a longer name, so that two mirrors never write into one experiment.
        """
        owner = digest([record.name, record.created])[:12]
        for name in (record.name, f"{record.name}-{owner}"):
            self.experiment_name = name
            found = self._api.get_experiment_by_name(name)
            if found is None:
                return self._create_experiment(name, owner, record), False
            if found.tags.get("modmix.owner") != owner:
                continue
            deleted = found.lifecycle_stage != "active"
            if deleted:
                self._api.restore_experiment(found.experiment_id)
            return str(found.experiment_id), deleted
        raise _Refused(
            f"MLflow at {shown(self._uri)} has experiments {record.name!r} and "
            f"{self.experiment_name!r} that are not of this ledger: rename one of them there"
        )

    def _create_experiment(self, name: str, owner: str, record: StudyRecord) -> str:
        # A server places artifacts itself; a database used directly would put them into ./mlruns.
        place = None
        if not self._uri.startswith(("http://", "https://", "databricks")):
            place = (self._home.artifacts / name).absolute().as_uri()
        tags = {
            "modmix.owner": owner,
            "modmix.study": record.name,
            "mlflow.note.content": str(record.spec.get("description") or ""),
            "mlflow.experimentKind": "custom_model_development",  # else the UI asks which it is
        }
        return str(self._api.create_experiment(name, artifact_location=place, tags=tags))

    def _adopt(self, points: Sequence[PointRecord], runs: Sequence[Run]) -> None:
        """Take over the runs of our points; delete all but one of each point's."""
        kept = {p.key: p.mlflow_run for p in points}
        found: dict[str, list[Run]] = {}
        for run in runs:
            key = run.data.tags.get("modmix.point")
            if key in kept:
                found.setdefault(key, []).append(run)
        for key, same in found.items():
            known = self._known.get(key)
            prefer = known.run if known else kept[key]
            # The one the ledger names, else the one that holds most.
            same.sort(key=lambda r: (r.info.run_id == prefer, "modmix.digest" in r.data.tags))
            if known is None:
                last = same.pop()
                self._known[key] = _Known(last.info.run_id, self._held(last))
            for run in same:
                if run.info.run_id != self._known[key].run:
                    self._api.delete_run(run.info.run_id)

    def _held(self, run: Run) -> str | None:
        """The digest of what a run surely holds."""
        tags = run.data.tags
        whole = run.info.status != "RUNNING" and tags.get("mlflow.parentRunId") == self._parent
        return tags.get("modmix.digest") if whole else None

    def _find_parent(
        self, record: StudyRecord, experiment: str, runs: Sequence[Run], parent: Run | None
    ) -> str:
        found = [parent] if parent else []
        found += [r for r in runs if r.data.tags.get("modmix.kind") == "study"]
        if not found:
            tags = {"modmix.kind": "study", "modmix.study": record.name}
            created = self._api.create_run(
                experiment,
                start_time=int(record.created * 1000),
                tags=tags,
                run_name=record.name,
            )
            return str(created.info.run_id)
        for other in found[1:]:
            if other.info.run_id != found[0].info.run_id:
                self._api.delete_run(other.info.run_id)
        if found[0].info.status != "RUNNING":
            self._api.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)

    # ------------------------------------------------------------ MLflow's calls

    @property
    def _api(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    def _get(self, run: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            found = self._api.get_run(run)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _search(self, experiment: str, condition: str) -> Iterator[Run]:
        token = None
        while True:
            page = self._api.search_runs([experiment], condition, max_results=500, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, content: Content, tags: Mapping[str, str]) -> str:
        run = self._api.create_run(
            self._experiment, start_time=content.started, tags=dict(tags), run_name=content.name
        )
        return str(run.info.run_id)

    def _log(self, run: str, content: Content, tags: Mapping[str, str]) -> None:
        """Params, metrics and tags; those that make the run count as written come last."""
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(key, value) for key, value in content.params.items()]
        metrics = [Metric(v.key, v.value, v.time, v.step) for v in content.metrics]
        pairs = [RunTag(key, value) for key, value in tags.items()]
        while len(params) > _PAIRS or len(params) + len(metrics) + len(pairs) > _ROWS:
            self._api.log_batch(run, metrics=metrics[: _ROWS - _PAIRS], params=params[:_PAIRS])
            metrics, params = metrics[_ROWS - _PAIRS :], params[_PAIRS:]
        self._api.log_batch(run, metrics=metrics, params=params, tags=pairs)

    def _log_texts(self, run: str, texts: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory(prefix="modmix-") as folder:
            for name, text in texts.items():
                file = Path(folder) / name
                file.write_text(text, encoding="utf-8")
                self._api.log_artifact(run, str(file))

    def _end(self, run: str, content: Content) -> None:
        if content.status != "RUNNING":
            self._api.set_terminated(run, content.status, content.ended)


# ---------------------------------------------------------------- in the background, or at once


class Mirror:
    """Mirrors one study into MLflow from a thread of its own, while it runs.

    Args:
        ledger_url: the thread opens its own connection.
        study: its name; the study must be in the ledger before `start`.
        uri: MLflow's tracking URI.
        home: where artifacts go when ``uri`` is a database.

    Example:
        mirror = Mirror(home.ledger_url, "quickstart", home.tracking_uri, home)
        mirror.check()                        # before anything is started
        mirror.start()
        mirror.wake()                         # whenever the ledger has something new
        mirror.log_outputs([figure])          # at the end
        if not mirror.close("finished"):
            print(mirror.trouble)
    """

    def __init__(self, ledger_url: str, study: str, uri: str, home: Home) -> None:
        self._ledger_url, self._study, self._uri, self._home = ledger_url, study, uri, home
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._state = "running"
        self._deadline = float("inf")
        self._outputs: list[Path] = []
        self._lock = threading.Lock()
        self._done = False
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, name="modmix-mirror", daemon=True)

    def check(self) -> None:
        """Raise within seconds if MLflow cannot be used. See `check`."""
        check(self._uri)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that the ledger has something new. Costs nothing."""
        self._changed.set()

    @property
    def trouble(self) -> str:
        """What keeps the mirror from being up to date, or ""."""
        return self._trouble

    def log_outputs(self, paths: Sequence[Path]) -> None:
        """Attach files and folders (figures, tables, the report) to the study's run."""
        with self._lock:
            self._outputs += paths
        self._changed.set()

    def close(self, state: str, timeout: float = 60.0) -> bool:
        """Write everything, end the runs; return whether MLflow now holds all of it.

        Args:
            state: finished, stopped or failed.
            timeout: seconds to wait at most; then ``trouble`` says what is missing, and the next
                run of the study, or `sync`, catches up.
        """
        assert state in STATUS and state != "running", state
        if not self._thread.is_alive() and not self._done:
            return False
        self._state, self._deadline = state, time.monotonic() + timeout
        self._closing.set()
        self._changed.set()
        self._thread.join(timeout)
        if not self._done and not self._trouble:
            self._trouble = (
                f"MLflow at {shown(self._uri)} was still being written after {timeout:.0f} s: "
                f"'modmix sync {self._study}' writes the rest"
            )
        return self._done

    def _work(self) -> None:
        ledger: Ledger | None = None
        writer: _Writer | None = None
        pause = 0.0
        while True:
            closing = self._closing.is_set()
            begun = time.monotonic()
            try:
                ledger = ledger or Ledger(self._ledger_url)
                writer = writer or _Writer(ledger, self._study, self._uri, self._home)
                settled = self._update(writer)
                self._trouble, pause = "", 0.0
                if closing:
                    self._done = True
                    ledger.close()
                    return
            except Exception as error:  # the study goes on whatever happens to its mirror
                settled = True
                pause = self._failed(writer, error, pause)
                if closing and time.monotonic() + pause > self._deadline:
                    return
            self._rest(pause, time.monotonic() - begun, settled)

    def _update(self, writer: _Writer) -> bool:
        self._changed.clear()
        with self._lock:
            outputs, self._outputs = self._outputs, []
        try:
            return writer.update(self._state, outputs)
        except BaseException:
            with self._lock:
                self._outputs = [*outputs, *self._outputs]
            raise

    def _failed(self, writer: _Writer | None, error: Exception, pause: float) -> float:
        """Note what went wrong; return how long to wait before trying again."""
        if not isinstance(error, (TrackingError, LedgerError, InputError)):
            _log.debug("the mirror stumbled", exc_info=error)
        self._trouble = _first_line(str(error)) if str(error) else type(error).__name__
        if writer is not None:
            writer.lost()
        first, longest = BACKOFF_SECONDS
        pause = min(longest, max(first, 2 * pause))
        return min(pause, 2.0) if self._closing.is_set() else pause

    def _rest(self, pause: float, took: float, settled: bool) -> None:
        if pause:  # MLflow is away: only the end of the study shortens the wait
            self._closing.wait(pause)
            if self._closing.is_set():
                time.sleep(min(pause, 1.0))
            return
        # Reading a large ledger takes a while, so that it is not done at every replicate.
        self._closing.wait(min(30.0, max(0.5, 10 * took)))
        if not self._closing.is_set():
            self._changed.wait(None if settled else PARTIAL_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What `sync` did."""

    study: str
    experiment: str
    written: int  # runs of points


def sync(
    ledger: Ledger,
    study: str,
    uri: str,
    home: Home,
    *,
    progress: Callable[[str], None] | None = None,
) -> Synced:
    """Bring MLflow up to the ledger, whatever it held before, and attach the study's outputs.

    Raises:
        InputError: no such study, or it is running (then its own mirror catches up).
        TrackingError: MLflow cannot be reached, or refuses.
    """
    record = ledger.study(study)
    if (holder := ledger.holder(study)) is not None:
        raise InputError(
            f"study {study!r} is being run by process {holder[1]} on {holder[0]}, which mirrors it "
            "itself: wait until it ends"
        )
    check(uri)
    writer = _Writer(ledger, study, uri, home)
    folder = home.study(study)
    outputs = [folder / name for name in ("figures", "tables", "best", "report.html")]
    state = record.state if record.state in STATUS and record.state != "running" else "stopped"
    writer.update(state, [path for path in outputs if path.exists()], rebuild=True)
    return Synced(study=study, experiment=writer.experiment_name, written=writer.written)
