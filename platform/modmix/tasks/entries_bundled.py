"""Table entries of tasks that need no files: digits and synthetic data."""

from __future__ import annotations

from modmix.tasks.entry import MLP_64, SMALL_RECIPE, SPLIT_SEED, TaskEntry
from modmix.tasks.options import Option

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
        SPLIT_SEED,
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
