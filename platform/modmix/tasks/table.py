"""Table of tasks: options, default encoders and training recipe, cost and source of each.

These are plain declarations, so a study file can be validated without torch, numpy or the data.
Option defaults and recipes follow the papers where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from modmix.base import sources as own
from modmix.base.errors import DataError
from modmix.base.signature import arguments, summary
from modmix.base.space import Hyperparameter
from modmix.tasks.options import Option, problems_of, suggestion

MLP_64: Mapping[str, Any] = {"name": "mlp", "hidden": [64]}
CHAR_CNN: Mapping[str, Any] = {"name": "char_cnn"}
SMALL_RECIPE: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "batch_size": 64,
    "epochs": 20,
}


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One task of the table.

    ``path`` is "module:Class"; ``encoders`` maps an input to its default encoder, "*" standing for
    all other inputs; ``training`` are the training settings that differ from the general defaults;
    ``cost`` is the time, disk space and memory that preparation takes.
    """

    path: str
    doc: str
    options: tuple[Option, ...]
    encoders: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    cost: str
    source: str
    download: bool = False  # whether `modmix data get` has something to fetch


_SPLIT_SEED = Option(
    name="split_seed", kind="int", default=0, low=0, doc="seed of the random split of the rows"
)

DIGITS = TaskEntry(
    path="modmix.tasks.digits:Digits",
    doc="1,797 real 8x8 scans of handwritten digits, as four views; 10 classes",
    options=(
        Option(
            name="inputs",
            kind="strs",
            default=None,
            optional=True,
            choices=("left", "right", "profile", "fourier"),
            doc="which inputs, in this order; null: all four",
        ),
        Option(
            name="train_rows",
            kind="int",
            default=None,
            optional=True,
            low=10,
            doc="size of a smaller, stratified training set; null: all 1,079 rows",
        ),
        _SPLIT_SEED,
    ),
    encoders={"*": MLP_64},
    training=SMALL_RECIPE,
    cost="under a second, 2 MB",
    source="comes with scikit-learn; UCI Optical Recognition of Handwritten Digits",
)

WEAK = TaskEntry(
    path="modmix.tasks.weak:Weak",
    doc="synthetic: in each example some inputs are informative, the others weak",
    options=(
        Option(name="inputs", kind="int", default=3, low=1, high=127, doc="number of inputs, m1…"),
        Option(name="classes", kind="int", default=4, low=2, doc="number of classes"),
        Option(name="train_rows", kind="int", default=2000, low=1, doc="training examples"),
        Option(name="val_rows", kind="int", default=1000, low=1, doc="validation examples"),
        Option(name="test_rows", kind="int", default=4000, low=1, doc="test examples"),
        Option(name="dim", kind="int", default=16, low=1, doc="numbers per input"),
        Option(
            name="share",
            kind="float",
            default=0.5,
            low=0.0,
            high=1.0,
            doc="probability that an input is weak in an example",
        ),
        Option(
            name="weakness",
            kind="str",
            default="noise",
            choices=("noise", "conflict", "missing"),
            doc="a weak input is pure noise, indicates a wrong class, or is all zeros",
        ),
        Option(
            name="signal",
            kind="float",
            default=0.75,
            low=0.0,
            doc="standard deviation of the class means",
        ),
        Option(name="noise", kind="float", default=1.0, low=0.0, doc="standard deviation of noise"),
        Option(
            name="kept",
            kind="float",
            default=0.0,
            low=0.0,
            high=1.0,
            doc="fraction of the signal that a weak input keeps; 0: none, 1: not weak",
        ),
        Option(
            name="always_one",
            kind="bool",
            default=True,
            doc="every example keeps at least one informative input",
        ),
        Option(name="seed", kind="int", default=0, low=0, doc="seed of the generator"),
    ),
    encoders={"*": MLP_64},
    training=SMALL_RECIPE,
    cost="under a second, 1 MB with the defaults",
    source="generated",
)

