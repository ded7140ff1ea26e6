"""Drawing codes: what may be drawn, how often, and the limits of temperature."""

import pytest
import torch

from vallex.model.sampling import (
    Sampling,
    draw,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    repetition_share,
    sample,
)

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = PROBABILITIES.log()


def many(draws=4000, **settings):
    generator = torch.Generator().manual_seed(0)
    settings = {"temperature": 1.0} | settings
    return sample(LOGITS.expand(draws, -1), **settings, generator=generator)


def frequencies(codes):
    return codes.bincount(minlength=5) / codes.numel()


def test_sample_at_temperature_one_follows_the_probabilities():
    torch.testing.assert_close(frequencies(many()), PROBABILITIES, atol=0.03, rtol=0)


def test_sample_at_another_temperature_follows_the_powers_of_the_probabilities():
    for temperature in (0.5, 2.0):
        expected = PROBABILITIES ** (1 / temperature)
        drawn = frequencies(many(temperature=temperature))
        torch.testing.assert_close(drawn, expected / expected.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(2, {1, 3}), (3, {1, 3, 4}), (5, {0, 1, 2, 3, 4}), (99, set(range(5)))]
)
def test_sample_with_top_k_draws_from_the_k_likeliest(top_k, kept):
    drawn = many(top_k=top_k)
    assert set(drawn.tolist()) == kept
    expected = torch.tensor([PROBABILITIES[i] if i in kept else 0.0 for i in range(5)])
    torch.testing.assert_close(frequencies(drawn), expected / expected.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.64, {1, 3}), (0.66, {1, 3, 4}), (1.0, set(range(5)))],
)
def test_sample_with_top_p_draws_from_the_likeliest_that_reach_it(top_p, kept):
    assert set(many(top_p=top_p).tolist()) == kept


def test_sample_with_top_k_and_top_p_keeps_to_both():
    assert set(many(top_k=2, top_p=0.99).tolist()) == {1, 3}
    assert set(many(top_k=4, top_p=0.3).tolist()) == {1}


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_k": 1, "temperature": 5.0}])
def test_sample_that_is_greedy_takes_the_likeliest_and_draws_nothing(settings):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample(LOGITS, **({"temperature": 1.0} | settings), generator=generator) == 1
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 5e-324])
def test_sample_as_temperature_falls_to_nothing_becomes_greedy(temperature):
    logits = torch.tensor([[3.0, 900.0, -900.0], [-5.0, -7.0, -4.0]])
    for top_k in (None, 2):
        drawn = sample(
            logits, temperature=temperature, top_k=top_k, generator=torch.Generator().manual_seed(0)
        )
        assert drawn.tolist() == [1, 2]


def test_sample_at_a_great_temperature_draws_everything():
    torch.testing.assert_close(frequencies(many(temperature=1e6)), torch.full((5,), 0.2), atol=0.03, rtol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 0)])
def test_sample_of_logits_of_any_rank_gives_a_code_a_row(shape):
    for temperature in (0.0, 1.0):
        codes = sample(
            LOGITS.expand(*shape, 5), temperature=temperature, generator=torch.Generator().manual_seed(0)
        )
        assert codes.shape == shape
        assert codes.dtype == torch.int64


