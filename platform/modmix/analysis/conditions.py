"""Conditions: on which data a configuration was trained and tested, where a study varies its task.

A configuration's parameters may hold options of the task (``task.share``). Configurations that
differ in them met other data: which of them errs least says which data is easy, not which method is
good. So configurations are compared within a condition only.

    whole      the condition that a study's one winner is about: the task as the study file gives
               it, if any part takes it so; else the only condition there is
    is_split   every configuration changes the task and not all in the same way: there is no one
    winner,
               but one per condition
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modmix.analysis.labels import parameter_words, value_text
from modmix.ledger.records import ConfigurationRecord

PREFIX = "task."


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One setting of the task's options, by all of them that any configuration of the study
    shows.
    """

    place: int  # in order of first appearance, from 0
    label: str  # "weakness = conflict, share = 0.4": what differs between the conditions
    options: Mapping[str, Any]  # "share" -> 0.4; without those unknown or without effect
    is_given: bool  # the options are those of the study file's task block


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of a study in order of first appearance, and which configurations met in
    each.
    """

    all: tuple[Condition, ...]
    of: Mapping[str, Condition]  # by configuration key
    members: Mapping[Condition, Sequence[ConfigurationRecord]]
    whole: Condition | None
    varied: tuple[str, ...]  # the options in which the conditions differ

    @property
    def is_split(self) -> bool:
        return bool(self.all) and self.whole is None


def conditions_of(
    configurations: Sequence[ConfigurationRecord],
    given: Mapping[str, Any],
    leaves_task: Callable[[ConfigurationRecord], bool],
    idle: Callable[[ConfigurationRecord], Collection[str]] = lambda _: (),
) -> Conditions:
    """Sort configurations by the data they met.

    All configurations of a method show what any part varies, so a configuration may show an option
    with the very value of the task block: that is the task as given.

    Args:
        configurations: in order of asking.
        given: the task's options as the study file gives them.
        leaves_task: whether a part asked for the configuration without setting any of the task's
        options. idle: the options that make no difference to a configuration's data.
    """
    names = list(
        dict.fromkeys(
            name for configuration in configurations for name in task_params(configuration)
        )
    )
    unchanged = _key({name: given[name] for name in names if name in given}, names)
    groups: dict[tuple[str, ...], list[ConfigurationRecord]] = {}
    met: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for configuration in configurations:
        values = {name: given[name] for name in names if name in given}
        if not leaves_task(configuration):
            without = idle(configuration)
            values |= task_params(configuration)
            values = {name: value for name, value in values.items() if name not in without}
        key = _key(values, names)
        groups.setdefault(key, []).append(configuration)
        met[key] = values
    varied = [n for i, n in enumerate(names) if len({key[i] for key in groups}) > 1]
    found = [
        _condition(place, met[key], varied or names, key == unchanged)
        for place, key in enumerate(groups)
    ]
    whole = _whole(dict(zip(found, groups.values(), strict=True)), leaves_task)
    if whole is not None and len(found) > 1 and "as given" not in whole.label:
        found[whole.place] = whole = replace(whole, label=f"{whole.label} (as given)")
    members = dict(zip(found, groups.values(), strict=True))
    return Conditions(
        all=tuple(found),
        of={
            configuration.key: one
            for one, configurations in members.items()
            for configuration in configurations
        },
        members=members,
        whole=whole,
        varied=tuple(varied),
    )


def task_params(configuration: ConfigurationRecord) -> dict[str, Any]:
    """The task's options that a configuration shows: "share" -> 0.4."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in configuration.params.items()
        if name.startswith(PREFIX)
    }


def _key(values: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_canonical(values[name]) if name in values else "" for name in names)


def _condition(
    place: int, values: Mapping[str, Any], named: Sequence[str], is_given: bool
) -> Condition:
    label = ", ".join(
        f"{parameter_words(name)} = {value_text(values[name])}" for name in named if name in values
    )
    missing = ", ".join(parameter_words(name) for name in named if name not in values)
    if missing:
        rest = f"{missing} as given" if is_given else f"any {missing}"
        label = f"{label} ({rest})" if label else rest
    return Condition(place=place, label=label, options=values, is_given=is_given)


def _whole(
    members: Mapping[Condition, Sequence[ConfigurationRecord]],
    leaves_task: Callable[[ConfigurationRecord], bool],
) -> Condition | None:
    if len(members) == 1:
        return next(iter(members))
    for condition, configurations in members.items():
        if condition.is_given and any(
            leaves_task(configuration) for configuration in configurations
        ):
            return condition
    return None


def _canonical(value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return json.dumps(float(value) if is_number else value, sort_keys=True)
