"""Finds a study's experiment and runs in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modmix.base.home import Home
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, StudyRecord
from modmix.tracking.content import higher, request_digest
from modmix.tracking.database import Database
from modmix.tracking.place import is_elsewhere
from modmix.tracking.store import Experiment, RefusedError, Run, Store, redacted


@dataclass(frozen=True, kw_only=True)
class Known:
    """The run of a configuration. ``digest``: of its content, or None if incomplete."""

    run: str
    digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A study in MLflow: its experiment, its run, and runs by configuration."""

    experiment: str
    experiment_name: str
    parent: str
    known: Mapping[str, Known]


class Finder:
    """Finds a study's runs, creates what is missing and deletes duplicates."""

    def __init__(
        self, store: Store | Database, ledger: Ledger, record: StudyRecord, home: Home
    ) -> None:
        self._store, self._ledger, self._record, self._home = store, ledger, record, home

    def find(self, configurations: Sequence[ConfigurationRecord], *, rebuild: bool) -> Found:
        """Find everything; with ``rebuild``, ignore the run ids in the ledger.

        Raises:
            RefusedError: the experiments of these names belong to another ledger.
        """
        record = self._record
        experiment, name, restored = self._find_experiment()
        noted = None if record.mlflow_run is None else self._store.run(record.mlflow_run)
        if noted is not None and noted.experiment != experiment.id:
            noted = None
        # If the study's run exists, the ledger's run ids are valid, and only running runs may be
        # missing from it, since ids are recorded before runs end. After a change of the study file,
        # runs of removed configurations must be found and deleted.
        same_file = noted is not None and noted.tags.get("modmix.text") == request_digest(record)
        trusted = same_file and not rebuild and not restored
        runs = list(self._store.runs(experiment.id, running=trusted))
        parent = self._find_parent(experiment.id, runs, noted)
        known = {}
        if trusted:
            known = {
                p.key: Known(run=p.mlflow_run, digest=p.mirrored)
                for p in configurations
                if p.mlflow_run
            }
        self._adopt(configurations, runs, known, parent)
        if record.mlflow_run != parent:
            self._ledger.set_study_run(record.name, parent)
        return Found(experiment=experiment.id, experiment_name=name, parent=parent, known=known)

    def _find_experiment(self) -> tuple[Experiment, str, bool]:
        """The study's experiment, its name, and whether it had to be restored.

        If an experiment of that name belongs to another ledger, a longer name is used.
        """
        record = self._record
        owner = digest([record.name, record.created])[:12]
        for name in (record.name, f"{record.name}-{owner}"):
            found = self._store.experiment(name)
            if found is None:
                return self._create_experiment(name, owner), name, False
            if found.tags.get("modmix.owner") == owner:
                if found.deleted:
                    self._store.restore_experiment(found.id)
                if self._is_elsewhere(found):
                    return self._change_place(found, name, owner), name, True
                return found, name, found.deleted
        raise RefusedError(
            f"MLflow at {redacted(self._store.uri)} has experiments {record.name!r} and "
            f"{name!r} of another ledger: rename one of them there"
        )

    def _is_elsewhere(self, found: Experiment) -> bool:
        store = self._store
        return not store.places_artifacts and is_elsewhere(found.artifacts, self._home, store.uri)

    def _change_place(self, found: Experiment, name: str, owner: str) -> Experiment:
        """The study's experiment where the results folder is now; the other one is renamed.

        It is there already where the folder has been here before, under a name that says so.
        """
        store = self._store
        store.rename_experiment(found.id, _name_elsewhere(name, found.artifacts))
        here = store.experiment(_name_elsewhere(name, self._place(name)))
        if here is None:
            return self._create_experiment(name, owner)
        if here.deleted:
            store.restore_experiment(here.id)
        store.rename_experiment(here.id, name)
        return here

    def _place(self, name: str) -> str:
        return (self._home.artifacts / name).absolute().as_uri()

    def _create_experiment(self, name: str, owner: str) -> Experiment:
        record = self._record
        objective = (record.spec.get("objective") or ["val/error"])[0]
        tags = {
            "modmix.owner": owner,
            "modmix.study": record.name,
            "mlflow.note.content": str(record.spec.get("description") or ""),
            "mlflow.experiment.primaryMetric.name": objective,
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(higher(objective)),
            "mlflow.experimentKind": "custom_model_development",  # otherwise the UI asks for it
        }
        artifacts = None if self._store.places_artifacts else self._place(name)
        return self._store.create_experiment(name, artifacts, tags)

    def _find_parent(self, experiment: str, runs: Sequence[Run], parent: Run | None) -> str:
        record = self._record
        found = [parent] if parent else []
        found += [run for run in runs if run.tags.get("modmix.kind") == "study"]
        if not found:
            tags = {
                "modmix.kind": "study",
                "modmix.study": record.name,
                "modmix.text": request_digest(record),
            }
            started = int(record.created * 1000)
            return self._store.create_run(experiment, record.name, started=started, tags=tags)
        for other in found[1:]:
            if other.id != found[0].id:
                self._store.delete_run(other.id)
        if found[0].status != "RUNNING":
            self._store.reopen_run(found[0].id)
        return found[0].id

    def _adopt(
        self,
        configurations: Sequence[ConfigurationRecord],
        runs: Sequence[Run],
        known_runs: dict[str, Known],
        parent: str,
    ) -> None:
        """Adopt one run per configuration; delete duplicates and runs of removed configurations."""
        noted = {p.key: Known(run=p.mlflow_run or "", digest=p.mirrored) for p in configurations}
        found: dict[str, list[Run]] = {}
        for run in runs:
            if (key := run.tags.get("modmix.configuration")) in noted:
                found.setdefault(key, []).append(run)
            elif key is not None:
                self._store.delete_run(run.id)
        renewed: list[tuple[str, str | None, str | None]] = []
        for key, same in found.items():
            if key not in known_runs:
                # The one in the ledger, else a complete one.
                best = max(
                    same, key=lambda r: (r.id == noted[key].run, _held(r, parent) is not None)
                )
                known = known_runs[key] = Known(run=best.id, digest=_held(best, parent))
                if known != noted[key]:
                    renewed.append((key, known.run, known.digest))
            for run in same:
                if run.id != known_runs[key].run:
                    self._store.delete_run(run.id)
        self._ledger.set_configuration_runs(self._record.name, renewed)


def _name_elsewhere(name: str, artifacts: str) -> str:
    """What an experiment is called while the results folder is not where its files were noted."""
    return f"{name}-moved-{digest([artifacts])[:8]}"


def _held(run: Run, parent: str) -> str | None:
    """The digest of a run's content, or None if incomplete."""
    whole = run.status != "RUNNING" and run.tags.get("mlflow.parentRunId") == parent
    return run.tags.get("modmix.digest") if whole else None
