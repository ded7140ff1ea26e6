"""Bringing clips to one level: ITU-R BS.1770 loudness (torchaudio's), limited so that no peak clips."""

import math

import torch
import torchaudio
from torch import Tensor

TARGET_LUFS = -23.0  # the median of LibriTTS, and the broadcasting level of EBU R 128
PEAK_DB = -1.0
_MAX_GAIN_DB = 30.0  # more would only lift noise
_GATE_SEC = 0.4  # BS.1770 measures blocks of this length


def levelled(wav: Tensor, sample_rate_hz: int, target_lufs: float = TARGET_LUFS) -> Tensor:
    """The same sound at `target_lufs`, or as near to it as its peaks allow; silence stays as it is.

    wav: [N] float32, N > 0. Returns [N] float32 within PEAK_DB of full scale.
    """
    peak = wav.abs().max().item()
    loudness = loudness_lufs(wav, sample_rate_hz)
    if peak == 0 or loudness is None:
        return wav
    gain_db = min(target_lufs - loudness, PEAK_DB - 20 * math.log10(peak), _MAX_GAIN_DB)
    return wav * 10 ** (gain_db / 20)


def loudness_lufs(wav: Tensor, sample_rate_hz: int) -> float | None:
    """The loudness of [N] float32 samples; None where all is below the gate of BS.1770 (-70)."""
    missing = math.ceil(_GATE_SEC * sample_rate_hz) + 1 - len(wav)
    if missing > 0:  # too short for one block: the sound goes round
        wav = wav.repeat(math.ceil(missing / len(wav)) + 1)
    loudness = torchaudio.functional.loudness(wav[None].double(), sample_rate_hz)
    return loudness.item() if torch.isfinite(loudness) else None
