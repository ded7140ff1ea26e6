"""Runs side by side: the settings that differ, losses, scores with their differences, verdicts.

Judges are never mixed: a run whose sentences another judge heard has a gap in that score, and so has one that
was scored on other sentences or through another vocoder. The first run that has a score sets the measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.log.listing import Entry, rows
from finetune.results import PHASES, RunResult, all_settings, metric, read_note, read_result
from finetune.scoring.scores import BASE, CODEC_COPIES, RECORDINGS, SCORES, Evaluation, judged_system
from vallex.errors import ConfigError

METRICS = ("status", "steps", "seconds", "base_loss", "best_loss", "base_top10", "best_top10")
OVERALL = "overall"
HEARD_SCORES = ("error_rate", "faulty")
"""Those that depend on what the recognizer understood."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One score of every run, in their order.

    title: in words
    judge: who gave it; None where it needs nobody
    base: of the untouched model, None where the runs began with different ones
    ceiling: of the recordings of the same sentences, and of their copies through the codec; may be empty
    values: the mean of each run's judged checkpoint
    to_base, to_first: {"mean", "low", "high", "num_pairs", "verdict"} of its difference from the untouched
        model and from the first run, None for a gap
    """

    score: str
    title: str
    judge: str | None
    base: float | None
    ceiling: dict[str, float]
    values: list[float | None]
    to_base: list[dict | None]
    to_first: list[dict | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side; what is a list or tuple of values stands in their order.

    settings: dotted name to values, None where a run has no such setting; only those that differ
    metrics: rows {"phase", "metric", "values"}
    verdicts: {"verdict", "checkpoint", "why"} each
    gaps: why something is not compared, a line each
    """

    runs: list[RunResult]
    notes: list[str | None]
    settings: dict[str, tuple]
    metrics: list[dict]
    scores: list[ScoreRow]
    verdicts: list[dict | None]
    gaps: list[str]


def compare(*run_dirs: Path | str) -> Comparison:
    """Two run folders or more; ConfigError where there are fewer."""
    if len(run_dirs) < 2:
        raise ConfigError(f"{len(run_dirs)} run is named; two or more can be compared. See vallex runs list")
    return side_by_side(run_dirs)


def side_by_side(run_dirs: Sequence[Path | str]) -> Comparison:
    """What there is to say of run folders, one or more; RunError where one cannot be read."""
    results = [read_result(path) for path in run_dirs]
    settings = [all_settings(path, result) for path, result in zip(run_dirs, results, strict=True)]
    names = dict.fromkeys(name for own in settings for name in own)
    values = {name: tuple(own.get(name) for own in settings) for name in names}
    gaps = [
        f"{result.name} has no scores: {result.evaluation_note or 'it was not evaluated'}"
        for result in results
        if result.evaluation is None
    ]
    if len({result.data.get("fingerprint") for result in results}) > 1:
        gaps.append("the runs were validated on different data: losses say nothing about each other")
    scores = [row for score in (*SCORES, OVERALL) if (row := _score_row(results, score, gaps))]
    return Comparison(
        runs=results,
        notes=[read_note(path) for path in run_dirs],
        settings={name: own for name, own in values.items() if any(one != own[0] for one in own)},
        metrics=_metrics(results),
        scores=scores + [row for row in _loss_rows(results) if row],
        verdicts=[verdict(result.evaluation) for result in results],
        gaps=list(dict.fromkeys(gaps)),
    )


def verdict(evaluation: Evaluation | None) -> dict | None:
    """{"verdict", "checkpoint", "why"} of an evaluation; None where nothing was compared."""
    if evaluation is None or evaluation.verdict is None:
        return None
    return {
        "verdict": evaluation.verdict,
        "checkpoint": judged_system(evaluation),
        "why": evaluation.why,
    }


def _metrics(results: Sequence[RunResult]) -> list[dict]:
    by_phase = []
    for result in results:
        found = [Entry(Path(result.name), result, phase) for phase in result.phases]
        columns = ("phase", *METRICS)
        by_phase.append({row["phase"]: row for row in rows(found, columns)})
    return [
        {"phase": phase, "metric": name, "values": [own.get(phase, {}).get(name) for own in by_phase]}
        for phase in PHASES
        if any(phase in own for own in by_phase)
        for name in METRICS
    ]


