"""Frames and sound of media files, against colours and sines that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from mediafiles import BLUE, GREEN, RED, sine, write_video, write_wav
from modmix.tasks.media_read import Unreadable, fitted, image_pixels, video_frames, waveform
from modmix.tasks.signals import spectrogram, spectrogram_shape

RATE = 16_000


def colours_of(frames_THWC: np.ndarray) -> list[tuple[int, ...]]:
    """The nearest pure colour of each frame, which all its pixels have."""
    found = []
    for frame_HWC in frames_THWC.astype(int):
        colour = frame_HWC.mean((0, 1))
        assert np.abs(frame_HWC - colour).max() < 12
        found.append(tuple(255 if value > 127 else 0 for value in colour))
        np.testing.assert_allclose(colour, found[-1], atol=12)
    return found


@pytest.mark.parametrize(("name", "codec"), [("a.flv", "flv"), ("a.mp4", "mpeg4")])
def test_frames_are_those_of_the_middles_of_equal_parts(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, codec=codec)
    frames = video_frames(path, 3, 16)
    assert (frames.shape, frames.dtype) == ((3, 16, 16, 3), np.uint8)
    assert colours_of(frames) == [RED, GREEN, BLUE]
    assert colours_of(video_frames(path, 1, 16)) == [GREEN]
    assert colours_of(video_frames(path, 6, 16)) == [RED, RED, GREEN, GREEN, BLUE, BLUE]


def test_frames_between_two_moments(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", codec="mpeg4")
    assert colours_of(video_frames(path, 4, 8, start=1, end=2)) == [GREEN] * 4
    assert colours_of(video_frames(path, 2, 8, start=1, end=3)) == [GREEN, BLUE]
    assert colours_of(video_frames(path, 2, 8, start=1, end=60)) == [GREEN, BLUE]  # until its end


def test_frames_are_those_shown_at_their_moment(tmp_path: Path) -> None:
    """A picture lasts 0.1 s; the moments of 5 frames in 2 s are 0.2, 0.6, … 1.8 s."""
    greys = [(12 * i, 12 * i, 12 * i) for i in range(20)]
    path = write_video(tmp_path / "a.mp4", greys, seconds_each=0.1, codec="mpeg4")
    found = video_frames(path, 5, 8).mean((1, 2, 3)) / 12
    np.testing.assert_allclose(found, [2, 6, 10, 14, 18], atol=0.3)


def test_a_frame_of_a_slow_video_may_be_taken_more_than_once(tmp_path: Path) -> None:
    """Wherever the part lies: the video has 5 frames, one each second."""
    colours = [RED, GREEN, BLUE, RED, GREEN]
    path = write_video(tmp_path / "a.mp4", colours, fps=1, codec="mpeg4")
    for start, colour in enumerate(colours):
        assert colours_of(video_frames(path, 4, 8, start=start, end=start + 1)) == [colour] * 4
    with pytest.raises(Unreadable, match="has 5 frames that can be decoded where 6 are needed"):
        video_frames(path, 6, 8, start=0, end=1)


def test_frames_are_resized_to_squares(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.flv", size=(48, 96))
    assert video_frames(path, 2, 40).shape == (2, 40, 40, 3)


def test_videos_that_cannot_be_used(tmp_path: Path) -> None:
    def reason(path: Path, **settings: float) -> str:
        with pytest.raises(Unreadable) as caught:
            video_frames(path, 3, 8, **settings)  # type: ignore[arg-type]
        return str(caught.value)

    good = write_video(tmp_path / "good.flv")
    short = write_video(tmp_path / "short.flv", [RED, GREEN], seconds_each=0.1)
    endless = write_video(tmp_path / "endless.flv", codec="mpeg4", container="m4v")
    noise = tmp_path / "noise.flv"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    empty = tmp_path / "empty.flv"
    empty.touch()
    cut = tmp_path / "cut.flv"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 4])
    sound = write_wav(tmp_path / "sound.wav", sine(440, 1, RATE))
    assert reason(tmp_path / "none.flv") == "none.flv: No such file or directory"
    assert reason(noise).startswith("noise.flv: ")
    assert reason(empty).startswith("empty.flv: ")
    assert reason(endless) == "endless.flv: has no duration"
    assert reason(sound) == "sound.wav: has no video stream"
    assert reason(short) == "short.flv: has 2 frames that can be decoded where 3 are needed"
    assert reason(cut).startswith("cut.flv: ")
    assert reason(good, max_seconds=1) == "good.flv: lasts 3.0 s, at most 1 s are expected"
    assert reason(good, start=5, end=9) == "good.flv: lasts 3.0 s, ends before 5 s"


def test_a_broken_packet_is_skipped(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.flv", seconds_each=2)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    frames = video_frames(path, 3, 16)
    assert colours_of(frames[[0, 2]]) == [RED, BLUE]


# ---------------------------------------------------------------- sound


def peak(samples_S: np.ndarray) -> float:
    """The strongest frequency in Hz."""
    power = np.abs(np.fft.rfft(samples_S * np.hanning(len(samples_S))))
    return float(np.argmax(power) / len(samples_S) * RATE)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_sound_is_resampled_and_averaged(tmp_path: Path, rate: int) -> None:
    left, right = sine(500, 2, rate, 0.6), sine(500, 2, rate, 0.2)
    path = write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1), rate)
    found = waveform(path, RATE)
    assert abs(len(found) - 2 * RATE) < 40  # of the filter
    middle = slice(2000, 30_000)
    expected = sine(500, 2, RATE, 0.4)
    np.testing.assert_allclose(found[middle], expected[middle], atol=2e-3)


def test_sound_of_videos(tmp_path: Path) -> None:
    flv = write_video(tmp_path / "a.flv", sound="libmp3lame", frequency=800)
    mp4 = write_video(
        tmp_path / "a.mp4", codec="mpeg4", sound="aac", rate=22_050, layout="mono", frequency=3000
    )
    for path, frequency in ((flv, 800), (mp4, 3000)):
        found = waveform(path, RATE)
        assert 3 * RATE <= len(found) < 3.1 * RATE
        assert peak(found) == pytest.approx(frequency, abs=3)
        # The encoders are lossy, but a sine of amplitude 0.5 has a deviation of 0.5 / √2.
        assert found[5000:40_000].std() == pytest.approx(0.354, abs=0.03)


def test_sound_between_two_moments(tmp_path: Path) -> None:
    samples = np.concatenate([sine(f, 1, RATE) for f in (400, 900, 2000)])
    path = write_wav(tmp_path / "a.wav", samples)
    for start, frequency in enumerate((400, 900, 2000)):
        found = waveform(path, RATE, start=start, end=start + 1)
        assert len(found) == RATE
        assert peak(found) == pytest.approx(frequency, abs=2)
    assert len(waveform(path, RATE, start=2.5, end=9)) == RATE // 2


def test_sounds_that_cannot_be_used(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "silent.flv")
    wav = write_wav(tmp_path / "a.wav", sine(440, 1, RATE))
    with pytest.raises(Unreadable, match=r"^silent\.flv: has no audio stream$"):
        waveform(silent, RATE)
    with pytest.raises(Unreadable, match=r"a\.wav: has 1\.00 s of audio, some after 3 s is needed"):
        waveform(wav, RATE, start=3, end=4)
    with pytest.raises(Unreadable, match=r"^none\.wav: No such file"):
        waveform(tmp_path / "none.wav", RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sounds_that_are_not_finite(tmp_path: Path, value: float) -> None:
    samples = sine(440, 1, RATE).astype(np.float32)
    samples[4000] = value
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    with pytest.raises(Unreadable, match=r"^a\.wav: has samples that are not finite numbers$"):
        waveform(tmp_path / "a.wav", RATE)
    assert len(waveform(tmp_path / "a.wav", RATE, start=0.5)) == RATE // 2


def test_sounds_in_an_unknown_format(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", sine(440, 1, RATE))
    content = bytearray(path.read_bytes())
    assert content[20:22] == b"\1\0"  # PCM
    content[20:22] = b"\x99\x99"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"^a\.wav: its audio is in an unknown format$"):
        waveform(path, RATE)


def test_short_sounds_are_repeated_or_padded() -> None:
    samples = np.array([1, 2, 3], dtype=np.float32)
    assert fitted(samples, 7, tile=True).tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert fitted(samples, 5, tile=False).tolist() == [1, 2, 3, 0, 0]
    assert fitted(samples, 2, tile=True).tolist() == [1, 2]


@pytest.mark.parametrize(("seconds", "windows"), [(3, 299), (10, 1004)])
def test_shapes_of_spectrograms(seconds: int, windows: int) -> None:
    """257 × 299 for 3 s and 257 × 1004 for 10 s, as in the code of DI-MML."""
    samples = sine(1000, seconds, RATE)
    found = spectrogram(samples[None], RATE, 512, 353)
    assert found.shape == (1, 257, windows, 1)
    assert spectrogram_shape(seconds * RATE, 512, 353) == (257, windows, 1)
    assert (found[0, :, :, 0].argmax(0) == 32).all()  # 1000 Hz of 16000 / 512 Hz each


# ---------------------------------------------------------------- images


def test_images(tmp_path: Path) -> None:
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[:, 3:] = GREEN
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.testing.assert_array_equal(image_pixels(tmp_path / "a.png", None), picture)
    small = image_pixels(tmp_path / "a.png", 2)
    assert small.shape == (2, 2, 3)
    assert [tuple(np.round(p / 255).astype(int)) for p in small[0]] == [(0, 0, 0), (0, 1, 0)]
    grey = Image.fromarray(np.full((5, 5), 77, dtype=np.uint8))
    grey.save(tmp_path / "grey.png")
    assert (image_pixels(tmp_path / "grey.png", 3) == 77).all()
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for name in ("cut.png", "none.png"):
        with pytest.raises(Unreadable, match=f"^{name}: "):
            image_pixels(tmp_path / name, 3)


def test_images_that_a_decoder_does_not_know(tmp_path: Path) -> None:
    """Pillow looks at the content, not at the name, and raises other errors than OSError."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 4)).save(path, format="DDS")
    content = bytearray(path.read_bytes())
    content[80:84] = (128).to_bytes(4, "little")  # flags of the pixels' form
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"^a\.jpg: Unknown pixel format"):
        image_pixels(path, 3)
