"""A picture of sound, without a plotting library: a PNG of waveform and spectrogram.

Drawn here rather than by the browser, so that what is seen can be tested and saved.
"""

import io
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_WIDTH, _WAVE_HEIGHT, _SPECTROGRAM_HEIGHT = 900, 80, 180
_RANGE_DB = 80.0
_BACKGROUND = (24, 24, 27)
_WAVE_COLOR = (251, 146, 60)
# from black over purple and orange to light yellow
_COLORS = np.array(
    [(4, 4, 16), (58, 12, 96), (132, 32, 107), (199, 58, 79), (242, 112, 40), (252, 186, 80), (252, 253, 200)]
)


def sound_picture(wav: Tensor) -> bytes:
    """A PNG: the waveform, below it the spectrogram up to 12 kHz. wav: [N] float32, 24 kHz."""
    picture = np.concatenate([_waveform(wav), _spectrogram(wav)], axis=0)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _waveform(wav: Tensor) -> np.ndarray:
    """[_WAVE_HEIGHT, _WIDTH, 3] uint8: the lowest and highest sample of each column."""
    picture = np.full((_WAVE_HEIGHT, _WIDTH, 3), _BACKGROUND, dtype=np.uint8)
    samples = np.nan_to_num(wav.detach().cpu().numpy())
    if not len(samples):
        return picture
    edges = np.linspace(0, len(samples), _WIDTH + 1).astype(int)
    middle = (_WAVE_HEIGHT - 1) / 2
    for column, (start, end) in enumerate(pairwise(edges)):
        piece = samples[start : max(end, start + 1)].clip(-1, 1)
        top, bottom = round(middle - piece.max() * middle), round(middle - piece.min() * middle)
        picture[top : bottom + 1, column] = _WAVE_COLOR
    return picture


def _spectrogram(wav: Tensor) -> np.ndarray:
    """[_SPECTROGRAM_HEIGHT, _WIDTH, 3] uint8, 80 dB down from the loudest."""
    wav = torch.nan_to_num(wav.detach().cpu().float())
    wav = torch.nn.functional.pad(wav, (0, max(1024 - len(wav), 0)))
    spectrum = torch.stft(wav, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
    level_db = 20 * torch.log10(spectrum.clamp(min=1e-7))
    level_db = level_db - level_db.max() if len(wav) else level_db
    shares = (1 + level_db / _RANGE_DB).clamp(0, 1).flip(0)[None, None]  # low frequencies below
    size = (_SPECTROGRAM_HEIGHT, _WIDTH)
    shares = torch.nn.functional.interpolate(shares, size=size, mode="bilinear", align_corners=False)[0, 0]
    places = shares.numpy() * (len(_COLORS) - 1)
    low = np.floor(places).astype(int).clip(0, len(_COLORS) - 2)
    part = (places - low)[..., None]
    return (_COLORS[low] * (1 - part) + _COLORS[low + 1] * part).astype(np.uint8)
