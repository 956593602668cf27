"""What the checks of a study file share: their problems, and values of blocks that may be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from modmix.base.errors import Problem
from modmix.study.files import Source
from modmix.study.spec import FIRST_OF_PART, SearchSpec


class Checks:
    """Collects the problems of one file, which may violate the schema."""

    def __init__(self, source: Source, problems: list[Problem] | None = None) -> None:
        self.source = source
        self.problems: list[Problem] = [] if problems is None else problems

    def add(self, path: Sequence[str | int], message: str) -> None:
        """Record a problem at a path of keys."""
        problem = self.source.problem(path, message)
        if problem not in self.problems:  # shared settings are checked once per method
            self.problems.append(problem)

    def given(self, *path: str) -> Any:
        """The raw value at a path of nested keys, or None."""
        found: Any = self.source.raw
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @property
    def seeds(self) -> int:
        """The number of seeds; 0 if the file is invalid there."""
        raw = self.source.raw.get("seeds", self.given("replicates", "full") or 5)
        if isinstance(raw, list):
            return len(raw)
        return raw if isinstance(raw, int) and raw > 0 else 0


def methods_of(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part's methods; empty if they are no mapping."""
    methods = part.get("methods")
    return methods if isinstance(methods, Mapping) else {}


def labels_of(parts: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of rows that parts give by ``label``."""
    return {
        str(part["label"]).replace("{method}", method)
        for part in parts
        if part.get("label")
        for method in methods_of(part)
    }


def tasks_of_part(part: Any) -> set[str] | None:
    """The tasks that a part names; None for all."""
    named = part.get("tasks") if isinstance(part, Mapping) else None
    return set(map(str, named)) if isinstance(named, list) else None


def seeds_of_part(raw: Any) -> tuple[int, ...] | None:
    """A part's seeds; None where it gives none, or wrong ones (the outline's check says so)."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return tuple(range(FIRST_OF_PART, FIRST_OF_PART + raw)) if 1 <= raw <= 10_000 else None
    return tuple(raw) if isinstance(raw, list) else None


def search_of(raw: Any) -> SearchSpec | None:
    try:
        return None if raw is None else SearchSpec.model_validate(raw)
    except ValueError:
        return None  # reported by the schema check


def task_options(task: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a task block."""
    return {name: value for name, value in task.items() if name not in ("name", "class")}


def is_key_of(name: Any, table: Mapping[str, Any]) -> TypeGuard[str]:
    return isinstance(name, str) and name in table
