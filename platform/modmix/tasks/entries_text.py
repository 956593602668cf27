"""Table entries of tasks with text."""

from __future__ import annotations

from modmix.tasks.entries_video import MAX_UNREADABLE
from modmix.tasks.entries_video import path as path_option
from modmix.tasks.entry import SPLIT_SEED, TaskEntry
from modmix.tasks.options import Option

_TRANSFORMER = {"name": "transformer"}
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
        doc="negative against non_negative scores; negative against positive, without scores "
        "of 0; three by sign; seven by rounding (Acc-7)",
    ),
    Option(
        name="length",
        kind="int",
        default=None,
        optional=True,
        low=1,
        doc="maximum number of frames per row, from its first word on; null: all",
    ),
    Option(
        name="standardise",
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
    doc="CMU-MOSI: text, audio and vision of 2,199 spoken opinions on films; sentiment",
    options=_SENTIMENT_OPTIONS,
    encoders={"*": _TRANSFORMER},
    training=_SEQUENCES_RECIPE,
    cost="seconds; the pickle in memory, and as much disk in float32",
    source="https://github.com/pliang279/MultiBench links the prepared pickles (manual download)",
)

MOSEI = TaskEntry(
    path="modmix.tasks.mosi:Mosei",
    doc="CMU-MOSEI: text, audio and vision of some 22,800 spoken opinions; sentiment",
    options=_SENTIMENT_OPTIONS,
    encoders={"*": _TRANSFORMER},
    training=_SEQUENCES_RECIPE,
    cost="a minute; the pickle in memory (up to 4 GB), and 2 GB of disk",
    source="https://github.com/pliang279/MultiBench links the prepared pickles (manual download)",
)

# From scratch: no pretrained weights.
_IMAGES_RECIPE = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "batch_size": 64,
    "epochs": 50,
    "schedule": "cosine",
    "patience": 10,
}
_IMAGE_ENCODERS = {"image": {"name": "resnet18"}, "text": _TRANSFORMER}


def _image_options(*, size: int, vocabulary: int, length: int, augment: str) -> tuple[Option, ...]:
    """Options of `modmix.tasks.text_images.TextImageTask`."""
    return (
        Option(
            name="size",
            kind="int",
            default=size,
            low=8,
            high=2048,
            doc="height and width to which images are resized, in pixels",
        ),
        Option(
            name="vocabulary",
            kind="int",
            default=vocabulary,
            low=1,
            high=1_000_000,
            doc="number of words with ids, the most frequent of the training texts",
        ),
        Option(
            name="length",
            kind="int",
            default=length,
            low=1,
            doc="maximum number of words per text, truncated at the end",
        ),
        Option(name="augment", kind="bool", default=True, shapes_arrays=False, doc=augment),
        MAX_UNREADABLE,
    )


_CROP_AND_FLIP = "in training, random resized crops (8 to 100 % of the area) and horizontal flips"
_CROP = "in training, random resized crops (50 to 100 % of the area), without flips"


def _fraction(name: str, doc: str) -> Option:
    return Option(name=name, kind="float", default=0.1, low=0.0001, high=0.45, doc=doc)


FOOD101 = TaskEntry(
    path="modmix.tasks.food101:Food101",
    doc="UPMC Food-101: 90,000 photographs of dishes, titles of their web pages; 101 classes",
    options=(
        path_option("the folder that holds texts/ and images/"),
        _fraction(
            "val_fraction", "fraction of the training rows used for validation, stratified by class"
        ),
        SPLIT_SEED,
        *_image_options(size=224, vocabulary=20_000, length=32, augment=_CROP_AND_FLIP),
    ),
    encoders=_IMAGE_ENCODERS,
    training=_IMAGES_RECIPE,
    cost="minutes; 28 GB of disk at 224 pixels, half of it kept",
    source="http://visiir.lip6.fr (manual download)",
)

MVSA = TaskEntry(
    path="modmix.tasks.mvsa:Mvsa",
    doc="MVSA-Single or MVSA-Multiple: tweets with images; negative, neutral or positive",
    options=(
        path_option("the folder that holds labelResultAll.txt and data/"),
        Option(
            name="labels",
            kind="str",
            default="merge",
            choices=("merge", "agree"),
            doc="from two labels to one: neutral is overruled by the other, opposites are dropped "
            "(merge); only rows with equal labels are used (agree)",
        ),
        _fraction("val_fraction", "fraction of the rows used for validation, stratified by class"),
        _fraction("test_fraction", "fraction of the rows used for testing, stratified by class"),
        SPLIT_SEED,
        *_image_options(size=224, vocabulary=10_000, length=32, augment=_CROP_AND_FLIP),
    ),
    encoders=_IMAGE_ENCODERS,
    training=_IMAGES_RECIPE,
    cost="a minute; 1.4 GB of disk (Multiple: 5 GB) at 224 pixels, half of it kept",
    source="https://mcrlab.net/research/mvsa-sentiment-analysis-on-multi-view-social-data (manual)",
)

HATEFUL_MEMES = TaskEntry(
    path="modmix.tasks.hateful_memes:HatefulMemes",
    doc="Hateful Memes: 10,000 images with the text on them; hateful or not",
    options=(
        path_option("the folder that holds img/ and train.jsonl"),
        Option(
            name="val",
            kind="str",
            default="dev_seen",
            choices=("dev_seen", "dev_unseen", "dev"),
            doc="file of the validation rows, without .jsonl",
        ),
        Option(
            name="test",
            kind="str",
            default="test_seen",
            choices=("test_seen", "test_unseen", "dev_seen", "dev_unseen", "dev"),
            doc="file of the test rows, without .jsonl; those of the first release have no labels",
        ),
        *_image_options(size=224, vocabulary=10_000, length=32, augment=_CROP),
    ),
    encoders=_IMAGE_ENCODERS,
    training=_IMAGES_RECIPE,
    cost="a minute; 3 GB of disk at 224 pixels, half of it kept",
    source="the Hateful Memes Challenge (arXiv 2005.04790), manual download",
)

TEXT: dict[str, TaskEntry] = {
    "food101": FOOD101,
    "mvsa": MVSA,
    "hateful_memes": HATEFUL_MEMES,
    "mosi": MOSI,
    "mosei": MOSEI,
}
