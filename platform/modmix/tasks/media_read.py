"""Reads frames and audio from media files with PyAV, and images with Pillow.

Whatever cannot be read raises `Unreadable` with a short reason; the item is then left out. Decoding
uses one thread: `media_decode` runs one process per core.

Shapes: T frames, H × W pixels, S samples, A audio channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from PIL.Image import Image

# A wanted moment may lie this far behind the start of the last frame, or as far as frames are
# apart: durations are rounded, and the last frame lasts until the end.
_SLACK_SECONDS = 0.5

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3)


class Unreadable(Exception):
    """An item cannot be read; the text is the reason, a clause."""


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a media file.

    Raises:
        Unreadable: missing, empty, or not a media file, here or in the block.
    """
    import av

    av.logging.set_level(av.logging.PANIC)  # messages on broken packets would fill the terminal
    try:
        with av.open(str(path), "r") as container:
            yield container
    except Unreadable as error:
        raise Unreadable(f"{path.name}: {error}") from error
    except av.FFmpegError as error:
        raise Unreadable(f"{path.name}: {error.strerror or error}") from error
    except (ValueError, IndexError, UnicodeError) as error:  # of damaged headers
        raise Unreadable(f"{path.name}: {error}") from error


def _seconds(container: InputContainer) -> float:
    if not container.streams.video:
        raise Unreadable("has no video stream")
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / 1e6
    raise Unreadable("has no duration")


def video_frames(
    path: Path,
    count: int,
    size: int,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_seconds: float | None = None,
) -> Frames:
    """``count`` frames evenly spaced between two times, (T, size, size, 3) in RGB.

    The time between ``start`` and ``end`` (in seconds; None: the end of the video) is divided into
    ``count`` equal parts. The frame shown in the middle of each is taken and resized without
    keeping its aspect ratio. Broken packets are skipped, so that an earlier frame takes their
    place.

    Raises:
        Unreadable: not a video, no duration, longer than ``max_seconds``, fewer than ``count``
            frames, or the video ends before the last of these times.
    """
    with opened(path) as container:
        duration = _seconds(container)
        if max_seconds is not None and duration > max_seconds:
            raise Unreadable(f"lasts {duration:.1f} s, at most {max_seconds:g} s are expected")
        until = duration if end is None else min(end, duration)
        if until <= start:
            raise Unreadable(f"lasts {duration:.1f} s, ends before {start:g} s")
        wanted = [start + (i + 0.5) * (until - start) / count for i in range(count)]
        return np.stack(_frames_at(container, wanted, size))


def _frames_at(container: InputContainer, wanted: list[float], size: int) -> list[Frames]:
    """The frames shown at these times, in seconds after the first frame."""
    found: list[Frames] = []
    shown: VideoFrame | None = None
    first, time, seen = 0.0, 0.0, 0
    for frame in _decoded(container, "video"):
        if frame.time is None:
            continue
        first = frame.time if shown is None else first
        time = frame.time - first
        seen += 1
        while shown is not None and len(found) < len(wanted) and wanted[len(found)] < time:
            found.append(_pixels(shown, size))
        if len(found) == len(wanted) <= seen:
            break
        shown = frame
    if shown is None or seen < len(wanted):
        raise Unreadable(f"has {seen} frames that can be decoded where {len(wanted)} are needed")
    slack = max(_SLACK_SECONDS, time / max(1, seen - 1))
    if len(found) < len(wanted) and wanted[-1] > time + slack:
        raise Unreadable(f"ends at {time:.1f} s, a frame at {wanted[-1]:.1f} s is needed")
    return found + [_pixels(shown, size)] * (len(wanted) - len(found))


def _pixels(frame: VideoFrame, size: int) -> Frames:
    small = frame.reformat(width=size, height=size, format="rgb24", interpolation="BILINEAR")
    return np.asarray(small.to_ndarray(), dtype=np.uint8)


def _decoded(container: InputContainer, kind: str) -> Iterator[Any]:
    """Frames of the first stream of a kind; broken packets are skipped, as by ffmpeg."""
    import av

    stream = getattr(container.streams, kind)[0]
    if stream.codec_context is None:
        raise Unreadable(f"its {kind} is in an unknown format")
    stream.codec_context.thread_count = 1
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            continue


def waveform(
    path: Path, rate: int, *, start: float = 0.0, end: float | None = None
) -> npt.NDArray[np.float32]:
    """The audio of a media file between two times (seconds): samples (S,) in [−1, 1].

    It is resampled to ``rate`` and channels are averaged. Broken packets are skipped.

    Raises:
        Unreadable: not a media file, no audio stream, no sample between the moments, or samples
            that are not finite numbers.
    """
    first, last = round(start * rate), None if end is None else round(end * rate)
    with opened(path) as container:
        if not container.streams.audio:
            raise Unreadable("has no audio stream")
        parts, samples = [np.empty(0, dtype=np.float32)], 0
        for part in _resampled(container, rate):
            parts.append(part)
            samples += len(part)
            if last is not None and samples >= last:
                break
        if samples <= first:
            raise Unreadable(
                f"has {samples / rate:.2f} s of audio, some after {start:g} s is needed"
            )
        found = np.concatenate(parts)[first:last]
        # A single NaN would enter the mean, and so the sound of all items.
        if not np.isfinite(found).all():
            raise Unreadable("has samples that are not finite numbers")
    return found


def _resampled(container: InputContainer, rate: int) -> Iterator[npt.NDArray[np.float32]]:
    """The audio in parts, averaged over channels."""
    from av import AudioResampler

    resampler = AudioResampler(format="fltp", rate=rate)
    for frame in chain(_decoded(container, "audio"), [None]):  # None: flush
        for part_AS in resampler.resample(frame):
            yield part_AS.to_ndarray().mean(axis=0, dtype=np.float32)


def fitted(samples_S: npt.NDArray[np.float32], length: int, *, tile: bool) -> Any:
    """Exactly ``length`` samples: truncated, or repeated, or padded with silence."""
    if len(samples_S) >= length:
        return samples_S[:length]
    if tile:
        return np.resize(samples_S, length)  # repeats
    return np.pad(samples_S, (0, length - len(samples_S)))


def image_pixels(path: Path, size: int | None) -> Frames:
    """An image as RGB (size, size, 3), resized without keeping its aspect ratio, or unresized.

    Raises:
        Unreadable: missing, truncated, or not an image.
    """
    from PIL.Image import Resampling

    image = _image(path, "RGB")
    if size is not None:
        image = image.resize((size, size), Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def middle_pixels(path: Path, size: int, mode: Literal["RGB", "L"]) -> Frames:
    """The centre crop of an image, (size, size, 3), or (size, size, 1) for mode L (grey).

    Raises:
        Unreadable: missing, truncated, smaller, or not an image.
    """
    image = _image(path, mode)
    if min(image.size) < size:
        width, height = image.size
        raise Unreadable(f"{path.name}: has {width} x {height} pixels, {size} x {size} are needed")
    left, top = ((length - size) // 2 for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)
    return pixels.reshape(size, size, -1)


def _image(path: Path, mode: Literal["RGB", "L"]) -> Image:
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.convert(mode)
    except MemoryError:
        raise
    except Exception as error:  # whatever damaged bytes make the decoders of Pillow raise
        raise Unreadable(f"{path.name}: {str(error) or type(error).__name__}") from error
