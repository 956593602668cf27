"""Ask and tell: Optuna's samplers behind one small class. The only file with optuna.

The ledger holds what was asked and told, in order; a `Proposer` is rebuilt from that at every
start and lives in the driver only. Nothing of Optuna's own state is stored (its samplers pickle
theirs), and the result is the same as if the driver had never been away:

* samplers whose proposals depend only on the configurations so far and a seed (tpe, gp, random)
begin
  anew at every batch, from the configurations so far and a seed made of the study's and the batch's
  place: a rebuilt one has nothing else to know;
* samplers with a memory of their own (cmaes, qmc, nsga2) are replayed: asked and told again in the
  recorded order, which brings them into the same state;
* the exhaustive one (grid) is a list in seeded random order, and needs no Optuna.

A configuration that halving has pruned is told with its last value and the epoch it came to. What
samplers make of it: tpe ranks it below every finished configuration, a later epoch before an
earlier one and then by value (Optuna's own rule); cmaes and nsga2, which rank configurations, take
it at its last value; gp, a regression of the values themselves, takes it at its last value but at
no worse one than the worst finished configuration's, so that numbers of the first epochs do not
drown the differences between good configurations; the others learn nothing from any configuration.
With two objectives there is no pruning.
"""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from modmix.base.space import (
    Choices,
    Constant,
    Domain,
    Grid,
    Range,
    every_value,
    grid_configurations,
    in_order_of_conditions,
)

if TYPE_CHECKING:
    from modmix.ledger.records import Entry

optuna.logging.set_verbosity(optuna.logging.ERROR)

