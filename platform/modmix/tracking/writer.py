"""Brings a study's runs in MLflow up to date with the ledger.

`Writer.update` is idempotent. Runs are created once and only added to: what people write there
stays. Their ids are stored in the ledger before they end; each run has tags with its
configuration's key and a digest of its content, by which it is found again after a kill.

One process writes at a time. The mirror of a driver has the driver's lease, and stops before its
next writes when another driver has taken the study over. The experiment's tag `WRITER` names the
writer that came last: one without a lease (`sync`) stops when it sees another name there, and one
with the current lease, beside which a stopped process may have written late, looks again for all
runs.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modmix.base.errors import TrackingError
from modmix.base.home import Home
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import (
    ENDED,
    ConfigurationRecord,
    Lease,
    ReplicateRecord,
    StudyRecord,
)
from modmix.tracking.content import (
    LIVE_SECONDS,
    STATE_TAGS,
    Content,
    configuration_content,
    configuration_digest,
    configuration_status,
    datasets,
    live_content,
    to_json,
)
from modmix.tracking.finder import Finder, Found, Known, is_deleted, remove_strays
from modmix.tracking.overview import study_content, study_tags
from modmix.tracking.reader import Reader
from modmix.tracking.store import RefusedError, Store, Value, redacted

if TYPE_CHECKING:
    from mlflow.entities import Run

PARTIAL_SECONDS = 10.0  # waiting time for the other replicates of a configuration
STUDY_SECONDS = 10.0  # between updates of the study's run
OUTPUTS = ("figures", "tables", "best", "report.html")  # of the study's folder
WRITER = "modmix.writer"  # tag of an experiment: who writes to it
LIVE_CONFIGURATIONS = 100  # most configurations with live metrics
_CHUNK = 20  # configurations read and written at a time
_THREADS = 4  # concurrent requests to a server


class OvertakenError(TrackingError):
    """Another process has begun to write this study to MLflow."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """A replicate in training: first seen (monotonic), and its last evaluation."""

    since: float
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A configuration whose run must be updated."""

    configuration: ConfigurationRecord
    replicates: Sequence[ReplicateRecord]
    parts: Sequence[str]
    digest: str = ""
    content: Content | None = None
    run: Run | None = None


