"""Sounds that repeat themselves, and sounds that only stay alike."""

import pytest
import torch

from finetune.quickstart import sample_voice
from finetune.scoring.repeats import is_looping, self_similarity
from vallex.codec.audio import SAMPLE_RATE_HZ, load_audio


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return load_audio(sample_voice())


def test_is_looping_when_a_clip_is_played_twice(clip):
    assert not is_looping(clip, SAMPLE_RATE_HZ)
    assert is_looping(torch.cat([clip, clip]), SAMPLE_RATE_HZ)


def test_is_looping_when_one_second_of_a_clip_comes_back_after_others(clip):
    second = clip[SAMPLE_RATE_HZ // 2 : SAMPLE_RATE_HZ * 3 // 2]
    assert is_looping(torch.cat([clip, torch.zeros(SAMPLE_RATE_HZ // 3), second]), SAMPLE_RATE_HZ)


def test_is_looping_when_louder_the_second_time(clip):
    assert is_looping(torch.cat([0.3 * clip, clip]), SAMPLE_RATE_HZ)


@pytest.mark.parametrize("kind", ["silence", "hum", "noise"])
def test_is_looping_when_all_is_alike_then_is_not(kind):
    seconds = torch.arange(4 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    sound = {
        "silence": torch.zeros(len(seconds)),
        "hum": 0.3 * torch.sin(2 * torch.pi * 120 * seconds),
        "noise": 0.1 * torch.randn(len(seconds), generator=torch.Generator().manual_seed(0)),
    }[kind]
    assert not is_looping(sound, SAMPLE_RATE_HZ)


def test_is_looping_of_a_clip_with_a_long_pause_is_not(clip):
    assert not is_looping(torch.cat([clip, torch.zeros(4 * SAMPLE_RATE_HZ)]), SAMPLE_RATE_HZ)


@pytest.mark.parametrize("num_samples", [0, 1, 1000, 24000])
def test_self_similarity_of_what_is_too_short_to_come_twice_is_zero(num_samples):
    assert self_similarity(torch.rand(num_samples), SAMPLE_RATE_HZ) == 0
