"""Finds a study's experiment and runs in MLflow, and creates the experiment and the study's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modmix.base.home import Home
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, StudyRecord
from modmix.tracking.content import higher
from modmix.tracking.overview import request_digest
from modmix.tracking.place import is_elsewhere
from modmix.tracking.store import RefusedError, Store, redacted

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run


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
    """Finds a study's runs.

    Args:
        claim: called with the experiment before runs are looked for.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        record: StudyRecord,
        home: Home,
        claim: Callable[[str], None],
    ) -> None:
        self._store, self._ledger, self._record, self._home = store, ledger, record, home
        self._client = store.client
        self._claim = claim

    def find(self, *, rebuild: bool) -> Found:
        """Find everything; with ``rebuild``, do not trust the run ids in the ledger.

        Raises:
            RefusedError: the experiments of these names belong to another ledger.
        """
        record, store, client = self._record, self._store, self._client
        experiment, name, restored = self._find_experiment()
        self._claim(experiment)  # from here on, no other writer creates what is not found below
        configurations = self._ledger.configurations(record.name)
        noted = store.run(record.mlflow_run) if record.mlflow_run else None
        if noted is not None and noted.info.experiment_id != experiment:
            noted = None
        if noted is not None and is_deleted(noted):
            client.restore_run(noted.info.run_id)
        # If the study's run exists, the ledger's run ids are valid, and only running runs may be
        # missing from it, since ids are recorded before runs end. After a change of the study file,
        # runs of configurations that it no longer has must be found.
        same_file = noted is not None and noted.data.tags.get("modmix.text") == request_digest(
            record
        )
        trusted = same_file and not rebuild and not restored
        running = "attributes.status = 'RUNNING'" if trusted else ""
        runs = list(store.runs(experiment, running))
        parent = self._find_parent(experiment, runs, noted)
        known = (
            {
                c.key: Known(run=c.mlflow_run, digest=c.mirrored)
                for c in configurations
                if c.mlflow_run
            }
            if trusted
            else {}
        )
        self._adopt(configurations, runs, known, parent)
        for c in configurations:
            if c.mlflow_run:  # it may be deleted, or gone: the writer sees
                known.setdefault(c.key, Known(run=c.mlflow_run))
        if record.mlflow_run != parent:
            self._ledger.set_study_run(record.name, parent)
        return Found(experiment=experiment, experiment_name=name, parent=parent, known=known)

    # ------------------------------------------------------------ the experiment

    def _find_experiment(self) -> tuple[str, str, bool]:
        """The id of the study's experiment, its name, and whether it had to be restored.

        If an experiment of that name belongs to another ledger, a longer name is used.
        """
        record = self._record
        owner = digest([record.name, record.created])[:12]
        for name in (record.name, f"{record.name}-{owner}"):
            found = self._client.get_experiment_by_name(name)
            if found is None:
                return self._create_experiment(name, owner), name, False
            if found.tags.get("modmix.owner") == owner:
                restored = self._restore(found)
                place = found.artifact_location or ""
                home, uri = self._home, self._store.uri
                if not self._store.places_artifacts and is_elsewhere(place, home, uri):
                    return self._change_place(found, name, owner), name, True
                return str(found.experiment_id), name, restored
        raise RefusedError(
            f"MLflow at {redacted(self._store.uri)} has experiments {record.name!r} and "
            f"{name!r} of another ledger: rename one of them there"
        )

    def _restore(self, found: Experiment) -> bool:
        if deleted := found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return deleted

    def _change_place(self, found: Experiment, name: str, owner: str) -> str:
        """The study's experiment where the results folder is now; the other one is renamed.

        It is there already where the folder has been here before, under a name that says so.
        """
        there = _name_elsewhere(name, found.artifact_location or "")
        self._client.rename_experiment(found.experiment_id, there)
        here = self._client.get_experiment_by_name(_name_elsewhere(name, self._place(name)))
        if here is None:
            return self._create_experiment(name, owner)
        self._restore(here)
        self._client.rename_experiment(here.experiment_id, name)
        return str(here.experiment_id)

    def _place(self, name: str) -> str:
        return (self._home.artifacts / name).absolute().as_uri()

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
        artifacts = None if self._store.places_artifacts else self._place(name)
        return str(self._client.create_experiment(name, artifacts, tags))

    # ------------------------------------------------------------ runs

    def _find_parent(self, experiment: str, runs: Sequence[Run], parent: Run | None) -> str:
        record = self._record
        found = [parent] if parent else []
        found += [run for run in runs if run.data.tags.get("modmix.kind") == "study"]
        if not found:
            tags = {
                "modmix.kind": "study",
                "modmix.study": record.name,
                "modmix.text": request_digest(record),
            }
            started = int(record.created * 1000)
            made = self._client.create_run(experiment, started, tags, record.name)
            return str(made.info.run_id)
        first = str(found[0].info.run_id)
        for other in found[1:]:
            if other.info.run_id != first and other.info.status == "RUNNING":
                self._client.delete_run(other.info.run_id)  # of a writer that was overtaken
        if found[0].info.status != "RUNNING":
            self._client.update_run(first, status="RUNNING")
        return first

    def _adopt(
        self,
        configurations: Sequence[ConfigurationRecord],
        runs: Sequence[Run],
        known: dict[str, Known],
        parent: str,
    ) -> None:
        """Adopt one run per configuration; mark runs of configurations the study no longer has."""
        noted = {c.key: Known(run=c.mlflow_run or "", digest=c.mirrored) for c in configurations}
        found: dict[str, list[Run]] = {}
        for run in runs:
            if (key := run.data.tags.get("modmix.configuration")) in noted:
                found.setdefault(key, []).append(run)
            elif key is not None:
                self._mark_removed(run)
        renewed: list[tuple[str, str | None, str | None]] = []
        for key, same in found.items():
            if key not in known:
                # The one in the ledger, else a complete one.
                best = max(
                    same,
                    key=lambda r: (r.info.run_id == noted[key].run, _held(r, parent) is not None),
                )
                one = known[key] = Known(run=best.info.run_id, digest=_held(best, parent))
                if one != noted[key]:
                    renewed.append((key, one.run, one.digest))
            remove_strays(self._store, same, known)
        self._ledger.set_configuration_runs(self._record.name, renewed)

    def _mark_removed(self, run: Run) -> None:
        if run.data.tags.get("modmix.state") != "removed":
            self._client.set_tag(run.info.run_id, "modmix.state", "removed")
        if run.info.status == "RUNNING":
            self._client.set_terminated(run.info.run_id, "KILLED")


def is_deleted(run: Run) -> bool:
    return bool(run.info.lifecycle_stage != "active")


def remove_strays(store: Store, runs: Sequence[Run], known: Mapping[str, Known]) -> None:
    """Delete second runs of configurations that a writer created while another one took over."""
    for run in runs:
        one = known.get(run.data.tags.get("modmix.configuration", ""))
        if run.info.status == "RUNNING" and one is not None and one.run != run.info.run_id:
            store.client.delete_run(run.info.run_id)


def _name_elsewhere(name: str, artifacts: str) -> str:
    """What an experiment is called while the results folder is not where its files were noted."""
    return f"{name}-moved-{digest([artifacts])[:8]}"


def _held(run: Run, parent: str) -> str | None:
    """The digest of a run's content, or None if incomplete."""
    tags = run.data.tags
    whole = run.info.status != "RUNNING" and tags.get("mlflow.parentRunId") == parent
    return tags.get("modmix.digest") if whole else None