_WITH_MEMORY = frozenset({"cmaes", "qmc", "nsga2"})


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One proposal: its number within part and method, and the values of all names that apply."""

    number: int
    batch: int
    values: Mapping[str, Any]


@dataclass
class _Configuration:
    """A configuration that was asked: pending, done with values, pruned with a value, or lost
    without.
    """

    proposal: Mapping[str, Any]
    state: TrialState = TrialState.RUNNING
    values: Sequence[float] | None = None
    step: int | None = None  # of a pruned one: the epoch of its value


class Proposer:
    """Proposes the configurations of one method in one searched part.

    Args:
        domains: every name the part sets or varies for this method.
        sampler: one of `spec.SAMPLERS`.
        seed: of the study file's search block.
        label: distinguishes this search from the others of the study (part and method).
        directions: per objective, whether higher is better.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        sampler: str,
        seed: int,
        label: str,
        directions: Sequence[bool],
    ) -> None:
        self._domains = domains
        self._order = in_order_of_conditions(domains)
        self._sampler = sampler
        self._seed = zlib.crc32(f"{seed}/{label}".encode())
        way = StudyDirection
        self._directions = [way.MAXIMIZE if higher else way.MINIMIZE for higher in directions]
        self._events = 0  # asks and tells so far
        self._configurations: list[_Configuration] = []  # by number
        self._list = _shuffled(domains, self._seed) if sampler == "grid" else None
        # Of a sampler with memory: its study, and the trials that are not told yet.
        self._study = self._make_study(0)
        self._trials: dict[int, optuna.Trial] = {}

    def _make_study(self, event: int) -> optuna.Study:
        return optuna.create_study(directions=self._directions, sampler=self._make_sampler(event))

    def _make_sampler(self, event: int) -> BaseSampler:
        seed = (self._seed + 7919 * event) % 2**32
        with warnings.catch_warnings():
            # Several of these arguments are marked experimental; they are pinned on purpose.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self._sampler:
                case "tpe":
                    return optuna.samplers.TPESampler(
                        seed=seed,
                        n_startup_trials=10,
                        n_ei_candidates=24,
                        multivariate=True,
                        group=self._has_conditions(),
                        constant_liar=True,
                    )
                case "gp":
                    return optuna.samplers.GPSampler(
                        seed=seed, n_startup_trials=10, warn_independent_sampling=False
                    )
                case "cmaes":
                    return optuna.samplers.CmaEsSampler(
                        seed=seed,
                        n_startup_trials=1,
                        warn_independent_sampling=False,
                        consider_pruned_trials=True,
                    )
                case "qmc":
                    return optuna.samplers.QMCSampler(
                        seed=seed,
                        scramble=True,
                        warn_asynchronous_seeding=False,
                        warn_independent_sampling=False,
                    )
                case "nsga2":
                    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)
                case _:
                    return optuna.samplers.RandomSampler(seed=seed)

    def _has_conditions(self) -> bool:
        return any(domain.when is not None for domain in self._domains.values())

    # ------------------------------------------------------------ ask

    def ask(self, count: int) -> list[Asked]:
        """Propose up to ``count`` configurations at once; fewer when the space is exhausted."""
        batch = self._events
        self._events += 1
        first = len(self._configurations)
        if self._list is not None:
            fresh = self._list[first : first + count]
            self._configurations += [_Configuration(proposal=values) for values in fresh]
        else:
            study = (
                self._study if self._sampler in _WITH_MEMORY else self._from_configurations(batch)
            )
            for _ in range(count):
                self._ask_one(study)
        return [
            Asked(number=number, batch=batch, values=self._configurations[number].proposal)
            for number in range(first, len(self._configurations))
        ]

    def _ask_one(self, study: optuna.Study) -> None:
        trial = study.ask()
        values: dict[str, Any] = {}
        for name in self._order:
            domain = self._domains[name]
            if domain.when is None or domain.when.holds(values):
                values[name] = _suggest(trial, name, domain)
        if study is self._study:
            self._trials[len(self._configurations)] = trial
        in_order = {name: values[name] for name in self._domains if name in values}
        self._configurations.append(_Configuration(proposal=in_order))

    def _from_configurations(self, event: int) -> optuna.Study:
        """A study that knows the configurations so far, and a sampler that begins with it."""
        study = self._make_study(event)
        configurations = self._configurations if self._sampler != "gp" else self._as_finished()
        for configuration in configurations:
            study.add_trial(self._frozen(configuration))
        return study

    def _as_finished(self) -> list[_Configuration]:
        """The configurations as gp sees them: it leaves out what is not finished, and would come
        back.
        """
        done = [
            p.values[0] for p in self._configurations if p.state is TrialState.COMPLETE and p.values
        ]
        if len(self._directions) > 1 or not done:
            return self._configurations
        higher = self._directions[0] is StudyDirection.MAXIMIZE
        worst = min(done) if higher else max(done)
        better = max if higher else min
        return [
            replace(
                configuration,
                state=TrialState.COMPLETE,
                values=[better(worst, configuration.values[0]) if configuration.values else worst],
            )
            if configuration.state is TrialState.PRUNED
            else configuration
            for configuration in self._configurations
        ]

    def _frozen(self, configuration: _Configuration) -> FrozenTrial:
        distributions = {
            name: distribution
            for name in configuration.proposal
            if (distribution := _distribution(self._domains[name])) is not None
        }
        return create_trial(
            state=configuration.state,
            params={n: _encode(self._domains[n], configuration.proposal[n]) for n in distributions},
            distributions=distributions,
            values=configuration.values,
            intermediate_values=_intermediate(configuration),
        )

    # ------------------------------------------------------------ tell

    def tell(self, number: int, values: Sequence[float] | None, *, step: int | None = None) -> int:
        """Tell the means of the objectives; None for a configuration that diverged.

        Args:
            step: of a configuration that was pruned, the epoch of these values; None: it is
            finished.

        Returns:
            When it was told, in the sequence of asks and tells: what the ledger keeps.
        """
        event = self._events
        self._events += 1
        self._told(number, values, step)
        if (trial := self._trials.pop(number, None)) is not None:
            self._tell_study(trial, self._configurations[number])
        return event

    def _told(self, number: int, values: Sequence[float] | None, step: int | None) -> None:
        configuration = self._configurations[number]
        assert configuration.state is TrialState.RUNNING, f"configuration {number} was told before"
        if values is not None and step is None:
            configuration.state, configuration.values = TrialState.COMPLETE, list(values)
        elif len(self._directions) > 1:
            configuration.state = TrialState.FAIL
        else:
            # Pruned without a value ranks below every other configuration, which is what a diverged
            # configuration deserves; failed would be ignored and come back.
            configuration.state = TrialState.PRUNED
            configuration.values = None if values is None else list(values)
            configuration.step = step

    def _tell_study(self, trial: optuna.Trial, configuration: _Configuration) -> None:
        """Tell the study of a sampler with memory."""
        if configuration.state is TrialState.PRUNED and configuration.values is not None:
            if self._sampler == "nsga2":  # takes no pruned configuration into a generation
                self._study.tell(trial, configuration.values)
                return
            assert configuration.step is not None
            trial.report(configuration.values[0], configuration.step)
        values = configuration.values if configuration.state is TrialState.COMPLETE else None
        self._study.tell(trial, None if values is None else list(values), state=configuration.state)

    # ------------------------------------------------------------ rebuilding

    def rebuild(self, entries: Sequence[Entry]) -> None:
        """Bring a new proposer to where the ledger's entries of its part and method end."""
        assert self._events == 0
        ordered = sorted(entries, key=lambda e: e.number)
        assert [e.number for e in ordered] == list(range(len(ordered)))
        if self._sampler in _WITH_MEMORY:
            self._replay(ordered)
        else:
            for entry in ordered:
                self._configurations.append(_Configuration(proposal=entry.proposal))
                if entry.state != "pending":
                    self._told(entry.number, entry.values, entry.step)
        events = [e.batch for e in ordered] + [e.told for e in ordered if e.told is not None]
        self._events = max(events, default=-1) + 1

    def _replay(self, entries: Sequence[Entry]) -> None:
        events: dict[int, list[tuple[str, Entry]]] = {}
        for entry in entries:
            events.setdefault(entry.batch, []).append(("ask", entry))
            if entry.told is not None:
                events.setdefault(entry.told, []).append(("tell", entry))
        for event in sorted(events):
            for kind, entry in events[event]:
                if kind == "tell":
                    self.tell(entry.number, entry.values, step=entry.step)
                    continue
                self._ask_one(self._study)
                if self._configurations[entry.number].proposal != entry.proposal:
                    # Another version of the library proposes otherwise: put what was really
                    # asked in its place; the sampler learns from it all the same.
                    self._replace(entry)

    def _replace(self, entry: Entry) -> None:
        self._study.tell(self._trials[entry.number], state=TrialState.FAIL)
        self._configurations[entry.number] = configuration = _Configuration(proposal=entry.proposal)
        self._study.add_trial(self._frozen(configuration))
        last = self._study.get_trials(deepcopy=False)[-1]
        self._trials[entry.number] = optuna.Trial(self._study, last._trial_id)


