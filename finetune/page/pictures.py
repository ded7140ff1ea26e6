"""Pictures of sound and of runs, without a plotting library: a PNG of waveform and spectrogram, SVG curves.

Drawn here rather than by the browser, so that what is seen can be tested, saved and read aloud (titles).
"""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
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
LINE_COLORS = ("#ea580c", "#3b82f6", "#16a34a", "#c026d3", "#0891b2", "#b7791f", "#e11d48", "#6366f1")
"""Told apart on light and on dark ground."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line in a picture. points: (x, y), finite; dashed: for what others are measured against."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def sound_picture(wav: Tensor) -> bytes:
    """A PNG: the waveform, below it the spectrogram up to 12 kHz. wav: [N] float32, 24 kHz."""
    picture = np.concatenate([_waveform(wav), _spectrogram(wav)], axis=0)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def curves_svg(curves: Sequence[Curve], title: str, x_label: str, y_label: str) -> str:
    """Curves as an SVG that takes the page's width and text colour; empty where there are no points."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    box = _Box(_spread(min(xs), max(xs), 0.0), _spread(min(ys), max(ys), 0.06))
    lines = [_grid(box, x_label, y_label)]
    legend = []
    for number, curve in enumerate(curves):
        color = LINE_COLORS[number % len(LINE_COLORS)]
        dash = ' stroke-dasharray="6 4"' if curve.dashed else ""
        path = " ".join(f"{box.x(x):.1f},{box.y(y):.1f}" for x, y in curve.points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        if len(curve.points) <= 60 and not curve.dashed:
            lines += [
                f'<circle cx="{box.x(x):.1f}" cy="{box.y(y):.1f}" r="3" fill="{color}">'
                f"<title>{html.escape(curve.name)}: {y:.4g} at {x:g}</title></circle>"
                for x, y in curve.points
            ]
        # the last value is said in words too: colour alone tells nobody who cannot see it
        legend.append(
            f'<span class="key"><svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" '
            f'y2="4" stroke="{color}" stroke-width="3"{dash}/></svg> {html.escape(curve.name)} '
            f"<b>{curve.points[-1][1]:.3f}</b></span>"
        )
    spoken = html.escape(f"{title}: " + ", ".join(f"{c.name} ends at {c.points[-1][1]:.3f}" for c in curves))
    return (
        f'<figure class="curves"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_Box.width} {_Box.height}" role="img" aria-label="{spoken}">'
        f"{''.join(lines)}</svg>"
        f'<div class="legend">{"".join(legend)}</div></figure>'
    )


class _Box:
    """Where the numbers of a picture lie."""

    width, height = 720, 260
    left, right, top, bottom = 56, 12, 12, 40

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return (
            self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)
        )


def _grid(box: _Box, x_label: str, y_label: str) -> str:
    parts = []
    text = 'fill="currentColor" font-size="12"'
    for value in _ticks(*box.y_range):
        y = box.y(value)
        parts.append(
            f'<line x1="{box.left}" x2="{box.width - box.right}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="currentColor" opacity="0.15"/><text x="{box.left - 6}" y="{y + 4:.1f}" '
            f'text-anchor="end" {text}>{value:g}</text>'
        )
    for value in _ticks(*box.x_range):
        parts.append(
            f'<text x="{box.x(value):.1f}" y="{box.height - box.bottom + 16}" text-anchor="middle" {text}>'
            f"{value:g}</text>"
        )
    middle = (box.left + box.width - box.right) / 2
    parts.append(
        f'<text x="{middle}" y="{box.height - 6}" text-anchor="middle" class="axis" {text}>'
        f"{html.escape(x_label)}</text>"
        f'<text x="14" y="{(box.height - box.bottom) / 2}" text-anchor="middle" class="axis" '
        f'transform="rotate(-90 14 {(box.height - box.bottom) / 2})" {text}>{html.escape(y_label)}</text>'
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers in a range."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(step * f for f in (0.2, 0.5, 1, 2, 5) if (high - low) / (step * f) <= 8)
    first = math.ceil(low / step - 1e-9)
    count = int((high - first * step) / step + 1e-9)
    return [round((first + n) * step, 10) for n in range(count + 1)]


def _spread(low: float, high: float, margin: float) -> tuple[float, float]:
    if high <= low:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


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