class Writer:
    """Writes one study to MLflow. Not thread-safe.

    Args:
        home: holds artifacts if MLflow is a database used directly.
        lease: of the driver whose study it is; None: there is no driver.
        live_seconds: interval of live metrics, for replicates training longer than this.
        progress: called with the number of configurations left.
    """

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        uri: str,
        home: Home,
        *,
        lease: Lease | None = None,
        live_seconds: float = LIVE_SECONDS,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._ledger, self._study, self._uri, self._home = ledger, study, uri, home
        self._lease = lease
        if lease is not None:
            ledger.hold(lease)
        self._live_seconds, self._progress = live_seconds, progress
        self._name, self._claimed = uuid.uuid4().hex, False
        self._opened: Store | None = None
        self._place: Found | None = None  # unknown before the first update and after an error
        self._known: dict[str, Known] = {}  # by configuration
        self._reader = Reader(ledger, study)
        self._partial: set[str] = set()  # configurations waiting for their other replicates
        self._logged: set[Value] = set()  # of the study's charts
        self._parent_digest = ""
        self._parent_time = self._live_time = 0.0
        self._datasets: Mapping[str, Mapping[str, str]] = {}  # by task
        self.written = 0  # runs of configurations
        self.read_seconds = 0.0  # duration of the last read

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self._uri)
        return self._opened

    @property
    def _found(self) -> Found:
        assert self._place is not None
        return self._place

    @property
    def experiment_name(self) -> str:
        return self._found.experiment_name

    @property
    def experiment_id(self) -> str:
        return self._found.experiment

    def reset(self) -> None:
        """After an error: reconnect, and find all runs again before the next write."""
        self._opened = self._place = None

    def has_ended(self, replicate: str) -> bool:
        """Whether a replicate had a result at the last update."""
        return self._reader.has_ended(replicate)

    def update(
        self,
        state: str,
        live: Mapping[str, Live] | None = None,
        *,
        rebuild: bool = False,
    ) -> bool:
        """Write changes; return whether no configuration waits for its other replicates.

        Args:
            state: of the study: running; finished, stopped or failed, with which its outputs are
                attached to its run and all runs end.
            live: replicates in training, by key.
            rebuild: do not trust the run ids in the ledger.

        Raises:
            TrackingError: MLflow is unreachable or refuses; call `reset` and `update` again.
            OvertakenError: another process writes now.
            LeaseLostError: another driver has taken the study over in this moment.
        """
        begun = time.monotonic()
        record = self._ledger.study(self._study)
        fresh = rebuild or self._place is None
        if fresh or state != "running":  # the first and the last update read everything
            changed = self._reader.read_all(record)
        else:
            changed = self._reader.read_new(record) | dict.fromkeys(self._partial)
        self.read_seconds = time.monotonic() - begun
        if fresh:
            self._find_runs(record, rebuild=rebuild)
        self._check_turn()
        jobs = self._jobs(changed, state)
        refused: list[TrackingError] = []
        for begin in range(0, len(jobs), _CHUNK):
            self._progress(len(jobs) - begin)
            refused += self._write_chunk(record, jobs[begin : begin + _CHUNK], state)
        self._progress(0)
        self._check_lease()
        if state == "running" and live:
            self._write_live(record, live)
        elif state != "running":
            running = list(self._store.runs(self._found.experiment, "attributes.status='RUNNING'"))
            remove_strays(self._store, running, self._known)
        self._write_study(record, state)
        if refused:
            raise refused[0]
        return not self._partial

    def _find_runs(self, record: StudyRecord, *, rebuild: bool) -> None:
        self._check_lease()
        finder = Finder(self._store, self._ledger, record, self._home, self._claim)
        found = finder.find(rebuild=rebuild)
        self._known, self._datasets, self._logged = dict(found.known), datasets(record), set()
        self._store.client.log_text(found.parent, record.text, "study.yaml")
        for dataset in self._datasets.values():
            self._store.log_dataset(found.parent, dataset)
        self._parent_digest, self._parent_time = "", 0.0
        self._place = found

    def _claim(self, experiment: str) -> None:
        """Take over from a former writer, or see that no later one has after an error of this."""
        if self._claimed:
            self._check_turn(experiment)
        else:
            self._check_lease()
        self._store.client.set_experiment_tag(experiment, WRITER, self._name)
        self._claimed = True

    def _check_turn(self, experiment: str = "") -> None:
        self._check_lease()
        experiment = experiment or self._found.experiment
        tags = self._store.client.get_experiment(experiment).tags
        if tags.get(WRITER, self._name) == self._name:
            return
        where = f"study {self._study!r} to MLflow at {redacted(self._uri)}"
        if self._lease is None:
            raise OvertakenError(f"another process now logs {where}: this one stops")
        self._store.client.set_experiment_tag(experiment, WRITER, self._name)
        raise TrackingError(
            f"another process has logged {where}, and this one goes on: its runs are looked up anew"
        )

    def _check_lease(self) -> None:
        if self._lease is not None and not self._ledger.is_current(self._lease):
            raise OvertakenError(
                f"another driver now runs study {self._study!r} and logs it to MLflow at "
                f"{redacted(self._uri)}: this process stops"
            )

    # ------------------------------------------------------------ configurations

    def _jobs(self, configurations: Iterable[str], state: str) -> list[_Job]:
        jobs, now = [], time.time()
        for key in configurations:
            if (configuration := self._reader.configurations.get(key)) is None:
                continue
            mine, known = self._reader.of(key), self._known.get(key)
            ended = [r.finished or 0.0 for r in mine if r.state in ENDED]
            self._partial.discard(key)
            if not ended and (known is None or state == "running"):
                continue
            parts = self._reader.parts.get(key, ())
            wanted = configuration_digest(configuration, mine, parts, state)
            if known is not None and known.digest == wanted:
                continue
            partial = configuration_status(mine, state) == "RUNNING"
            if partial and now - max(ended) < PARTIAL_SECONDS:
                self._partial.add(key)
                continue
            jobs.append(
                _Job(configuration=configuration, replicates=mine, parts=parts, digest=wanted)
            )
        return jobs

    def _write_chunk(
        self, record: StudyRecord, jobs: Sequence[_Job], state: str
    ) -> list[TrackingError]:
        """Write some runs; return refusals, each of which affects its own configuration only."""
        self._check_turn()
        idle = [job for job in jobs if not any(r.state in ENDED for r in job.replicates)]
        work = self._contents(record, [job for job in jobs if job not in idle], state)
        refused: list[TrackingError] = []

        def each(step: Callable[[_Job], Run | None], jobs: Sequence[_Job]) -> list[_Job]:
            """Jobs that were not refused, with their runs."""
            with ThreadPoolExecutor(_THREADS if self._store.places_artifacts else 1) as pool:
                made = list(pool.map(lambda job: self._attempt(step, job, refused), jobs))
            return [replace(job, run=run) for job, run in zip(jobs, made, strict=True) if run]

        work = each(self._open_run, work)
        self._check_turn()  # or else another writer may not have seen what was created
        self._note(work, complete=False)  # before any of them ends
        done = [*each(self._fill, work), *each(self._end_idle, idle)]
        self._note(done, complete=True)
        self.written += len(done)
        return refused

    @staticmethod
    def _attempt(
        step: Callable[[_Job], Run | None], job: _Job, refused: list[TrackingError]
    ) -> Run | None:
        try:
            return step(job)
        except RefusedError as error:
            refused.append(error)
            return None

    def _contents(self, record: StudyRecord, jobs: Sequence[_Job], state: str) -> list[_Job]:
        """The jobs with the content of their runs, from the ledger."""
        mine: dict[str, list[ReplicateRecord]] = {job.configuration.key: [] for job in jobs}
        found = self._ledger.replicates(self._study, configurations=list(mine))
        self._reader.take_in(record, found)
        for r in found:
            mine[r.configuration].append(r)
        histories = self._ledger.histories(self._study, [r.key for r in found if r.state in ENDED])
        starts = self._ledger.pack_starts(sorted({r.pack for r in found if r.pack}))
        made = []
        for job in jobs:
            c, replicates = job.configuration, mine[job.configuration.key]
            content = configuration_content(
                record, c, replicates, job.parts, histories, state, starts
            )
            held = configuration_digest(c, replicates, job.parts, state)  # more may have ended
            made.append(replace(job, replicates=replicates, digest=held, content=content))
        return made

    def _note(self, jobs: Sequence[_Job], *, complete: bool) -> None:
        """Record in the ledger what runs hold, or that new ones exist."""
        changed = {}
        for job in jobs:
            key = job.configuration.key
            assert job.run is not None
            if complete or key not in self._known or self._known[key].run != job.run.info.run_id:
                changed[key] = Known(
                    run=job.run.info.run_id, digest=job.digest if complete else None
                )
        rows = [(key, known.run, known.digest) for key, known in changed.items()]
        self._ledger.set_configuration_runs(self._study, rows)
        self._known |= changed

    def _open_run(self, job: _Job) -> Run:
        """A configuration's run; it is created if missing, and restored if somebody deleted it."""
        content = job.content
        assert content is not None
        known = self._known.get(job.configuration.key)
        found = None if known is None else self._store.run(known.run)
        if found is not None and found.info.experiment_id == self._found.experiment:
            if is_deleted(found):
                self._store.client.restore_run(found.info.run_id)
            return found
        self._check_lease()  # before every run, lest two drivers create it
        tags = {**content.tags, "mlflow.parentRunId": self._found.parent}
        if content.curves_digest:
            tags["modmix.curves"] = content.curves_digest
        run = self._store.client.create_run(
            self._found.experiment, content.started, tags, content.name
        )
        if (dataset := self._datasets.get(job.configuration.task)) is not None:
            self._store.log_dataset(run.info.run_id, dataset)
        return run

    def _fill(self, job: _Job) -> Run:
        """Add what a run lacks. The digest is written last, and counts once the run has ended."""
        run, content, client = job.run, job.content, self._store.client
        assert run is not None
        assert content is not None
        key, before = run.info.run_id, run.data.tags
        curves, claimed = _new_curves(before, content)
        tags = {
            **content.tags,
            "mlflow.parentRunId": self._found.parent,
            "modmix.curves": claimed,
            "modmix.digest": job.digest,
        }
        client.log_text(key, to_json(content.artifact), "replicates.json")
        self._store.log(
            key,
            params={k: v for k, v in content.params.items() if k not in run.data.params},
            metrics=[*content.metrics, *curves],
            tags={k: v for k, v in tags.items() if before.get(k, "") != v},
        )
        for tag in STATE_TAGS:
            if tag in before and tag not in content.tags:
                client.delete_tag(key, tag)
        if content.status != "RUNNING":
            client.set_terminated(key, content.status, content.ended)
        elif run.info.status != "RUNNING":
            client.update_run(key, status="RUNNING")
        return run

    def _end_idle(self, job: _Job) -> Run | None:
        """End the run of a configuration with live metrics but no result."""
        run = self._store.run(self._known[job.configuration.key].run)
        if run is not None:
            self._store.client.set_tag(run.info.run_id, "modmix.state", "stopped")
            self._store.client.set_terminated(run.info.run_id, "KILLED")
        return run

    # ------------------------------------------------------------ live metrics

    def _write_live(self, record: StudyRecord, live: Mapping[str, Live]) -> None:
        """Write live metrics of replicates that have been training for a while."""
        now = time.monotonic()
        if now - self._live_time < self._live_seconds:
            return
        self._live_time = now
        long = {key: x for key, x in live.items() if now - x.since > self._live_seconds}
        states = self._ledger.replicate_states(self._study) if long else {}
        written = 0
        for key, configuration in self._reader.configurations.items():
            mine = self._reader.of(key)
            seen = [long[r.key] for r in mine if r.key in long and states[r.key] == "running"]
            if not seen or written == LIVE_CONFIGURATIONS:
                continue
            parts = self._reader.parts.get(key, ())
            content = live_content(
                record,
                configuration,
                mine,
                parts,
                [(x.epoch, x.metrics) for x in seen],
                time.time() - max(now - x.since for x in seen),
                time.time(),
            )
            job = _Job(configuration=configuration, replicates=mine, parts=parts, content=content)
            run = self._open_run(job)
            self._note([replace(job, run=run)], complete=False)
            params = {k: v for k, v in content.params.items() if k not in run.data.params}
            self._store.log(run.info.run_id, params=params, metrics=content.metrics)
            written += 1

    # ------------------------------------------------------------ the study

    def _write_study(self, record: StudyRecord, state: str) -> None:
        if state == "running" and time.monotonic() - self._parent_time < STUDY_SECONDS:
            return
        reader, parent, store = self._reader, self._found.parent, self._store
        replicates = {key: reader.of(key) for key in reader.configurations}
        configurations = list(reader.configurations.values())
        content = study_content(record, configurations, replicates, reader.parts, state)
        held = digest([content.status, dict(content.tags), [m.value for m in content.metrics]])
        if state == "running" and held == self._parent_digest:
            return
        rows = [row for row in content.curves if row not in self._logged]
        run = store.run(parent)
        tags = study_tags(content, {} if run is None else run.data.tags)
        store.log(parent, metrics=[*content.metrics, *rows], tags=tags)
        self._logged.update(rows)
        if state != "running":
            for name in OUTPUTS:
                self._log_output(name)
            store.client.set_terminated(parent, content.status, content.ended)
        self._parent_digest, self._parent_time = held, time.monotonic()

    def _log_output(self, name: str) -> None:
        """Attach a file or folder of the study's folder, if there is one."""
        path, parent = self._home.study(self._study) / name, self._found.parent
        if path.is_dir():
            self._store.client.log_artifacts(parent, str(path), name)
        elif path.is_file():
            self._store.client.log_artifact(parent, str(path))


def _new_curves(tags: Mapping[str, str], content: Content) -> tuple[Sequence[Value], str]:
    """The curves that a run lacks, and its tag that says which it has then.

    What was logged cannot be changed: after an extension by seeds, the curves over all of them are
    added beside the first ones, as ``epoch_5/val/error``.
    """
    held = tags.get("modmix.curves", "").split()
    own = content.curves_digest
    if not own or (own in held and "modmix.digest" in tags):
        return (), " ".join(held)
    if own in held[:1] or not held:
        return content.curves, " ".join([own, *held[1:]])
    first = f"epoch_{content.n_curves}/"
    curves = [replace(v, key=first + v.key.removeprefix("epoch/")) for v in content.curves]
    return curves, " ".join(dict.fromkeys([*held, own]))
