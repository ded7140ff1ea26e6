"""Paired differences between two systems with bootstrap intervals, and the rule by which one is better.

Intervals are expanded percentile intervals (Hesterberg 2015, "What teachers should know about the
bootstrap", section 5.2): the plain percentile interval is too narrow for the twenty sentences of an
evaluation, by a factor that is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from finetune.scoring.scores import (
    BETTER,
    LEVEL,
    MIN_PAIRS,
    NO_DIFFERENCE,
    SCORES,
    UNKNOWN,
    WORSE,
    Score,
)

NUM_RESAMPLES = 10_000
_CHUNK_VALUES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of what a system scores more than another on the same sentences, and its interval.

    low, high: the interval; None where there are too few pairs
    verdict: one of VERDICTS; "unknown" where there is nothing to compare, or no direction is better
    """

    mean: float | None
    low: float | None
    high: float | None
    num_pairs: int
    verdict: str


def interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean of at least two values."""
    sample = np.asarray(values, dtype=np.float64)
    count = len(sample)
    tail = stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf((1 - level) / 2, count - 1))
    draws = np.random.default_rng(seed)
    rows = max(1, _CHUNK_VALUES // count)
    means = [
        sample[draws.integers(0, count, (min(rows, NUM_RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, NUM_RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def difference(
    values: Sequence[float | None],
    base: Sequence[float | None],
    higher_is_better: bool | None,
    num_compared: int = 1,
) -> Difference:
    """What `values` has more than `base`, over the sentences for which both have a value.

    num_compared: systems that are compared with this base: the error of 1 - LEVEL is shared out among them
        (Bonferroni), for the best of many would seem better than it is
    """
    pairs = [b - a for a, b in zip(base, values, strict=True) if a is not None and b is not None]
    if len(pairs) < MIN_PAIRS:
        mean = float(np.mean(pairs)) if pairs else None
        verdict = NO_DIFFERENCE if pairs and higher_is_better is not None else UNKNOWN
        return Difference(mean=mean, low=None, high=None, num_pairs=len(pairs), verdict=verdict)
    low, high = interval(pairs, 1 - (1 - LEVEL) / num_compared)
    if higher_is_better is None:
        verdict = UNKNOWN
    elif low > 0 or high < 0:
        verdict = BETTER if (low > 0) == higher_is_better else WORSE
    else:
        verdict = NO_DIFFERENCE
    return Difference(mean=float(np.mean(pairs)), low=low, high=high, num_pairs=len(pairs), verdict=verdict)


def differences(
    values: Mapping[str, Sequence[float | None]],
    base: Mapping[str, Sequence[float | None]],
    num_compared: int = 1,
) -> dict[str, Difference]:
    """The difference of every score, and "overall" by RULE.

    values, base: the name of a score to its values, in one order of sentences
    num_compared: as in `difference`
    """
    found = {
        name: difference(values[name], base[name], score.higher_is_better, num_compared)
        for name, score in SCORES.items()
    }
    deciding = [score for score in SCORES.values() if score.step and found[score.name].num_pairs]
    if not deciding:
        nothing = Difference(mean=None, low=None, high=None, num_pairs=0, verdict=UNKNOWN)
        return found | {"overall": nothing}
    on_one_scale = _on_one_scale(deciding, values, base)
    overall = difference(*on_one_scale, higher_is_better=True, num_compared=num_compared)
    verdicts = {found[score.name].verdict for score in deciding}
    if {overall.verdict, *verdicts} >= {BETTER, WORSE}:  # one score speaks against the mean of all
        overall = replace(overall, verdict=NO_DIFFERENCE)
    return found | {"overall": overall}


def _on_one_scale(scores: Sequence[Score], values: Mapping, base: Mapping) -> tuple[list, list]:
    """The mean improvement of each sentence in noticeable steps, and as many zeros to compare it with."""
    means: list[float | None] = []
    for place in range(len(values[scores[0].name])):
        steps = []
        for score in scores:
            mine, other = values[score.name][place], base[score.name][place]
            if mine is not None and other is not None:
                sign = 1 if score.higher_is_better else -1
                steps.append(sign * (mine - other) / score.step)
        means.append(sum(steps) / len(steps) if steps else None)
    return means, [0.0] * len(means)
