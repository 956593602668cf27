"""Dry run: build models and send a small batch through them before anything is trained.

One model of every structure is built, on the meta device if all its classes are built-in, so that
even the largest models of a search take no memory. One model of each kind (with users' own
classes: of each structure) is run on two examples of zeros on the CPU. Imports torch when called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modmix.base import sources
from modmix.base.errors import InputError
from modmix.methods.table import method_entry

if TYPE_CHECKING:
    from torch import Tensor

    from modmix.methods.base import Stage
    from modmix.methods.model import Model, ModelSpec

ROWS = 2  # batch size; batch norm fails on 1


def build_without_memory(spec: ModelSpec) -> Model:
    """A model on the meta device; on the CPU if it contains users' own classes.

    Raises:
        InputError: incompatible values, or a class that cannot be constructed.
    """
    import torch

    from modmix.methods.model import build_model

    with nullcontext() if spec.sources else torch.device("meta"):
        return build_model(spec, 0)


def check_model(spec: ModelSpec) -> tuple[str, ...]:
    """Compute features, loss, gradients, scores and reports of a new model on a batch of zeros.

    Returns:
        Warnings, as sentences about the method.

    Raises:
        InputError: a step fails, a shape or a name is wrong, the loss depends on no parameter, a
            buffer is reassigned, or a stackable hyperparameter is not kept as a buffer.
    """
    import torch

    from modmix.methods.base import remembers
    from modmix.methods.model import build_model
    from modmix.training.timeline import check_stages
    from modmix.training.turns import check_turns

    model = build_model(spec, 0)
    where = f"method {sources.place(spec.method)}"
    with sources.explained(f"{where}: remember fails"):
        remembers(model.method, ROWS)
    if model.method.uses_index:
        model.method.index = torch.arange(ROWS)
    buffers = dict(model.named_buffers())
    with torch.random.fork_rng(devices=[]):
        features = _features(spec, model)
        target_B = torch.zeros(ROWS, dtype=torch.int64)
        with sources.explained(f"{where}: stages fails"):
            stages = check_stages(model.method.stages())
            check_turns(stages, model)
            model.method.enter(stages[0])
        with sources.explained(f"{where}: forward fails"):
            outputs = model.method(features)
        with sources.explained(f"{where}: loss fails"):
            losses = model.method.losses(outputs, target_B)
            total = torch.stack([loss.sum() for loss in losses.values()]).sum()
        if not total.requires_grad:
            raise InputError(f"{where}: loss must depend on a parameter, it depends on none")
        with sources.explained(f"{where}: the gradient of loss cannot be computed"):
            total.backward()  # type: ignore[no-untyped-call]
        with sources.explained(f"{where}: scores fails"):
            scores_BC = model.scores(outputs)
        with sources.explained(f"{where}: log_probabilities fails"):
            log_p_BC = model.log_probabilities(outputs)
        with sources.explained(f"{where}: reports fails"):
            reports = dict(model.method.reports(outputs))
        _check_turns(spec, model, stages[0], where)
        is_own = sources.is_reference(spec.method)
        idle = _idle_modulate(spec, model, stages, where) if is_own else None
    for name, loss_B in losses.items():
        _check_shape(f"{where}: {name}", loss_B, (ROWS,), "one number per example")
    why = "a number per example and class"
    _check_shape(f"{where}: scores", scores_BC, (ROWS, spec.classes), why)
    _check_shape(f"{where}: log_probabilities", log_p_BC, (ROWS, spec.classes), why)
    for name, report_BC in reports.items():
        _check_shape(f"{where}: reports: {name}", report_BC, (ROWS, spec.classes), why)
    _check_buffers(buffers, model)
    _check_stackable(spec)
    return () if idle is None else (idle,)


def _check_turns(spec: ModelSpec, model: Model, stage: Stage, where: str) -> None:
    """In every turn the loss must depend on one of the parameters that it trains."""
    import torch

    from modmix.training.turns import turns_of

    parameters = dict(model.named_parameters())
    for i, turn in enumerate(turns_of(model, stage) if stage.turns else ()):
        model.method.turn = i
        with sources.explained(f"{where}: loss fails in turn {i}"):
            outputs = model.method(_features(spec, model))
            losses = model.method.losses(outputs, torch.zeros(ROWS, dtype=torch.int64))
            total = torch.stack([loss.sum() for loss in losses.values()]).sum()
            trained = [parameters[name] for name in turn.trained]
            found = torch.autograd.grad(total, trained, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise InputError(
                f"{where}: in turn {i} of stage {stage.name!r}, loss must depend on a parameter "
                f"that begins with {' or '.join(stage.turns[i])}, it depends on none"
            )


def _idle_modulate(
    spec: ModelSpec, model: Model, stages: Sequence[Stage], where: str
) -> str | None:
    """Run `modulate` in every turn of every stage; a warning if it never returns a gradient.

    Raises:
        InputError: it fails, or returns another name or shape than it is given.
    """
    from modmix.methods.base import modulates
    from modmix.training.turns import turns_of

    if not modulates(model.method):
        return None
    returned: set[str] = set()
    for stage in stages:
        model.method.enter(stage)
        for i, turn in enumerate(turns_of(model, stage)):
            model.method.turn = i
            returned |= _modulated(spec, model, turn.trained, f"{where}: modulate")
    model.method.turn = 0
    if returned:
        return None
    first = next(iter(dict(model.named_parameters())), "none")
    return (
        "modulate returns no gradient, so it has no effect: return those to use by parameter name "
        f"({first!r})"
    )


def _modulated(spec: ModelSpec, model: Model, trained: Collection[str], where: str) -> set[str]:
    """The names of the parameters whose gradients `modulate` returns."""
    import torch

    parameters = {name: x for name, x in model.named_parameters() if name in trained}
    target_B = torch.zeros(ROWS, dtype=torch.int64)
    with sources.explained(f"{where} fails"):
        losses = model.method.losses(model.method(_features(spec, model)), target_B)
        gradients = {name: _gradients(loss_B, parameters) for name, loss_B in losses.items()}
        with torch.no_grad():
            outputs = model.method(_features(spec, model))
            changed = dict(model.method.modulate(outputs, target_B, gradients))
    for name, gradient in changed.items():
        if name not in parameters:
            raise InputError(
                f"{where} must return gradients by the names of the parameters that it is given "
                f"({', '.join(map(repr, list(parameters)[:2]))}, …), got {name!r}"
            )
        _check_shape(f"{where}: {name}", gradient, tuple(parameters[name].shape), "as given")
    return set(changed)


def _gradients(loss_B: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the batch mean, by parameter; zeros where it does not depend on one."""
    import torch

    found: Sequence[Tensor | None] = [None] * len(parameters)
    if loss_B.requires_grad:
        found = torch.autograd.grad(
            loss_B.mean(), list(parameters.values()), allow_unused=True, retain_graph=True
        )
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def _check_buffers(before: Mapping[str, Tensor], model: Model) -> None:
    """Buffers must be updated in place: reassignment is lost when models are stacked."""
    for name, value in model.named_buffers():
        if before.get(name) is not value:
            raise InputError(
                f"the buffer {name} must be changed in place (`self.x.copy_(…)`), got a new tensor "
                "assigned to it"
            )


