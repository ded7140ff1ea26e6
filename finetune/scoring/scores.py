"""What is measured, the rule of the verdict, and the form in which an evaluation is written down.

Nothing heavy is imported: the results log reads evaluations without torch.
"""

from dataclasses import dataclass

LEVEL = 0.95
MIN_PAIRS = 5
"""With fewer, all that resampling can show is that there are few."""

BETTER, WORSE, NO_DIFFERENCE, UNKNOWN = "better", "worse", "no difference", "unknown"
VERDICTS = (BETTER, WORSE, NO_DIFFERENCE, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What is measured of each sentence.

    higher_is_better: None where neither is, as for a speaking rate
    step: the difference of one sentence that a listener notices, by which scores of several kinds are put
        on one scale; 0 where the score has no part in the verdict over all
    worst: what a result without sound gets
    """

    name: str
    title: str
    higher_is_better: bool | None
    step: float = 0.0
    worst: float | None = None


SCORES = {
    score.name: score
    for score in (
        Score(name="error_rate", title="error rate", higher_is_better=False, step=0.05, worst=1.0),
        Score(name="similarity", title="speaker similarity", higher_is_better=True, step=0.05, worst=0.0),
        Score(name="naturalness", title="naturalness", higher_is_better=True, step=0.2, worst=1.0),
        Score(name="faulty", title="share with a fault", higher_is_better=False, step=0.1, worst=1.0),
        Score(name="phonemes_per_sec", title="phonemes a second", higher_is_better=None),
    )
}

RULE = (
    f"Each score: better or worse where the {LEVEL:.0%} interval of the mean paired difference lies on one "
    f"side of zero, else no difference that this many sentences can show (nor with fewer than {MIN_PAIRS} "
    "pairs). Over all: the differences of each sentence are divided by the step that a listener notices ("
    + ", ".join(f"{score.title} {score.step:g}" for score in SCORES.values() if score.step)
    + ") and averaged over the scores that there are; better or worse where the interval of this mean lies "
    "on one side of zero, but never better while one of the scores is worse, and never worse while one is "
    "better."
)


FAULTS = {
    "runaway": "did not end, and was cut off at twice the length to expect",
    "looping": "the sound repeats itself",
    "empty": "nothing was said",
    "repeated": "words were heard more often than they stand in the text",
}

RECORD_VERSION = 1
BASE, RECORDINGS, CODEC_COPIES = "base", "recordings", "codec copies"
"""Systems that are not checkpoints of a run: the untouched model, and the ceiling."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `result.json` says of an evaluation.

    size: quick, standard, full; or "losses" where nothing was spoken
    data: {"path", "fingerprint"} of the prepared set
    plan: fingerprint of the sentences, None where nothing was spoken
    left_out: sentences that could not be taken, a line each
    judges: a score to who gave it; None where nobody did
    gaps: what is missing to the reason
    sentences: {"id", "text", "language", "speaker", "source", "prompt", "seed"} each
    systems: name to {"fingerprint", "rows", "means", "num", "faults", "real_time_factor"}; a row has what
        was measured of one sentence, in the order of `sentences`, or is None
    differences: name of a checkpoint to its differences from the base, by score, and "overall"
    teacher_forced: "valid" and "others" to {"systems", "differences"}
    verdict: of the checkpoint that won, over all; None where nothing was spoken
    winner: the name of that checkpoint
    why: the verdict in words
    """

    version: int
    created: str
    seconds: float
    size: str
    seed: int
    toy: bool
    data: dict
    plan: str | None
    left_out: list
    judges: dict
    gaps: dict
    sentences: list
    systems: dict
    differences: dict
    teacher_forced: dict
    verdict: str | None
    winner: str | None
    why: str
    rule: str = RULE


def evaluation_faults(evaluation: Evaluation) -> list[str]:
    """What in an evaluation that was read from a file is not as it is written."""
    faults = []
    if evaluation.version != RECORD_VERSION:
        faults.append(f"evaluation.version is {evaluation.version}, this vallex reads {RECORD_VERSION}")
    for name, system in evaluation.systems.items():
        rows = system.get("rows") if isinstance(system, dict) else None
        if not isinstance(rows, list) or not isinstance(system.get("means"), dict):
            faults.append(f"evaluation.systems[{name!r}] has no rows or no means")
        elif len(rows) != len(evaluation.sentences):
            faults.append(f"evaluation.systems[{name!r}] has {len(rows)} rows")
    for name, differences in evaluation.differences.items():
        if not isinstance(differences, dict) or not all(
            isinstance(one, dict) and one.get("verdict") in VERDICTS for one in differences.values()
        ):
            faults.append(f"evaluation.differences[{name!r}] is not one verdict a score")
    return faults