HIGGS = TaskEntry(
    path="modmix.tasks.higgs:Higgs",
    doc="UCI HIGGS: 21 low-level and 7 high-level features of collisions; signal or background",
    options=(
        Option(
            name="variant",
            kind="str",
            default="full",
            choices=("small", "full"),
            doc="small: a third of the training rows",
        ),
        Option(
            name="third",
            kind="str",
            default="random",
            choices=("random", "every"),
            doc="which third is small: a random one, or every third row (the paper's code)",
        ),
        Option(
            name="standardise",
            kind="str",
            default="train",
            choices=("train", "train_and_test"),
            doc="rows whose mean and deviation standardise the features; the paper's code takes "
            "those of the test split, too",
        ),
        Option(
            name="path",
            kind="path",
            default=None,
            optional=True,
            doc="a CSV or CSV.GZ file of the official layout; null: the official file",
        ),
        Option(
            name="test_rows",
            kind="int",
            default=500_000,
            low=1,
            doc="number of rows at the end of the file that form the test split",
        ),
        Option(
            name="val_rows",
            kind="int",
            default=None,
            optional=True,
            low=1,
            doc="number of training rows used for validation; null: use val_fraction",
        ),
        Option(
            name="val_fraction",
            kind="float",
            default=0.05,
            low=0.0001,
            high=0.9,
            doc="share of the training rows that becomes validation",
        ),
        _SPLIT_SEED,
    ),
    encoders={
        "low": {"name": "mlp", "hidden": [300] * 4},
        "high": {"name": "mlp", "hidden": [300] * 2},
    },
    training={
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 2e-5,
        "batch_size": 128,
        "epochs": 50,
        "clip_norm": 10.0,
        "schedule": "exponential",
        "decay_rate": 0.99,
        "patience": 10,
        "evaluations_per_epoch": 4,
    },
    cost="2.8 GB download; minutes, 0.5 GB of memory, 2.7 GB of disk, 1.4 GB of it kept",
    source="https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz",
    download=True,
)

CIFAR100 = TaskEntry(
    path="modmix.tasks.cifar100:Cifar100",
    doc="CIFAR-100: 60,000 colour photographs of 32x32 pixels; 100 classes",
    options=(
        Option(
            name="path",
            kind="path",
            default=None,
            optional=True,
            doc="the official folder cifar-100-python, or one that holds it; null: the download",
        ),
        Option(
            name="val_rows",
            kind="int",
            default=5000,
            low=1,
            high=49_900,
            doc="how many training rows become validation, as many of each class",
        ),
        _SPLIT_SEED,
        Option(
            name="augment",
            kind="bool",
            default=True,
            shapes_arrays=False,
            doc="in training, pad by 2 pixels, crop to 32x32 and mirror at random",
        ),
    ),
    encoders={"image": {"name": "resnet", "depth": 32}},
    training={
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 2e-4,
        "batch_size": 100,
        # 450 steps an epoch with the default val_rows: 80,100 steps; the paper has 80,000.
        "epochs": 178,
        "schedule": "step",
        "decay_rate": 0.1,
        "milestones": [40_000 / 450, 60_000 / 450],
        "select": "last",
    },
    cost="169 MB download; seconds, 1 GB of memory, 540 MB of disk",
    source="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    download=True,
)

