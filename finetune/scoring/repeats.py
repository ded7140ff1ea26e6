"""Whether a sound repeats itself, heard in its spectrogram: recordings and codec copies can be asked too.

In 20 real recordings no stretch of 0.8 s is more like another than 0.71 (0.86 where a reader says the same
words again); a clip that is played twice reaches 0.98 and more.
"""

import torch
import torchaudio
from torch import Tensor

WINDOW_SEC = 0.8
MIN_LAG_SEC = 0.3
THRESHOLD = 0.92
MAX_HEARD_SEC = 30.0
_HOP_SEC = 0.01
_FLOOR_NATS = 9.0
"""What is 39 dB below the loudest is silence, in which all is alike."""
_MIN_VARIANCE = 1.0
"""Nats squared a band: a hum or a pause is like itself without being said twice."""


def is_looping(wav: Tensor, sample_rate_hz: int) -> bool:
    """Whether some 0.8 s are heard twice.

    wav: [N] float32
    """
    return self_similarity(wav, sample_rate_hz) > THRESHOLD


def self_similarity(wav: Tensor, sample_rate_hz: int) -> float:
    """The highest correlation of two stretches of 0.8 s of the log-mel spectrogram, each without its mean.

    wav: [N] float32
    """
    mels = _log_mels(wav[: int(MAX_HEARD_SEC * sample_rate_hz)], sample_rate_hz)  # [T, bands]
    window = round(WINDOW_SEC / _HOP_SEC)
    if len(mels) <= window + round(MIN_LAG_SEC / _HOP_SEC):
        return 0.0
    means = _moving_mean(mels, window)
    variances = _moving_mean(mels.square().sum(dim=1), window) - means.square().sum(dim=1)
    varied = variances > _MIN_VARIANCE * mels.shape[1]
    products = mels @ mels.T
    best = 0.0
    for lag in range(round(MIN_LAG_SEC / _HOP_SEC), len(mels) - window):
        count = len(means) - lag
        both = varied[:count] & varied[lag:]
        if both.any():
            covariance = _moving_mean(torch.diagonal(products, lag), window)
            covariance = covariance - (means[:count] * means[lag:]).sum(dim=1)
            correlation = covariance[both] / (variances[:count] * variances[lag:])[both].sqrt()
            best = max(best, float(correlation.max()))
    return best


def _log_mels(wav: Tensor, sample_rate_hz: int) -> Tensor:
    """wav: [N] float32. Returns [T, bands] float64, the natural log of mel energies."""
    to_mels = torchaudio.transforms.MelSpectrogram(
        sample_rate_hz, n_fft=1024, hop_length=round(_HOP_SEC * sample_rate_hz), n_mels=40
    )
    if len(wav) < 1024:
        return torch.zeros(0, 40, dtype=torch.float64)
    mels = to_mels(wav.cpu().float()).clamp(min=1e-8).log().T.double()
    return mels.clamp(min=float(mels.max()) - _FLOOR_NATS)


def _moving_mean(values: Tensor, window: int) -> Tensor:
    """values: [T, ...] float64. Returns the means of all windows, [T - window + 1, ...]."""
    sums = torch.cat([torch.zeros_like(values[:1]), values.cumsum(dim=0)])
    return (sums[window:] - sums[:-window]) / window
