"""Resolved configurations: every setting a model is trained with, and its replicates' keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from modmix.base import sources
from modmix.base.code import code_digest
from modmix.base.messages import NUMERICS_VERSION, Replicate, TaskRef, digest
from modmix.base.settings import TRAINING, WITHOUT_EFFECT
from modmix.encoders.table import encoder_entry
from modmix.methods.table import METHODS, method_entry


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One configuration of a method: the parameters to display, and its replicates."""

    key: str
    method: str
    params: Mapping[str, Any]
    task: TaskRef
    replicates: tuple[Replicate, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task, that the study varies
    task_name: str = ""  # in a study of several tasks

    def also(self, same: Configuration) -> Configuration:
        """This configuration, asked for with other task options too: they make no difference."""
        common = {k: v for k, v in self.options.items() if same.options.get(k, ...) == v}
        return replace(self, options=common)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that determines a model except its seed, resolved.

    ``name`` is the method's name in the study file, ``method`` its built-in name or a reference.
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
        """Everything that the results depend on except the seed; hashed into replicate keys.

        References contain digests of users' own files. A class under two names is two methods.
        """
        return {
            "method": self.method if self.method in METHODS else [self.name, self.method],
            "params": dict(self.params),
            "training": {
                name: value
                for name, value in self.training.items()
                if name not in WITHOUT_EFFECT and (name != "pbt" or value is not None)
            },
            "encoders": {name: dict(value) for name, value in self.encoders.items()},
            "task": [self.task.name, self.task.fingerprint],
            "augmentation": {name: dict(value) for name, value in self.augmentation.items()},
            "numerics": NUMERICS_VERSION,
            "code": self._code,
        }

    @property
    def _code(self) -> dict[str, str]:
        """Digests of the code of the method and its encoders, by their names."""
        paths = {self.method: method_entry(self.method).path}
        for encoder in self.encoders.values():
            paths[encoder["name"]] = encoder_entry(encoder["name"]).path
        return {name: code_digest(path) for name, path in paths.items()}

    @cached_property
    def structure(self) -> str:
        """Digest of everything that must be equal within a pack."""
        declared = {h.name: h for h in method_entry(self.method).hyperparameters}
        rest = {
            "params": {k: v for k, v in self.params.items() if not declared[k].stackable},
            "training": {k: v for k, v in self.training.items() if not TRAINING[k].stackable},
        }
        return digest({**self.identity, **rest})

    def value(self, name: str) -> Any:
        """The value of a training setting, encoder field or task option.

        None for an encoder field whose values differ between encoders, or that no encoder has.
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
        """One replicate per seed; with an ``owner``, results are not shared with other studies."""
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
    """Source texts of users' own classes that a worker needs for a replicate's pack."""
    encoders = (encoder["name"] for encoder in replicate.encoders.values())
    return sources.bundles([task.name, replicate.method, *encoders])
