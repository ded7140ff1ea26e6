"""Preparing against the bare forward of EnCodec over the same sound, in turn on the same core: 85 % or more.

The codec has its true size and random weights. What counts is the processor's time, which others on the
machine hardly change; the time on the clock is told beside it. Run it alone:
pytest -m slow -s tests/benchmarks/test_prepare_speed.py
"""

import time

import pytest
import torch

from finetune.data.libritts import find_clips
from finetune.data.prepare import PrepareSettings, prepare
from vallex.codec import load_codec
from vallex.codec.audio import load_audio
from vallex.text import PhonemeTokenizer

pytestmark = pytest.mark.slow
ROUNDS = 3


def test_prepare_runs_at_85_percent_of_the_bare_codec(shared, tmp_path, one_thread):
    data = shared / "data/LibriTTS-mini"
    codec, tokenizer = load_codec(toy=True), PhonemeTokenizer()
    tokenizer.encode("[EN]The dictionary is loaded once.[EN]")
    wavs = [load_audio(clip.path).view(1, 1, -1) for clip in find_clips(data)[0]]
    audio_sec = sum(wav.shape[-1] for wav in wavs) / codec.sample_rate_hz

    def bare(_round: int) -> None:
        with torch.no_grad():
            for wav in wavs:
                codec.model.encode(wav)

    def ours(round_: int) -> None:
        summary = prepare(data, tmp_path / str(round_), PrepareSettings(), codec, tokenizer)
        assert summary.num_encoded == len(wavs)

    clock, processor = {bare: [], ours: []}, {bare: [], ours: []}
    for round_ in range(ROUNDS):
        for work in clock:
            start, processor_start = time.perf_counter(), time.process_time()
            work(round_)
            clock[work].append(time.perf_counter() - start)
            processor[work].append(time.process_time() - processor_start)
    shares = [min(taken[bare]) / min(taken[ours]) for taken in (processor, clock)]
    print(
        f"{audio_sec:.0f} s of sound, {audio_sec / min(clock[ours]):.1f} times real time: {shares[0]:.0%} of "
        f"the bare codec's speed by the processor's time, {shares[1]:.0%} by the clock"
    )
    assert shares[0] >= 0.85
