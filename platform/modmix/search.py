"""Ask and tell: Optuna's samplers behind one small class. The only file with optuna.

The ledger holds what was asked and told, in order; a `Proposer` is rebuilt from that at every
start and lives in the driver only. Nothing of Optuna's own state is stored (its samplers pickle
theirs), and the result is the same as if the driver had never been away:

* samplers whose proposals depend only on the finished points and a seed (tpe, gp, random) are
  seeded anew for every batch with a number made of the study's seed and the batch's place, so a
  rebuilt one continues exactly as the old one would have;
* samplers with a memory of their own (cmaes, qmc, nsga2) are replayed: asked and told again in the
  recorded order, which brings them into the same state;
* the exhaustive one (grid) is a list in seeded random order, and needs no Optuna.
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
from optuna.trial import FrozenTrial, TrialState, create_trial

from modmix.space import (
    Choices,
    Constant,
    Domain,
    Grid,
    Range,
    every_value,
    grid_points,
    in_order_of_conditions,
)

if TYPE_CHECKING:
    from modmix.ledger import Entry

optuna.logging.set_verbosity(optuna.logging.WARNING)

_WITH_MEMORY = frozenset({"cmaes", "qmc", "nsga2"})


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One proposal: its number within part and method, and the values of all names that apply."""

    number: int
    batch: int
    values: Mapping[str, Any]


class Proposer:
    """Proposes the points of one method in one searched part.

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
        self._events = 0  # asks and tells so far
        self._trials: dict[int, optuna.Trial] = {}  # asked in this process, not told yet
        self._count = 0
        self._list = _shuffled(domains, self._seed) if sampler == "grid" else None
        self._study = optuna.create_study(
            directions=["maximize" if higher else "minimize" for higher in directions],
            sampler=self._make_sampler(0),
        )

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
                        seed=seed, n_startup_trials=1, warn_independent_sampling=False
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
        """Propose up to ``count`` points at once; fewer when the space is exhausted."""
        batch = self._events
        self._events += 1
        if self._sampler not in _WITH_MEMORY:
            self._study.sampler = self._make_sampler(batch)
        asked: list[Asked] = []
        for _ in range(count):
            values = self._ask_one()
            if values is None:
                break
            asked.append(Asked(number=self._count - 1, batch=batch, values=values))
        return asked

    def _ask_one(self) -> dict[str, Any] | None:
        if self._list is not None:
            self._count += 1
            return self._list[self._count - 1] if self._count <= len(self._list) else None
        trial = self._study.ask()
        values: dict[str, Any] = {}
        for name in self._order:
            domain = self._domains[name]
            if domain.when is None or domain.when.holds(values):
                values[name] = _suggest(trial, name, domain)
        self._trials[self._count] = trial
        self._count += 1
        return {name: values[name] for name in self._domains if name in values}

    # ------------------------------------------------------------ tell

    def tell(self, number: int, values: Sequence[float] | None) -> int:
        """Tell the means of the objectives; None for a point that was pruned or diverged.

        Returns:
            When it was told, in the sequence of asks and tells: what the ledger keeps.
        """
        event = self._events
        self._events += 1
        if self._list is not None:
            return event
        trial = self._trials.pop(number)
        if values is None:
            # Without a value the samplers rank it below every finished point, which is what a
            # diverged configuration deserves; told as failed it would be ignored and come back.
            self._study.tell(trial, state=_LOST if len(self._study.directions) == 1 else _FAILED)
        else:
            self._study.tell(trial, list(values))
        return event

    # ------------------------------------------------------------ rebuilding

    def rebuild(self, entries: Sequence[Entry]) -> None:
        """Bring a new proposer to where the ledger's entries of its part and method end."""
        assert self._events == 0 and self._count == 0
        ordered = sorted(entries, key=lambda e: e.number)
        if self._list is not None:
            self._count = len(ordered)
        elif self._sampler in _WITH_MEMORY:
            self._replay(ordered)
        else:
            self._insert(ordered)
        events = [e.batch for e in ordered] + [e.told for e in ordered if e.told is not None]
        self._events = max(events, default=-1) + 1

    def _insert(self, entries: Sequence[Entry]) -> None:
        distributions = {
            name: distribution
            for name, domain in self._domains.items()
            if (distribution := _distribution(domain)) is not None
        }
        for entry in entries:
            params = {
                name: _encode(self._domains[name], value)
                for name, value in entry.proposal.items()
                if name in distributions
            }
            used = {name: distributions[name] for name in params}
            self._add(entry, params, used)
            self._count += 1

    def _add(
        self, entry: Entry, params: dict[str, Any], distributions: dict[str, BaseDistribution]
    ) -> None:
        state = TrialState.RUNNING
        if entry.state != "pending":
            state = TrialState.COMPLETE if entry.values is not None else _LOST
        if state == _LOST and len(self._study.directions) > 1:
            state = _FAILED
        frozen: FrozenTrial = create_trial(
            state=state,
            params=params,
            distributions=distributions,
            values=list(entry.values) if state == TrialState.COMPLETE and entry.values else None,
        )
        self._study.add_trial(frozen)
        if state == TrialState.RUNNING:
            last = self._study.get_trials(deepcopy=False)[-1]
            self._trials[entry.number] = optuna.Trial(self._study, last._trial_id)

    def _replay(self, entries: Sequence[Entry]) -> None:
        events: dict[int, list[tuple[str, Entry]]] = {}
        for entry in entries:
            events.setdefault(entry.batch, []).append(("ask", entry))
            if entry.told is not None:
                events.setdefault(entry.told, []).append(("tell", entry))
        for event in sorted(events):
            for kind, entry in events[event]:
                if kind == "tell":
                    self.tell(entry.number, entry.values)
                    continue
                values = self._ask_one()
                if values != dict(entry.proposal):
                    # Another version of the library proposes otherwise: put what was really
                    # asked in its place; the sampler learns from it all the same.
                    self._replace(entry)

    def _replace(self, entry: Entry) -> None:
        self._study.tell(self._trials.pop(self._count - 1), state=TrialState.FAIL)
        self._count -= 1
        self._insert([replace(entry, state="pending", values=None, told=None)])


def _shuffled(domains: Mapping[str, Domain], seed: int) -> list[dict[str, Any]]:
    listed: dict[str, Domain] = {}
    for name, domain in domains.items():
        values = every_value(domain)
        assert values is not None, "plan.py refuses a grid sampler over a continuous range"
        listed[name] = Grid(values=values, when=domain.when)
    points = grid_points(listed)
    random.Random(seed).shuffle(points)
    return points


_LOST = TrialState.PRUNED
_FAILED = TrialState.FAIL


def _distribution(domain: Domain) -> BaseDistribution | None:
    match domain:
        case Constant():
            return None
        case Choices(values=values) | Grid(values=values):
            return CategoricalDistribution(range(len(values)))
        case Range(low=low, high=high, integer=True, log=log, step=step):
            return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
        case Range(low=low, high=high, log=log, step=step):
            return FloatDistribution(low, high, log=log, step=step)


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    match domain:
        case Constant(value=value):
            return value
        case Choices(values=values) | Grid(values=values):
            # By position: a choice may be a list, which Optuna's categories cannot be.
            return values[trial.suggest_categorical(name, range(len(values)))]
        case Range(low=low, high=high, integer=True, log=log, step=step):
            return trial.suggest_int(name, int(low), int(high), log=log, step=int(step or 1))
        case Range(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)


def _encode(domain: Domain, value: Any) -> Any:
    match domain:
        case Choices(values=values) | Grid(values=values):
            return values.index(value)
        case _:
            return value
