"""Rungs across packs: a pack of one configuration is held against all configurations that were at a
rung before.

Only the driver sees all packs, so it decides (see `halving.goes_on`), and the worker learns of it
with its next word to the driver. Configurations race within what asks for them: one method of one
part, on one data set. A configuration that several parts ask for goes on while one of them would
let it.

Nothing of this is kept for itself: what was at a rung in this start came with its evaluations, and
of configurations that ended before, the ledger has whole histories. Only the values of a pack that
passed a rung in an earlier start and is not yet at its end are missing until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from modmix.base.messages import Pack, Progress
from modmix.base.metrics import higher_is_better
from modmix.ledger.records import ENDED, Entry
from modmix.search.run_state import RunState
from modmix.training.halving import goes_on, mean

History = Mapping[str, Sequence[float]]
Race = tuple[str, str, str]  # part, method, fingerprint of the data


class Rungs:
    """What came to which rung with which value.

    Args:
        histories: of replicates by key, from the ledger.
    """

    def __init__(
        self, state: RunState, histories: Callable[[Sequence[str]], Mapping[str, History]]
    ) -> None:
        self._state = state
        self._histories = histories
        self._configurations: dict[Race, dict[str, None]] = {}
        self._races: dict[str, dict[Race, None]] = {}
        self._values: dict[tuple[str, int], float] = {}  # by configuration and rung
        self._read: set[tuple[str, int]] = set()  # of which the ledger was asked

    def enter(self, entries: Iterable[Entry]) -> None:
        """Take note of what asks for which configurations, which the state knows."""
        for entry in entries:
            data = self._state.configurations[entry.configuration].configuration.task.fingerprint
            race = (entry.part, entry.method, data)
            self._configurations.setdefault(race, {})[entry.configuration] = None
            self._races.setdefault(entry.configuration, {})[race] = None

    def judge(self, pack: Pack, at: Progress) -> str | None:
        """Why the pack's only configuration is to train no further, or None: it goes on, or is no
        race.
        """
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
            others = self._others(race, configuration, at.rung, at.epoch - at.rung)
            if goes_on(at.at_rung[configuration], others, eta, higher_is_better=higher):
                return None
            n = len(others) + 1
            why = (
                f"not among the best {n // eta} of the {n} configurations so far after "
                f"epoch {at.rung}"
            )
        return why

    def _others(self, race: Race, configuration: str, rung: int, before: int) -> list[float]:
        """Values of the race's other configurations at a rung; ``before``: epochs of earlier
        stages.
        """
        rest = [other for other in self._configurations[race] if other != configuration]
        unread = [
            other
            for other in rest
            if (other, rung) not in self._values
            and (other, rung) not in self._read
            and not self._state.is_waiting(other)
        ]
        self._read.update((other, rung) for other in unread)
        keys = {other: [r.key for r in self._state.replicates_of(other)] for other in unread}
        histories = self._histories([key for mine in keys.values() for key in mine])
        for other, mine in keys.items():
            values = [self._value(key, histories.get(key, {}), before, rung) for key in mine]
            if None not in values:
                self._values[other, rung] = mean([v for v in values if v is not None])
        return [self._values[o, rung] for o in rest if (o, rung) in self._values]

    def _value(self, key: str, history: History, before: int, rung: int) -> float | None:
        """A replicate's best value up to a rung; None when it never came there."""
        assert self._state.states[key] in ENDED
        training = self._state.replicates[key].training
        epochs = history.get("epoch", ())
        there = [i for i, epoch in enumerate(epochs) if before < epoch <= before + rung]
        came = bool(epochs) and epochs[-1] >= before + rung
        if not there or not (came or self._state.states[key] == "done"):
            return None
        column = history[training["monitor"]]
        best = max if higher_is_better(training["monitor"]) else min
        values = [column[i] for i in there if not math.isnan(column[i])]
        return best(values, default=math.nan)
