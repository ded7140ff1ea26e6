"""What is measured, the rule of the verdict, and the form in which an evaluation is written down.

Nothing heavy is imported: the results log reads evaluations without torch.
"""

from dataclasses import dataclass
from pathlib import Path

EVALUATION_SIZES = ("losses", "quick", "standard", "full")
"""From teacher-forced losses alone to fifty sentences by every checkpoint that was kept."""

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
    "better. Where several checkpoints are compared, each has its share of the "
    f"{1 - LEVEL:.0%} of intervals that may err."
)


FAULTS = {
    "runaway": "did not end by itself, and was cut off at the frame budget",
    "looping": "the codes or the sound repeat themselves",
    "empty": "nothing was said",
    "repeated": "words were heard more often than they stand in the text",
}

RECORD_VERSION = 1
BASE, RECORDINGS, CODEC_COPIES = "base", "recordings", "codec copies"
"""Systems that are not checkpoints of a run: the untouched model, and the ceiling."""

SOUNDS_FOLDER = Path("samples") / "evaluation"
"""In a run's folder; `sound_path` is below it."""


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
        was measured of one sentence, in the order of `sentences`, or is None. Names are BASE, those of the
        checkpoints ("nar-best", "nar-step-1200"), RECORDINGS and CODEC_COPIES
    differences: name of a checkpoint to its differences from the base, by score, and "overall": each is
        {"mean", "low", "high", "num_pairs", "verdict"}
    teacher_forced: "valid" and "others" to {"systems", "differences"}: name to group ("all", "speaker NAME",
        "language CODE") to stage ("ar", "nar1", …) to {"loss", "top1", "top10", "num_targets"}; and name to
        half ("ar", "nar") to a difference of loss
    verdict: of the checkpoint that won (of the nearest, where none did), over all; None where nothing was
        compared
    winner: the name of the checkpoint that won; None where each is worse than the base, or nothing was
        compared
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


def judged_system(evaluation: Evaluation) -> str | None:
    """The checkpoint that the verdict is of: the winner, else the nearest; None where none was compared."""
    means = {name: own["overall"].get("mean") for name, own in evaluation.differences.items()}
    known = [name for name, mean in means.items() if isinstance(mean, int | float)]
    if evaluation.winner in known:
        return evaluation.winner
    return max(known, key=lambda name: means[name], default=None)


def sound_path(system: str, place: int) -> Path:
    """Where the sound of a sentence lies below SOUNDS_FOLDER; there is none where nothing was said.

    place: of the sentence in `Evaluation.sentences`, from 0
    """
    return Path(system.replace("/", "-").replace(" ", "-")) / f"{place + 1:03d}.wav"


SOUND_FILES = "*/[0-9][0-9][0-9].wav"
"""The pattern of every `sound_path`."""


def evaluation_faults(evaluation: Evaluation) -> list[str]:
    """What in an evaluation that was read from a file is not as it is written."""
    if evaluation.version != RECORD_VERSION:
        return [f"evaluation.version is {evaluation.version}, this vallex reads {RECORD_VERSION}"]
    faults = []
    for place, sentence in enumerate(evaluation.sentences):
        if not _has(sentence, {"id": str, "text": str, "language": str, "speaker": str}):
            faults.append(f"evaluation.sentences[{place}] is {_short(sentence)}")
    for name, system in evaluation.systems.items():
        if not _has(system, {"rows": list, "means": dict, "num": dict, "faults": dict}):
            faults.append(f"evaluation.systems[{name!r}] is {_short(system)}")
        elif len(system["rows"]) != len(evaluation.sentences):
            faults.append(
                f"evaluation.systems[{name!r}] has {len(system['rows'])} rows for "
                f"{len(evaluation.sentences)} sentences"
            )
        elif wrong := [row for row in system["rows"] if row is not None and not _has(row, {"faults": list})]:
            faults.append(f"evaluation.systems[{name!r}] has the row {_short(wrong[0])}")
    for name, own in evaluation.differences.items():
        faults += [f"evaluation.differences[{name!r}]{fault}" for fault in _difference_faults(own)]
    for kind, own in evaluation.teacher_forced.items():
        if not _has(own, {"systems": dict, "differences": dict}):
            faults.append(f"evaluation.teacher_forced[{kind!r}] is {_short(own)}")
    return faults


def _difference_faults(own: object) -> list[str]:
    if not isinstance(own, dict) or "overall" not in own:
        return [f" is {_short(own)}"]
    return [
        f"[{score!r}] is {_short(one)}"
        for score, one in own.items()
        if not _has(one, {"num_pairs": int}) or one.get("verdict") not in VERDICTS or not _has_figures(one)
    ]


def _has_figures(one: dict) -> bool:
    kinds = int | float | None
    return all(key in one and isinstance(one[key], kinds) for key in ("mean", "low", "high"))


def _has(value: object, types: dict[str, type]) -> bool:
    """Whether a value is a dictionary with these keys and types."""
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in types.items())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
