"""Settings that are valid individually but not in combination, or not for this data.

Problems reject a study before anything is trained: metrics undefined for the labels, batches too
small for batch norm. Warnings name settings that have no effect in combination with the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from modmix.base import sources
from modmix.base.messages import Replicate
from modmix.base.metrics import METRICS
from modmix.base.wording import counted
from modmix.encoders.table import modality_inputs
from modmix.methods.table import method_entry

if TYPE_CHECKING:
    from modmix.methods.model import Model
    from modmix.tasks.data import Data


def metric_problem(metric: str, data: Data) -> str | None:
    """Why a metric such as "val/auc" is undefined on this data for any model, or None."""
    split, _, name = metric.partition("/")
    needed = METRICS[name].fewest_classes
    if needed < 2:
        return None
    import numpy as np

    found = np.unique(data.splits[split].labels)
    if len(found) >= needed:
        return None
    rows, only = data.splits[split].rows, data.class_names[int(found[0])]
    others = ", ".join(f"{split}/{m.name}" for m in METRICS.values() if m.fewest_classes < needed)
    return (
        f"{metric} is undefined, because all {rows} examples of the split {split!r} are of class "
        f"{only!r}: split the data so that it has several classes there, or name another metric "
        f"({others})"
    )


def batch_problem(model: Model, replicate: Replicate, data: Data) -> str | None:
    """Why a model cannot be trained on batches of this size, or None.

    Batch norm fails on a batch of one example, which has no variance. This is checked by a forward
    pass on the model's device (possibly "meta"), so it covers users' own encoders.
    """
    size, rows = replicate.training["batch_size"], data.train.rows
    if min(size, rows) > 1:
        return None
    import torch

    parameter = next(model.parameters(), None)
    device = torch.device("meta") if parameter is None else parameter.device
    inputs = {
        name: torch.zeros(
            (1, *one.shape),
            dtype=torch.int64 if str(one.kind) == "tokens" else torch.float32,
            device=device,
        )
        for name, one in data.inputs.items()
    }
    try:
        with torch.no_grad():
            model.train()(inputs)
    except ValueError as error:  # raised by torch for a batch too small to normalise
        why = "batch_size is 1" if size == 1 else "there are no more in the training split"
        return (
            f"it cannot be trained on batches of one example ({why}): {error}; raise batch_size, "
            "or turn batch norm off"
        )
    return None


# ---------------------------------------------------------------- settings without effect

# Setting -> the setting that controls it, and the values of that one for which it has an effect.
_READERS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
    "betas": ("optimizer", ("adam", "adamw")),
    "eps": ("optimizer", ("adam", "adamw")),
    "milestones": ("schedule", ("step",)),
    "decay_rate": ("schedule", ("exponential", "step")),
    "compile": ("stack", ("auto", "always")),
}


def warnings_of(
    given: Collection[str], replicate: Replicate, data: Data, gpus: float
) -> Iterator[str]:
    """One sentence per setting without effect in combination with the others.

    Args:
        given: names of the settings that the study file sets; there is no warning about defaults,
            unless the method would not do what it is known for.
        replicate: any replicate of the configuration, for its resolved settings.
        gpus: GPUs of one pack.
    """
    training = replicate.training
    for name, (reader, values) in _READERS.items():
        if name in given and training[reader] not in values:
            yield (
                f"{name} has no effect with {reader}: {training[reader]} "
                f"(only with {' or '.join(values)})"
            )
    yield from _schedule(given, training)
    yield from _evaluations(given, training, data)
    if training["cuda_graphs"] == "always" and "cuda_graphs" in given and not gpus:
        yield "cuda_graphs: always has no effect without a GPU: give resources: {gpus: 1}"
    yield from _encoder_fields(given, replicate)
    is_linear = replicate.params.get("depth") == 0 and not sources.is_reference(replicate.method)
    if "width" in given and is_linear:
        yield "width has no effect with depth: 0 (no hidden layers)"
    yield from _idle(replicate)


def _idle(replicate: Replicate) -> Iterator[str]:
    """What the method never does in so few epochs; also with its defaults."""
    idle = method_entry(replicate.method).idle
    if idle is None:
        return
    made = modality_inputs(replicate.encoders, prefixed=len(replicate.encoders) > 1)
    why = idle(len(made), replicate.params, replicate.training["epochs"])
    if why is not None:
        yield why


def _encoder_fields(given: Collection[str], replicate: Replicate) -> Iterator[str]:
    encoders = replicate.encoders.values()
    known = {field for encoder in encoders for field in encoder}
    used = ", ".join(dict.fromkeys(str(encoder["name"]) for encoder in encoders))
    for name in given:
        if name.startswith("encoder.") and name.removeprefix("encoder.") not in known:
            why = f"no encoder here has it ({used})" if used else "the method takes raw inputs"
            yield f"{name} has no effect: {why}"


def _schedule(given: Collection[str], training: Mapping[str, Any]) -> Iterator[str]:
    if training["nesterov"] and training["optimizer"] == "sgd" and not training["momentum"]:
        yield "nesterov has no effect with momentum: 0"
    if training["schedule"] != "step":
        return
    milestones, epochs = training["milestones"], training["epochs"]
    late = [milestone for milestone in milestones if milestone >= epochs]
    if not milestones and "schedule" in given:
        yield "schedule: step has no effect without milestones: the learning rate stays as it is"
    elif late and not set(given).isdisjoint({"milestones", "epochs"}):
        yield (
            f"milestones from {late[0]:g} on have no effect: training ends after "
            f"{counted(epochs, 'epoch')}"
        )


def _evaluations(given: Collection[str], training: Mapping[str, Any], data: Data) -> Iterator[str]:
    rows, size = data.train.rows, training["batch_size"]
    steps = rows // min(size, rows)
    each = min(training["evaluations_per_epoch"], steps)
    if size > rows and "batch_size" in given:
        yield (
            f"batch_size {size} is more than the {rows} training examples: every step sees all "
            "of them"
        )
    if training["evaluations_per_epoch"] > steps and "evaluations_per_epoch" in given:
        yield (
            f"evaluations_per_epoch {training['evaluations_per_epoch']} is more than an epoch has "
            f"steps ({steps}): there is one after every step"
        )
    patience, total = training["patience"], training["epochs"] * each
    if patience is not None and patience >= total - 1 and "patience" in given:
        yield (
            f"patience {patience} never stops a model that has {total} evaluations "
            "(epochs · evaluations_per_epoch): lower it, or raise epochs"
        )
