"""Updates a study's runs in MLflow from the ledger.

`Writer.update` is idempotent. Run ids are stored in the ledger; each run has tags with its
configuration's key and a digest of its content. A run whose id was not recorded because of a kill
is found by its tag and adopted, so every configuration has one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from modmix.base.errors import TrackingError
from modmix.base.home import Home, sqlite_path
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED, ConfigurationRecord, ReplicateRecord, StudyRecord
from modmix.tracking.content import (
    LIVE_SECONDS,
    STATE_TAGS,
    Content,
    configuration_content,
    configuration_digest,
    configuration_status,
    datasets,
    live_content,
    study_content,
    to_json,
)
from modmix.tracking.database import Database, Rows, is_known, new_id
from modmix.tracking.finder import Finder, Known
from modmix.tracking.reader import Reader
from modmix.tracking.store import Dataset, RefusedError, Store

PARTIAL_SECONDS = 10.0  # waiting time for the other replicates of a configuration
STUDY_SECONDS = 10.0  # between updates of the study's run
LIVE_CONFIGURATIONS = 100  # most configurations with live metrics
_CHUNK = 50  # configurations read and written at a time
_THREADS = 4  # concurrent requests to a server


@dataclass(frozen=True, kw_only=True)
class Live:
    """A replicate in training: first seen (monotonic), and its last evaluation."""

    since: float
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A configuration whose run must be written."""

    configuration: ConfigurationRecord
    replicates: Sequence[ReplicateRecord]
    parts: Sequence[str]
    digest: str


def open_store(uri: str) -> Store | Database:
    """Open a tracking server or a database; an SQLite file is created if missing."""
    if (path := sqlite_path(uri)) is not None and not path.exists():
        Store(uri).ping()
    return Database(uri) if is_known(uri) else Store(uri)