def _shuffled(domains: Mapping[str, Domain], seed: int) -> list[dict[str, Any]]:
    listed: dict[str, Domain] = {}
    for name, domain in domains.items():
        values = every_value(domain)
        assert values is not None, "plan.py refuses a grid sampler over a continuous range"
        listed[name] = Grid(values=values, when=domain.when)
    configurations = grid_configurations(listed)
    random.Random(seed).shuffle(configurations)
    return configurations


def _intermediate(configuration: _Configuration) -> dict[int, float]:
    """What a pruned configuration reported."""
    if (
        configuration.state is not TrialState.PRUNED
        or configuration.values is None
        or configuration.step is None
    ):
        return {}
    return {configuration.step: configuration.values[0]}


def _distribution(domain: Domain) -> BaseDistribution | None:
    match domain:
        case Constant():
            return None
        case Choices(values=values) | Grid(values=values):
            return CategoricalDistribution(range(len(values)))
        case Range(low=low, last=last, integer=True, log=log, step=step):
            return IntDistribution(int(low), int(last), log=log, step=int(step or 1))
        case Range(low=low, last=last, log=log, step=step):
            return FloatDistribution(low, last, log=log, step=step)


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    match domain:
        case Constant(value=value):
            return value
        case Choices(values=values) | Grid(values=values):
            # By position: a choice may be a list, which Optuna's categories cannot be.
            return values[trial.suggest_categorical(name, range(len(values)))]
        case Range(low=low, last=last, integer=True, log=log, step=step):
            return trial.suggest_int(name, int(low), int(last), log=log, step=int(step or 1))
        case Range(low=low, last=last, log=log, step=step):
            return trial.suggest_float(name, low, last, log=log, step=step)


def _encode(domain: Domain, value: Any) -> Any:
    match domain:
        case Choices(values=values) | Grid(values=values):
            return values.index(value)
        case _:
            return value
