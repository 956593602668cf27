"""Successive halving across packs: a configuration in a pack of its own is compared with all
configurations that reached the same rung before it.

The driver decides (`training.halving.goes_on`), since it sees all packs. Configurations compete
within a race: one method of one part, on one data set. A configuration that belongs to several
races continues while it survives in one of them.

A rung is an epoch, counted over all stages. Stages whose scores mean nothing yet (`Stage.judged`)
have no rungs.

Values come from the evaluations of this run, and from the histories in the ledger for replicates
that have ended. Those of packs that passed a rung before a restart are missing until they end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from modmix.base.messages import Pack, Progress
from modmix.base.metrics import STAGE, higher_is_better
from modmix.base.settings import selection
from modmix.ledger.records import ENDED, Entry
from modmix.search.run_state import RunState
from modmix.training.halving import goes_on, mean

History = Mapping[str, Sequence[float]]
Race = tuple[str, str, str]  # part, method, fingerprint of the data


class Rungs:
    """The values of configurations at rungs.

    Args:
        histories: reads histories by replicate key from the ledger.
    """

    def __init__(
        self, state: RunState, histories: Callable[[Sequence[str]], Mapping[str, History]]
    ) -> None:
        self._state = state
        self._histories = histories
        self._configurations: dict[Race, dict[str, None]] = {}
        self._races: dict[str, dict[Race, None]] = {}
        self._values: dict[tuple[str, int], float] = {}  # by configuration and rung
        self._read: set[tuple[str, int]] = set()  # looked up in the ledger

    def enter(self, entries: Iterable[Entry]) -> None:
        """Add the configurations of entries to their races."""
        for entry in entries:
            data = self._state.configurations[entry.configuration].configuration.task.fingerprint
            race = (entry.part, entry.method, data)
            self._configurations.setdefault(race, {})[entry.configuration] = None
            self._races.setdefault(entry.configuration, {})[race] = None

    def judge(self, pack: Pack, at: Progress) -> str | None:
        """Why the pack's only configuration must stop, or None if it continues."""
        self._values.update(
            {(configuration, at.rung): value for configuration, value in at.at_rung.items()}
        )
        configurations = {replicate.configuration for replicate in pack.replicates}
        if not at.at_rung or len(configurations) > 1:
            return None
        (configuration,) = configurations
        training = pack.replicates[0].training
        eta, higher = int(training["halving"]["eta"]), higher_is_better(training["monitor"])
        why = None
        for race in self._races.get(configuration, {}):
            others = self._others(race, configuration, at.rung)
            if goes_on(at.at_rung[configuration], others, eta, higher_is_better=higher):
                return None
            n = len(others) + 1
            why = (
                f"not among the best {n // eta} of the {n} configurations so far after "
                f"epoch {at.rung}"
            )
        return why

    def _others(self, race: Race, configuration: str, rung: int) -> list[float]:
        """Values of the race's other configurations at a rung."""
        rest = [other for other in self._configurations[race] if other != configuration]
        unread = [
            other
            for other in rest
            if (other, rung) not in self._values
            and (other, rung) not in self._read
            and not self._state.is_incomplete(other)
        ]
        self._read.update((other, rung) for other in unread)
        keys = {other: [r.key for r in self._state.replicates_of(other)] for other in unread}
        histories = self._histories([key for mine in keys.values() for key in mine])
        for other, mine in keys.items():
            values = [self._value(key, histories.get(key, {}), rung) for key in mine]
            if None not in values:
                self._values[other, rung] = mean([v for v in values if v is not None])
        return [self._values[o, rung] for o in rest if (o, rung) in self._values]

    def _value(self, key: str, history: History, rung: int) -> float | None:
        """A replicate's value at a rung; None if it did not reach it.

        Its best value up to the rung in the stage that is trained there, or its last one, depending
        on ``select``.
        """
        assert self._state.states[key] in ENDED
        training = self._state.replicates[key].training
        epochs = history.get("epoch", ())
        there = [i for i, epoch in enumerate(epochs) if epoch <= rung]
        if there and (stages := history.get(STAGE)):
            there = [i for i in there if stages[i] == stages[there[-1]]]
        reached = bool(epochs) and epochs[-1] >= rung
        if not there or not (reached or self._state.states[key] == "done"):
            return None
        column = history[training["monitor"]]
        if selection(training) == "last":
            return column[there[-1]]
        best = max if higher_is_better(training["monitor"]) else min
        values = [column[i] for i in there if not math.isnan(column[i])]
        return best(values, default=math.nan)
