"""Table of methods: hyperparameters and requirements. Does not import torch.

User-defined methods are named by references (see `modmix.base.sources`); `method_entry` returns
entries for both. Configurations are checked with `problems` when a study is planned, so the classes
do not validate them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from math import comb
from typing import Any

from modmix.base import sources as own
from modmix.base.errors import InputError
from modmix.base.settings import TRAINING
from modmix.base.signature import hyperparameters, summary
from modmix.methods.entries_balanced import BALANCED
from modmix.methods.entries_combine import COMBINE
from modmix.methods.entries_confidence import CONFIDENCE
from modmix.methods.entries_joint import JOINT
from modmix.methods.entries_staged import STAGED
from modmix.methods.entry import MethodEntry

MAX_SOURCES = 127  # 2⁷ − 1: all mixtures of seven modalities


METHODS: dict[str, MethodEntry] = {**COMBINE, **JOINT, **BALANCED, **CONFIDENCE, **STAGED}


def method_entry(name: str) -> MethodEntry:
    """The entry of a method, built-in or user-defined.

    A user-defined class may have the class attributes ``encoder_sets`` and ``separate_encoders``,
    see `MethodEntry`.

    Raises:
        InputError: the class is missing, is not a `Method`, or has an unsupported signature or
            encoder sets that are not names.
    """
    return METHODS[name] if name in METHODS else _own_entry(name)


@cache
def _own_entry(name: str) -> MethodEntry:
    from modmix.methods.base import Method

    found = own.load_subclass(name, Method, "modmix.Method")
    declared = hyperparameters(found, own.place(name), reserved={*TRAINING, "class"})
    sets = getattr(found, "encoder_sets", ("",))
    if not _are_sets(sets):
        raise InputError(
            f"{own.place(name)}: encoder_sets must be a tuple of different names that begins with "
            f'"" (the plain set), such as ("", "teacher/"), got {sets!r}'
        )
    return MethodEntry(
        path=name,
        doc=summary(found),
        hyperparameters=declared,
        separate_encoders=bool(getattr(found, "separate_encoders", False)),
        encoder_sets=sets,
    )


def _are_sets(sets: object) -> bool:
    if not isinstance(sets, tuple) or not all(isinstance(name, str) for name in sets):
        return False
    return sets[:1] == ("",) and len(set(sets)) == len(sets)


def modalities(method: str, names: Sequence[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities that a configuration of this method uses, in the task's order."""
    chosen = params.get("modality") if method == "base" else None
    return tuple(names) if chosen is None else (chosen,)


def subsets(names: Sequence[str], largest: int | None = None) -> tuple[tuple[str, ...], ...]:
    """All non-empty subsets of at most ``largest`` names, smallest first (eq. 11).

    Example:
        >>> subsets(["a", "b"])
        (('a',), ('b',), ('a', 'b'))
    """
    sizes = range(1, min(largest or len(names), len(names)) + 1)
    return tuple(subset for size in sizes for subset in combinations(names, size))


def sources(method: str, names: Sequence[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the sources: the mixtures for mulmix, the modalities for all other methods."""
    used = modalities(method, names, params)
    if method != "mulmix":
        return used
    return tuple("+".join(subset) for subset in subsets(used, params.get("max_subset")))


def problems(method: str, names: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Problems with a configuration of a method on a task with modalities ``names``.

    Each value in ``params`` must already have been checked by itself. Each problem is a clause: the
    rule, the value given and the remedy.
    """
    entry = method_entry(method)
    found: list[str] = []
    if len(names) < entry.min_modalities:
        found.append(f"needs at least {entry.min_modalities} modalities, got {', '.join(names)}")
    chosen = params.get("modality")
    if method == "base" and chosen is not None and chosen not in names:
        found.append(f"modality must be one of {', '.join(names)}, got {chosen!r}")
    if method == "mulmix" and _count(len(names), params.get("max_subset")) > MAX_SOURCES:
        found.append(
            f"at most {MAX_SOURCES} mixtures can be combined, {len(names)} modalities make "
            f"{_count(len(names), params.get('max_subset'))}; set max_subset"
        )
    elif params.get("weights") and method in METHODS:
        known = sources(method, names, params)
        unknown = [name for name in params["weights"] if name not in known]
        if unknown:
            found.append(f"weights must name sources ({', '.join(known)}), got {unknown[0]!r}")
    return found


def _count(names: int, largest: int | None) -> int:
    return sum(comb(names, size) for size in range(1, min(largest or names, names) + 1))
