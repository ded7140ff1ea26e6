"""Cutting a long recording at its silences into clips for training.

Which pauses become cuts is chosen for the whole recording at once (dynamic programming): long pauses first,
clips of a middling length, no long silence inside one. Where there is no pause there is no cut: a stretch
that is too long is left out, and said to be.
"""

from dataclasses import dataclass

import numpy as np

from finetune.data.levels import Levels, find_speech, runs_of
from vallex.errors import ConfigError

MIN_PAUSE_SEC = 0.12  # beyond the margins of speech: the closure of a plosive is shorter
_SURE_PAUSE_SEC = 0.3
_LONG_PAUSE_SEC = 0.8
_TARGET_SEC = 6.0
_LEFT_OUT_COST = 1000.0


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """How clips are cut: their length, and how much silence is left at both ends."""

    min_clip_sec: float = 2.0
    max_clip_sec: float = 14.0
    edge_sec: float = 0.2

    def __post_init__(self):
        if not 0 < self.min_clip_sec < self.max_clip_sec:
            raise ConfigError(
                f"min_clip_sec {self.min_clip_sec:g} and max_clip_sec {self.max_clip_sec:g}: "
                "the first must be above 0 and below the second"
            )
        if not 0 <= self.edge_sec <= 1:
            raise ConfigError(f"edge_sec {self.edge_sec:g} is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a recording; `reason` says why it is left out, or is empty."""

    start_sec: float
    end_sec: float
    reason: str = ""


def cut_at_silences(levels: Levels, settings: CutSettings) -> list[Stretch]:
    """The clips of a recording in order, and what of its speech is in none, with the reason.

    A clip begins and ends in silence, or where the recording does.
    """
    pieces = _pieces(find_speech(levels), levels.frame_sec)
    if not pieces:
        return [Stretch(start_sec=0.0, end_sec=levels.seconds, reason="no speech")]
    spans = _with_edges(pieces, levels.seconds, settings.edge_sec)
    stretches = []
    for first, last in _choose(pieces, spans, settings):
        start_sec, end_sec = spans[first][0], spans[last][1]
        seconds, reason = end_sec - start_sec, ""
        if seconds > settings.max_clip_sec:
            reason = f"no pause in {seconds:.1f} s; at most {settings.max_clip_sec:g} s"
        elif seconds < settings.min_clip_sec:
            reason = f"{seconds:.2f} s between long pauses; at least {settings.min_clip_sec:g} s"
        stretches.append(Stretch(start_sec=round(start_sec, 3), end_sec=round(end_sec, 3), reason=reason))
    return stretches


def _pieces(is_speech: np.ndarray, frame_sec: float) -> list[tuple[float, float]]:
    """The stretches of speech between pauses, in seconds."""
    pieces: list[tuple[float, float]] = []
    for start, end in runs_of(is_speech):
        start_sec, end_sec = start * frame_sec, end * frame_sec
        if pieces and start_sec - pieces[-1][1] < MIN_PAUSE_SEC:
            pieces[-1] = (pieces[-1][0], end_sec)
        else:
            pieces.append((start_sec, end_sec))
    return pieces


def _with_edges(pieces: list[tuple[float, float]], seconds: float, edge_sec: float) -> list[tuple]:
    """Where a clip of each piece would begin and end: into the silence, at most to its middle."""
    spans = []
    for place, (start, end) in enumerate(pieces):
        before = start if place == 0 else (start - pieces[place - 1][1]) / 2
        after = seconds - end if place == len(pieces) - 1 else (pieces[place + 1][0] - end) / 2
        spans.append((start - min(edge_sec, before), end + min(edge_sec, max(after, 0.0))))
    return spans


def _choose(pieces: list[tuple[float, float]], spans: list[tuple], settings: CutSettings) -> list[tuple]:
    """First and last piece of each clip, by the least cost over all ways to group neighbours."""
    best = [0.0] + [np.inf] * len(pieces)  # of the first n pieces
    begins = [0] * (len(pieces) + 1)
    for end in range(1, len(pieces) + 1):
        inner_cost = 0.0
        for first in range(end - 1, -1, -1):
            seconds = spans[end - 1][1] - spans[first][0]
            if first < end - 1:
                inner_cost += _inner_cost(pieces[first + 1][0] - pieces[first][1])
                if seconds > settings.max_clip_sec:
                    break
            cost = best[first] + inner_cost + _clip_cost(seconds, settings)
            if first > 0:
                cost += _cut_cost(pieces[first][0] - pieces[first - 1][1])
            if cost < best[end]:
                best[end], begins[end] = cost, first
    groups, end = [], len(pieces)
    while end > 0:
        groups.append((begins[end], end - 1))
        end = begins[end]
    return groups[::-1]


def _cut_cost(pause_sec: float) -> float:
    """A short pause may lie within a phrase: twice the length, a quarter of the cost."""
    return min((_SURE_PAUSE_SEC / pause_sec) ** 2, 10.0)


def _inner_cost(pause_sec: float) -> float:
    return 3.0 * max(pause_sec - _LONG_PAUSE_SEC, 0.0)


def _clip_cost(seconds: float, settings: CutSettings) -> float:
    if seconds > settings.max_clip_sec:
        return _LEFT_OUT_COST
    if seconds < settings.min_clip_sec:
        return 8.0 + 4.0 * (settings.min_clip_sec - seconds)
    return float(np.log(seconds / _TARGET_SEC) ** 2)
