"""Audio: mu-law decoding and log spectrograms.

Shapes: N examples, S samples, F frequency bins, T windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modmix.tasks.data import Array

_FLOOR = 1e-7  # added to the power before the logarithm


def mu_law_decoded(levels_NS: Array, mu: int) -> npt.NDArray[np.float64]:
    """Decode mu-law levels 0..mu to samples in [−1, 1] (continuous law of ITU-T G.711).

    sign(y) · ((1 + mu)^|y| − 1) / mu with y = 2 · level / mu − 1. mu is 255 for 8 bits.
    """
    y_NS = 2.0 * levels_NS.astype(np.float64) / mu - 1.0
    decoded: npt.NDArray[np.float64] = np.sign(y_NS) * np.expm1(np.abs(y_NS) * np.log1p(mu)) / mu
    return decoded


def spectrogram(
    signal_NS: Array, rate: float, window: int, overlap: int | None
) -> npt.NDArray[np.float64]:
    """Log spectrograms log(|S| + 1e-7) as images (N, F, T, 1).

    S is `scipy.signal.spectrogram` with default settings: a Tukey window (0.25) of ``window``
    samples, constant detrending, power spectral density. ``overlap`` is in samples, by default an
    eighth of the window; ``rate`` is in samples per second.
    """
    from scipy.signal import spectrogram as scipy_spectrogram

    _, _, power_NFT = scipy_spectrogram(
        signal_NS.astype(np.float64), fs=rate, nperseg=window, noverlap=overlap
    )
    logs: npt.NDArray[np.float64] = np.log(np.abs(power_NFT) + _FLOOR)[..., None]
    return logs


def spectrogram_shape(samples: int, window: int, overlap: int | None) -> tuple[int, int, int]:
    """Shape (F, T, 1) of one spectrogram."""
    overlap = window // 8 if overlap is None else overlap
    return window // 2 + 1, (samples - overlap) // (window - overlap), 1
