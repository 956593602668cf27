"""Copies of searches for optuna-dashboard: from the ledger to an Optuna storage.

Every search of a method is an Optuna study named ``STUDY/PART/METHOD``. A configuration becomes a
trial once it has ended; nothing is read back, so the storage can be deleted at any time.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from modmix.base.errors import TrackingError
from modmix.base.metrics import higher_is_better
from modmix.base.space import Choices, Constant, Domain, Grid, domain_from_json
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, ReplicateRecord, StudyRecord
from modmix.search.proposer import distribution_of
from modmix.study.tasks_plan import AT

_Told = tuple[str, "int | None"]
_STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class OptunaMirror:
    """Copies all searches of a ledger; one process at a time.

    Args:
        url: of the Optuna storage, an SQLAlchemy URL; it is created if it is missing.
    """

    def __init__(self, ledger: Ledger, url: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._ledger = ledger
        self._storage = RDBStorage(url)
        self._known: dict[str, tuple[optuna.Study, dict[int, _Told]]] = {}  # by name

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def update(self) -> int:
        """Add the configurations that have ended since the last call; return how many.

        Raises:
            TrackingError: the storage could not be written; the next call adds what is missing.
        """
        try:
            return self._update()
        except optuna.exceptions.StorageInternalError as error:
            self._known = {}  # part of it may have been written
            raise TrackingError(f"the Optuna storage could not be written: {error}") from error

    def _update(self) -> int:
        added = 0
        for record in self._ledger.studies():
            searches: dict[tuple[str, str], list[Entry]] = {}
            for entry in self._ledger.entries(record.name):
                if _domains(record, entry.part, entry.method):
                    searches.setdefault((entry.part, entry.method), []).append(entry)
            for entries in searches.values():
                ended = {entry.number: entry for entry in entries if entry.state in _STATES}
                added += self._update_search(record, ended) if ended else 0
        return added

    def _update_search(self, record: StudyRecord, ended: Mapping[int, Entry]) -> int:
        one = next(iter(ended.values()))
        name = f"{record.name}/{one.part}/{one.method}"
        study, there = self._known.get(name) or self._open(name, record, one.part)
        begun_again = any(n not in ended or _told(ended[n]) != told for n, told in there.items())
        if begun_again or study.metric_names != list(record.spec["objective"]):
            # The study file has changed.
            optuna.delete_study(study_name=name, storage=self._storage)
            study, there = self._open(name, record, one.part)
        self._known[name] = study, there
        fresh = [ended[number] for number in sorted(ended) if number not in there]
        if fresh:
            study.add_trials(self._trials(record, fresh))
            there.update((entry.number, _told(entry)) for entry in fresh)
        return len(fresh)

    def _open(
        self, name: str, record: StudyRecord, part: str
    ) -> tuple[optuna.Study, dict[int, _Told]]:
        """The Optuna study, and each trial's configuration and `told` counter, by trial number."""
        objectives = list(record.spec["objective"])
        study = optuna.create_study(
            study_name=name,
            storage=self._storage,
            directions=["maximize" if higher_is_better(o) else "minimize" for o in objectives],
            load_if_exists=True,
        )
        known = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
        if not known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(objectives)
            study.set_user_attr("search", record.spec["parts"][part.partition(AT)[0]]["search"])
        return study, {one["number"]: (one["configuration"], one["told"]) for one in known}

    def _trials(self, record: StudyRecord, entries: Sequence[Entry]) -> list[FrozenTrial]:
        domains = _domains(record, entries[0].part, entries[0].method)
        replicates: dict[str, list[ReplicateRecord]] = {}
        keys = [entry.configuration for entry in entries]
        for replicate in self._ledger.replicates(record.name, configurations=keys):
            replicates.setdefault(replicate.configuration, []).append(replicate)
        histories = self._ledger.histories(
            record.name, [r.key for rs in replicates.values() for r in rs]
        )
        objectives = record.spec["objective"]
        return [
            _trial(entry, domains, replicates.get(entry.configuration, []), histories, objectives)
            for entry in entries
        ]


def _told(entry: Entry) -> _Told:
    return entry.configuration, entry.told


def _state(entry: Entry) -> TrialState:
    """A configuration that finished with values that are no numbers has failed."""
    values = entry.values
    finite = values is not None and all(math.isfinite(value) for value in values)
    return TrialState.FAIL if not finite else _STATES[entry.state]


def _domains(record: StudyRecord, part: str, method: str) -> dict[str, Domain]:
    """The domains of a method's search; {} for grids."""
    part, _, task = part.partition(AT)
    details = record.details["tasks"][task] if task else record.details
    raw = details.get("searches", {}).get(part, {}).get(method, {})
    return {name: domain_from_json(domain) for name, domain in raw.items()}


def _trial(
    entry: Entry,
    domains: Mapping[str, Domain],
    replicates: Sequence[ReplicateRecord],
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    objectives: Sequence[str],
) -> FrozenTrial:
    varied = {
        name: distribution
        for name in entry.proposal
        if (distribution := _distribution(domains[name])) is not None
    }
    fixed = {name: value for name, value in entry.proposal.items() if name not in varied}
    state = _state(entry)
    steps = {} if len(objectives) > 1 else _curve(replicates, histories, objectives[0])
    if state is TrialState.PRUNED and entry.step is not None and entry.values is not None:
        # Optuna takes the value at the last step for the value of a pruned trial.
        steps = {step: value for step, value in steps.items() if step < entry.step}
        steps[entry.step] = entry.values[0]
    trial = create_trial(
        state=state,
        values=None if state is TrialState.FAIL else entry.values,
        params={name: _label(domains[name], entry.proposal[name]) for name in varied},
        distributions=varied,
        intermediate_values=steps,
        user_attrs={
            "number": entry.number,
            "configuration": entry.configuration,
            "told": entry.told,
            "seeds": len(replicates),
            **({"fixed": fixed} if fixed else {}),
            **_reasons(replicates),
        },
    )
    ends = [replicate.finished for replicate in replicates if replicate.finished]
    if ends:
        trial.datetime_complete = datetime.fromtimestamp(max(ends))
        spent = timedelta(seconds=sum(replicate.seconds for replicate in replicates))
        trial.datetime_start = trial.datetime_complete - spent
    return trial


def _distribution(domain: Domain) -> BaseDistribution | None:
    if isinstance(domain, (Choices, Grid)):
        return CategoricalDistribution([_label(domain, value) for value in domain.values])
    return distribution_of(domain)


def _label(domain: Domain, value: Any) -> Any:
    """A value as Optuna stores it: numbers and words, other choices as JSON."""
    assert not isinstance(domain, Constant)
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return value if plain else json.dumps(value)


def _curve(
    replicates: Sequence[ReplicateRecord],
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    metric: str,
) -> dict[int, float]:
    """Means of a metric over the replicates that got there, by epoch."""
    values: dict[int, list[float]] = {}
    for replicate in replicates:
        history = histories.get(replicate.key, {})
        last = {
            math.ceil(epoch): value
            for epoch, value in zip(history.get("epoch", ()), history.get(metric, ()), strict=False)
        }
        for epoch, value in last.items():
            values.setdefault(epoch, []).append(value)
    means = {epoch: fmean(found) for epoch, found in sorted(values.items())}
    return {epoch: mean for epoch, mean in means.items() if math.isfinite(mean)}


def _reasons(replicates: Sequence[ReplicateRecord]) -> dict[str, str]:
    reasons = dict.fromkeys(one.reason.strip() for one in replicates if one.reason.strip())
    return {"reason": next(iter(reasons)).splitlines()[-1]} if reasons else {}
