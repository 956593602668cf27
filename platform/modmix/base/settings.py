"""Training settings of study files, with defaults; used by the plan and the trainer.

Stackable settings may differ between the models of a pack. Settings in `WITHOUT_EFFECT` affect only
how fast a model is trained, not its results, and are not part of a replicate's key.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from modmix.base.space import Hyperparameter

_SETTINGS = (
    Hyperparameter(
        name="epochs", kind="int", default=20, low=1, doc="passes over the training data"
    ),
    Hyperparameter(
        name="batch_size", kind="int", default=64, low=1, doc="examples a step; the rest is dropped"
    ),
    Hyperparameter(
        name="optimizer",
        kind="str",
        default="adam",
        choices=("sgd", "adam", "adamw"),
        doc="update rule",
    ),
    Hyperparameter(
        name="learning_rate",
        kind="float",
        default=1e-3,
        low=0.0,
        stackable=True,
        doc="initial step size",
    ),
    Hyperparameter(
        name="momentum",
        kind="float",
        default=0.9,
        low=0.0,
        high=1.0,
        stackable=True,
        doc="of sgd; 0 turns it off",
    ),
    Hyperparameter(name="nesterov", kind="bool", default=False, doc="Nesterov momentum, of sgd"),
    Hyperparameter(
        name="betas",
        kind="floats",
        default=[0.9, 0.999],
        low=0.0,
        high=1.0,
        doc="decay of the two moments, of adam and adamw",
    ),
    Hyperparameter(
        name="eps",
        kind="float",
        default=1e-8,
        low=0.0,
        doc="added to the denominator, of adam and adamw",
    ),
    Hyperparameter(
        name="weight_decay",
        kind="float",
        default=0.0,
        low=0.0,
        stackable=True,
        doc="L2 coefficient (decoupled in adamw)",
    ),
    Hyperparameter(
        name="decay",
        kind="str",
        default="weights",
        choices=("weights", "all"),
        doc="what weight decay acts on: weights (two or more dimensions) or all",
    ),
    Hyperparameter(
        name="clip_norm",
        kind="float",
        default=None,
        optional=True,
        low=0.0,
        stackable=True,
        doc="largest gradient norm of one model; null: not clipped",
    ),
    Hyperparameter(
        name="schedule",
        kind="str",
        default="constant",
        choices=("constant", "exponential", "step", "cosine"),
        doc="of the learning rate",
    ),
    Hyperparameter(
        name="decay_rate",
        kind="float",
        default=0.99,
        low=0.0,
        high=1.0,
        stackable=True,
        doc="factor per epoch (exponential) or per milestone (step)",
    ),
    Hyperparameter(
        name="milestones",
        kind="floats",
        default=[],
        low=0.0,
        doc="epochs, of the step schedule; within an epoch: at the nearest step",
    ),
    Hyperparameter(
        name="patience",
        kind="int",
        default=None,
        optional=True,
        low=1,
        doc="evaluations without improvement before a model stops; null: it never stops early",
    ),
    Hyperparameter(
        name="batches",
        kind="str",
        default="shuffled",
        choices=("shuffled", "windows"),
        doc="pieces of a random order of all rows, or adjacent rows from random places",
    ),
    Hyperparameter(
        name="evaluations_per_epoch", kind="int", default=1, low=1, doc="evaluations an epoch"
    ),
    Hyperparameter(
        name="monitor",
        kind="str",
        default="val/error",
        doc="validation metric that picks the best epoch and stops early",
    ),
    Hyperparameter(
        name="select",
        kind="str",
        default=None,
        optional=True,
        choices=("last", "best"),
        doc="which epoch's weights count; null: best where patience is set, else last",
    ),
    Hyperparameter(
        name="precision",
        kind="str",
        default="float32",
        choices=("float32", "tf32", "bf16"),
        doc="of the arithmetic; tf32: float32 with shorter factors in products on a GPU",
    ),
    Hyperparameter(
        name="eval_batch_size", kind="int", default=4096, low=1, doc="examples at a time"
    ),
    Hyperparameter(
        name="stack",
        kind="str",
        default="auto",
        choices=("auto", "always", "never"),
        doc="train a pack stacked, one model after another, or whichever is faster",
    ),
    Hyperparameter(
        name="compile",
        kind="bool",
        default=False,
        doc="run the stacked step through torch.compile",
    ),
    Hyperparameter(
        name="cuda_graphs",
        kind="str",
        default="auto",
        choices=("auto", "always", "never"),
        doc="on a GPU, record a step's kernels once and launch them together; auto: if faster",
    ),
    Hyperparameter(
        name="halving",
        kind="mapping",
        default=None,
        optional=True,
        doc="{eta, min_epochs}: after min_epochs, and eta times as many each time, the best 1/eta "
        "of a pack's configurations continue; packs of a single one are compared with each other",
    ),
    Hyperparameter(
        name="pbt",
        kind="mapping",
        default=None,
        optional=True,
        doc="{every, fraction, perturb}: after every so many epochs the worst fraction of a pack's "
        "configurations continue as copies of good ones, with hyperparameters times or divided by "
        "perturb; null: hyperparameters stay as they are",
    ),
)

TRAINING: Mapping[str, Hyperparameter] = {setting.name: setting for setting in _SETTINGS}

# Settings that affect how fast a model is trained, but not its results.
WITHOUT_EFFECT = frozenset({"eval_batch_size", "stack", "compile", "cuda_graphs"})


PBT_DEFAULTS: Mapping[str, float] = {"fraction": 0.25, "perturb": 1.25}


def selection(training: Mapping[str, Any]) -> str:
    """Which weights are the result under these settings: "last" or "best"."""
    chosen = training["select"]
    return str(chosen or ("last" if training["patience"] is None else "best"))


def training_defaults() -> dict[str, Any]:
    """Every training setting with its default."""
    return {name: setting.default for name, setting in TRAINING.items()}


def training_problem(name: str, value: Any) -> str | None:
    """Why this value is invalid for a training setting, as a clause; None if it is valid."""
    problem = TRAINING[name].problem(value)
    if problem is not None or value is None:
        return problem
    match name:
        case "betas" if len(value) != 2 or max(value) >= 1:
            return f"must be two numbers from 0 to below 1, got {value!r}"
        case "milestones" if any(b <= a for a, b in itertools.pairwise([0, *value])):
            return f"must be epochs above 0 in rising order, got {value!r}"
        case "halving":
            return _halving_problem(value)
        case "pbt":
            return _pbt_problem(value)
    return None


def _pbt_problem(value: Mapping[str, Any]) -> str | None:
    if not {"every"} <= set(value) <= {"every", *PBT_DEFAULTS}:
        return f"must be {{every: EPOCHS, fraction: 0.25, perturb: 1.25}}, got {dict(value)!r}"
    value = {**PBT_DEFAULTS, **value}
    if value["every"] != int(value["every"]) or value["every"] < 1:
        return f"every must be a whole number of at least 1, got {value['every']!r}"
    if not 0 < value["fraction"] <= 0.5:
        return f"fraction must be above 0 and at most 0.5, got {value['fraction']!r}"
    if value["perturb"] <= 1:
        return f"perturb must be a factor above 1, got {value['perturb']!r}"
    return None


def pbt_settings(training: Mapping[str, Any]) -> dict[str, float]:
    """The setting `pbt` with its defaults; it must be set."""
    return {**PBT_DEFAULTS, **training["pbt"]}


def compares(training: Mapping[str, Any]) -> bool:
    """Whether the configurations of a pack are compared while they are trained."""
    return bool(training.get("halving") or training.get("pbt"))


def _halving_problem(value: Mapping[str, Any]) -> str | None:
    if set(value) != {"eta", "min_epochs"}:
        return f"must be {{eta: 2 or more, min_epochs: 1 or more}}, got {dict(value)!r}"
    for name, low in (("eta", 2), ("min_epochs", 1)):
        if value[name] != int(value[name]) or value[name] < low:
            return f"{name} must be a whole number of at least {low}, got {value[name]!r}"
    return None
