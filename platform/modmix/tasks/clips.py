"""Tasks of audio-visual clips: some frames of each, and the spectrogram of its audio.

Shapes: T frames, H × W pixels; F frequencies, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from modmix.base.errors import DataError
from modmix.tasks.data import Array, Augmentation, Input
from modmix.tasks.media import MediaTask
from modmix.tasks.media_decode import Item
from modmix.tasks.media_read import Unreadable, fitted, video_frames, waveform
from modmix.tasks.signals import spectrogram, spectrogram_shape

AUDIO, VIDEO = "audio", "video"
RATE = 16_000  # samples per second
CROP = (0.08, 1.0)  # range of the area fraction, as in torchvision's RandomResizedCrop
# Mean and standard deviation of ImageNet's pixels (red, green, blue), in bytes.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_SCALE = (58.395, 57.12, 57.375)


class ClipTask(MediaTask):
    """Inputs ``audio``, an image (F, W, 1) of float16, and ``video`` (T, H, W, 3) of bytes.

    An item's first file is the video, its last one the audio (the same or a separate file).
    Options: frames, size, seconds, window, overlap, short_audio, standardise, augment; image_noise
    is optional.
    """

    max_seconds: ClassVar[float | None] = None  # longer videos are damaged

    def inputs(self) -> tuple[Input, ...]:
        options = self.options
        if not options["overlap"] < options["window"] <= self._samples:
            raise DataError(
                f"task {self.name}: overlap ({options['overlap']}) must be less than window "
                f"({options['window']}), and window at most the {self._samples:,} samples of "
                f"{options['seconds']:g} s; correct the options"
            )
        return (
            Input(
                name=AUDIO,
                shape=spectrogram_shape(self._samples, options["window"], options["overlap"]),
                kind="image",
                dtype="float16",
            ),
            Input(
                name=VIDEO,
                shape=(options["frames"], options["size"], options["size"], 3),
                kind="video",
                dtype="uint8",
                mean=np.array(IMAGENET_MEAN, dtype=np.float32),
                scale=np.array(IMAGENET_SCALE, dtype=np.float32),
            ),
        )

    def standardised(self) -> tuple[str, ...]:
        return (AUDIO,) if self.options["standardise"] else ()

    def augmentation(self) -> Mapping[str, Augmentation]:
        """Of frames: random resized crops and flips, and noise if the task has that option."""
        noise: float = self.options.get("image_noise", 0.0)
        crop = CROP if self.options["augment"] else None
        if crop is None and not noise:
            return {}
        return {VIDEO: Augmentation(crop=crop, flip=self.options["augment"], noise=noise)}

    def decode(self, item: Item) -> Mapping[str, Array]:
        frames = video_frames(
            self.root / item.files[0],
            self.options["frames"],
            self.options["size"],
            start=item.start,
            end=item.end,
            max_seconds=self.max_seconds,
        )
        end = item.start + self.options["seconds"] if item.end is None else item.end
        sound = waveform(self.root / item.files[-1], RATE, start=item.start, end=end)
        return {VIDEO: frames, AUDIO: self._spectrogram(item, sound)}

    @property
    def _samples(self) -> int:
        seconds: float = self.options["seconds"]
        return round(seconds * RATE)

    def _spectrogram(self, item: Item, sound_S: Any) -> Array:
        window = self.options["window"]
        if len(sound_S) < window:
            raise Unreadable(
                f"{item.files[-1]}: has {len(sound_S)} samples of audio, {window} are needed"
            )
        overlap: int = self.options["overlap"]
        tile = self.options["short_audio"] == "tile"
        samples_1S = fitted(sound_S, self._samples, tile=tile)[None]
        found: Array = spectrogram(samples_1S, RATE, window, overlap)[0]
        return found
