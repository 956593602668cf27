"""Brings a study's runs in MLflow up to date with the ledger.

`Writer.update` is idempotent. Runs are created once and only added to: what people write there
stays. Each run has tags with its configuration's key and a digest of its content, by which it is
found again after a kill; a run that is RUNNING in MLflow is incomplete.

One process writes at a time. The mirror of a driver has the driver's lease, and stops before its
next writes when another driver has taken the study over. The experiment's tag `WRITER` names the
most recent writer. If it names another one, a writer without a lease (`sync`) stops; a writer with
the current lease reads all runs again, because a process that was resumed late may have added some.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
    STATE_TAGS,
    Content,
    configuration_content,
    configuration_digest,
    datasets,
    to_json,
)
from modmix.tracking.finder import Finder, Found, Known, is_deleted
from modmix.tracking.overview import study_content, study_tags
from modmix.tracking.reader import Reader
from modmix.tracking.store import RefusedError, Store, Value, redacted

if TYPE_CHECKING:
    from mlflow.entities import Run

STUDY_SECONDS = 10.0  # between updates of the study's run
OUTPUTS = ("figures", "tables", "best", "report.html")  # of the study's folder
WRITER = "modmix.writer"  # tag of an experiment: who writes to it
_CHUNK = 20  # configurations read and written at a time
_THREADS = 4  # concurrent requests to a server


class OvertakenError(TrackingError):
    """Another process has begun to write this study to MLflow."""


class Writer:
    """Writes one study to MLflow. Not thread-safe.

    Args:
        home: holds artifacts if MLflow is a database used directly.
        lease: of the driver whose study it is; None: there is no driver.
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
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._ledger, self._study, self._uri, self._home = ledger, study, uri, home
        self._lease, self._progress = lease, progress
        if lease is not None:
            ledger.hold(lease)
        self._name, self._claimed = uuid.uuid4().hex, False
        self._reader = Reader(ledger, study)
        self._opened: Store | None = None
        self._place: Found | None = None  # unknown before the first update and after an error
        self._datasets: Mapping[str, Mapping[str, str]] = {}  # by task
        self._logged: set[Value] = set()  # of the study's charts
        self._parent_digest, self._parent_time = "", 0.0
        self.written = 0  # runs of configurations
        self.read_seconds = 0.0  # duration of the last read

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = Store(self._uri)
        return self._opened

    @property
    def found(self) -> Found:
        """The study in MLflow, once it was updated."""
        assert self._place is not None
        return self._place

    def reset(self) -> None:
        """After an error: reconnect, and find all runs again before the next write."""
        self._opened = self._place = None

    def update(self, state: str, *, rebuild: bool = False) -> None:
        """Write what has changed: configurations that are complete.

        Args:
            state: of the study: running; finished, stopped or failed, with which incomplete
                configurations are written too, its outputs are attached to its run, and all runs
                end.
            rebuild: write runs again that somebody deleted.

        Raises:
            TrackingError: MLflow is unreachable or refuses; call `reset` and `update` again.
            OvertakenError: another process writes now.
            LeaseLostError: another driver has just taken over the study.
        """
        self._check_lease()
        begun, record = time.monotonic(), self._ledger.study(self._study)
        if self._place is None or state != "running":  # the first and the last read everything
            self._reader.forget()
        changed = self._reader.read()
        self.read_seconds = time.monotonic() - begun
        if self._place is None:
            self._find_runs(record, rebuild=rebuild)
        due = [key for key in changed if self._is_due(key, state)]
        refused: list[TrackingError] = []
        for begin in range(0, len(due), _CHUNK):
            self._progress(len(due) - begin)
            refused += self._write_chunk(record, due[begin : begin + _CHUNK], state)
        self._progress(0)
        self._write_study(record, state)
        if refused:
            raise refused[0]

    def _find_runs(self, record: StudyRecord, *, rebuild: bool) -> None:
        known = self._reader.configurations
        finder = Finder(self._store, record, self._home)
        found = finder.find(known, self._claim, rebuild=rebuild)
        self._ledger.set_study_run(self._study, found.parent)
        noted = {key: (c.mlflow_run, c.mirrored) for key, c in known.items()}
        rows = [(key, one.run, one.digest) for key, one in found.runs.items()]
        changed = [row for row in rows if noted[row[0]] != row[1:]]
        self._ledger.set_configuration_runs(self._study, changed)
        self._datasets, self._logged = datasets(record), set()
        self._store.client.log_text(found.parent, record.text, "study.yaml")
        for dataset in self._datasets.values():
            self._store.log_dataset(found.parent, dataset)
        self._parent_digest, self._parent_time = "", 0.0
        self._place = found

    def _claim(self, experiment: str) -> None:
        """Register as the current writer; after an error, first check that no other has since."""
        if self._claimed:
            self._check_turn(experiment)
        else:
            self._check_lease()
        self._store.client.set_experiment_tag(experiment, WRITER, self._name)
        self._claimed = True

    def _check_turn(self, experiment: str) -> None:
        self._check_lease()
        tags = self._store.client.get_experiment(experiment).tags
        if tags.get(WRITER, self._name) == self._name:
            return
        where = f"study {self._study!r} to MLflow at {redacted(self._uri)}"
        if self._lease is None:
            raise OvertakenError(f"another process is now logging {where}: this one stops")
        self._store.client.set_experiment_tag(experiment, WRITER, self._name)
        raise TrackingError(
            f"another process has also logged {where}: this one reads the runs again and continues"
        )

    def _check_lease(self) -> None:
        if self._lease is not None and not self._ledger.is_current(self._lease):
            raise OvertakenError(
                f"another driver is now running study {self._study!r} and logging it to MLflow at "
                f"{redacted(self._uri)}: this process stops"
            )

    # ------------------------------------------------------------ configurations

    def _is_due(self, key: str, state: str) -> bool:
        mine, known = self._reader.of(key), self.found.runs.get(key)
        ended = sum(r.state in ENDED for r in mine)
        if not ended or (ended < len(mine) and state == "running"):
            return False
        parts = self._reader.parts.get(key, ())
        held = configuration_digest(self._reader.configurations[key], mine, parts)
        return known is None or known.digest != held

    def _write_chunk(
        self, record: StudyRecord, keys: Sequence[str], state: str
    ) -> list[TrackingError]:
        """Write some runs; return refusals, each of which affects its own configuration only."""
        self._check_turn(self.found.experiment)
        refused: list[TrackingError] = []

        def write(one: tuple[ConfigurationRecord, Content]) -> tuple[str, Known] | None:
            configuration, content = one
            try:
                run = self._open_run(configuration, content)
                self._fill(run, content)
            except RefusedError as error:
                refused.append(error)
                return None
            return configuration.key, Known(run=run.info.run_id, digest=content.digest)

        with ThreadPoolExecutor(_THREADS if self._store.places_artifacts else 1) as pool:
            done = dict(filter(None, pool.map(write, self._contents(record, keys, state))))
        rows = [(key, known.run, known.digest) for key, known in done.items()]
        self._ledger.set_configuration_runs(self._study, rows)
        self.found.runs.update(done)
        self.written += len(done)
        return refused

    def _contents(
        self, record: StudyRecord, keys: Sequence[str], state: str
    ) -> list[tuple[ConfigurationRecord, Content]]:
        """What the runs of these configurations hold, from the ledger."""
        reader, mine = self._reader, {key: list[ReplicateRecord]() for key in keys}
        found = self._ledger.replicates(self._study, configurations=keys)
        reader.take_in(found)
        for r in found:
            mine[r.configuration].append(r)
        histories = self._ledger.histories(self._study, [r.key for r in found if r.state in ENDED])
        starts = self._ledger.pack_starts(sorted({r.pack for r in found if r.pack}))
        made = []
        for key in keys:
            if not self._is_due(key, state):  # it was given more seeds
                continue
            configuration, parts = reader.configurations[key], reader.parts.get(key, ())
            content = configuration_content(
                record, configuration, mine[key], parts, histories, starts
            )
            made.append((configuration, content))
        return made

    def _open_run(self, configuration: ConfigurationRecord, content: Content) -> Run:
        """A configuration's run; it is created if missing, and restored if somebody deleted it."""
        client, known = self._store.client, self.found.runs.get(configuration.key)
        run = None if known is None else self._store.run(known.run)
        if run is not None:
            if is_deleted(run):
                client.restore_run(run.info.run_id)
            if run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            return run
        self._check_lease()  # before every run, lest two drivers create it
        tags = {**content.tags, "mlflow.parentRunId": self.found.parent}
        if content.curves_digest:
            tags["modmix.curves"] = content.curves_digest
        run = client.create_run(self.found.experiment, content.started, tags, content.name)
        self._check_turn(self.found.experiment)  # a later writer may not have seen this run
        if (dataset := self._datasets.get(configuration.task)) is not None:
            self._store.log_dataset(run.info.run_id, dataset)
        return run

    def _fill(self, run: Run, content: Content) -> None:
        """Add what a run lacks, and end it. Its digest counts once it has ended."""
        client, key, before = self._store.client, run.info.run_id, run.data.tags
        curves, claimed = _new_curves(before, content)
        tags = {
            **content.tags,
            "mlflow.parentRunId": self.found.parent,
            "modmix.curves": claimed,
            "modmix.digest": content.digest,
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
        client.set_terminated(key, content.status, content.ended)

    def _end_others(self) -> None:
        """End runs that are still RUNNING, that is, incomplete.

        Duplicates, created by another writer just before it was overtaken, are deleted.
        """
        found, ours = self.found, {known.run for known in self.found.runs.values()}
        for run in self._store.runs(found.experiment, "attributes.status = 'RUNNING'"):
            key = run.info.run_id
            if key in ours:
                self._store.client.set_terminated(key, "KILLED")
            elif key != found.parent and {"modmix.configuration", "modmix.kind"} & {*run.data.tags}:
                self._store.client.delete_run(key)

    # ------------------------------------------------------------ the study

    def _write_study(self, record: StudyRecord, state: str) -> None:
        if state == "running" and time.monotonic() - self._parent_time < STUDY_SECONDS:
            return
        self._check_turn(self.found.experiment)
        reader, parent, store = self._reader, self.found.parent, self._store
        replicates = {key: reader.of(key) for key in reader.configurations}
        configurations = list(reader.configurations.values())
        content = study_content(record, configurations, replicates, reader.parts, state)
        held = digest([content.status, dict(content.tags), [m.value for m in content.metrics]])
        self._parent_time = time.monotonic()
        if state == "running" and held == self._parent_digest:
            return
        rows = [row for row in content.curves if row not in self._logged]
        run = store.run(parent)
        tags = study_tags(content, {} if run is None else run.data.tags)
        store.log(parent, metrics=[*content.metrics, *rows], tags=tags)
        self._logged.update(rows)
        self._parent_digest = held
        if state != "running":
            self._end_others()
            for name in OUTPUTS:
                self._log_output(name)
            store.client.set_terminated(parent, content.status, content.ended)

    def _log_output(self, name: str) -> None:
        """Attach a file or folder of the study's folder, if there is one."""
        path, parent = self._home.study(self._study) / name, self.found.parent
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
