"""How loud a recording is from moment to moment, and which moments are speech.

Levels are of the band in which speech lies, so that hum and rumble count for nothing. What is silence is
decided against the noise floor around a moment, because a phone's floor is where a studio's speech ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

BAND_HZ = (120.0, 7000.0)
_FRAMES_A_SECOND = 100
_LOWEST_DB = -120.0
_WINDOW_SEC = 30.0  # around a moment, for its floor and its speech level
_STEP_SEC = 1.0
_FLOOR_PERCENTILE, _SPEECH_PERCENTILE = 4, 95
_MAX_RANGE_DB = 55.0  # a floor further below speech is as good as digital silence
_MIN_RANGE_DB = 9.0  # with less between floor and speech, nothing can be told apart
_RANGE_SHARE = 0.35  # of the way from floor to speech is where speech begins ...
_ABOVE_FLOOR_DB = (5.0, 20.0)  # ... within these
_MAX_FLOOR_RISE_DB = 15.0  # above the floor of the whole: a minute without a pause has no floor of its own
_MAX_SPEECH_FALL_DB = 25.0  # below the speech of the whole: a long silence has no speech of its own
_MIN_BURST_SEC = 0.04  # shorter is a click
_MARGIN_SEC = 0.04  # speech begins and ends a little further out: weak consonants


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """The level of each frame [F] float32 in dB of full scale, and how long a frame is."""

    level_db: np.ndarray
    frame_sec: float

    @property
    def seconds(self) -> float:
        return len(self.level_db) * self.frame_sec


def measure_levels(blocks: Iterable[tuple[np.ndarray, int]]) -> Levels:
    """The levels of a recording that comes in blocks, [n] float32 with its rate; at least one block."""
    rest = np.zeros(0, dtype=np.float32)
    parts, hop, rate_hz = [], 0, 0
    for block, rate_hz in blocks:
        hop = max(rate_hz // _FRAMES_A_SECOND, 1)
        wav = np.concatenate([rest, np.nan_to_num(block)])
        num_frames = len(wav) // hop
        if num_frames > 1:  # each frame is heard with the one after it
            parts.append(_band_levels(wav, hop, num_frames - 1, rate_hz))
            rest = wav[(num_frames - 1) * hop :]
        else:
            rest = wav
    padded = np.concatenate([rest, np.zeros(2 * hop, dtype=np.float32)])
    parts.append(_band_levels(padded, hop, max(len(rest) // hop, 1), rate_hz))
    return Levels(level_db=np.concatenate(parts), frame_sec=hop / rate_hz)


def _band_levels(wav: np.ndarray, hop: int, num_frames: int, rate_hz: int) -> np.ndarray:
    """The level in BAND_HZ of `num_frames` frames of two hops each, [n] float32 to [F] float32 in dB."""
    frames = np.lib.stride_tricks.sliding_window_view(wav, 2 * hop)[::hop][:num_frames]
    window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)
    spectrum = np.fft.rfft(frames * window, axis=1)
    frequencies = np.fft.rfftfreq(2 * hop, 1 / rate_hz)
    in_band = (frequencies >= BAND_HZ[0]) & (frequencies <= BAND_HZ[1])
    # Parseval, for one side of the spectrum and a window
    power = 2 * (np.abs(spectrum[:, in_band]) ** 2).sum(axis=1) / (2 * hop * (window**2).sum())
    return (10 * np.log10(np.maximum(power, 10 ** (_LOWEST_DB / 10)))).astype(np.float32)


def find_speech(levels: Levels) -> np.ndarray:
    """Which frames are speech, [F] bool, with a margin for weak consonants; all or none where no floor shows.

    A recording of one steady level is silence where that level is low, and speech otherwise.
    """
    smooth = _smoothed(levels.level_db)
    floor_db, speech_db = _floor_and_speech(smooth, levels.frame_sec)
    range_db = np.clip(speech_db - floor_db, 0, _MAX_RANGE_DB)
    floor_db = speech_db - range_db
    threshold_db = floor_db + np.clip(_RANGE_SHARE * range_db, *_ABOVE_FLOOR_DB)
    steady = range_db < _MIN_RANGE_DB
    is_speech = np.where(steady, smooth > -60.0, smooth > threshold_db)
    is_speech = _without_short_runs(is_speech, _MIN_BURST_SEC / levels.frame_sec)
    margin = max(round(_MARGIN_SEC / levels.frame_sec), 1)
    return np.convolve(is_speech, np.ones(2 * margin + 1), mode="same")[: len(is_speech)] > 0.5


def runs_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where a mask [F] is true: first frame and the one after the last of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _smoothed(level_db: np.ndarray) -> np.ndarray:
    """The median of three frames: a click of one frame is gone."""
    padded = np.pad(level_db, 1, mode="edge")
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)


def _floor_and_speech(level_db: np.ndarray, frame_sec: float) -> tuple[np.ndarray, np.ndarray]:
    """The noise floor and the level of speech around each frame, [F] each, in dB."""
    half, step = round(_WINDOW_SEC / 2 / frame_sec), max(round(_STEP_SEC / frame_sec), 1)
    centres = np.arange(0, len(level_db), step)
    around = [
        np.percentile(level_db[max(0, c - half) : c + half], (_FLOOR_PERCENTILE, _SPEECH_PERCENTILE))
        for c in centres
    ]
    whole = np.percentile(level_db, (_FLOOR_PERCENTILE, _SPEECH_PERCENTILE))
    floor, speech = np.array(around).T
    floor = np.minimum(floor, max(whole[0], _LOWEST_DB) + _MAX_FLOOR_RISE_DB)
    speech = np.maximum(speech, whole[1] - _MAX_SPEECH_FALL_DB)
    places = np.arange(len(level_db))
    return np.interp(places, centres, floor), np.interp(places, centres, speech)


def _without_short_runs(mask: np.ndarray, min_frames: float) -> np.ndarray:
    mask = mask.copy()
    for start, end in runs_of(mask):
        if end - start < min_frames:
            mask[start:end] = False
    return mask
