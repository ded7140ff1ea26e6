"""Paired bootstrap intervals against known cases, and the rule by which a system is better than another."""

import math

import numpy as np
import pytest
from scipy import stats

from finetune.scoring import statistics
from finetune.scoring.scores import MIN_PAIRS, RULE, SCORES
from finetune.scoring.statistics import difference, differences, interval


def draws(count: int, mean: float = 0.0, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 1.0, count).tolist()


def all_scores(**values: list[float]) -> dict[str, list[float | None]]:
    """Values of some scores, none of the others."""
    count = len(next(iter(values.values())))
    return {name: values.get(name, [None] * count) for name in SCORES}


def test_interval_of_a_normal_sample_is_that_of_the_t_distribution():
    sample = np.array(draws(200, mean=0.3))
    expected = stats.t.interval(0.95, 199, sample.mean(), sample.std(ddof=1) / math.sqrt(200))
    assert interval(sample.tolist()) == pytest.approx(expected, abs=0.01)


def test_interval_of_few_sentences_holds_the_mean_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 2000)
    held = [low <= 0 <= high for low, high in (interval(draws(12, seed=seed)) for seed in range(400))]
    # the plain percentile interval holds it in 92 of 100
    assert 0.93 <= sum(held) / len(held) <= 0.98


def test_interval_is_the_same_each_time_and_nothing_wide_where_all_are_equal():
    assert interval(draws(20)) == interval(draws(20))
    assert interval([0.25] * 7) == (0.25, 0.25)


def test_difference_is_paired_so_that_sentences_may_differ_more_than_systems():
    base = draws(20)
    found = difference([value + 0.01 for value in base], base, higher_is_better=True)
    assert (found.mean, found.low, found.verdict) == (pytest.approx(0.01), pytest.approx(0.01), "better")
    shuffled = sorted(base)
    assert difference(shuffled, base, higher_is_better=True).verdict == "no difference"


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "verdict"),
    [
        (0.5, True, "better"),
        (-0.5, True, "worse"),
        (0.5, False, "worse"),
        (-0.5, False, "better"),
        (0.5, None, "unknown"),
    ],
)
def test_difference_when_clear_then_the_direction_says_whether_it_is_better(shift, higher_is_better, verdict):
    base = [0.1 * value for value in draws(10)]
    assert difference([value + shift for value in base], base, higher_is_better).verdict == verdict


def test_difference_counts_only_sentences_that_both_have():
    found = difference([1.0, None, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 9.0, None, 2.0, 3.0, 4.0, 5.0], True)
    assert (found.mean, found.num_pairs) == (1.0, MIN_PAIRS)


def test_difference_of_too_few_pairs_has_a_mean_and_no_interval():
    found = difference([1.0] * 4, [0.0] * 4, True)
    assert (found.mean, found.low, found.high, found.verdict) == (1.0, None, None, "no difference")
    assert difference([None] * 9, [0.0] * 9, True).verdict == "unknown"


def test_difference_when_several_are_compared_is_wider():
    one, many = (difference(draws(20), [0.0] * 20, True, num_compared=count) for count in (1, 8))
    assert many.low < one.low < one.high < many.high
    assert one.mean == many.mean


def test_differences_when_one_score_is_better_and_none_worse_is_better_over_all():
    base = all_scores(error_rate=[0.3] * 8, similarity=[0.5] * 8)
    mine = all_scores(error_rate=[0.2] * 8, similarity=[0.5] * 8)
    found = differences(mine, base)
    assert found["error_rate"].verdict == found["overall"].verdict == "better"
    # a tenth of the words is two steps, similarity none: one on the average
    assert found["overall"].mean == pytest.approx(1.0)
    assert found["naturalness"].verdict == "unknown"


def test_differences_when_a_score_speaks_against_the_mean_then_there_is_none_over_all():
    base = all_scores(error_rate=[0.3] * 8, similarity=[0.50] * 8)
    mine = all_scores(error_rate=[0.1] * 8, similarity=[0.45] * 8)
    found = differences(mine, base)
    assert (found["error_rate"].verdict, found["similarity"].verdict) == ("better", "worse")
    assert found["overall"].low > 0 and found["overall"].verdict == "no difference"


def test_differences_of_a_rate_that_has_no_direction_do_not_count():
    base = all_scores(error_rate=[0.3] * 8, phonemes_per_sec=[10.0] * 8)
    mine = all_scores(error_rate=[0.3] * 8, phonemes_per_sec=[20.0] * 8)
    found = differences(mine, base)
    assert found["phonemes_per_sec"].verdict == "unknown" and found["overall"].verdict == "no difference"


def test_differences_of_nothing_are_unknown():
    nothing = {name: [None] * 6 for name in SCORES}
    assert {one.verdict for one in differences(nothing, nothing).values()} == {"unknown"}


def test_rule_names_the_level_and_every_step():
    assert "95%" in RULE and "error rate 0.05" in RULE and "naturalness 0.2" in RULE
