"""Hearing many takes: in batches for Whisper, in processes for pocketsphinx, which holds Python's lock."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from finetune.data.transcribe import hear_files
from finetune.scoring.judges import JUDGE_RATE_HZ
from vallex.codec.audio import save_audio
from vallex.inference.asr import POCKETSPHINX, Recognizer

BATCH_SIZE = 8
TAKES_PER_PROCESS = 6
"""A process takes seconds to start, as long as some takes."""


def hear_all(recognizer: Recognizer, wavs: Sequence[Tensor], language: str) -> list[str | None]:
    """What is said in each of several recordings in one language; None where one could not be read.

    wavs: each [N] float32, 16 kHz, at most 30 s
    """
    num_processes = min(os.cpu_count() or 1, len(wavs) // TAKES_PER_PROCESS)
    if recognizer.name == POCKETSPHINX and num_processes > 1:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{place}.wav" for place in range(len(wavs))]
            for path, wav in zip(paths, wavs, strict=True):
                save_audio(path, wav, JUDGE_RATE_HZ)
            heard = hear_files(paths, POCKETSPHINX, language, num_workers=num_processes)
            return [one and one.text for one in heard]
    batches = [wavs[start : start + BATCH_SIZE] for start in range(0, len(wavs), BATCH_SIZE)]
    return [one.text for batch in batches for one in recognizer.hear(batch, language)]
