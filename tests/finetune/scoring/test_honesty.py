"""The judges on recordings with known answers: a score that these do not earn says nothing of a voice.

What is heard in the 20 recordings is heard once for all tests: that takes most of the time.
"""

from pathlib import Path

import pytest
import torch

from finetune.scoring.hearing import hear_all
from finetune.scoring.judges import JUDGE_RATE_HZ, Judges, find_judges
from finetune.scoring.repeats import is_looping
from finetune.scoring.words import error_rate, is_repeated
from vallex.codec.audio import SAMPLE_RATE_HZ, load_audio

MAX_MEAN_ERROR_RATE = 0.35


@pytest.fixture(scope="module")
def paths(shared) -> list[Path]:
    found = sorted((shared / "data/LibriTTS-mini").rglob("*.wav"))
    assert len(found) == 20
    return found


@pytest.fixture(scope="module")
def texts(paths) -> list[str]:
    return [path.with_suffix(".normalized.txt").read_text(encoding="utf-8") for path in paths]


@pytest.fixture(scope="module")
def wavs(paths) -> list[torch.Tensor]:
    return [load_audio(path, JUDGE_RATE_HZ) for path in paths]


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> Judges:
    """Those that need no weights; skips where the extra is not installed."""
    found = find_judges(["en"], tmp_path_factory.mktemp("no-weights"))
    if found.gaps:
        pytest.skip(f"judges are missing: {found.gaps}")
    assert [name and name.split()[0] for name in found.names().values()] == [
        "pocketsphinx",
        "Resemblyzer",
        "DNSMOS",
    ]
    return found


@pytest.fixture(scope="module")
def noises() -> list[torch.Tensor]:
    """Three seconds of noise, white and with a hum, as a random network sounds."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(2, 3 * JUDGE_RATE_HZ, generator=generator) * 0.1
    hum = 0.2 * torch.sin(2 * torch.pi * 120 * torch.arange(3 * JUDGE_RATE_HZ) / JUDGE_RATE_HZ)
    return [white[0], white[1] + hum]


@pytest.fixture(scope="module")
def heard(judges, wavs) -> list[str]:
    return hear_all(judges.recognizers["en"], wavs, "en")


def mean_error_rate(texts: list[str], heard: list[str]) -> float:
    rates = [error_rate(text, words, "en") for text, words in zip(texts, heard, strict=True)]
    return sum(rates) / len(rates)


def test_recordings_have_a_low_word_error_rate(texts, heard):
    assert mean_error_rate(texts, heard) <= MAX_MEAN_ERROR_RATE


def test_texts_that_are_shuffled_between_clips_raise_the_error_rate(texts, heard):
    assert mean_error_rate(texts[1:] + texts[:1], heard) > 2 * mean_error_rate(texts, heard)


def test_the_same_speaker_is_nearer_than_another(judges, paths, wavs):
    speakers = [path.parents[1].name for path in paths]
    vectors = judges.speaker.embed(wavs)
    near = vectors @ vectors.T
    is_same = torch.tensor([[one == other for other in speakers] for one in speakers])
    itself = torch.eye(len(paths), dtype=torch.bool)
    assert near[is_same & ~itself].mean() > near[~is_same].mean() + 0.15
    # and for each clip of a speaker who has another, the nearest of all is one of those
    nearest = near.masked_fill(itself, -1).argmax(dim=1)
    known = [place for place in range(len(paths)) if speakers.count(speakers[place]) > 1]
    right = sum(speakers[place] == speakers[nearest[place]] for place in known)
    assert len(known) >= 7 and right / len(known) >= 0.8


def test_noise_scores_badly_on_every_judge(judges, noises, wavs, texts):
    words = hear_all(judges.recognizers["en"], noises, "en")
    assert mean_error_rate(texts[:2], words) >= 0.9
    vectors = judges.speaker.embed(wavs)
    assert float((judges.speaker.embed(noises) @ vectors.T).max()) < 0.65
    noise_ratings, real_ratings = judges.naturalness.rate(noises), judges.naturalness.rate(wavs[::5])
    assert max(noise_ratings) < 2 < min(real_ratings)


def test_a_clip_that_is_played_twice_is_a_loop_and_no_recording_is(paths):
    for path in paths:
        wav = load_audio(path)
        assert not is_looping(wav, SAMPLE_RATE_HZ), path.name
        assert is_looping(torch.cat([wav, wav]), SAMPLE_RATE_HZ), path.name


def test_words_that_are_heard_twice_are_repeated_and_no_recording_s_are(texts, heard):
    for text, words in zip(texts, heard, strict=True):
        assert not is_repeated(text, words, "en"), words
        assert is_repeated(text, f"{words} {words}", "en") or len(words.split()) < 3, words
