"""Which checkpoint won, and whether it is better than the base, in words."""

from collections.abc import Mapping, Sequence

from finetune.scoring.scores import BASE, BETTER, NO_DIFFERENCE, SCORES, UNKNOWN, WORSE
from finetune.scoring.statistics import Difference, differences

NOTHING_COMPARED = "nothing was compared by ear"


def compare_to_base(
    rows: Mapping[str, Sequence[dict | None]], checkpoints: Sequence[str]
) -> dict[str, dict[str, Difference]]:
    """Each checkpoint against the base, by score; empty where nothing was spoken.

    rows: name of a system to what was measured of each sentence
    """
    if BASE not in rows:
        return {}
    values = {
        name: {score: [row and row[score] for row in own] for score in SCORES} for name, own in rows.items()
    }
    return {name: differences(values[name], values[BASE], len(checkpoints)) for name in checkpoints}


def decide(
    found: Mapping[str, Mapping[str, Difference]], checkpoints: Sequence[str]
) -> tuple[str | None, str | None, str]:
    """The checkpoint that won, its verdict over all, and the verdict in words.

    Those that are better than the base come before those without a difference, whose mean may be higher by
    chance; of several the one with the highest mean over all wins, and the first, which is the best by loss,
    where they are equal. Where all are worse, none does, and the nearest is judged.
    """
    known = [name for name in checkpoints if name in found and found[name]["overall"].verdict != UNKNOWN]
    if not known:
        return None, None, NOTHING_COMPARED
    usable = [name for name in known if found[name]["overall"].verdict != WORSE]
    better = [name for name in usable if found[name]["overall"].verdict == BETTER]
    judged = max(better or usable or known, key=lambda name: found[name]["overall"].mean)
    return judged if usable else None, found[judged]["overall"].verdict, in_words(found[judged], judged)


def in_words(own: Mapping[str, Difference], name: str) -> str:
    """The verdict on one checkpoint: over all, then each score with its difference and interval."""
    said = []
    for score in SCORES.values():
        one = own[score.name]
        if score.step and one.mean is not None:
            span = "" if one.low is None else f" ({one.low:+.3f} to {one.high:+.3f})"
            said.append(f"{score.title} {one.mean:+.3f}{span}: {one.verdict}")
    return f"{_lead(own, name)}. {'; '.join(said)}"


def _lead(own: Mapping[str, Difference], name: str) -> str:
    overall = own["overall"]
    if overall.verdict != NO_DIFFERENCE:
        return f"{name} is {overall.verdict} than the base"
    by_interval = {BETTER} if (overall.low or 0) > 0 else {WORSE} if (overall.high or 0) < 0 else set()
    if {BETTER, WORSE} <= by_interval | {one.verdict for one in own.values()}:
        return f"{name} is neither better nor worse than the base over all: its scores go both ways"
    return f"no difference of {name} to the base that {overall.num_pairs} sentences can show"
