"""Hearing many clips: in processes for pocketsphinx, which is slow on one core, in batches for Whisper."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vallex.codec.audio import load_audio
from vallex.errors import AudioError
from vallex.inference.asr import (
    ASR_RATE_HZ,
    MAX_HEARD_SEC,
    POCKETSPHINX,
    Heard,
    Recognizer,
    find_recognizer,
    load_recognizer,
)
from vallex.sources import CHECKPOINTS_DIR

_BATCH = 8
_CLIPS_PER_WORKER = 20  # a worker takes seconds to start

_recognizer: Recognizer  # of a worker process


def hear_files(
    paths: Sequence[Path],
    choice: str = "auto",
    language: str = "auto",
    checkpoints_dir: Path = CHECKPOINTS_DIR,
    num_workers: int | None = None,
) -> Iterator[Heard | None]:
    """What is said in each file, in their order; None for one that cannot be read, or lasts over 30 s.

    num_workers: processes for pocketsphinx; None for one a core where there are clips enough

    Raises WeightsError where there is no recognizer (vallex.inference.asr).
    """
    if num_workers is None:
        num_workers = max(1, min(os.cpu_count() or 1, len(paths) // _CLIPS_PER_WORKER))
    if num_workers > 1 and find_recognizer(choice, language, checkpoints_dir) == POCKETSPHINX:
        context = multiprocessing.get_context("spawn")
        with context.Pool(num_workers, _start_worker, (choice, language, checkpoints_dir)) as pool:
            yield from pool.imap(_hear_in_worker, paths, chunksize=2)
        return
    recognizer = load_recognizer(choice, language, checkpoints_dir)
    size = 1 if recognizer.name == POCKETSPHINX else _BATCH
    for start in range(0, len(paths), size):
        yield from hear_batch(recognizer, paths[start : start + size], language)


def hear_batch(recognizer: Recognizer, paths: Sequence[Path], language: str) -> list[Heard | None]:
    """As `hear_files`, in one batch."""
    wavs = [_load(path) for path in paths]
    heard = iter(recognizer.hear([wav for wav in wavs if wav is not None], language))
    return [None if wav is None else next(heard) for wav in wavs]


def _load(path: Path) -> torch.Tensor | None:
    try:
        wav = load_audio(path, ASR_RATE_HZ, end_sec=MAX_HEARD_SEC + 1)
    except AudioError:
        return None
    return wav if len(wav) <= MAX_HEARD_SEC * ASR_RATE_HZ else None


def _start_worker(choice: str, language: str, checkpoints_dir: Path) -> None:
    global _recognizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it answers Ctrl-C
    torch.set_num_threads(1)
    _recognizer = load_recognizer(choice, language, checkpoints_dir)


def _hear_in_worker(path: Path) -> Heard | None:
    return hear_batch(_recognizer, [path], "auto")[0]
