"""Table entry of the task for a user's own arrays."""

from __future__ import annotations

from modmix.base.space import Hyperparameter
from modmix.tasks.entry import MLP_64, SMALL_RECIPE, SPLIT_SEED, TaskEntry
from modmix.tasks.options import Option

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
    Hyperparameter(name="flip", kind="bool", default=False, doc="random horizontal flips"),
    Hyperparameter(
        name="crop",
        kind="float",
        default=None,
        optional=True,
        low=0.01,
        high=1.0,
        doc="minimum area fraction of a random resized crop; null: no such crop",
    ),
)

ARRAYS = TaskEntry(
    path="modmix.tasks.arrays:Arrays",
    doc="your own .npz (one array per input and labels) or CSV",
    options=(
        Option(
            name="path", kind="path", default=None, required=True, doc="an .npz, .csv or .tsv (.gz)"
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
            doc="fraction of the training rows used for validation if the file has none",
        ),
        Option(
            name="test_fraction",
            kind="float",
            default=0.2,
            low=0.001,
            high=0.9,
            doc="fraction of all rows used for testing if the file defines no split",
        ),
        SPLIT_SEED,
        Option(
            name="standardise",
            kind="bool",
            default=True,
            doc="mean 0, standard deviation 1 on the training rows (images: per channel); "
            "false: images of bytes are divided by 255",
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
            doc="maximum number of tokens per example, truncated at the end; null: all ids; for "
            "characters, the length of the longest training text",
        ),
        Option(
            name="spectrogram",
            kind="by_input",
            default=None,
            optional=True,
            fields=_SPECTROGRAM,
            doc="audio (N, samples) that becomes images (F, T, 1), log(|S| + 1e-7), as "
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
        Option(
            name="noise",
            kind="mapping",
            default=None,
            optional=True,
            shapes_arrays=False,
            low=0.0,
            doc="by input, standard deviation of Gaussian noise on normalised values, in training "
            "and evaluation, as {image: 0.1}",
        ),
    ),
    encoders={"*": MLP_64},
    training=SMALL_RECIPE,
    cost="seconds; as much disk as the arrays have, floats in float32",
    source="your file",
)