class Writer:
    """Writes one study to MLflow. Not thread-safe.

    Args:
        home: holds artifacts if MLflow is a database used directly.
        live_seconds: interval of live metrics, for replicates training longer than this.
        progress: called with the number of configurations left.
        open_store: opens MLflow.
    """

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        uri: str,
        home: Home,
        *,
        live_seconds: float = LIVE_SECONDS,
        progress: Callable[[int], None] = lambda _: None,
        open_store: Callable[[str], Store | Database] = open_store,
    ) -> None:
        self._ledger, self._study, self._uri, self._home = ledger, study, uri, home
        self._live_seconds, self._progress, self._open = live_seconds, progress, open_store
        self._opened: Store | Database | None = None
        self._experiment = ""  # unknown until `_find_runs`
        self._parent = ""
        self._known: dict[str, Known] = {}  # by configuration
        self._reader = Reader(ledger, study)
        self._partial: set[str] = set()  # configurations waiting for their other replicates
        self._parent_digest = ""
        self._parent_time = 0.0
        self._live_time = 0.0
        self._datasets: dict[str, Dataset] = {}  # by task
        self.experiment_name = ""
        self.written = 0  # runs of configurations
        self.read_seconds = 0.0  # duration of the last read

    @property
    def _store(self) -> Store | Database:
        if self._opened is None:
            self._opened = self._open(self._uri)
        return self._opened

    def reset(self) -> None:
        """After an error: reconnect, and find all runs again before the next write."""
        self._experiment = ""
        if isinstance(self._opened, Database):
            self._opened.close()
        self._opened = None

    def has_ended(self, replicate: str) -> bool:
        """Whether a replicate had a result at the last update."""
        return self._reader.has_ended(replicate)

    def update(
        self,
        state: str,
        outputs: Sequence[Path] = (),
        live: Mapping[str, Live] | None = None,
        *,
        rebuild: bool = False,
    ) -> bool:
        """Write changes; return whether no configuration waits for its other replicates.

        Args:
            state: of the study: running, finished, stopped or failed.
            outputs: files and folders to attach to the study's run.
            live: replicates in training, by key.
            rebuild: ignore the run ids in the ledger.

        Raises:
            TrackingError: MLflow is unreachable or refuses; call `reset` and `update` again.
        """
        begun = time.monotonic()
        record = self._ledger.study(self._study)
        fresh = rebuild or not self._experiment
        if fresh or state != "running":  # the first and the last update read everything
            changed = self._reader.read_all(record)
        else:
            changed = self._reader.read_new(record) | dict.fromkeys(self._partial)
        self.read_seconds = time.monotonic() - begun
        if fresh:
            self._find_runs(record, rebuild=rebuild)
        jobs = self._jobs(changed, state)
        refused: TrackingError | None = None
        for begin in range(0, len(jobs), _CHUNK):
            self._progress(len(jobs) - begin)
            refused = (
                self._write_configurations(record, jobs[begin : begin + _CHUNK], state) or refused
            )
        self._progress(0)
        if state == "running" and live:
            self._write_live(record, live)
        self._write_study(record, state, outputs)
        if refused is not None:
            raise refused
        return not self._partial

    def _find_runs(self, record: StudyRecord, *, rebuild: bool) -> None:
        """Find or create the experiment and the study's run; find the runs of configurations."""
        configurations = list(self._reader.configurations.values())
        finder = Finder(self._store, self._ledger, record, self._home)
        found = finder.find(configurations, rebuild=rebuild)
        self._parent, self._known = found.parent, dict(found.known)
        self.experiment_name = found.experiment_name
        self._store.log_text(self._parent, "study.yaml", record.text)
        self._datasets = datasets(record)
        for one in self._datasets.values():
            self._store.log_dataset(self._parent, one)
        self._parent_digest, self._parent_time = "", 0.0
        self._experiment = found.experiment

    # ------------------------------------------------------------ writing

    def _jobs(self, configurations: Iterable[str], state: str) -> list[_Job]:
        jobs, now = [], time.time()
        for key in configurations:
            if (configuration := self._reader.configurations.get(key)) is None:
                continue
            mine = self._reader.of(key)
            ended = [r.finished or 0.0 for r in mine if r.state in ENDED]
            known = self._known.get(key)
            self._partial.discard(key)
            if not ended and (known is None or state == "running"):
                continue
            parts = self._reader.parts.get(key, ())
            wanted = configuration_digest(configuration, mine, parts, state)
            if known is not None and known.digest == wanted:
                continue
            if (
                configuration_status(mine, state) == "RUNNING"
                and now - max(ended) < PARTIAL_SECONDS
            ):
                self._partial.add(key)
                continue
            jobs.append(
                _Job(configuration=configuration, replicates=mine, parts=parts, digest=wanted)
            )
        return jobs

    def _write_configurations(
        self, record: StudyRecord, jobs: Sequence[_Job], state: str
    ) -> TrackingError | None:
        """Write runs; return the first refusal, which affects its own configuration only."""
        idle = [job for job in jobs if not any(r.state in ENDED for r in job.replicates)]
        contents = self._contents(record, [job for job in jobs if job not in idle], state)
        store = self._store
        refusals = [self._try(self._end_idle, job) for job in idle]
        if isinstance(store, Database):
            refusals.append(self._try(self._replace, store, contents))
            self.written += len(contents) if refusals[-1] is None else 0
        else:
            for begin in range(0, len(contents), 2 * _THREADS):
                with ThreadPoolExecutor(_THREADS, "modmix-mirror") as pool:
                    some = contents[begin : begin + 2 * _THREADS]
                    errors = list(
                        pool.map(lambda one: self._try(self._write_configuration, *one), some)
                    )
                    self.written += errors.count(None)
                    refusals += errors
        return next((error for error in refusals if error is not None), None)

    def _contents(
        self, record: StudyRecord, jobs: Sequence[_Job], state: str
    ) -> list[tuple[_Job, Content]]:
        """The content of the runs of some configurations, from the ledger."""
        whole: dict[str, list[ReplicateRecord]] = {job.configuration.key: [] for job in jobs}
        found = self._ledger.replicates(self._study, configurations=list(whole))
        self._reader.take_in(record, found)
        for r in found:
            whole[r.configuration].append(r)
        ended = [r.key for r in found if r.state in ENDED]
        histories = self._ledger.histories(self._study, ended)
        made = []
        for job in jobs:
            mine = whole[job.configuration.key]  # more may have ended by now
            held = configuration_digest(job.configuration, mine, job.parts, state)
            content = configuration_content(
                record, job.configuration, mine, job.parts, histories, state
            )
            made.append((replace(job, replicates=mine, digest=held), content))
        return made

    @staticmethod
    def _try(write: Callable[..., None], *what: object) -> RefusedError | None:
        try:
            write(*what)
        except RefusedError as error:
            return error
        return None

    def _replace(self, store: Database, contents: Sequence[tuple[_Job, Content]]) -> None:
        """Write runs, in one transaction for each task.

        Their ids are recorded first, so that after a kill the same runs are written again.
        """
        runs, new, done = [], [], []
        of_run: dict[str, _Job] = {}
        for job, content in contents:
            key = job.configuration.key
            known = self._known.get(key)
            run = new_id() if known is None else known.run
            if known is None or known.digest is not None:
                new.append((key, run, None))
            done.append((key, run, job.digest))
            of_run[run] = job
            tags = {
                **content.tags,
                "mlflow.parentRunId": self._parent,
                "modmix.curves": content.curves,
                "modmix.digest": job.digest,
            }
            runs.append(
                Rows(
                    id=run,
                    name=content.name,
                    status=content.status,
                    started=content.started,
                    ended=content.ended if content.status != "RUNNING" else None,
                    tags=tags,
                    stale=STATE_TAGS,
                    params=content.params,
                    metrics=content.metrics,
                    files={"replicates.json": to_json(content.artifact)},
                )
            )
        self._ledger.set_configuration_runs(self._study, new)
        self._known |= {key: Known(run=run) for key, run, _ in new}
        for task in dict.fromkeys(job.configuration.task for job in of_run.values()):
            store.replace(
                self._experiment,
                [run for run in runs if of_run[run.id].configuration.task == task],
                self._datasets.get(task),
            )
        self._ledger.set_configuration_runs(self._study, done)
        self._known |= {key: Known(run=run, digest=held) for key, run, held in done}

    def _write_configuration(self, job: _Job, content: Content) -> None:
        """Write a run through MLflow's API, which can only add to it."""
        key, store = job.configuration.key, self._store
        tags = {**content.tags, "mlflow.parentRunId": self._parent, "modmix.curves": content.curves}
        known = self._known.get(key)
        run = None if known is None else self._take_over(known.run, content)
        if run is None:
            run = store.create_run(
                self._experiment, content.name, started=content.started, tags=tags
            )
        self._known[key] = Known(run=run)
        if known is None or known != self._known[key]:
            self._ledger.set_configuration_run(self._study, key, run=run, mirrored=None)
        if (found := self._datasets.get(job.configuration.task)) is not None:
            store.log_dataset(run, found)
        store.log_text(run, "replicates.json", to_json(content.artifact))
        # The digest is written last, and counts once the run has ended.
        tags["modmix.digest"] = job.digest
        store.log(run, params=content.params, metrics=content.metrics, tags=tags)
        if content.status != "RUNNING":
            store.end_run(run, content.status, content.ended)
        self._ledger.set_configuration_run(self._study, key, run=run, mirrored=job.digest)
        self._known[key] = Known(run=run, digest=job.digest)

    def _end_idle(self, job: _Job) -> None:
        """End the run of a configuration with live metrics but no result."""
        known = self._known[job.configuration.key]
        if self._store.run(known.run) is not None:
            self._store.end_run(known.run, "KILLED", None)
        self._ledger.set_configuration_run(
            self._study, job.configuration.key, run=known.run, mirrored=job.digest
        )
        self._known[job.configuration.key] = Known(run=known.run, digest=job.digest)
        self.written += 1

    def _write_live(self, record: StudyRecord, live: Mapping[str, Live]) -> None:
        """Write live metrics of replicates that have been training for a while."""
        now = time.monotonic()
        if now - self._live_time < self._live_seconds:
            return
        self._live_time = now
        long = {key: x for key, x in live.items() if now - x.since > self._live_seconds}
        if not long:
            return
        states = self._ledger.replicate_states(self._study)
        written = 0
        for key, configuration in self._reader.configurations.items():
            mine = self._reader.of(key)
            seen = [long[r.key] for r in mine if r.key in long and states[r.key] == "running"]
            if not seen or written == LIVE_CONFIGURATIONS:
                continue
            progress = [(x.epoch, x.metrics) for x in seen]
            parts = self._reader.parts.get(key, ())
            content = live_content(record, configuration, mine, parts, progress, time.time())
            try:
                self._add(configuration, content)
            except RefusedError:  # the run was deleted: create another next time
                self._known.pop(key, None)
            written += 1

    def _add(self, configuration: ConfigurationRecord, content: Content) -> None:
        """Add to a configuration's run; create it if missing."""
        tags = {**content.tags, "mlflow.parentRunId": self._parent}
        known = self._known.get(configuration.key)
        if known is None:
            run = self._store.create_run(
                self._experiment, content.name, started=content.started, tags=tags
            )
            known = self._known[configuration.key] = Known(run=run)
            self._ledger.set_configuration_run(
                self._study, configuration.key, run=run, mirrored=None
            )
        self._store.log(known.run, params=content.params, metrics=content.metrics, tags=tags)

    def _take_over(self, run: str, content: Content) -> str | None:
        """Return the run if it can be extended, otherwise delete it.

        MLflow cannot change what was logged: old curves over fewer replicates would remain.
        """
        found = self._store.run(run)
        if found is None:
            return None
        curves = found.tags.get("modmix.curves", "")
        differs = any(found.params.get(k, v) != v for k, v in content.params.items())
        failed_before = "modmix.reason" in found.tags and "modmix.reason" not in content.tags
        if differs or failed_before or (curves and curves != content.curves):
            self._store.delete_run(run)
            return None
        if content.status == "RUNNING" and found.status != "RUNNING":
            self._store.reopen_run(run)
        return run

    def _write_study(self, record: StudyRecord, state: str, outputs: Sequence[Path]) -> None:
        early = time.monotonic() - self._parent_time < STUDY_SECONDS
        if not outputs and early and state == "running":
            return
        reader = self._reader
        replicates = {key: reader.of(key) for key in reader.configurations}
        configurations = list(reader.configurations.values())
        content = study_content(record, configurations, replicates, reader.parts, state)
        new = digest([content.status, dict(content.tags), [m.value for m in content.metrics]])
        if not outputs and new == self._parent_digest:
            return
        self._store.log(self._parent, params={}, metrics=content.metrics, tags=content.tags)
        for path in outputs:
            self._log_output(path)
        if content.status != "RUNNING":
            self._store.end_run(self._parent, content.status, content.ended)
        self._parent_digest, self._parent_time = new, time.monotonic()

    def _log_output(self, path: Path) -> None:
        """Log a file or folder under its path in the study's folder."""
        folder = self._home.study(self._study)
        top = folder if path.is_relative_to(folder) else path.parent
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                place = file.parent.relative_to(top).as_posix()
                self._store.log_file(self._parent, file, None if place == "." else place)
