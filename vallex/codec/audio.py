"""Recordings in and out, by soundfile: any rate and channels to 24 kHz mono, and back to 16-bit wav.

libsndfile reads what is there of a truncated file and says nothing. Half a sentence beside its whole
transcript is poison for training, so it is an error here.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from vallex.errors import AudioError
from vallex.files import atomic_write

SAMPLE_RATE_HZ = 24000
KNOWN_FORMATS = "wav, flac, ogg, mp3 or aiff"
# what a recorder writes into the header when it does not know the length yet
UNKNOWN_LENGTH_BYTES = 0x7FFFF000
# the windowed sinc of torchaudio's documentation that matches "kaiser_best": nothing audible is lost
RESAMPLING = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}


def load_audio(
    path: Path | str,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    start_sec: float = 0.0,
    end_sec: float | None = None,
) -> Tensor:
    """A recording, or a stretch of it, as one channel, the average of all, at the rate asked for.

    Returns [N] float32 in [-1, 1], N > 0.
    Raises AudioError: not there, a folder, empty, truncated, not audio, not finite.
    """
    path = Path(path)
    samples, file_rate_hz = read_samples(path, start_sec, end_sec)
    return _finished(path, samples.mean(axis=1), file_rate_hz, sample_rate_hz)


def save_audio(
    path: Path | str,
    wav: Tensor,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    software: str | None = None,
    comment: str | None = None,
) -> None:
    """Writes a 16-bit PCM wav, all of it or nothing; `software` and `comment` go into its metadata.

    wav: [N] float32; what is beyond [-1, 1] is clipped.
    Raises AudioError where samples are not finite, or the file cannot be written.
    """
    if wav.ndim != 1:
        raise ValueError(f"wav is {list(wav.shape)}; it must be [N]")
    if not torch.isfinite(wav).all():
        raise AudioError(f"{path}: not written, because the sound holds samples that are not finite numbers")
    samples = (wav.detach().cpu().float().clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    try:
        with (
            atomic_write(path) as temporary,
            soundfile.SoundFile(temporary, "w", sample_rate_hz, 1, "PCM_16", format="WAV") as file,
        ):
            if software:
                file.software = software
            if comment:
                file.comment = comment
            file.write(samples)
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{path}: cannot be written ({error}). Choose another place") from error


def read_samples(
    path: Path | str, start_sec: float = 0.0, end_sec: float | None = None
) -> tuple[np.ndarray, int]:
    """The samples [N, channels] float32 of a file, or of a stretch of it, as they are, and its rate in Hz.

    Raises AudioError as `load_audio` does, but for samples that are not finite.
    """
    path = Path(path)
    _check_there(path)
    try:
        with soundfile.SoundFile(path) as file:
            _refuse_truncated(path, file)
            rate_hz = file.samplerate
            start = round(start_sec * rate_hz)
            end = file.frames if end_sec is None else min(round(end_sec * rate_hz), file.frames)
            _skip_to(file, min(start, file.frames))
            samples = file.read(max(end - start, 0), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise _unreadable(path, error) from error
    if end <= start:
        raise AudioError(f"{path}: holds no sound (0 samples). Copy or record it again")
    if len(samples) < end - start:
        raise _truncated(path, f"{end} samples", f"{start + len(samples)}")
    return samples, rate_hz


def load_stretches(
    path: Path | str, stretches: Sequence[tuple[float, float]], sample_rate_hz: int = SAMPLE_RATE_HZ
) -> Iterator[Tensor]:
    """Stretches of one recording, in one pass: from and to in seconds, in order and apart from each other.

    Yields [N] float32 each, as `load_audio` does. Raises AudioError as it does, some of it only at the end.
    """
    held, held_from, place = np.zeros(0, dtype=np.float32), 0, 0
    for block, file_rate_hz in stream_audio(path):
        held = np.concatenate([held, block])
        while place < len(stretches):
            start, end = (round(moment * file_rate_hz) - held_from for moment in stretches[place])
            if end > len(held):
                break
            yield _finished(path, held[max(start, 0) : end], file_rate_hz, sample_rate_hz)
            place += 1
        if place == len(stretches):
            held_from, held = held_from + len(held), held[:0]
        else:
            done = min(max(round(stretches[place][0] * file_rate_hz) - held_from, 0), len(held))
            held_from, held = held_from + done, held[done:]
    for start_sec, _ in stretches[place:]:  # that end with the recording, but for a rounded sample
        start = max(round(start_sec * file_rate_hz) - held_from, 0)
        yield _finished(path, held[start:], file_rate_hz, sample_rate_hz)


def stream_audio(path: Path | str, block_sec: float = 60.0) -> Iterator[tuple[np.ndarray, int]]:
    """A recording of any length piece by piece: [n] float32, all channels averaged, and its rate in Hz.

    Raises AudioError as `read_samples` does, some of it only at the end.
    """
    path = Path(path)
    _check_there(path)
    num_read = 0
    try:
        with soundfile.SoundFile(path) as file:
            _refuse_truncated(path, file)
            num_promised, rate_hz = file.frames, file.samplerate
            while len(block := file.read(round(block_sec * rate_hz), dtype="float32", always_2d=True)):
                num_read += len(block)
                yield block.mean(axis=1), rate_hz
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise _unreadable(path, error) from error
    if num_read == 0:
        raise AudioError(f"{path}: holds no sound (0 samples). Copy or record it again")
    if num_read < num_promised:
        raise _truncated(path, f"{num_promised} samples", f"{num_read}")


def _finished(path: Path | str, mono: np.ndarray, file_rate_hz: int, sample_rate_hz: int) -> Tensor:
    """One channel of a file, [n] float32, at the rate asked for."""
    wav = torch.from_numpy(mono)
    if len(wav) == 0:
        raise AudioError(f"{path}: holds no sound (0 samples). Copy or record it again")
    if not torch.isfinite(wav).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers. Export it again as 16-bit wav")
    if file_rate_hz != sample_rate_hz:
        wav = torchaudio.functional.resample(wav, file_rate_hz, sample_rate_hz, **RESAMPLING)
    return wav.clamp(-1, 1)


def _skip_to(file: soundfile.SoundFile, frame: int) -> None:
    """Moves to a frame; an mp3 is read up to it, because its frames need those before them."""
    if file.format == "MPEG":
        while (left := frame - file.tell()) > 0:
            if not len(file.read(min(left, 60 * file.samplerate))):
                return
    elif frame:
        file.seek(frame)


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not a recording. Give the path of one {KNOWN_FORMATS} file")
    if not path.exists():
        raise AudioError(f"{path}: there is no such file. Give the path of a recording ({KNOWN_FORMATS})")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes). Copy or record it again")


def _unreadable(path: Path, error: Exception) -> AudioError:
    reason = str(getattr(error, "error_string", error)).strip() or "it ends early or is damaged"
    return AudioError(f"{path}: cannot be read as audio ({reason}). Allowed is a whole {KNOWN_FORMATS} file")


def _refuse_truncated(path: Path, file: soundfile.SoundFile) -> None:
    # libsndfile notes in its log what a header says and what it "should be"
    log = file.extra_info
    size = re.search(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if size and int(size[2]) < int(size[1]) < UNKNOWN_LENGTH_BYTES:
        raise _truncated(path, f"{size[1]} bytes of sound", size[2])
    if "lacks an end-of-stream bit" in log:
        raise _truncated(path, "an end-of-stream mark", "none")


def _truncated(path: Path, promised: str, found: str) -> AudioError:
    return AudioError(f"{path}: is truncated: it promises {promised} but holds {found}. Copy it again")
