"""Which checkpoint wins, and what is said of it."""

import pytest

from finetune.scoring.scores import SCORES
from finetune.scoring.verdict import NOTHING_COMPARED, compare_to_base, decide


def rows(error_rate: float, similarity: float = 0.5, count: int = 8) -> list[dict]:
    known = {"error_rate": error_rate, "similarity": similarity}
    return [{name: known.get(name) for name in SCORES} for _ in range(count)]


def decided(base: list[dict], **checkpoints: list[dict]) -> tuple:
    return decide(compare_to_base({"base": base, **checkpoints}, [*checkpoints]), [*checkpoints])


def test_decide_when_one_is_better_then_it_wins_and_says_by_how_much():
    winner, verdict, why = decided(rows(0.3), best=rows(0.2))
    assert (winner, verdict) == ("best", "better")
    assert why.startswith("best is better than the base. error rate -0.100 (-0.100 to -0.100): better;")


def test_decide_when_worse_then_none_wins():
    winner, verdict, why = decided(rows(0.3), best=rows(0.5))
    assert (winner, verdict) == (None, "worse") and why.startswith("best is worse than the base")


def test_decide_when_there_is_no_difference_then_the_best_by_loss_wins_and_the_sentences_are_counted():
    winner, verdict, why = decided(rows(0.3), first=rows(0.3), second=rows(0.3))
    assert (winner, verdict) == ("first", "no difference")
    assert why.startswith("no difference of first to the base that 8 sentences can show")


def test_decide_among_several_takes_the_highest_that_is_not_worse():
    assert decided(rows(0.3), best=rows(0.25), later=rows(0.1), last=rows(0.6))[0] == "later"
    assert decided(rows(0.3), best=rows(0.5), later=rows(0.4))[:2] == (None, "worse")


def test_decide_takes_what_is_better_before_what_only_has_a_higher_mean():
    spread = rows(0.3)
    for place, row in enumerate(spread):
        row["error_rate"] = 0.3 + (0.6 if place % 2 else -0.9)
    found = compare_to_base({"base": rows(0.3), "spread": spread, "sure": rows(0.25)}, ["spread", "sure"])
    assert found["spread"]["overall"].mean > found["sure"]["overall"].mean
    assert found["spread"]["overall"].verdict == "no difference"
    assert decide(found, ["spread", "sure"])[:2] == ("sure", "better")


def test_decide_when_scores_go_both_ways_says_so():
    winner, verdict, why = decided(rows(0.3, 0.50), best=rows(0.1, 0.45))
    assert (winner, verdict) == ("best", "no difference")
    assert why.startswith("best is neither better nor worse than the base over all: its scores go both ways")


def test_decide_with_too_few_sentences_shows_nothing():
    _, verdict, why = decided(rows(0.9, count=3), best=rows(0.1, count=3))
    assert verdict == "no difference" and "that 3 sentences can show" in why


@pytest.mark.parametrize(
    "systems", [{}, {"base": [dict.fromkeys(SCORES)] * 6, "best": [dict.fromkeys(SCORES)] * 6}]
)
def test_decide_when_nobody_judged_then_nothing_was_compared(systems):
    assert decide(compare_to_base(systems, ["best"]), ["best"]) == (None, None, NOTHING_COMPARED)


def test_compare_when_a_sentence_was_not_scored_leaves_it_out_of_the_pairs():
    base, mine = rows(0.3), rows(0.2)
    base[0] = None
    assert compare_to_base({"base": base, "best": mine}, ["best"])["best"]["error_rate"].num_pairs == 7
