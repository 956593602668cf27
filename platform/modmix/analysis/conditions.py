"""Conditions: the data of configurations, if a study varies its task.

Configurations may set task options (``task.share``). The ledger says which data each was trained
and tested on: those of one fingerprint form a condition and can be compared, others cannot.

    main     the condition in which a study's best configurations are selected: the task as given
              in the study file if a part uses it so, else the only condition
    is_split  there is no such condition: every configuration changes the task, in different ways
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modmix.analysis.labels import parameter_name, value_text
from modmix.ledger.records import ConfigurationRecord

PREFIX = "task."


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One setting of the task options that configurations of the study change."""

    index: int  # in order of first appearance
    label: str  # the options that differ: "weakness = conflict, share = 0.4"
    options: Mapping[str, Any]  # "share" -> 0.4; without those unknown or unused
    is_given: bool  # whether these are the options of the study file's task block


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of a study in order of first appearance, with their configurations."""

    all: tuple[Condition, ...]
    of: Mapping[str, Condition]  # by configuration key
    members: Mapping[Condition, Sequence[ConfigurationRecord]]
    main: Condition | None
    varied: tuple[str, ...]  # options that differ between conditions

    @property
    def is_split(self) -> bool:
        return bool(self.all) and self.main is None


def conditions_of(
    configurations: Sequence[ConfigurationRecord],
    fingerprint: str,
    given: Mapping[str, Any],
    leaves_task: Callable[[ConfigurationRecord], bool],
) -> Conditions:
    """Group configurations by their data.

    Args:
        configurations: in order of proposal.
        fingerprint: of the data with the options of the study file's task block.
        given: those options.
        leaves_task: whether a part proposed the configuration without setting task options.
    """
    used = dict.fromkeys(name for c in configurations for name in c.options)
    names = [*(name for name in given if name in used), *(n for n in used if n not in given)]
    groups: dict[str, list[ConfigurationRecord]] = {}
    for configuration in configurations:
        groups.setdefault(configuration.fingerprint, []).append(configuration)
    # Options on which configurations of the same data differ make no difference to them.
    options = {
        data: {name: given[name] for name in names if name in given}
        if data == fingerprint
        else _common(members)
        for data, members in groups.items()
    }
    keys = {data: _key(values, names) for data, values in options.items()}
    varied = [n for i, n in enumerate(names) if len({key[i] for key in keys.values()}) > 1]
    found = [
        _condition(i, options[data], varied or names, data == fingerprint)
        for i, data in enumerate(groups)
    ]
    main = _main(dict(zip(found, groups.values(), strict=True)), leaves_task)
    if main is not None and len(found) > 1 and "as given" not in main.label:
        found[main.index] = main = replace(main, label=f"{main.label} (as given)")
    members = dict(zip(found, groups.values(), strict=True))
    return Conditions(
        all=tuple(found),
        of={
            configuration.key: one
            for one, configurations in members.items()
            for configuration in configurations
        },
        members=members,
        main=main,
        varied=tuple(varied),
    )


def _common(configurations: Sequence[ConfigurationRecord]) -> dict[str, Any]:
    """The options that all of them have, with the same value."""
    first, *rest = configurations
    return {
        name: value
        for name, value in first.options.items()
        if all(name in one.options and one.options[name] == value for one in rest)
    }


def task_params(configuration: ConfigurationRecord) -> dict[str, Any]:
    """The task options of a configuration: "share" -> 0.4."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in configuration.params.items()
        if name.startswith(PREFIX)
    }


def _key(values: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_canonical(values[name]) if name in values else "" for name in names)


def _condition(
    index: int, values: Mapping[str, Any], named: Sequence[str], is_given: bool
) -> Condition:
    label = ", ".join(
        f"{parameter_name(name)} = {value_text(values[name])}" for name in named if name in values
    )
    missing = ", ".join(parameter_name(name) for name in named if name not in values)
    if missing:
        rest = f"{missing} as given" if is_given else f"any {missing}"
        label = f"{label} ({rest})" if label else rest
    return Condition(index=index, label=label, options=values, is_given=is_given)


def _main(
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