def _score_row(results: Sequence[RunResult], score: str, gaps: list[str]) -> ScoreRow | None:
    """A score of every run; None where none has it. Adds to `gaps` who is left out."""
    first: RunResult | None = None
    kept: list[Evaluation | None] = []
    title = SCORES[score].title if score in SCORES else score
    for result in results:
        evaluation = result.evaluation
        if evaluation is None or judged_system(evaluation) is None or _mean(evaluation, score) is None:
            kept.append(None)
            continue
        first = first or result
        apart = _apart(first, result, score)
        if apart:
            gaps.append(f"{apart}; {result.name} has a gap")
        kept.append(None if apart else evaluation)
    if first is None:
        return None
    there = [evaluation for evaluation in kept if evaluation]
    bases = {evaluation.systems.get(BASE, {}).get("fingerprint") for evaluation in there}
    if len(bases) > 1:
        gaps.append("the runs began with different models: differences are from each run's own")
    return ScoreRow(
        score=score,
        title=title,
        judge=judge_of(there[0], score),
        base=_system_mean(there[0], BASE, score) if len(bases) == 1 else None,
        ceiling={
            name: value
            for name in (RECORDINGS, CODEC_COPIES)
            if (value := _system_mean(there[0], name, score)) is not None
        },
        values=[one and _system_mean(one, judged_system(one), score) for one in kept],
        to_base=[one and one.differences[judged_system(one)].get(score) for one in kept],
        to_first=[_to_first(there[0], one, score) for one in kept],
    )


def _mean(evaluation: Evaluation, score: str) -> float | None:
    return metric(evaluation.differences[judged_system(evaluation)].get(score), "mean")


def _system_mean(evaluation: Evaluation, system: str, score: str) -> float | None:
    return metric(evaluation.systems.get(system, {}).get("means"), score)


def judge_of(evaluation: Evaluation, score: str) -> str | None:
    """Who gave a score; all of them for the verdict over all."""
    if score == OVERALL:
        return ", ".join(str(judge) for judge in evaluation.judges.values() if judge) or None
    return evaluation.judges.get("error_rate" if score in HEARD_SCORES else score)


def _apart(first: RunResult, other: RunResult, score: str) -> str | None:
    """Why a score of two runs cannot be put side by side."""
    a, b = first.evaluation, other.evaluation
    if a.plan != b.plan:
        return f"scores: on other sentences, prompts or seeds than {first.name}"
    if ("vocoder" in a.gaps) != ("vocoder" in b.gaps):
        return f"scores: through another vocoder than {first.name}"
    judges = judge_of(a, score), judge_of(b, score)
    if judges[0] == judges[1]:
        return None
    if score == OVERALL:
        return f"over all: it rests on every judge, and they are others than {first.name}'s"
    return (
        f"{SCORES[score].title}: judged by {judges[1] or 'nobody'}, {first.name} by {judges[0] or 'nobody'}"
    )


def _to_first(first: Evaluation, other: Evaluation | None, score: str) -> dict | None:
    """The paired difference from the first run's checkpoint, sentence by sentence."""
    if other is None or other is first or score not in SCORES:
        return None
    from finetune.scoring.statistics import difference

    mine, its = (
        [metric(row, score) for row in one.systems.get(judged_system(one), {}).get("rows", [])]
        for one in (other, first)
    )
    if len(mine) != len(its):
        return None
    return vars(difference(mine, its, SCORES[score].higher_is_better))


def _loss_rows(results: Sequence[RunResult]) -> list[ScoreRow | None]:
    """What each run gained on its validation split and lost on other voices, in nats a target."""
    return [_loss_row(results, kind, half) for kind in ("valid", "others") for half in PHASES]


def _loss_row(results: Sequence[RunResult], kind: str, half: str) -> ScoreRow | None:
    found = [loss_difference(result.evaluation, kind, half) for result in results]
    if not any(found):
        return None
    where = "validation" if kind == "valid" else "other voices"
    return ScoreRow(
        score=f"{kind}_{half}_loss",
        title=f"{half.upper()} loss, {where}",
        judge=None,
        base=None,
        ceiling={},
        values=[None] * len(found),
        to_base=found,
        to_first=[None] * len(found),
    )


def loss_difference(evaluation: Evaluation | None, kind: str, half: str) -> dict | None:
    """How the loss of the judged checkpoint differs from the untouched model's on "valid" or "others".

    Where nothing was spoken, of the first checkpoint: the best by its loss.
    """
    own = (evaluation.teacher_forced.get(kind) if evaluation else None) or {}
    by_system = own.get("differences", {})
    found = by_system.get(judged_system(evaluation) or next(iter(by_system), None)) if by_system else None
    one = found.get(half) if isinstance(found, dict) else None
    return one if isinstance(one, dict) and metric(one, "mean") is not None else None
