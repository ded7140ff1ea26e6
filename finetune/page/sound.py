"""Speech as bytes: wav that is streamed before its length is known, whole files, and the mark in each.

Every file says in its metadata that it is synthetic and by which checkpoint; raw pcm has no place for it.
"""

import io
import struct
import zipfile
from collections.abc import Iterable

import numpy as np
import soundfile
import torch
from torch import Tensor

from vallex.codec import TOY_NOTICE
from vallex.codec.audio import SAMPLE_RATE_HZ
from vallex.errors import ConfigError

SOFTWARE = "vallex"
MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
    "pcm": "audio/pcm",
    "zip": "application/zip",
}
STREAMED = ("wav", "pcm")
"""Sent sentence by sentence; the others when all is spoken."""

SAVED_KINDS = ("wav", "flac", "ogg", "mp3")
"""What the page lets people download."""

_SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "opus": "OPUS", "mp3": "MPEG_LAYER_III"}
_UNKNOWN_LENGTH = 0xFFFFFFFF


def mark_of(checkpoint: str, is_toy: bool) -> str:
    """What is written into every file."""
    return f"synthetic speech by vallex, {checkpoint}" + (f" ({TOY_NOTICE})" if is_toy else "")


def to_pcm(wav: Tensor) -> bytes:
    """wav: [N] float32. 16-bit little-endian samples; what is not finite is silent."""
    finite = torch.nan_to_num(wav.detach().cpu().float(), nan=0.0, posinf=0.0, neginf=0.0)
    return (finite.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes()


def stream_header(mark: str) -> bytes:
    """The head of a wav whose length nobody knows yet: format, mark, and data without an end."""
    info = b"INFO" + _chunk(b"ISFT", SOFTWARE.encode() + b"\0") + _chunk(b"ICMT", mark.encode() + b"\0")
    form = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16)
    head = b"RIFF" + struct.pack("<I", _UNKNOWN_LENGTH) + b"WAVE" + _chunk(b"fmt ", form)
    return head + _chunk(b"LIST", info) + b"data" + struct.pack("<I", _UNKNOWN_LENGTH)


def encode(pcm: bytes, kind: str, mark: str) -> bytes:
    """A whole file of 16-bit samples in a format of MEDIA_TYPES."""
    if kind == "pcm":
        return pcm
    if kind not in _SUBTYPES:
        raise ConfigError(f"format {kind!r} is not known; it is one of {', '.join(MEDIA_TYPES)}")
    file = io.BytesIO()
    container = "OGG" if kind == "opus" else kind.upper()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE_HZ, 1, _SUBTYPES[kind], format=container) as sound:
        sound.software = SOFTWARE
        sound.comment = mark
        samples = np.frombuffer(pcm, "<i2")
        # in pieces: libsndfile's vorbis encoder overflows its stack with a long recording at once
        for start in range(0, len(samples), SAMPLE_RATE_HZ):
            sound.write(samples[start : start + SAMPLE_RATE_HZ])
    return file.getvalue()


def zip_of(sounds: Iterable[tuple[str, bytes]], mark: str) -> bytes:
    """A zip of wavs, each with the mark. sounds: name and 16-bit samples of each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # stored: noise of the lowest bits does not shrink
        for name, pcm in sounds:
            archive.writestr(f"{name}.wav", encode(pcm, "wav", mark))
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
