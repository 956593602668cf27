"""A pack as people read it in Ray Tune's tables: the trial's configuration and its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress
from modmix.base.metrics import higher_is_better
from modmix.base.settings import training_defaults

_MOST_VALUES = 8  # listed one by one
_MOST_NUMBERS = 4
_NOT_VALUES = ("method", "configurations", "models", "varied", "pack", "avoided_nodes")


def config_of(pack: Pack) -> dict[str, Any]:
    """Method, task, hyperparameters, training settings that differ from their defaults, models.

    ``varied`` has the names of those that differ between the pack's models.
    A value that differs between the pack's models is a text: "0.1, 0.3, 1", or of more than four
    numbers "0 to 0.9 (10 values)". A single number is rounded to six significant digits, several
    numbers to three.
    """
    one, defaults = pack.replicates[0], training_defaults()
    values = {name: [r.params[name] for r in pack.replicates] for name in one.params}
    for name in one.training:
        settings = [r.training[name] for r in pack.replicates]
        if any(setting != defaults.get(name) for setting in settings):
            values[name] = settings
    for source in one.encoders:
        values[f"encoder/{source}"] = [r.encoders[source].get("name") for r in pack.replicates]
    return {
        "method": pack.method,
        "task": pack.task.name,
        **{name: _shared(of_models) for name, of_models in values.items()},
        "varied": ", ".join(name for name, of_models in values.items() if _differ(of_models)),
        "configurations": len({r.configuration for r in pack.replicates}),
        "models": len(pack.replicates),
        "pack": pack.id,
    }


def described(pack: Pack) -> str:
    """A pack in a line: "mul beta=0.1, 0.3; 10 models, pack 5d41402a"."""
    config = config_of(pack)
    names = config["varied"].split(", ") if config["varied"] else list(pack.replicates[0].params)
    values = " ".join(f"{name}={config[name]}" for name in names if config[name] is not None)
    return f"{pack.method} {values}; {config['models']} models, pack {pack.id[:8]}"


def varied(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what differs within one of these packs, or between packs of the same method."""
    found: dict[str, None] = {}
    first: dict[tuple[str, str], Any] = {}
    for config in configs:
        within = config["varied"].split(", ")
        for name in config:
            if name not in _NOT_VALUES:
                same = first.setdefault((config["method"], name), config[name]) == config[name]
                if name in within or not same:
                    found[name] = None
    return list(found)


def _shared(values: Sequence[Any]) -> Any:
    distinct: dict[str, Any] = {}
    for value in values:
        distinct.setdefault(_text(value), value)
    if len(distinct) == 1:
        (value,) = distinct.values()
        if isinstance(value, float):
            return float(_text(value))
        return value if isinstance(value, (bool, int, str, type(None))) else _text(value)
    numbers = [v for v in distinct.values() if isinstance(v, (int, float))]
    if len(numbers) == len(distinct) <= _MOST_NUMBERS:
        return ", ".join(_short(number) for number in numbers)
    if len(numbers) == len(distinct):
        return f"{_short(min(numbers))} to {_short(max(numbers))} ({len(numbers)} values)"
    shown = ", ".join(list(distinct)[:_MOST_VALUES])
    more = f", … ({len(distinct)} values)" if len(distinct) > _MOST_VALUES else ""
    return f"{shown}{more}"


def _differ(values: Sequence[Any]) -> bool:
    return len({_text(value) for value in values}) > 1


def _short(number: float) -> str:
    return f"{number:.3g}" if isinstance(number, float) else str(number)


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
