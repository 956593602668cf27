"""Brings the runs of one study in MLflow up to the ledger, whatever happened before.

`Writer.update` may be repeated at will. Run ids are kept in the ledger; each run carries its
point's key and a digest of what was written; a run that a kill left behind between being made and
being noted is found by them and taken over. So every point has one run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modmix.errors import TrackingError
from modmix.home import Home
from modmix.ledger import ENDED, Ledger, PointRecord, ReplicateRecord, StudyRecord
from modmix.packing import digest
from modmix.tracking.content import (
    Content,
    asked_digest,
    dataset,
    higher,
    live_content,
    parts_of,
    point_content,
    point_digest,
    point_status,
    study_content,
    to_json,
)
from modmix.tracking.store import Dataset, Experiment, RefusedError, Run, Store, shown

PARTIAL_SECONDS = 10.0  # how long the other replicates of a point are waited for
STUDY_SECONDS = 10.0  # between two updates of the study's own run
LIVE_SECONDS = 30.0  # training for longer than this is shown while it goes on, so often
LIVE_POINTS = 100  # so many at most
_CHUNK = 50  # points whose histories are read at once
_THREADS = 4  # points written at a time to a server: it waits more than it works


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The run of a point as far as we know. ``digest``: of what it surely holds, else None."""

    run: str
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Live:
    """A replicate in training: since when it is seen (monotonic), and its last evaluation."""

    since: float
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A point whose run is to be written."""

    point: PointRecord
    replicates: Sequence[ReplicateRecord]
    parts: Sequence[str]
    digest: str


class Writer:
    """Writes one study into one MLflow. Not to be shared between threads.

    Args:
        home: where artifacts go when MLflow is a database used directly.
    """

    def __init__(self, ledger: Ledger, study: str, uri: str, home: Home) -> None:
        self._ledger, self._study, self._uri, self._home = ledger, study, uri, home
        self._opened: Store | None = None
        self._experiment = ""  # until what is there was looked at
        self._parent = ""
        self._known: dict[str, _Known] = {}  # by point
        self._parent_digest = ""
        self._parent_time = 0.0
        self._live_time = 0.0
        self._dataset: Dataset | None = None
        self.experiment_name = ""
        self.written = 0  # runs of points
        self.training: set[str] = set()  # replicates, when last looked at

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self._uri)
        return self._opened

    def lost(self) -> None:
        """Something went wrong: look again at what is there before the next write."""
        self._experiment = ""

    def update(
        self,
        state: str,
        outputs: Sequence[Path] = (),
        live: Mapping[str, Live] | None = None,
        *,
        rebuild: bool = False,
    ) -> bool:
        """Write what has changed; return whether no point waits for its other replicates.

        Args:
            state: of the study: running, finished, stopped or failed.
            outputs: files and folders for the study's run.
            live: replicates in training, by key.
            rebuild: trust nothing the ledger says about MLflow.

        Raises:
            TrackingError: MLflow went away or refused; `lost` and another update go on from there.
        """
        record = self._ledger.study(self._study)
        points = self._ledger.points(self._study)
        replicates: dict[str, list[ReplicateRecord]] = {}
        for replicate in self._ledger.replicates(self._study):
            replicates.setdefault(replicate.point, []).append(replicate)
        everything = [r for rs in replicates.values() for r in rs]
        self.training = {r.key for r in everything if r.state == "running"}
        if rebuild or not self._experiment:
            self._look(record, points, rebuild=rebuild)
        parts = parts_of(self._ledger.entries(self._study))
        jobs, waiting = self._jobs(points, replicates, parts, state)
        refused: TrackingError | None = None
        for begin in range(0, len(jobs), _CHUNK):
            refused = self._write_points(record, jobs[begin : begin + _CHUNK], state) or refused
        if state == "running" and live:
            self._write_live(record, points, replicates, parts, live)
        content = study_content(record, points, replicates, parts, state)
        self._write_study(content, outputs)
        if refused is not None:
            raise refused
        return not waiting

    # ------------------------------------------------------------ writing

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
            known = self._known.get(point.key)
            if not ended and (known is None or state == "running"):
                continue
            asked = parts.get(point.key, ())
            wanted = point_digest(point, mine, asked, state)
            if known is not None and known.digest == wanted:
                continue
            if point_status(mine, state) == "RUNNING" and now - max(ended) < PARTIAL_SECONDS:
                waiting = True
                continue
            jobs.append(_Job(point=point, replicates=mine, parts=asked, digest=wanted))
        return jobs, waiting

    def _write_points(
        self, record: StudyRecord, jobs: Sequence[_Job], state: str
    ) -> TrackingError | None:
        """Write some runs; return the first refusal, which concerns its own point only."""
        keys = [r.key for job in jobs for r in job.replicates if r.state in ENDED]
        histories = self._ledger.histories(keys)

        def write(job: _Job) -> TrackingError | None:
            try:
                if not any(r.state in ENDED for r in job.replicates):
                    self._end_idle(job)
                    return None
                self._write_point(
                    job,
                    point_content(record, job.point, job.replicates, job.parts, histories, state),
                )
            except RefusedError as error:
                return error
            return None

        if not self._store.places_artifacts:  # a database takes one writer at a time
            refusals = [write(job) for job in jobs]
        else:
            refusals = []
            for begin in range(0, len(jobs), 2 * _THREADS):  # few wait when the server goes away
                with ThreadPoolExecutor(_THREADS, "modmix-mirror") as pool:
                    refusals += pool.map(write, jobs[begin : begin + 2 * _THREADS])
        self.written += refusals.count(None)
        return next((error for error in refusals if error is not None), None)

    def _write_point(self, job: _Job, content: Content) -> None:
        key, store = job.point.key, self._store
        tags = {**content.tags, "mlflow.parentRunId": self._parent, "modmix.curves": content.curves}
        known = self._known.get(key)
        run = None if known is None else self._take_over(known.run, content)
        if run is None:
            run = store.create_run(
                self._experiment, content.name, started=content.started, tags=tags
            )
        self._known[key] = _Known(run=run)
        if known is None or known != self._known[key]:
            self._ledger.set_point_run(self._study, key, run=run, mirrored=None)
        if self._dataset is not None:
            store.log_dataset(run, self._dataset)
        store.log_text(run, "replicates.json", to_json(content.artifact))
        # The digest comes last, and counts once the run has ended.
        tags["modmix.digest"] = job.digest
        store.log(run, params=content.params, metrics=content.metrics, tags=tags)
        if content.status != "RUNNING":
            store.end_run(run, content.status, content.ended)
        self._ledger.set_point_run(self._study, key, run=run, mirrored=job.digest)
        self._known[key] = _Known(run=run, digest=job.digest)

    def _end_idle(self, job: _Job) -> None:
        """End the run of a point that was shown in training and has no result."""
        known = self._known[job.point.key]
        if self._store.run(known.run) is not None:
            self._store.end_run(known.run, "KILLED", None)
        self._ledger.set_point_run(self._study, job.point.key, run=known.run, mirrored=job.digest)
        self._known[job.point.key] = _Known(run=known.run, digest=job.digest)

    def _write_live(
        self,
        record: StudyRecord,
        points: Sequence[PointRecord],
        replicates: Mapping[str, Sequence[ReplicateRecord]],
        parts: Mapping[str, Sequence[str]],
        live: Mapping[str, Live],
    ) -> None:
        """Show the last evaluations of what has been in training for long."""
        now = time.monotonic()
        if now - self._live_time < LIVE_SECONDS:
            return
        written = 0
        for point in points:
            mine = replicates.get(point.key, ())
            seen = [live[r.key] for r in mine if r.state == "running" and r.key in live]
            long = [(x.epoch, x.metrics) for x in seen if now - x.since > LIVE_SECONDS]
            if not long or written == LIVE_POINTS:
                continue
            asked = parts.get(point.key, ())
            content = live_content(record, point, mine, asked, long, time.time())
            try:
                self._add(point, content)
            except RefusedError:  # somebody deleted the run: the next time makes another
                self._known.pop(point.key, None)
            written += 1
        self._live_time = now

    def _add(self, point: PointRecord, content: Content) -> None:
        """Add to a point's run, which is made when it is missing."""
        tags = {**content.tags, "mlflow.parentRunId": self._parent}
        known = self._known.get(point.key)
        if known is None:
            run = self._store.create_run(
                self._experiment, content.name, started=content.started, tags=tags
            )
            known = self._known[point.key] = _Known(run=run)
            self._ledger.set_point_run(self._study, point.key, run=run, mirrored=None)
        self._store.log(known.run, params=content.params, metrics=content.metrics, tags=tags)

    def _take_over(self, run: str, content: Content) -> str | None:
        """The run itself if it can be added to; else it is deleted.

        What MLflow holds can be added to, not changed: curves that were means of fewer replicates
        would stay beside the new ones.
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

    def _write_study(self, content: Content, outputs: Sequence[Path]) -> None:
        new = digest([content.status, dict(content.tags), [m.value for m in content.metrics]])
        early = time.monotonic() - self._parent_time < STUDY_SECONDS
        if not outputs and (new == self._parent_digest or (early and content.status == "RUNNING")):
            return
        self._store.log(self._parent, params={}, metrics=content.metrics, tags=content.tags)
        for path in outputs:
            self._log_output(path)
        if content.status != "RUNNING":
            self._store.end_run(self._parent, content.status, content.ended)
        self._parent_digest, self._parent_time = new, time.monotonic()

    def _log_output(self, path: Path) -> None:
        """Attach a file or a folder under the place it has in the study's folder."""
        folder = self._home.study(self._study)
        top = folder if path.is_relative_to(folder) else path.parent
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                place = file.parent.relative_to(top).as_posix()
                self._store.log_file(self._parent, file, None if place == "." else place)

    # ------------------------------------------------------------ finding what is there

    def _look(self, record: StudyRecord, points: Sequence[PointRecord], *, rebuild: bool) -> None:
        """Find or make the experiment and the study's run; find the runs of points."""
        experiment, restored = self._find_experiment(record)
        parent = None if record.mlflow_run is None else self._store.run(record.mlflow_run)
        if parent is not None and parent.experiment != experiment.id:
            parent = None
        # A ledger whose study run is in place speaks of this MLflow. Then only a run that is
        # running can be unknown to it, for it is noted before it ends. An edited study file,
        # however, may have dropped points, whose runs must be found to be deleted.
        same_file = parent is not None and parent.tags.get("modmix.text") == asked_digest(record)
        trusted = same_file and not rebuild and not restored
        runs = list(self._store.runs(experiment.id, running=trusted))
        self._parent = self._find_parent(record, experiment.id, runs, parent)
        self._known = {}
        if trusted:
            self._known = {
                p.key: _Known(run=p.mlflow_run, digest=p.mirrored) for p in points if p.mlflow_run
            }
        self._adopt(points, runs)
        if record.mlflow_run != self._parent:
            self._ledger.set_study_run(self._study, self._parent)
        self._store.log_text(self._parent, "study.yaml", record.text)
        self._dataset = dataset(record)
        self._store.log_dataset(self._parent, self._dataset)
        self._parent_digest, self._parent_time = "", 0.0
        self._experiment = experiment.id

    def _find_experiment(self, record: StudyRecord) -> tuple[Experiment, bool]:
        """The study's experiment, and whether it was deleted and had to be restored.

        One of that name may belong to another person's ledger: then ours gets a longer name, so
        that two mirrors never write into one experiment.
        """
        owner = digest([record.name, record.created])[:12]
        for name in (record.name, f"{record.name}-{owner}"):
            self.experiment_name = name
            found = self._store.experiment(name)
            if found is None:
                return self._create_experiment(name, owner, record), False
            if found.tags.get("modmix.owner") == owner:
                if found.deleted:
                    self._store.restore_experiment(found.id)
                return found, found.deleted
        raise RefusedError(
            f"MLflow at {shown(self._uri)} has experiments {record.name!r} and "
            f"{self.experiment_name!r} that are not of this ledger: rename one of them there"
        )

    def _create_experiment(self, name: str, owner: str, record: StudyRecord) -> Experiment:
        objective = (record.spec.get("objective") or ["val/error"])[0]
        place = (self._home.artifacts / name).absolute().as_uri()
        tags = {
            "modmix.owner": owner,
            "modmix.study": record.name,
            "mlflow.note.content": str(record.spec.get("description") or ""),
            "mlflow.experiment.primaryMetric.name": objective,
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(higher(objective)),
            "mlflow.experimentKind": "custom_model_development",  # else the UI asks which it is
        }
        artifacts = None if self._store.places_artifacts else place
        return self._store.create_experiment(name, artifacts, tags)

    def _find_parent(
        self, record: StudyRecord, experiment: str, runs: Sequence[Run], parent: Run | None
    ) -> str:
        found = [parent] if parent else []
        found += [run for run in runs if run.tags.get("modmix.kind") == "study"]
        if not found:
            tags = {
                "modmix.kind": "study",
                "modmix.study": record.name,
                "modmix.text": asked_digest(record),
            }
            started = int(record.created * 1000)
            return self._store.create_run(experiment, record.name, started=started, tags=tags)
        for other in found[1:]:
            if other.id != found[0].id:
                self._store.delete_run(other.id)
        if found[0].status != "RUNNING":
            self._store.reopen_run(found[0].id)
        return found[0].id

    def _adopt(self, points: Sequence[PointRecord], runs: Sequence[Run]) -> None:
        """Take over the runs of our points; delete all but one of each, and of dropped points."""
        noted = {p.key: _Known(run=p.mlflow_run or "", digest=p.mirrored) for p in points}
        found: dict[str, list[Run]] = {}
        for run in runs:
            if (key := run.tags.get("modmix.point")) in noted:
                found.setdefault(key, []).append(run)
            elif key is not None:
                self._store.delete_run(run.id)
        for key, same in found.items():
            if key not in self._known:
                # The one that the ledger names, else one that holds something.
                best = max(same, key=lambda r: (r.id == noted[key].run, self._held(r) is not None))
                known = self._known[key] = _Known(run=best.id, digest=self._held(best))
                if known != noted[key]:
                    self._ledger.set_point_run(
                        self._study, key, run=known.run, mirrored=known.digest
                    )
            for run in same:
                if run.id != self._known[key].run:
                    self._store.delete_run(run.id)

    def _held(self, run: Run) -> str | None:
        """The digest of what a run surely holds."""
        whole = run.status != "RUNNING" and run.tags.get("mlflow.parentRunId") == self._parent
        return run.tags.get("modmix.digest") if whole else None
