"""Table entries of tasks with text."""

from __future__ import annotations

from modmix.tasks.entry import MLP_64, TaskEntry
from modmix.tasks.options import Option

_SEQUENCES_RECIPE = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "batch_size": 32,
    "epochs": 40,
    "clip_norm": 0.8,
    "patience": 10,
}

_SENTIMENT_OPTIONS = (
    Option(
        name="path",
        kind="path",
        default=None,
        required=True,
        doc="the pickle {train, valid, test} of {text, audio, vision, labels}",
    ),
    Option(
        name="inputs",
        kind="strs",
        default=None,
        optional=True,
        choices=("text", "audio", "vision"),
        doc="which inputs, in this order; null: all three",
    ),
    Option(
        name="classes",
        kind="str",
        default="non_negative",
        choices=("non_negative", "positive", "three", "seven"),
        doc="negative against non_negative scores; against positive ones, without those of 0; "
        "three by their sign; seven by rounding, Acc-7",
    ),
    Option(
        name="length",
        kind="int",
        default=None,
        optional=True,
        low=1,
        doc="frames kept of each row, from its first word on; null: all",
    ),
    Option(
        name="standardize",
        kind="bool",
        default=True,
        doc="divide features by their root mean square over the training frames that are not empty",
    ),
    Option(
        name="replace_nan",
        kind="bool",
        default=False,
        doc="read NaN as 0; false: refuse files with NaN",
    ),
)

MOSI = TaskEntry(
    path="modmix.tasks.mosi:Mosi",
    doc="CMU-MOSI: words, voice and face of 2,199 spoken opinions on films; their sentiment",
    options=_SENTIMENT_OPTIONS,
    encoders={"*": MLP_64},
    training=_SEQUENCES_RECIPE,
    cost="seconds; the pickle in memory, and as much disk in float32",
    source="your copy of the prepared pickle of CMU-MOSI",
)

MOSEI = TaskEntry(
    path="modmix.tasks.mosi:Mosei",
    doc="CMU-MOSEI: words, voice and face of some 22,800 spoken opinions; their sentiment",
    options=_SENTIMENT_OPTIONS,
    encoders={"*": MLP_64},
    training=_SEQUENCES_RECIPE,
    cost="a minute; the pickle in memory (up to 4 GB), and 2 GB of disk",
    source="your copy of the prepared pickle of CMU-MOSEI",
)

TEXT: dict[str, TaskEntry] = {"mosi": MOSI, "mosei": MOSEI}
