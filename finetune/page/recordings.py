"""Recordings that strangers send: looked at before they are read, cut to what a voice prompt may be.

Only the first minute is ever decoded, whatever a file's header promises, so that a small file that unpacks
to hours takes no memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from finetune.data.levels import find_speech, measure_levels, runs_of
from finetune.page.settings import MAX_RECORDING_MB, MAX_RECORDING_SEC
from vallex.codec.audio import KNOWN_FORMATS, SAMPLE_RATE_HZ, load_audio, save_audio
from vallex.errors import AudioError, WeightsError
from vallex.inference.asr import (
    ASR_RATE_HZ,
    POCKETSPHINX,
    Heard,
    Recognizer,
    find_recognizer,
    missing_recognizer,
)
from vallex.inference.voices import ADVISED_PROMPT_SEC, MAX_PROMPT_SEC, MIN_PROMPT_SEC

READ_SEC = 60.0
_MIN_PAUSE_SEC = 0.15
_EDGE_SEC = 0.1
_MAX_CHANNELS = 8
_NUM_SPHINX_BYTES = 110_000_000  # resident, after ten seconds heard
_RATES_HZ = (4000, 384000)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording that can be made into a voice.

    path: a wav of our own: 24 kHz, one channel, at most 15 s
    note: what was done to it, or what is wrong with it, in words; may be empty
    """

    path: Path
    seconds: float
    note: str


def check_recording(path: Path, name: str) -> None:
    """Refuses what is too large, too long, or no recording; `name` is what its sender calls it."""
    num_bytes = path.stat().st_size
    if num_bytes > MAX_RECORDING_MB * 1_000_000:
        raise AudioError(f"{name}: {num_bytes / 1e6:.0f} MB; at most {MAX_RECORDING_MB} MB are taken")
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise AudioError(f"{name}: not a recording that can be read; allowed is {KNOWN_FORMATS}") from error
    if not 1 <= info.channels <= _MAX_CHANNELS or not _RATES_HZ[0] <= info.samplerate <= _RATES_HZ[1]:
        raise AudioError(
            f"{name}: {info.channels} channels at {info.samplerate} Hz; 1 to {_MAX_CHANNELS} at "
            f"{_RATES_HZ[0]} to {_RATES_HZ[1]} Hz are taken"
        )
    if info.duration > MAX_RECORDING_SEC:
        raise AudioError(
            f"{name}: lasts {info.duration / 60:.0f} minutes; at most {MAX_RECORDING_SEC / 60:.0f} are taken"
        )


def take_recording(path: Path, name: str, out: Path) -> Recording:
    """Reads a recording, cuts it to a voice prompt's length where silence allows, and writes it to `out`.

    errors: AudioError where it is refused, empty, silent, or shorter than half a second
    """
    check_recording(path, name)
    try:
        wav = load_audio(path, end_sec=READ_SEC)
    except AudioError as error:
        raise AudioError(str(error).replace(str(path), name)) from error
    seconds = len(wav) / SAMPLE_RATE_HZ
    levels = measure_levels([(wav.numpy(), SAMPLE_RATE_HZ)])
    is_speech = find_speech(levels)
    if not is_speech.any() or float(wav.abs().max()) < 1e-3:
        raise AudioError(f"{name}: holds no speech, only silence. Is the microphone on?")
    if seconds < MIN_PROMPT_SEC:
        raise AudioError(f"{name}: lasts {seconds:.1f} s; at least {ADVISED_PROMPT_SEC:.0f} s are wanted")
    start_sec, end_sec, how = _cut(is_speech, levels.frame_sec, seconds)
    kept = wav[round(start_sec * SAMPLE_RATE_HZ) : round(end_sec * SAMPLE_RATE_HZ)]
    save_audio(out, kept)
    length = len(kept) / SAMPLE_RATE_HZ
    if not how and length < ADVISED_PROMPT_SEC:
        how = f"{length:.1f} s is short; {ADVISED_PROMPT_SEC:.0f} to {MAX_PROMPT_SEC:.0f} s are better"
    return Recording(path=out, seconds=length, note=how)


def hear(recording: Path, recognizer: Recognizer) -> Heard:
    """What is said in a recording, whatever its language."""
    wav = torchaudio.functional.resample(load_audio(recording), SAMPLE_RATE_HZ, ASR_RATE_HZ)
    with torch.inference_mode():
        [heard] = recognizer.hear([wav])
    return heard


def recognizer_size(asr: str, checkpoints_dir: Path) -> tuple[str, int]:
    """The name of who hears recordings, and the bytes that it takes. WeightsError where there is nobody."""
    name = None if asr == "none" else find_recognizer(asr, checkpoints_dir=checkpoints_dir)
    if name is None:
        raise WeightsError(missing_recognizer(asr, "auto", checkpoints_dir))
    if name == POCKETSPHINX:
        return name, _NUM_SPHINX_BYTES
    folder = checkpoints_dir / name
    weights = list(folder.glob("model*.safetensors")) or [folder / "pytorch_model.bin"]
    return name, sum(path.stat().st_size for path in weights)


def _cut(is_speech: np.ndarray, frame_sec: float, seconds: float) -> tuple[float, float, str]:
    """Where to begin and end, and a word about it; all of it where it is short enough."""
    if seconds <= MAX_PROMPT_SEC:
        return 0.0, seconds, ""
    runs = [(start * frame_sec, end * frame_sec) for start, end in runs_of(is_speech)]
    begin = max(runs[0][0] - _EDGE_SEC, 0.0)
    limit = begin + MAX_PROMPT_SEC
    pauses = [
        min(end + _EDGE_SEC, (end + following) / 2, limit)
        for (_, end), (following, _) in zip(runs, [*runs[1:], (seconds, seconds)], strict=True)
        if end <= limit and following - end >= _MIN_PAUSE_SEC
    ]
    fitting = [pause for pause in pauses if begin + ADVISED_PROMPT_SEC <= pause <= limit]
    if fitting:
        kept = f"{begin:.1f} to {fitting[-1]:.1f} s of {seconds:.1f} s"
        return begin, fitting[-1], f"Longer than {MAX_PROMPT_SEC:.0f} s: kept {kept}, where there is a pause"
    return (
        begin,
        limit,
        f"Longer than {MAX_PROMPT_SEC:.0f} s and without a pause: kept {begin:.1f} to {limit:.1f} s, "
        "which may end within a word",
    )