def test_sample_with_one_seed_is_reproducible_and_leaves_its_input_alone():
    logits = LOGITS.expand(100, -1).clone()
    drawn = [
        sample(logits, temperature=0.7, top_k=3, top_p=0.9, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(logits, LOGITS.expand(100, -1))


def test_sample_of_half_precision_logits_works():
    assert (
        sample(LOGITS.bfloat16(), temperature=1.0, top_p=0.3, generator=torch.Generator().manual_seed(0)) == 1
    )


def test_sample_with_a_generator_a_row_draws_what_each_row_draws_alone():
    logits = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    for settings in ({}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 2.0}):
        settings = {"temperature": 1.0} | settings
        together, alone = ([torch.Generator().manual_seed(seed) for seed in (5, 6, 7)] for _ in range(2))
        for _ in range(20):
            drawn = sample(logits, **settings, generator=together)
            rows = [sample(row, **settings, generator=g) for row, g in zip(logits, alone, strict=True)]
            assert drawn.tolist() == [int(row) for row in rows]


def test_keep_top_k_and_top_p_keep_logits_as_they_are_and_leave_ties_in():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [4.0, 1.0, 2.0, 3.0]])
    inf = torch.inf
    assert keep_top_k(logits, 1).tolist() == [[-inf, 3.0, 3.0, -inf], [4.0, -inf, -inf, -inf]]
    assert keep_top_k(logits, 2).tolist() == [[-inf, 3.0, 3.0, -inf], [4.0, -inf, -inf, 3.0]]
    assert keep_top_p(logits[1:], 0.6).tolist() == [[4.0, -inf, -inf, -inf]]
    assert keep_top_p(logits[1:], 0.7).tolist() == [[4.0, -inf, -inf, 3.0]]


def test_penalize_repetition_makes_positive_and_negative_logits_less_likely_and_counts_a_code_once():
    logits = torch.tensor([[2.0, -2.0, 0.0, 3.0], [1.0, -1.0, 4.0, -3.0]])
    recent = torch.tensor([[0, 1, 1], [3, 3, 2]])
    penalized = penalize_repetition(logits, recent, 2.0)
    assert penalized.tolist() == [[1.0, -4.0, 0.0, 3.0], [1.0, -1.0, 2.0, -6.0]]
    assert torch.equal(penalize_repetition(logits, recent[:, :0], 2.0), logits)


def test_repetition_share_counts_the_code_among_the_last_ten():
    recent = torch.tensor([[4, 4, 1], [0, 1, 2], [7, 7, 7]])
    assert repetition_share(torch.tensor([4, 9, 7]), recent).tolist() == pytest.approx([0.2, 0.0, 0.3])


def generators(draws, seed=0):
    # one stream for all rows: a sequence of the same generator
    return [torch.Generator().manual_seed(seed)] * draws


@pytest.mark.parametrize(("times", "is_redrawn"), [(0, False), (1, False), (2, True), (10, True)])
def test_draw_that_is_repetition_aware_draws_anew_what_fills_more_than_its_share(times, is_redrawn):
    # greedy, so that without awareness only code 1 comes; exactly the share is still allowed
    sampling = Sampling(top_k=1, repetition_aware=0.1)
    recent = torch.tensor([[1] * times + [0] * (10 - times)]).expand(4000, -1)
    codes = draw(LOGITS.expand(4000, -1), recent, sampling, generators(4000))
    if is_redrawn:
        torch.testing.assert_close(frequencies(codes), PROBABILITIES, atol=0.03, rtol=0)
    else:
        assert set(codes.tolist()) == {1}


def test_draw_that_is_repetition_aware_looks_ten_frames_back_only():
    recent = torch.tensor([[1] * 8 + [0] * 10]).expand(100, -1)
    sampling = Sampling(top_k=1, repetition_aware=0.1)
    assert set(draw(LOGITS.expand(100, -1), recent, sampling, generators(100)).tolist()) == {1}


def test_draw_with_a_penalty_looks_one_second_back_only():
    sampling = Sampling(top_k=1, repetition_penalty=5.0)
    logits = torch.tensor([[1.0, 2.0]])
    assert int(draw(logits, torch.tensor([[1] + [0] * 74]), sampling, generators(1))) == 1
    assert int(draw(logits, torch.tensor([[1] + [1] * 74]), sampling, generators(1))) == 0
    assert int(draw(logits, torch.tensor([[1] * 5 + [0] * 75]), sampling, generators(1))) == 1


def test_sampling_says_whether_a_seed_matters():
    assert Sampling(top_k=1).is_greedy
    assert Sampling(temperature=0.0, repetition_penalty=1.3).is_greedy
    assert not Sampling().is_greedy
    assert not Sampling(top_k=1, repetition_aware=0.1).is_greedy
