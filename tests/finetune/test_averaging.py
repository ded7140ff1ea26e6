"""Averages of weights: the published rule, EMA, swapping in and out, resuming."""

import pytest
import torch

from finetune import averaging
from finetune.averaging import WeightAverage


def walk(average: WeightAverage, steps: range) -> list[torch.Tensor]:
    """Moves the one parameter to step² and updates; returns where it was."""
    seen = []
    for step in steps:
        with torch.no_grad():
            average.parameters["w"].fill_(step**2)
        average.update(step)
        seen.append(average.parameters["w"].detach().clone())
    return seen


@pytest.fixture
def parameters():
    return {"w": torch.nn.Parameter(torch.zeros(3))}


def test_running_average_is_the_mean_of_the_weights_at_every_period(parameters):
    average = WeightAverage(kind="running", parameters=parameters, period=4)
    walk(average, range(1, 4))
    assert not average.values
    walk(average, range(4, 23))
    expected = torch.tensor([16.0, 64.0, 144.0, 256.0, 400.0]).mean().double()
    torch.testing.assert_close(average.values["w"], expected.expand(3))
    assert average.values["w"].dtype == torch.float64


def test_ema_follows_its_formula_from_the_first_step(parameters):
    average = WeightAverage(kind="ema", parameters=parameters, decay=0.5)
    walk(average, range(1, 6))
    expected = 1.0
    for step in range(2, 6):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
    torch.testing.assert_close(average.values["w"], torch.full((3,), expected, dtype=torch.float64))


def test_average_in_place_lasts_as_long_as_the_context_even_if_it_fails(parameters):
    average = WeightAverage(kind="ema", parameters=parameters, decay=0.9)
    raw = walk(average, range(1, 5))[-1]
    with pytest.raises(RuntimeError, match="no"), average.in_place():
        assert torch.equal(parameters["w"], average.values["w"].float())
        assert not torch.equal(parameters["w"], raw)
        raise RuntimeError("no")
    assert torch.equal(parameters["w"], raw)


def test_average_saved_and_loaded_in_the_middle_goes_on_bit_for_bit(parameters):
    unbroken = WeightAverage(kind="running", parameters=parameters, period=3)
    walk(unbroken, range(1, 20))
    first = WeightAverage(kind="running", parameters=parameters, period=3)
    walk(first, range(1, 8))
    second = WeightAverage(kind="running", parameters=parameters, period=3)
    second.load_state_dict(first.state_dict())
    walk(second, range(8, 20))
    assert torch.equal(second.values["w"], unbroken.values["w"])


@pytest.mark.parametrize("shape", [(7, 5), (1, 40), (40,), (3, 2, 9)])
def test_average_when_weights_are_taken_in_a_few_at_a_time_then_is_that_of_all(monkeypatch, shape):
    monkeypatch.setattr(averaging, "CHUNK_ELEMENTS", 16)
    parameter = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    average = WeightAverage(kind="ema", parameters={"w": parameter}, decay=0.5)
    average.update(1)
    before = average.values["w"].clone()
    with torch.no_grad():
        parameter.mul_(-3)
    average.update(20)
    torch.testing.assert_close(average.values["w"], (before + parameter.detach().double()) / 2)
