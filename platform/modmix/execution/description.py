"""A pack as people read it in Ray Tune's tables: the trial's configuration and its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress
from modmix.base.metrics import higher_is_better
from modmix.base.settings import training_defaults

_MOST_VALUES = 8


def config_of(pack: Pack) -> dict[str, Any]:
    """Method, task, hyperparameters, training settings that differ from their defaults, models.

    A value that differs between the pack's models is a text such as "0.1, 0.3, 1".
    """
    first = pack.replicates[0]
    found: dict[str, Any] = {"method": pack.method, "task": pack.task.name}
    found |= {name: _shared([r.params[name] for r in pack.replicates]) for name in first.params}
    defaults = training_defaults()
    for name in first.training:
        values = [r.training[name] for r in pack.replicates]
        if any(value != defaults.get(name) for value in values):
            found[name] = _shared(values)
    found |= {
        f"encoder/{source}": _shared([r.encoders[source].get("name") for r in pack.replicates])
        for source in first.encoders
    }
    configurations = len({r.configuration for r in pack.replicates})
    return {
        **found,
        "configurations": configurations,
        "models": len(pack.replicates),
        "pack": pack.id,
    }


def _shared(values: Sequence[Any]) -> Any:
    distinct: dict[str, Any] = {}
    for value in values:
        distinct.setdefault(_text(value), value)
    if len(distinct) == 1:
        (value,) = distinct.values()
        return value if isinstance(value, (bool, int, float, str, type(None))) else _text(value)
    shown = ", ".join(list(distinct)[:_MOST_VALUES])
    return shown if len(distinct) <= _MOST_VALUES else f"{shown}, … ({len(distinct)} values)"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Summary:
    """What a trial reports: its latest evaluation, in a line."""

    def __init__(self, pack: Pack) -> None:
        self._metrics = dict.fromkeys(("val/error", pack.replicates[0].training["monitor"]))
        self._models = len(pack.replicates) - len(pack.ended)
        self.values: dict[str, Any] = {
            "epoch": 0,
            "epochs": 0,
            "active": self._models,
            "finished": 0,
        }

    @property
    def settled(self) -> bool:
        """Whether every model that no longer trains has reported its result."""
        return bool(self.values["active"] == self._models - self.values["finished"])

    def add(self, event: Event) -> None:
        match event:
            case PackStarted():
                self.values |= {
                    "device": event.device,
                    "stacked": event.stacked,
                    "epoch": event.resumed_epoch,
                }
            case Progress():
                self.values |= {
                    "epoch": event.epoch,
                    "epochs": event.epochs,
                    "active": event.active,
                }
                for name in self._metrics:
                    self.values |= _mean_and_best(name, event.metrics)
            case Finished():
                self.values["finished"] += 1


def _mean_and_best(name: str, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A metric's mean over the models and its best value; nothing if no value is finite."""
    values = [m[name] for m in metrics.values() if math.isfinite(m.get(name, math.nan))]
    if not values:
        return {}
    best = max if higher_is_better(name) else min
    return {name: sum(values) / len(values), f"{name}/best": best(values)}
