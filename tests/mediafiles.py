"""Small media files for tests: videos of known colours and sounds of known frequency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from scipy.io import wavfile

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = (RED, GREEN, BLUE)

Colour = tuple[int, int, int]


def write_video(
    path: Path,
    colours: Sequence[Colour] = COLOURS,
    *,
    fps: int = 10,
    seconds_each: float = 1.0,
    size: tuple[int, int] = (32, 48),
    codec: str = "flv",
    sound: str | None = None,
    rate: int = 44_100,
    frequency: float = 1000.0,
    layout: str = "stereo",
    container: str | None = None,
) -> Path:
    """A video whose whole picture has one colour at a time, with a sine if a codec is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as file:
        video = file.add_stream(codec, rate=fps)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        audio = file.add_stream(sound, rate=rate, layout=layout) if sound else None
        for colour in colours:
            picture = np.full((*size, 3), colour, dtype=np.uint8)
            for _ in range(round(fps * seconds_each)):
                file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode(None))
        if audio is not None:
            wave = sine(frequency, len(colours) * seconds_each, rate).astype(np.float32)
            whole = np.tile(wave, (len(audio.layout.channels), 1))
            frame = av.AudioFrame.from_ndarray(whole, format="fltp", layout=layout)
            frame.sample_rate = rate
            resampler = av.AudioResampler(
                audio.format.name, layout, rate, frame_size=audio.frame_size or 1024
            )
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                file.mux(audio.encode(part))
            file.mux(audio.encode(None))
    return path


def sine(frequency: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    """Samples (S,) of a sine."""
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """Samples (S,) or (S, A) in [−1, 1] as 16-bit integers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, np.round(samples * 32767).astype(np.int16))
    return path
