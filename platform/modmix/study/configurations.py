"""What a configuration resolves to: all that a model is trained with, and its replicates' keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modmix.base import sources
from modmix.base.messages import NUMERICS_VERSION, Replicate, TaskRef, digest
from modmix.base.settings import TRAINING, WITHOUT_EFFECT
from modmix.methods.table import METHODS, method_entry


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One configuration of one method: what is shown, and the replicates it needs."""

    key: str
    method: str
    params: Mapping[str, Any]
    task: TaskRef
    options: Mapping[str, Any]  # of the task, those that some configuration of the study sets
    replicates: tuple[Replicate, ...]
    task_name: str = ""  # in a study of several tasks


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything a model is trained with but its seed, resolved.

    ``name`` is the method's in the study file, ``method`` that of the table or a reference.
    """

    name: str
    method: str
    params: Mapping[str, Any]
    training: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]  # by input
    task: TaskRef
    augmentation: Mapping[str, Mapping[str, Any]]  # by input

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that its numbers depend on.

        References hold digests of users' own files. One class under two names is two methods.
        """
        return {
            "method": self.method if self.method in METHODS else [self.name, self.method],
            "params": dict(self.params),
            "training": {k: v for k, v in self.training.items() if k not in WITHOUT_EFFECT},
            "encoders": {name: dict(value) for name, value in self.encoders.items()},
            "task": [self.task.name, self.task.fingerprint],
            "augmentation": {name: dict(value) for name, value in self.augmentation.items()},
            "numerics": NUMERICS_VERSION,
        }

    @cached_property
    def structure(self) -> str:
        """Names all that must be equal inside a pack."""
        declared = {h.name: h for h in method_entry(self.method).hyperparameters}
        rest = {
            "params": {k: v for k, v in self.params.items() if not declared[k].stackable},
            "training": {k: v for k, v in self.training.items() if not TRAINING[k].stackable},
        }
        return digest({**self.identity, **rest})

    def value(self, name: str) -> Any:
        """What holds here for a training setting, an encoder's field or a task's option.

        None for a field on which the encoders differ, or that none of them has.
        """
        if name in self.training:
            return self.training[name]
        kind, _, field_name = name.partition(".")
        if kind == "task":
            return self.task.options[field_name]
        values = [e[field_name] for e in self.encoders.values() if field_name in e]
        return values[0] if values and all(value == values[0] for value in values) else None

    def replicates(
        self, configuration: str, seeds: Sequence[int], *, owner: str | None
    ) -> tuple[Replicate, ...]:
        """One replicate per seed; with an ``owner`` its results are that study's alone."""
        alone = {} if owner is None else {"study": owner}
        return tuple(
            Replicate(
                key=digest({**self.identity, **alone, "seed": seed}),
                configuration=configuration,
                seed=seed,
                method=self.method,
                params=self.params,
                training=self.training,
                encoders=self.encoders,
                structure=self.structure,
            )
            for seed in seeds
        )


def sources_of(task: TaskRef, replicate: Replicate) -> dict[str, Any]:
    """The texts of users' own files that a worker needs for a pack."""
    encoders = (encoder["name"] for encoder in replicate.encoders.values())
    return sources.bundles([task.name, replicate.method, *encoders])
