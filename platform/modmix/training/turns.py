"""What each turn of a stage trains, and which modules are in evaluation mode meanwhile.

A stage without turns is one turn that trains everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from modmix.base.errors import InputError
from modmix.methods.base import Stage
from modmix.methods.model import Model

WHOLE = ("",)  # a prefix of every name: the turn of a stage without turns


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn: the parameters it trains, by name, and the modules in evaluation mode."""

    trained: frozenset[str]
    resting: tuple[nn.Module, ...]


def turns_of(model: Model, stage: Stage) -> tuple[Turn, ...]:
    """The turns of a stage, in order.

    Parameters that the model itself declares untrainable are never trained.
    """
    return tuple(
        Turn(
            trained=frozenset(_trained(model, stage, prefixes)),
            resting=tuple(_resting(model, stage, prefixes)),
        )
        for prefixes in stage.turns or (WHOLE,)
    )


def _trained(model: Model, stage: Stage, prefixes: tuple[str, ...]) -> Iterator[str]:
    for name, parameter in model.named_parameters():
        frozen = bool(stage.frozen) and name.startswith(stage.frozen)
        if parameter.requires_grad and not frozen and name.startswith(prefixes):
            yield name


def _resting(model: Model, stage: Stage, prefixes: tuple[str, ...]) -> Iterator[nn.Module]:
    """Frozen modules, and modules outside the turn's prefixes, unless they contain some."""
    for name, module in model.named_modules():
        inside = f"{name}.".startswith(prefixes)
        contains = not name or any(prefix.startswith(f"{name}.") for prefix in prefixes)
        if (stage.frozen and f"{name}.".startswith(stage.frozen)) or not (inside or contains):
            yield module


def check_turns(stages: Sequence[Stage], model: Model) -> None:
    """Check that every turn of every stage trains something.

    Raises:
        InputError: a turn without trained parameters, a kept optimizer with other turns, or a
            ``turn_every`` that is neither "batch" nor "epoch", or ``turn_epochs`` below 1.
    """
    before: Stage | None = None
    for stage in stages:
        where = f"stage {stage.name!r}"
        if stage.turn_every not in ("batch", "epoch"):
            raise InputError(
                f"turn_every of {where} must be 'batch' or 'epoch', got {stage.turn_every!r}"
            )
        if stage.turn_epochs < 1:
            raise InputError(f"turn_epochs of {where} must be at least 1, got {stage.turn_epochs}")
        for i, turn in enumerate(turns_of(model, stage) if stage.turns else ()):
            if not turn.trained:
                raise InputError(
                    f"every turn must train a parameter, turn {i} of {where} trains none with the "
                    f"prefixes {_listed(stage.turns[i])}; names of parameters begin with "
                    f"{_listed(_beginnings(model))}"
                )
        if before is not None and stage.optimizer == "kept" and stage.turns != before.turns:
            raise InputError(
                f"{where} must have the turns of the stage before it, whose optimizer it keeps: "
                "give both the same turns, or leave optimizer at 'fresh'"
            )
        before = stage


def _beginnings(model: Model) -> list[str]:
    """What the names of trainable parameters begin with: "encoders.0.", "method.head."."""
    found: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        if parameter.requires_grad:
            found[".".join(pieces[:2]) + ("." if len(pieces) > 2 else "")] = None
    return list(found)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "()"
