"""Ask-and-tell search with Optuna's samplers.

Only this file and `tracking.optuna_mirror` import optuna.

A `Proposer` lives in the driver. On every start it is rebuilt from the asks and tells in the
ledger, and proposes the same configurations as without the restart. Optuna's own state is not
stored, because that would mean pickling its samplers. Instead,

* stateless samplers (tpe, gp, random) are created for every batch, from the configurations so far
  and a seed that depends on the search and the batch;
* stateful samplers (cmaes, qmc, nsga2) are replayed: the same asks and tells in the same order;
* grid is a list in seeded random order, without Optuna.

A configuration pruned by halving is told with its last value and epoch. tpe ranks it below every
finished configuration, by epoch and then by value (Optuna's rule). cmaes and nsga2 use its last
value. gp also uses it, but clipped to the worst value of a finished configuration: poor values of
early epochs would dominate the regression. random, qmc and grid do not use results. There is no
pruning with two objectives.
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

_WITH_STATE = frozenset({"cmaes", "qmc", "nsga2"})


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One proposal. ``number`` counts within part and method; ``values`` has all active names."""

    number: int
    batch: int
    values: Mapping[str, Any]


@dataclass
class _Configuration:
    """A proposed configuration: pending, done with values, pruned with a value, or failed."""

    proposal: Mapping[str, Any]
    state: TrialState = TrialState.RUNNING
    values: Sequence[float] | None = None
    step: int | None = None  # epoch of the value, if pruned


class Proposer:
    """Proposes configurations for one method in one part with a search.

    Args:
        domains: of every name the part sets or varies for this method.
        sampler: one of `study.spec.SAMPLERS`.
        seed: of the study file's search block.
        starts: first proposals, for the names they have; see `warm_start`.
        startup: tpe and gp propose at random until so many configurations have results.
        label: distinguishes this search within the study (part and method).
        directions: for each objective, whether higher is better.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        sampler: str,
        seed: int,
        label: str,
        directions: Sequence[bool],
        startup: int = 10,
        starts: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._domains = domains
        self._order = in_order_of_conditions(domains)
        self._sampler = sampler
        self._startup = startup
        self._starts = starts
        self._seed = zlib.crc32(f"{seed}/{label}".encode())
        self._directions = [
            StudyDirection.MAXIMIZE if higher else StudyDirection.MINIMIZE for higher in directions
        ]
        self._events = 0  # asks and tells so far
        self._configurations: list[_Configuration] = []  # by number
        self._list = _shuffled(domains, self._seed, starts) if sampler == "grid" else None
        # Of a sampler with state: its study, and the trials not told yet.
        self._study = self._make_study(0)
        self._trials: dict[int, optuna.Trial] = {}

    def _make_study(self, event: int) -> optuna.Study:
        return optuna.create_study(directions=self._directions, sampler=self._make_sampler(event))

    def _make_sampler(self, event: int) -> BaseSampler:
        seed = (self._seed + 7919 * event) % 2**32
        with warnings.catch_warnings():
            # Some of these arguments are experimental; the Optuna version is pinned.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self._sampler:
                case "tpe":
                    return optuna.samplers.TPESampler(
                        seed=seed,
                        n_startup_trials=self._startup,
                        n_ei_candidates=24,
                        multivariate=True,
                        group=self._has_conditions(),
                        constant_liar=True,
                    )
                case "gp":
                    return optuna.samplers.GPSampler(
                        seed=seed,
                        n_startup_trials=self._startup,
                        warn_independent_sampling=False,
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

    @property
    def size(self) -> int | None:
        """How many configurations the grid sampler has; None for other samplers."""
        return None if self._list is None else len(self._list)

    # ------------------------------------------------------------ ask

    def ask(self, count: int) -> list[Proposal]:
        """Propose a batch of ``count`` configurations; fewer if the space is exhausted."""
        batch = self._events
        self._events += 1
        first = len(self._configurations)
        if self._list is not None:
            fresh = self._from_list(count)
            self._configurations += [_Configuration(proposal=values) for values in fresh]
        else:
            study = (
                self._study if self._sampler in _WITH_STATE else self._from_configurations(batch)
            )
            for _ in range(count):
                self._ask_one(study)
        return [
            Proposal(number=number, batch=batch, values=self._configurations[number].proposal)
            for number in range(first, len(self._configurations))
        ]

    def _from_list(self, count: int) -> list[dict[str, Any]]:
        """The next configurations of the grid sampler."""
        assert self._list is not None
        if not self._starts:
            first = len(self._configurations)
            return self._list[first : first + count]
        # With starts, the order depends on what the other study has by now.
        proposed = {repr(dict(known.proposal)) for known in self._configurations}
        rest = [values for values in self._list if repr(values) not in proposed]
        return rest[:count]

    def _start(self) -> Mapping[str, Any] | None:
        """The next configuration's given values, if it has some.

        The other study may have changed since the last proposals: nothing is proposed twice.
        """
        number = len(self._configurations)
        if number >= len(self._starts):
            return None
        start = self._starts[number]
        known = (one.proposal for one in self._configurations)
        return None if any(_has(proposal, start) for proposal in known) else start

    def _ask_one(self, study: optuna.Study) -> None:
        if (start := self._start()) is not None:
            study.enqueue_trial({n: _encode(self._domains[n], v) for n, v in start.items()})
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
        """An Optuna study with the configurations so far and a new sampler."""
        study = self._make_study(event)
        configurations = self._configurations if self._sampler != "gp" else self._as_finished()
        for configuration in configurations:
            study.add_trial(self._frozen(configuration))
        return study

    def _as_finished(self) -> list[_Configuration]:
        """The configurations with pruned ones as finished: gp ignores unfinished trials."""
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
            if (distribution := distribution_of(self._domains[name])) is not None
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
            step: the epoch of these values if the configuration was pruned, else None.

        Returns:
            The number of this tell in the sequence of asks and tells, for the ledger.
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
            # A pruned trial without a value ranks last; a failed one would be ignored, and its
            # region proposed again.
            configuration.state = TrialState.PRUNED
            configuration.values = None if values is None else list(values)
            configuration.step = step

    def _tell_study(self, trial: optuna.Trial, configuration: _Configuration) -> None:
        """Tell the Optuna study of a sampler with state."""
        if configuration.state is TrialState.PRUNED and configuration.values is not None:
            if self._sampler == "nsga2":  # ignores pruned trials in its generations
                self._study.tell(trial, configuration.values)
                return
            assert configuration.step is not None
            trial.report(configuration.values[0], configuration.step)
        values = configuration.values if configuration.state is TrialState.COMPLETE else None
        self._study.tell(trial, None if values is None else list(values), state=configuration.state)

    # ------------------------------------------------------------ rebuilding

    def rebuild(self, entries: Sequence[Entry]) -> None:
        """Restore the state after the ledger's entries of this part and method."""
        assert self._events == 0
        ordered = sorted(entries, key=lambda e: e.number)
        assert [e.number for e in ordered] == list(range(len(ordered)))
        if self._sampler in _WITH_STATE:
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
                    # Another version of Optuna may propose differently: insert what was recorded.
                    self._replace(entry)

    def _replace(self, entry: Entry) -> None:
        self._study.tell(self._trials[entry.number], state=TrialState.FAIL)
        self._configurations[entry.number] = configuration = _Configuration(proposal=entry.proposal)
        self._study.add_trial(self._frozen(configuration))
        last = self._study.get_trials(deepcopy=False)[-1]
        self._trials[entry.number] = optuna.Trial(self._study, last._trial_id)


