"""What is taken for speech and what for a decoder that ran away: published prompts and made-up loops."""

import numpy as np
import pytest
import torch

from vallex.inference.guards import (
    MAX_STEADY_FRAMES,
    MIN_FRAMES,
    frame_budget,
    has_loop,
    how_it_ended,
)

PERIODS = (2, 3, 5, 11, 37, 75, 150)


@pytest.fixture(scope="module")
def prompts(shared):
    """Codebook 0 and number of phonemes of each published prompt."""
    loaded = {}
    for path in sorted((shared / "data" / "prompts").glob("*.npz")):
        with np.load(path) as prompt:
            codes = torch.from_numpy(prompt["audio_tokens"][0, :, 0].astype(np.int64))
            loaded[path.stem] = (codes, prompt["text_tokens"].shape[1])
    assert len(loaded) == 40
    return loaded


def speech(num_frames, seed=0):
    return torch.randint(0, 1024, (num_frames,), generator=torch.Generator().manual_seed(seed))


def test_guards_on_published_prompts_flag_none(prompts):
    assert {name: how_it_ended(codes, "eos", num) for name, (codes, num) in prompts.items()} == dict.fromkeys(
        prompts, "eos"
    )
    assert [name for name, (codes, num) in prompts.items() if len(codes) > frame_budget(num)] == []


def test_guards_on_published_prompts_that_go_round_in_the_end_flag_all(prompts):
    missed = []
    for name, (codes, _) in prompts.items():
        for period in (3, 20, 75):
            # from where the sound is no silence
            group = next(g for g in codes.unfold(0, period, 1) if len(g.unique()) > min(period, 10) // 2)
            if not has_loop(torch.cat([codes, group.repeat(max(4, 45 // period + 1))])):
                missed.append((name, period))
    assert missed == []


@pytest.mark.parametrize("period", PERIODS)
def test_has_loop_of_a_group_that_comes_three_times_for_half_a_second(period):
    group = speech(period)
    times = max(3, -(-38 // period) + 1)
    assert has_loop(torch.cat([speech(50, 1), group.repeat(times), speech(50, 2)]))
    assert not has_loop(torch.cat([speech(50, 1), group.repeat(2), speech(50, 2)]))


@pytest.mark.parametrize("period", [2, 3, 5, 11])
def test_has_loop_of_a_short_stutter_is_no_loop(period):
    assert not has_loop(torch.cat([speech(50, 1), speech(period).repeat(36 // period), speech(50, 2)]))


def test_has_loop_of_steady_sound_is_one_after_two_seconds_only():
    for frames, is_loop in ((MAX_STEADY_FRAMES, False), (MAX_STEADY_FRAMES + 1, True)):
        silence = torch.full((frames,), 62)
        assert has_loop(torch.cat([speech(40, 1), silence, speech(40, 2)])) == is_loop
    pauses = torch.cat([torch.cat([speech(30, i), torch.full((120,), 62)]) for i in range(6)])
    assert not has_loop(pauses)


@pytest.mark.parametrize("frames", [0, 1, 2, 7, 8, 30])
def test_has_loop_of_a_few_frames_is_none(frames):
    assert not has_loop(speech(frames))
    assert not has_loop(torch.zeros(frames, dtype=torch.long))


def test_how_it_ended_names_what_is_wrong():
    assert how_it_ended(speech(MIN_FRAMES - 1), "eos") == "empty"
    assert how_it_ended(speech(MIN_FRAMES), "eos") == "eos"
    assert how_it_ended(speech(100), "budget") == "budget"
    assert how_it_ended(speech(100), "eos", num_phonemes=100) == "eos"
    assert how_it_ended(speech(99), "eos", num_phonemes=100) == "empty"
    for ended in ("eos", "budget"):
        assert how_it_ended(speech(10).repeat(20), ended) == "loop"


def test_frame_budget_grows_with_the_phonemes():
    assert (frame_budget(1), frame_budget(100)) == (88, 1375)
