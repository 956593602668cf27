"""Table entries of tasks with audio, images and video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modmix.tasks.entry import SPLIT_SEED, TaskEntry
from modmix.tasks.options import Option

RESNETS: Mapping[str, Mapping[str, Any]] = {"*": {"name": "resnet18"}}
# The recipe of DI-MML's code (2024), also that of its joint baseline.
RECIPE: Mapping[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 16,
    "epochs": 150,
    "schedule": "step",
    "decay_rate": 0.1,
    "milestones": [70, 140],
    "select": "best",
}

MAX_UNREADABLE = Option(
    name="max_unreadable",
    kind="float",
    default=0.1,
    low=0.0,
    high=1.0,
    shapes_arrays=False,
    doc="fraction of the items of each split that may be missing or unreadable; they are left out",
)
AUGMENT = Option(
    name="augment",
    kind="bool",
    default=True,
    shapes_arrays=False,
    doc="in training, random resized crops (8 to 100 % of the area) and horizontal flips",
)
VAL_FRACTION = Option(
    name="val_fraction",
    kind="float",
    default=0.1,
    low=0.0001,
    high=0.9,
    doc="fraction of the training list used for validation, stratified by class, without val_list",
)


def path(doc: str) -> Option:
    return Option(name="path", kind="path", default=None, required=True, doc=doc)


def split_list(split: str, doc: str, *, required: bool = False) -> Option:
    return Option(
        name=f"{split}_list",
        kind="path",
        default=None,
        optional=not required,
        required=required,
        doc=doc,
    )


def clip_options(*, frames: int, seconds: float) -> tuple[Option, ...]:
    """Options of `modmix.tasks.clips.ClipTask`."""
    return (
        Option(
            name="frames",
            kind="int",
            default=frames,
            low=1,
            doc="frames per clip: the middle frame of each of that many equal segments",
        ),
        Option(
            name="size",
            kind="int",
            default=224,
            low=8,
            high=2048,
            doc="height and width of the frames in pixels",
        ),
        Option(
            name="seconds",
            kind="float",
            default=seconds,
            low=0.1,
            high=600.0,
            doc="length of the audio; longer audio is truncated at the end",
        ),
        Option(
            name="window",
            kind="int",
            default=512,
            low=2,
            doc="window length of the spectrogram, in samples at 16 kHz",
        ),
        Option(
            name="overlap",
            kind="int",
            default=353,
            low=0,
            doc="samples shared by adjacent windows, fewer than window",
        ),
        Option(
            name="short_audio",
            kind="str",
            default="tile",
            choices=("tile", "pad"),
            doc="shorter audio is repeated (tile) or padded with silence (pad)",
        ),
        Option(
            name="standardise",
            kind="bool",
            default=True,
            doc="standardise spectrograms by the mean and standard deviation of the training split",
        ),
        AUGMENT,
        MAX_UNREADABLE,
    )


CREMAD = TaskEntry(
    path="modmix.tasks.cremad:CremaD",
    doc="CREMA-D: 7,442 audio-visual clips of actors; six emotions",
    options=(
        path("the folder that holds AudioWAV and VideoFlash"),
        split_list("train", "lines STEM,EMOTION; null: actors are split at random"),
        split_list("val", "the same; null: drawn from train_list by val_fraction"),
        split_list("test", "the same; required with train_list"),
        Option(
            name="test_actors",
            kind="int",
            default=19,
            low=1,
            doc="actors whose clips are the test split, without lists",
        ),
        Option(
            name="val_actors",
            kind="int",
            default=9,
            low=1,
            doc="actors whose clips are the validation split, without lists",
        ),
        VAL_FRACTION,
        SPLIT_SEED,
        *clip_options(frames=3, seconds=3.0),
        Option(
            name="image_noise",
            kind="float",
            default=0.0,
            low=0.0,
            shapes_arrays=False,
            doc="standard deviation of noise on normalised frames, in training and evaluation",
        ),
    ),
    encoders=RESNETS,
    training=RECIPE,
    cost="3 minutes of CPU time, 9 GB of disk, 4.5 GB of it kept",
    source="https://github.com/CheyneyComputerScience/CREMA-D (manual download)",
)

AVE = TaskEntry(
    path="modmix.tasks.ave:Ave",
    doc="AVE: 4,143 audio-visual events; 28 classes",
    options=(
        path("the folder that holds trainSet.txt, valSet.txt, testSet.txt and AVE"),
        *clip_options(frames=4, seconds=10.0),
    ),
    encoders=RESNETS,
    training=RECIPE,
    cost="11 minutes of CPU time, 9.3 GB of disk, 4.6 GB of it kept",
    source="https://github.com/YapengTian/AVE-ECCV18 (manual download)",
)

KINETICS_SOUNDS = TaskEntry(
    path="modmix.tasks.kinetics_sounds:KineticsSounds",
    doc="Kinetics-Sounds: 17,396 audio-visual clips of 10 s; 31 actions",
    options=(
        path("a folder with the clips as ID_START_END.mp4, in subfolders or not"),
        split_list("train", "lines ID_START,10,LABEL or ID_START_END,10,LABEL", required=True),
        split_list("val", "the same; null: drawn from train_list by val_fraction"),
        split_list("test", "the same", required=True),
        VAL_FRACTION,
        SPLIT_SEED,
        *clip_options(frames=3, seconds=10.0),
    ),
    encoders=RESNETS,
    training=RECIPE,
    cost="45 minutes of CPU time, 34 GB of disk, 17 GB of it kept",
    source="the clips of Kinetics (manual download)",
)

UCF101 = TaskEntry(
    path="modmix.tasks.ucf101:Ucf101",
    doc="UCF101: 13,320 videos of people, a frame and optical flow; 101 actions",
    options=(
        path("the folder that holds jpegs_256, tvl1_flow and the official lists"),
        Option(
            name="split", kind="int", default=1, low=1, high=3, doc="which of the official splits"
        ),
        Option(
            name="val_fraction",
            kind="float",
            default=0.1,
            low=0.0001,
            high=0.9,
            doc="fraction of each class's groups in the training list used for validation",
        ),
        SPLIT_SEED,
        Option(
            name="frames",
            kind="int",
            default=10,
            low=1,
            doc="consecutive frames of a clip: flow is u and v of each, rgb the middle one",
        ),
        Option(
            name="clips",
            kind="int",
            default=1,
            low=1,
            doc="clips of each training video, evenly spaced; 1: the middle one, as in validation "
            "and test",
        ),
        Option(
            name="size",
            kind="int",
            default=224,
            low=8,
            doc="height and width in pixels of the crops that models see, not resized",
        ),
        Option(
            name="stored",
            kind="int",
            default=256,
            low=8,
            doc="height and width in pixels of the centre of a frame that is stored; at least size",
        ),
        Option(
            name="augment",
            kind="bool",
            default=True,
            shapes_arrays=False,
            doc="in training, random crops and horizontal flips, which negate u",
        ),
        MAX_UNREADABLE,
    ),
    encoders=RESNETS,
    training=RECIPE,
    cost="minutes: 7 ms of one core per clip, and 280,000 small files to read; 20 GB of disk with "
    "the defaults, as much again during preparation",
    source="https://github.com/feichtenhofer/twostreamfusion and "
    "https://www.crcv.ucf.edu/data/UCF101.php (manual download)",
)

MODELNET40 = TaskEntry(
    path="modmix.tasks.modelnet40:ModelNet40",
    doc="ModelNet40: 12,311 objects, images of several views; 40 classes",
    options=(
        path("the folder modelnet40_images_new_12x, or the one that holds it"),
        Option(
            name="views",
            kind="ints",
            default=[1, 7],
            low=1,
            high=12,
            doc="views, 30 degrees apart, each an input; 1 and 7 are opposite each other",
        ),
        Option(
            name="size",
            kind="int",
            default=224,
            low=8,
            high=2048,
            doc="height and width of the images in pixels",
        ),
        Option(
            name="val_fraction",
            kind="float",
            default=0.1,
            low=0.0001,
            high=0.9,
            doc="fraction of the training objects used for validation, stratified by class",
        ),
        SPLIT_SEED,
        AUGMENT,
        MAX_UNREADABLE,
    ),
    encoders=RESNETS,
    training=RECIPE,
    cost="a minute: 2 ms of one core per object; 3.7 GB of disk for two views, as much again "
    "during preparation",
    source="https://github.com/jongchyisu/mvcnn_pytorch (manual download)",
)

VIDEO: dict[str, TaskEntry] = {
    "cremad": CREMAD,
    "ave": AVE,
    "kinetics_sounds": KINETICS_SOUNDS,
    "ucf101": UCF101,
    "modelnet40": MODELNET40,
}
