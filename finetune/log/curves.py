"""The curves of runs, from their logs, as SVG without a plotting library.

Drawn here rather than by a browser, so that what is seen can be tested, saved and read aloud (titles). An SVG
takes the width, the text colour and the theme of the page that it stands in.
"""

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LINE_COLORS = ("#ea580c", "#3b82f6", "#16a34a", "#c026d3", "#0891b2", "#b7791f", "#e11d48", "#6366f1")
"""Told apart on light and on dark ground."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line in a picture. points: (x, y), finite; dashed: for what others are measured against."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def read_lines(path: Path) -> Iterator[dict]:
    """The lines of a run's log that say a loss at a step, as far as they are whole."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and _is_measured(entry):
            yield entry


def _is_measured(entry: dict) -> bool:
    names, numbers = ("stage", "kind"), ("step", "loss")
    return all(isinstance(entry.get(name), str) for name in names) and all(
        isinstance(entry.get(name), int | float) and math.isfinite(entry[name]) for name in numbers
    )


def stage_curves(lines: list[dict], stage: str, name: str = "") -> list[Curve]:
    """Training and validation loss of a stage, and the untouched model's as a dashed line."""
    own = [line for line in lines if line["stage"] == stage]
    points = {
        kind: [(line["step"], line["loss"]) for line in own if line["kind"] == kind]
        for kind in ("train", "valid")
    }
    curves = [
        Curve(name=f"{name}training", points=points["train"]),
        Curve(name=f"{name}validation", points=points["valid"]),
    ]
    base = next((y for x, y in points["valid"] if x == 0), None)
    if base is not None and own:
        ends = [(0, base), (max(line["step"] for line in own) or 1, base)]
        curves.append(Curve(name=f"{name}untouched model", points=ends, dashed=True))
    return curves


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
