"""Population-based training within a pack (Jaderberg et al. 2017, arXiv:1711.09846). Pure.

The population is a pack's configurations. Every so many epochs the worst ones *exploit* good ones
(truncation selection): they continue as copies of them, weights, optimizer state and history
included. Then they *explore*: each hyperparameter that may differ within a pack is multiplied or
divided by a factor, and stays inside its domain.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from modmix.base.messages import Pack, Replicate
from modmix.base.settings import TRAINING, pbt_settings
from modmix.base.space import Choices, Domain, Range, domain_from_json
from modmix.training.halving import mean, survivors

PREFIX = "pbt/"  # of columns of the history that hold hyperparameters


def is_numeric(domain: Domain) -> bool:
    """Whether values of a domain can be perturbed: ranges, and choices of numbers."""
    match domain:
        case Range():
            return True
        case Choices(values=values):
            return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        case _:
            return False


def copies(
    values: Mapping[str, Sequence[float]], pack: Pack, epoch: int, *, higher_is_better: bool
) -> dict[str, str]:
    """Which configuration continues as a copy of which one.

    The worst ``fraction`` of the configurations (rounded down) copy one of as many best ones each,
    chosen at random, in the same way in every run of the pack.

    Args:
        values: the monitored metric of each replicate, by configuration.
    """
    means = {name: mean(found) for name, found in values.items()}
    ordered = survivors(means, 1, higher_is_better=higher_is_better)
    count = number_of_copies(pbt_settings(pack.replicates[0].training), len(ordered))
    best, worst = ordered[:count], ordered[len(ordered) - count :]
    drawn = random.Random(f"{pack.id}/{epoch}")
    return {name: drawn.choice(best) for name in worst}


def number_of_copies(settings: Mapping[str, float], configurations: int) -> int:
    """How many of so many configurations continue as copies of others."""
    return int(settings["fraction"] * configurations + 1e-9)


class Explorer:
    """Perturbs those hyperparameters of a pack's configurations that its ``domains`` name."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._domains = {name: domain_from_json(raw) for name, raw in pack.domains.items()}

    def values(self, replicate: Replicate) -> dict[str, float]:
        """The hyperparameters that may be perturbed, with their values in a replicate."""
        found = {name: _holder(replicate, name).get(name) for name in self._domains}
        return {name: value for name, value in found.items() if value is not None}

    def perturbed(
        self, values: Mapping[str, float], configuration: str, epoch: int
    ) -> dict[str, float]:
        """A copy's hyperparameters; the same in every run of the pack."""
        drawn = random.Random(f"{self._pack.id}/{configuration}/{epoch}")
        factor = pbt_settings(self._pack.replicates[0].training)["perturb"]
        return {
            name: _step(self._domains[name], value, drawn.choice((1 / factor, factor)))
            for name, value in values.items()
        }


def _step(domain: Domain, value: float, factor: float) -> float:
    """A value times a factor, but at least the next integer, step or choice on that side."""
    if isinstance(domain, Range):
        unit = domain.step or (1 if domain.integer else None)
        if unit is None:
            return domain.nearest(min(max(value * factor, domain.low), domain.last))
        here, last = (round((x - domain.low) / unit) for x in (value, domain.last))
        there = round((value * factor - domain.low) / unit)
        there = max(there, here + 1) if factor > 1 else min(there, here - 1)
        return domain.nearest(domain.low + min(max(there, 0), last) * unit)
    assert isinstance(domain, Choices)
    ordered = sorted(domain.values)
    place = ordered.index(value) + (1 if factor > 1 else -1)
    return float(ordered[min(max(place, 0), len(ordered) - 1)])


def with_values(replicate: Replicate, values: Mapping[str, float]) -> Replicate:
    """The replicate with other values of some hyperparameters."""
    training = {name: value for name, value in values.items() if name in TRAINING}
    params = {name: value for name, value in values.items() if name not in TRAINING}
    return replace(
        replicate,
        params={**replicate.params, **params},
        training={**replicate.training, **training},
    )


def _holder(replicate: Replicate, name: str) -> Mapping[str, Any]:
    return replicate.training if name in TRAINING else replicate.params
