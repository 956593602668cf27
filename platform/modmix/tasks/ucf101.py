"""The task ``ucf101``: 13,320 videos of 101 actions, a frame and the optical flow around it.

Soomro et al., "UCF101: A Dataset of 101 Human Actions Classes from Videos in the Wild" (2012), as
the frames that Feichtenhofer et al. (2016) published: ``jpegs_256/VIDEO/frame000001.jpg`` and
``tvl1_flow/{u,v}/VIDEO/frame000001.jpg``, 256 pixels high, with the official lists of one of three
splits. The validation split is drawn from the training list group by group: the videos of a group
(gNN in their names) show the same people at the same place.

A clip is ``frames`` consecutive frames. Flow is u and v of all of them, rgb is the middle one.
DI-MML's code (2024) draws a clip at random from a training video in every epoch; here each training
video gives ``clips`` fixed ones, evenly spaced. That code crops from whole frames; here crops are
from the central square of ``stored`` pixels.

Shapes: H × W pixels, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.data import Array, Augmentation, Input
from modmix.tasks.files import Source
from modmix.tasks.media import Listed, MediaTask
from modmix.tasks.media_decode import Item
from modmix.tasks.media_read import Unreadable, middle_pixels
from modmix.tasks.ucf101_lists import read_classes, read_videos, validation_videos

RGB, FLOW = "rgb", "flow"
FOLDERS = {RGB: "jpegs_256", "u": "tvl1_flow/u", "v": "tvl1_flow/v"}
LISTS = "ucfTrainTestlist"
# Mean and standard deviation of the training pixels (red, green, blue) in DI-MML's code. A flow of
# 0 is between the bytes 127 and 128.
RGB_MEAN, RGB_SCALE = (106.46, 101.47, 93.22), (68.28, 66.41, 67.59)
FLOW_MEAN, FLOW_SCALE = 127.5, 1.0


class Ucf101(MediaTask):
    """Inputs ``rgb`` (H, W, 3) and ``flow`` (H, W, 2T) with the channels u, v of each frame.

    An item's files are the folders of a video's frames, of u and of v. It is clip ``start`` of
    ``end`` evenly spaced ones, counted from 0.
    """

    name: ClassVar[str] = "ucf101"

    def sources(self) -> tuple[Source, ...]:
        folder = self.root / LISTS
        folder = folder if folder.is_dir() else self.root
        number = self.options["split"]
        mend = (
            f"set `path` to the folder that holds {', '.join(FOLDERS.values())} and the official "
            f"lists (or {LISTS} with them)"
        )
        names = ("classInd", f"trainlist{number:02}", f"testlist{number:02}")
        return tuple(Source(path=folder / f"{name}.txt", mend=mend) for name in names)

    def inputs(self) -> tuple[Input, ...]:
        stored, size = self.options["stored"], self.options["size"]
        if size > stored:
            raise DataError(
                f"task {self.name}: size ({size}) must be at most stored ({stored}), the pixels of "
                "which it is a part; correct the options"
            )
        channels = {RGB: 3, FLOW: 2 * self.options["frames"]}
        means = {RGB: RGB_MEAN, FLOW: (FLOW_MEAN,) * channels[FLOW]}
        scales = {RGB: RGB_SCALE, FLOW: (FLOW_SCALE,) * channels[FLOW]}
        return tuple(
            Input(
                name=name,
                shape=(size, size, channels[name]),
                stored=None if stored == size else (stored, stored, channels[name]),
                kind="image",
                dtype="uint8",
                mean=np.array(means[name], dtype=np.float32),
                scale=np.array(scales[name], dtype=np.float32),
            )
            for name in (RGB, FLOW)
        )

    def augmentation(self) -> Mapping[str, Augmentation]:
        if not self.options["augment"]:
            return {}
        horizontal = tuple(range(0, 2 * self.options["frames"], 2))
        return {
            RGB: Augmentation(shift=True, flip=True),
            FLOW: Augmentation(shift=True, flip=True, negate=horizontal),
        }

    def listed(self) -> Listed:
        classes, training, testing = (source.path for source in self.sources())
        class_names = read_classes(classes)
        train = read_videos(training, class_names)
        test = read_videos(testing, class_names)
        if both := {video.name.lower() for video in train} & {video.name.lower() for video in test}:
            raise DataError(
                f"{testing}: must have no videos of the training list, has {len(both):,}, such as "
                f"{min(both)}; use the official files"
            )
        options = self.options
        val = validation_videos(train, class_names, options["val_fraction"], options["split_seed"])
        folders = {kind: _folders(self.root / name) for kind, name in FOLDERS.items()}
        items = []
        for split, videos, clips in (
            ("train", [video for video in train if video not in val], options["clips"]),
            ("val", [video for video in train if video in val], 1),
            ("test", test, 1),
        ):
            for video in videos:
                files = tuple(
                    f"{FOLDERS[kind]}/{folders[kind].get(video.name.lower(), video.name)}"
                    for kind in FOLDERS
                )
                items += [
                    Item(files=files, label=video.label, split=split, start=clip, end=clips)
                    for clip in range(clips)
                ]
        return Listed(items=tuple(items), class_names=class_names)

    def decode(self, item: Item) -> Mapping[str, Array]:
        assert item.end is not None
        rgb, *flow = (self.root / name for name in item.files)
        frames, size = self.options["frames"], self.options["stored"]
        names = clip_frames((rgb, *flow), frames, int(item.start), int(item.end))
        channels = [middle_pixels(folder / name, size, "L") for name in names for folder in flow]
        return {
            RGB: middle_pixels(rgb / names[frames // 2], size, "RGB"),
            FLOW: np.concatenate(channels, axis=-1),
        }


def clip_frames(folders: tuple[Path, ...], frames: int, clip: int, clips: int) -> list[str]:
    """The file names of a clip's consecutive frames: number ``clip`` of ``clips``.

    Clips are evenly spaced in what all folders have; a single one is in the middle.

    Raises:
        Unreadable: a folder is missing, or there are fewer frames.
    """
    found: set[str] | None = None
    for folder in folders:
        if not folder.is_dir():
            raise Unreadable(f"{folder.parent.name}/{folder.name}: there is no such folder")
        names = {path.name for path in folder.glob("frame*.jpg")}
        found = names if found is None else found & names
    ordered = sorted(found or ())
    if len(ordered) < frames:
        raise Unreadable(
            f"{folders[0].name}: has {len(ordered)} frames with u and v, {frames} are needed"
        )
    first = (2 * clip + 1) * (len(ordered) - frames) // (2 * clips)
    return ordered[first : first + frames]


def _folders(parent: Path) -> dict[str, str]:
    """Folder names by their lower-case form: HandstandPushups is spelt in two ways.

    Raises:
        DataError: ``parent`` is not a folder.
    """
    try:
        return {path.name.lower(): path.name for path in sorted(parent.iterdir())}
    except OSError as error:
        raise DataError(
            f"{parent}: must be a folder of folders of frames ({error.strerror}); correct the "
            "option `path`"
        ) from error
