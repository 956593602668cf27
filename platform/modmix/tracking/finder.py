"""Finds a study's experiment and runs in MLflow, and creates the experiment and the study's run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modmix.base.home import Home
from modmix.base.messages import digest
from modmix.ledger.records import StudyRecord
from modmix.tracking.content import higher
from modmix.tracking.store import RefusedError, Store, local_folder, redacted

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True, kw_only=True)
class Known:
    """The run of a configuration. ``digest``: of its content, or None if incomplete."""

    run: str
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A study in MLflow: its experiment, its run, and runs by configuration."""

    experiment: str
    experiment_name: str
    parent: str
    runs: dict[str, Known]


class Finder:
    """Finds a study's runs by their tags."""

    def __init__(self, store: Store, record: StudyRecord, home: Home) -> None:
        self._store, self._record, self._home = store, record, home
        self._client = store.client

    def find(
        self, configurations: Collection[str], claim: Callable[[str], None], *, rebuild: bool
    ) -> Found:
        """Find everything; mark runs of configurations that the study no longer has.

        Args:
            configurations: keys of the study's.
            claim: called with the experiment before runs are looked for: from then on, no other
                writer creates any.
            rebuild: also write runs that somebody deleted.

        Raises:
            RefusedError: the experiments of these names belong to another ledger.
        """
        experiment, name = self._find_experiment()
        claim(experiment)
        parent = self._find_parent(experiment)
        runs: dict[str, Known] = {}
        for run in self._store.runs(experiment, deleted=True):
            key = run.data.tags.get("modmix.configuration")
            if key in configurations:
                held = None if rebuild and is_deleted(run) else _held(run, parent)
                if key not in runs or (runs[key].digest is None and not is_deleted(run)):
                    runs[key] = Known(run=run.info.run_id, digest=held)
            elif key is not None and not is_deleted(run):
                self._mark_removed(run)
        return Found(experiment=experiment, experiment_name=name, parent=parent, runs=runs)

    # ------------------------------------------------------------ the experiment

    def _find_experiment(self) -> tuple[str, str]:
        """The id of the study's experiment and its name.

        If an experiment of that name belongs to another ledger, a longer name is used. If its files
        are not in this results folder, which was moved or copied, it is renamed: MLflow cannot
        change their place.
        """
        record = self._record
        owner = digest([record.name, record.created])[:12]
        for name in (record.name, f"{record.name}-{owner}"):
            found = self._client.get_experiment_by_name(name)
            if found is None:
                return self._create_experiment(name, owner), name
            if found.tags.get("modmix.owner") == owner:
                if found.lifecycle_stage != "active":
                    self._client.restore_experiment(found.experiment_id)
                if self._is_elsewhere(found.artifact_location):
                    moved = f"{name}-moved-{found.experiment_id}"
                    self._client.rename_experiment(found.experiment_id, moved)
                    return self._create_experiment(name, owner), name
                return str(found.experiment_id), name
        raise RefusedError(
            f"MLflow at {redacted(self._store.uri)} has experiments {record.name!r} and "
            f"{name!r} of another ledger: rename one of them there"
        )

    def _is_elsewhere(self, uri: str) -> bool:
        folder = None if self._store.places_artifacts else local_folder(uri)
        artifacts = self._home.artifacts.resolve()
        return folder is not None and not folder.resolve().is_relative_to(artifacts)

    def _create_experiment(self, name: str, owner: str) -> str:
        record = self._record
        objective = (record.spec.get("objective") or ["val/error"])[0]
        tags = {
            "modmix.owner": owner,
            "modmix.study": record.name,
            "mlflow.note.content": str(record.spec.get("description") or ""),
            "mlflow.experiment.primaryMetric.name": objective,
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(higher(objective)),
            # Model training rather than GenAI. (MLflow 3.17's UI: see `store.page`.)
            "mlflow.experimentKind": "custom_model_development",
        }
        place = (self._home.artifacts / name).absolute().as_uri()
        artifacts = None if self._store.places_artifacts else place
        return str(self._client.create_experiment(name, artifacts, tags))

    # ------------------------------------------------------------ runs

    def _find_parent(self, experiment: str) -> str:
        """Find or create the study's run and set its status to RUNNING."""
        found = self._store.runs(experiment, "tags.`modmix.kind` = 'study'", deleted=True)
        if (run := next(found, None)) is None:
            record = self._record
            tags = {"modmix.kind": "study", "modmix.study": record.name}
            started = int(record.created * 1000)
            run = self._client.create_run(experiment, started, tags, record.name)
        elif is_deleted(run):
            self._client.restore_run(run.info.run_id)
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def _mark_removed(self, run: Run) -> None:
        if run.data.tags.get("modmix.state") != "removed":
            self._client.set_tag(run.info.run_id, "modmix.state", "removed")
        if run.info.status == "RUNNING":
            self._client.set_terminated(run.info.run_id, "KILLED")


def is_deleted(run: Run) -> bool:
    return bool(run.info.lifecycle_stage != "active")


def _held(run: Run, parent: str) -> str | None:
    """The digest of a run's content, or None if incomplete."""
    tags = run.data.tags
    whole = run.info.status != "RUNNING" and tags.get("mlflow.parentRunId") == parent
    return tags.get("modmix.digest") if whole else None