GENDER = TaskEntry(
    path="modmix.tasks.gender:Gender",
    doc="first name, user ID and activity counts of synthetic users, or of a CSV; male or female",
    options=(
        Option(
            name="source",
            kind="str",
            default="generated",
            choices=("generated", "csv"),
            doc="synthetic users, or the file at ``path``",
        ),
        Option(
            name="path",
            kind="path",
            default=None,
            optional=True,
            doc="a CSV or CSV.GZ with the columns name, user_id, gender, f1, f2…; with source: csv",
        ),
        Option(
            name="names",
            kind="path",
            default=None,
            optional=True,
            doc="a CSV or CSV.GZ of first names with the columns name, female, male; null: names "
            "made of syllables",
        ),
        Option(
            name="features",
            kind="int",
            default=6,
            low=1,
            doc="activity counts: the first of 22 synthetic ones, or f1, f2… of the CSV",
        ),
        Option(
            name="train_rows",
            kind="int",
            default=None,
            optional=True,
            low=1,
            doc="training users; null: 60,000 synthetic ones, or the remaining rows of a CSV",
        ),
        Option(
            name="val_rows",
            kind="int",
            default=None,
            optional=True,
            low=1,
            doc="validation users; null: 5,000 synthetic ones, a fifteenth of a CSV",
        ),
        Option(
            name="test_rows",
            kind="int",
            default=None,
            optional=True,
            low=1,
            doc="test users; null: 10,000 synthetic ones, two fifteenths of a CSV",
        ),
        Option(
            name="length", kind="int", default=15, low=1, doc="characters kept of names and IDs"
        ),
        Option(
            name="female",
            kind="float",
            default=0.5,
            low=0.01,
            high=0.99,
            doc="probability that a synthetic user is female",
        ),
        Option(
            name="missing",
            kind="float",
            default=0.25,
            low=0.0,
            high=1.0,
            doc="probability that a synthetic user has no name",
        ),
        Option(
            name="wrong",
            kind="float",
            default=0.1,
            low=0.0,
            high=1.0,
            doc="probability that a name that is not missing is anybody's",
        ),
        Option(
            name="hidden",
            kind="float",
            default=0.5,
            low=0.0,
            high=1.0,
            doc="probability that a synthetic user's ID does not show the name",
        ),
        Option(
            name="idle",
            kind="float",
            default=0.1,
            low=0.0,
            high=1.0,
            doc="probability that a synthetic user's activity says nothing of gender",
        ),
        Option(
            name="seed",
            kind="int",
            default=0,
            low=0,
            doc="seed of the synthetic users, or of a CSV's random split",
        ),
    ),
    encoders={
        "name": {"name": "char_lstm", "embedding": 128, "units": 512},
        "user_id": {"name": "char_lstm", "embedding": 128, "units": 512},
        "activity": {"name": "mlp", "hidden": [2000, 2000]},
    },
    training={
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "batch_size": 128,
        "epochs": 50,
        "clip_norm": 5.0,
        "schedule": "exponential",
        "decay_rate": 0.99,
        "patience": 15,
        "evaluations_per_epoch": 4,
    },
    cost="under a second, 5 MB with the defaults; 2 seconds and 60 to 130 MB per million "
    "synthetic users, 5 seconds per million of a CSV",
    source="generated, or your file: the paper's data is not public",
)

_SPECTROGRAM = (
    Hyperparameter(name="rate", kind="float", default=1.0, low=1e-9, doc="samples per second"),
    Hyperparameter(name="window", kind="int", default=256, low=2, doc="window length in samples"),
    Hyperparameter(
        name="overlap",
        kind="int",
        default=None,
        optional=True,
        low=0,
        doc="samples shared by adjacent windows; null: an eighth of the window",
    ),
    Hyperparameter(
        name="mu_law",
        kind="int",
        default=None,
        optional=True,
        low=1,
        doc="highest mu-law level, 255 for 8 bits; null: samples are linear",
    ),
)

_AUGMENTATION = (
    Hyperparameter(
        name="pad", kind="int", default=0, low=0, doc="zeros on each side before a random crop"
    ),
    Hyperparameter(name="flip", kind="bool", default=False, doc="mirror left-right at random"),
)

