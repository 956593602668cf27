"""Table entries of the data sets of "Learn to Combine Modalities" (2018)."""

from __future__ import annotations

from modmix.tasks.entry import SPLIT_SEED, TaskEntry
from modmix.tasks.options import Option

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
            doc="rows whose mean and standard deviation standardise the features; the paper's code "
            "includes the test split",
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
            doc="fraction of the training rows used for validation",
        ),
        SPLIT_SEED,
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
            doc="training rows used for validation, stratified by class",
        ),
        SPLIT_SEED,
        Option(
            name="augment",
            kind="bool",
            default=True,
            shapes_arrays=False,
            doc="in training, pad by 2 pixels, then random crops to 32x32 and horizontal flips",
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
            doc="probability that a name that is not missing is another person's",
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
            doc="probability that a synthetic user's activity does not depend on gender",
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
