"""Finds a study's experiment and runs in MLflow, and creates the experiment and the study's run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modmix.base.home import Home
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, StudyRecord
from modmix.tracking.content import higher, request_digest
from modmix.tracking.place import is_elsewhere
from modmix.tracking.store import Experiment, RefusedError, Run, Store, redacted

WRITER = "modmix.writer"  # tag of the experiment: who writes to it, see `writer`


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
        writer: what the experiment's tag `WRITER` is set to before runs are looked for.
    """

    def __init__(
        self, store: Store, ledger: Ledger, record: StudyRecord, home: Home, writer: str
    ) -> None:
        self._store, self._ledger, self._record, self._home = store, ledger, record, home
        self._writer = writer

    def find(self, *, rebuild: bool) -> Found:
        """Find everything; with ``rebuild``, do not trust the run ids in the ledger.

        Raises:
            RefusedError: the experiments of these names belong to another ledger.
        """
        record, store = self._record, self._store
        experiment, name, restored = self._find_experiment()
        # From here on, a former writer creates no run that is not found below.
        store.set_experiment_tag(experiment.id, WRITER, self._writer)
        configurations = self._ledger.configurations(record.name)
        noted = store.run(record.mlflow_run) if record.mlflow_run else None
        if noted is not None and noted.experiment != experiment.id:
            noted = None
        if noted is not None and noted.deleted:
            store.restore_run(noted.id)
        # If the study's run exists, the ledger's run ids are valid, and only running runs may be
        # missing from it, since ids are recorded before runs end. After a change of the study file,
        # runs of configurations that it no longer has must be found.
        same_file = noted is not None and noted.tags.get("modmix.text") == request_digest(record)
        trusted = same_file and not rebuild and not restored
        running = "attributes.status = 'RUNNING'" if trusted else ""
        runs = list(store.runs(experiment.id, running))
        parent = self._find_parent(experiment.id, runs, noted)
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
        if not trusted:
            self._recall(configurations, known, experiment.id)
        if record.mlflow_run != parent:
            self._ledger.set_study_run(record.name, parent)
        return Found(experiment=experiment.id, experiment_name=name, parent=parent, known=known)

    # ------------------------------------------------------------ the experiment

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
            # Model training rather than GenAI. (MLflow 3.17's UI: see `serve.pages`.)
            "mlflow.experimentKind": "custom_model_development",
        }
        artifacts = None if self._store.places_artifacts else self._place(name)
        return self._store.create_experiment(name, artifacts, tags)

    # ------------------------------------------------------------ runs

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
            if other.id != found[0].id and other.status == "RUNNING":
                self._store.remove_run(other.id)  # of a writer that was overtaken
        if found[0].status != "RUNNING":
            self._store.reopen_run(found[0].id)
        return found[0].id

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
            if (key := run.tags.get("modmix.configuration")) in noted:
                found.setdefault(key, []).append(run)
            elif key is not None:
                self._mark_removed(run)
        renewed: list[tuple[str, str | None, str | None]] = []
        for key, same in found.items():
            if key not in known:
                # The one in the ledger, else a complete one.
                best = max(
                    same, key=lambda r: (r.id == noted[key].run, _held(r, parent) is not None)
                )
                one = known[key] = Known(run=best.id, digest=_held(best, parent))
                if one != noted[key]:
                    renewed.append((key, one.run, one.digest))
            remove_strays(self._store, same, known)
        self._ledger.set_configuration_runs(self._record.name, renewed)

    def _mark_removed(self, run: Run) -> None:
        if run.tags.get("modmix.state") != "removed":
            self._store.log(run.id, tags={"modmix.state": "removed"})
        if run.status == "RUNNING":
            self._store.end_run(run.id, "KILLED", None)

    def _recall(
        self,
        configurations: Sequence[ConfigurationRecord],
        known: dict[str, Known],
        experiment: str,
    ) -> None:
        """Restore runs that the ledger knows and somebody deleted."""
        for c in configurations:
            if c.key in known or not c.mlflow_run:
                continue
            run = self._store.run(c.mlflow_run)
            if run is not None and run.deleted and run.experiment == experiment:
                self._store.restore_run(run.id)
                known[c.key] = Known(run=run.id)


def remove_strays(store: Store, runs: Sequence[Run], known: Mapping[str, Known]) -> None:
    """Delete second runs of configurations that a writer created while another one took over."""
    for run in runs:
        one = known.get(run.tags.get("modmix.configuration", ""))
        if run.status == "RUNNING" and one is not None and one.run != run.id:
            store.remove_run(run.id)


def _name_elsewhere(name: str, artifacts: str) -> str:
    """What an experiment is called while the results folder is not where its files were noted."""
    return f"{name}-moved-{digest([artifacts])[:8]}"


def _held(run: Run, parent: str) -> str | None:
    """The digest of a run's content, or None if incomplete."""
    whole = run.status != "RUNNING" and run.tags.get("mlflow.parentRunId") == parent
    return run.tags.get("modmix.digest") if whole else None