ARRAYS = TaskEntry(
    path="modmix.tasks.arrays:Arrays",
    doc="your own .npz (one array per input and labels) or CSV",
    options=(
        Option(
            name="path", kind="path", default=None, required=True, doc="an .npz, .csv or .csv.gz"
        ),
        Option(
            name="inputs",
            kind="strs",
            default=None,
            optional=True,
            doc="which inputs, in this order; null: all numeric arrays (of a CSV: `columns`)",
        ),
        Option(
            name="columns",
            kind="columns",
            default=None,
            optional=True,
            doc='CSV only: input -> its columns, as {audio: ["audio_*"], age: ["age"]}',
        ),
        Option(
            name="label",
            kind="str",
            default=None,
            optional=True,
            doc="array or column of the labels; null: labels or label",
        ),
        Option(
            name="split",
            kind="str",
            default=None,
            optional=True,
            doc="array or column that says the split; null: split, is_test or n_train if there",
        ),
        Option(
            name="classes",
            kind="int",
            default=None,
            optional=True,
            low=2,
            doc="number of classes, labels then being 0..classes-1; null: the labels found",
        ),
        Option(
            name="val_fraction",
            kind="float",
            default=0.2,
            low=0.001,
            high=0.9,
            doc="share of the training rows that becomes validation where the file has none",
        ),
        Option(
            name="test_fraction",
            kind="float",
            default=0.2,
            low=0.001,
            high=0.9,
            doc="share of all rows that becomes the test split where the file says none",
        ),
        _SPLIT_SEED,
        Option(
            name="standardize",
            kind="bool",
            default=True,
            doc="mean 0, deviation 1 by training statistics (images: per channel); false: images "
            "of bytes are divided by 255",
        ),
        Option(
            name="tokens",
            kind="strs",
            default=None,
            optional=True,
            doc="inputs that are token ids (0 is padding) or text, whose lower-cased characters "
            "become ids: 1 unknown, then those of the training rows; null: arrays with "
            "NAME_lengths beside them",
        ),
        Option(
            name="token_length",
            kind="int",
            default=None,
            optional=True,
            low=1,
            doc="tokens kept of each example, from its start; null: ids all, characters as many "
            "as the longest training text has",
        ),
        Option(
            name="spectrogram",
            kind="by_input",
            default=None,
            optional=True,
            fields=_SPECTROGRAM,
            doc="sounds (N, samples) that become images (F, T, 1), log(|S| + 1e-7), as "
            "{audio: {rate: 8000, window: 256, overlap: 128, mu_law: 255}}",
        ),
        Option(
            name="augment",
            kind="by_input",
            default=None,
            optional=True,
            shapes_arrays=False,
            fields=_AUGMENTATION,
            doc="random changes of images in training, as {image: {pad: 4, flip: true}}",
        ),
    ),
    encoders={"*": MLP_64},
    training=SMALL_RECIPE,
    cost="seconds; as much disk as the arrays have, floats in float32",
    source="your file",
)

TASKS: dict[str, TaskEntry] = {
    "digits": DIGITS,
    "weak": WEAK,
    "higgs": HIGGS,
    "cifar100": CIFAR100,
    "gender": GENDER,
    "arrays": ARRAYS,
}


def task_entry(name: str) -> TaskEntry:
    """The entry of a task, built-in or user-defined (by its reference).

    Raises:
        DataError: there is no such task; a similar name is suggested.
        InputError: a user-defined class has an unsupported signature.
    """
    if own.is_reference(name):
        return _own_entry(name)
    if name not in TASKS:
        raise DataError(
            f"there is no task {name!r}{suggestion(name, TASKS)}; the tasks are {', '.join(TASKS)}"
        )
    return TASKS[name]


_OWN_KINDS = frozenset({"float", "int", "bool", "str", "path", "strs"})


@cache
def _own_entry(name: str) -> TaskEntry:
    found, where = own.load(name), own.place(name)
    options = tuple(
        Option(
            name=argument.name,
            kind=cast(Any, argument.kind),
            default=argument.default,
            doc=f"of {where}",
            optional=argument.optional,
            required=argument.required,
            choices=argument.choices,
        )
        for argument in arguments(found, where, admitted=_OWN_KINDS)
    )
    return TaskEntry(
        path=name,
        doc=summary(found),
        options=options,
        encoders={"*": MLP_64},
        training={},
        cost="unknown",
        source="your own",
    )


def option_problems(name: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All problems with a task's options as (option, message)."""
    return problems_of(options, task_entry(name).options)


def resolve_options(
    name: str, options: Mapping[str, Any], folder: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Options of a task with defaults filled in, in the order of the table.

    Relative paths are resolved against ``folder`` (by default the working directory), so that
    workers with another working directory find the same file.

    Raises:
        DataError: the first problem found.
    """
    entry = task_entry(name)
    for option_name, message in option_problems(name, options):
        raise DataError(f"task {name}: option {option_name!r} {message}")
    resolved: dict[str, Any] = {}
    for option in entry.options:
        value = option.normalise(options.get(option.name, option.default))
        if option.kind == "path" and value is not None:
            value = str(Path(folder or Path.cwd(), Path(value).expanduser()).absolute())
        resolved[option.name] = value
    return resolved


def default_encoders(
    name: str, inputs: Iterable[str], kinds: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Default encoder by input: the task's for this input, else char_cnn for tokens, else "*"."""
    encoders = task_entry(name).encoders
    found = {}
    for each in inputs:
        is_tokens = (kinds or {}).get(each) == "tokens"
        rest = CHAR_CNN if is_tokens else encoders.get("*", MLP_64)
        found[each] = dict(encoders.get(each, rest))
    return found
