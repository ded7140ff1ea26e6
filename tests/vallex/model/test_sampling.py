"""Drawing codes: what may be drawn, how often, and the limits of temperature."""

import pytest
import torch

from vallex.model.sampling import sample

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = PROBABILITIES.log()


def draw(draws=4000, **settings):
    generator = torch.Generator().manual_seed(0)
    settings = {"temperature": 1.0} | settings
    return sample(LOGITS.expand(draws, -1), **settings, generator=generator)


def frequencies(codes):
    return codes.bincount(minlength=5) / codes.numel()


def test_sample_at_temperature_one_follows_the_probabilities():
    torch.testing.assert_close(frequencies(draw()), PROBABILITIES, atol=0.03, rtol=0)


def test_sample_at_another_temperature_follows_the_powers_of_the_probabilities():
    for temperature in (0.5, 2.0):
        expected = PROBABILITIES ** (1 / temperature)
        drawn = frequencies(draw(temperature=temperature))
        torch.testing.assert_close(drawn, expected / expected.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(2, {1, 3}), (3, {1, 3, 4}), (5, {0, 1, 2, 3, 4}), (99, set(range(5)))]
)
def test_sample_with_top_k_draws_from_the_k_likeliest(top_k, kept):
    drawn = draw(top_k=top_k)
    assert set(drawn.tolist()) == kept
    expected = torch.tensor([PROBABILITIES[i] if i in kept else 0.0 for i in range(5)])
    torch.testing.assert_close(frequencies(drawn), expected / expected.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.64, {1, 3}), (0.66, {1, 3, 4}), (1.0, set(range(5)))],
)
def test_sample_with_top_p_draws_from_the_likeliest_that_reach_it(top_p, kept):
    assert set(draw(top_p=top_p).tolist()) == kept


def test_sample_with_top_k_and_top_p_keeps_to_both():
    assert set(draw(top_k=2, top_p=0.99).tolist()) == {1, 3}
    assert set(draw(top_k=4, top_p=0.3).tolist()) == {1}


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
    torch.testing.assert_close(frequencies(draw(temperature=1e6)), torch.full((5,), 0.2), atol=0.03, rtol=0)


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