def _shuffled(
    domains: Mapping[str, Domain], seed: int, starts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """All configurations in random order, those with the values of ``starts`` first."""
    listed: dict[str, Domain] = {}
    for name, domain in domains.items():
        values = every_value(domain)
        assert values is not None, "study.parts rejects a grid sampler over a continuous range"
        listed[name] = Grid(values=values, when=domain.when)
    configurations = grid_configurations(listed)
    random.Random(seed).shuffle(configurations)

    def place(configuration: Mapping[str, Any]) -> int:
        found = [i for i, s in enumerate(starts) if _has(configuration, s)]
        return found[0] if found else len(starts)

    return sorted(configurations, key=place) if starts else configurations


def _has(configuration: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(name in configuration and configuration[name] == v for name, v in values.items())


def _intermediate(configuration: _Configuration) -> dict[int, float]:
    """The value that a pruned configuration reported, by epoch."""
    if (
        configuration.state is not TrialState.PRUNED
        or configuration.values is None
        or configuration.step is None
    ):
        return {}
    return {configuration.step: configuration.values[0]}


def distribution_of(domain: Domain) -> BaseDistribution | None:
    """A domain as Optuna's distribution; choices are numbers. None for constants."""
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
            # By index: a choice may be a list, which Optuna does not accept as a category.
            return values[trial.suggest_categorical(name, range(len(values)))]
        case Range(low=low, last=last, integer=True, log=log, step=step):
            return trial.suggest_int(name, int(low), int(last), log=log, step=int(step or 1))
        case Range(low=low, last=last, log=log, step=step):
            return domain.nearest(trial.suggest_float(name, low, last, log=log, step=step))


def _encode(domain: Domain, value: Any) -> Any:
    match domain:
        case Choices(values=values) | Grid(values=values):
            return values.index(value)
        case _:
            return value