def _check_stackable(spec: ModelSpec) -> None:
    """A stackable hyperparameter, which may differ between stacked models, must be a buffer."""
    from modmix.methods.model import build_model

    if not sources.is_reference(spec.method):
        return
    for declared in method_entry(spec.method).hyperparameters:
        value = spec.params.get(declared.name)
        if not declared.stackable or not isinstance(value, (int, float)):
            continue
        other = replace(spec, params={**spec.params, declared.name: _another(value)})
        one, two = (dict(build_model(each, 0).named_buffers()) for each in (spec, other))
        if all(one[name].equal(two[name]) for name in one):
            raise InputError(
                f"method {sources.place(spec.method)}: the stackable hyperparameter "
                f"{declared.name!r} must be kept as a buffer (`self.register_buffer("
                f"{declared.name!r}, torch.tensor({declared.name}))`), got none that depends on it"
            )


def _another(value: float) -> float:
    return not value if isinstance(value, bool) else value / 2 if value else value + 1


def _features(spec: ModelSpec, model: Model) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for use, encoder in zip(model.uses, model.encoders, strict=True):
        name = use.input
        what = f"encoder {sources.place(spec.used_encoders[name]['name'])} of input {name}"
        with sources.explained(f"{what} does not take it"):
            found: Any = encoder(_zeros(spec, name))
        widths: Any = encoder.features
        for feature, part in use.features.items():
            if isinstance(found, Mapping) != (part is not None):
                must = "a tensor" if part is None else "a mapping of tensors"
                raise InputError(f"{what} must return {must}, got {type(found).__name__}")
            label = f"{what}: features" if part is None else f"{what}: features of {part}"
            value = found if part is None else found.get(part)
            width = widths if part is None else widths[part]
            _check_shape(label, value, (ROWS, width), "as its attribute features says")
            made[feature] = value
    return {name: made[name] for name in model.feature_names}


def _zeros(spec: ModelSpec, name: str) -> Tensor:
    """A batch of zeros for an input; ones for tokens, since 0 is padding."""
    import torch

    given = spec.inputs[name]
    if given.kind == "tokens":
        return torch.ones(ROWS, *given.shape, dtype=torch.int64)
    return torch.zeros(ROWS, *given.shape)


def _check_shape(what: str, value: Any, shape: tuple[int, ...], why: str) -> None:
    import torch

    got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    if got != shape:
        raise InputError(f"{what} must be of shape {shape} for {ROWS} examples ({why}), got {got}")
