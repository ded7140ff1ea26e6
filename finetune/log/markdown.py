"""The results log as a Markdown table: a row a run, in the form of a lab's record of experiments."""

from collections.abc import Sequence
from pathlib import Path

from finetune.log.curves import read_lines
from finetune.log.words import TOY_MARK, difference_text, number, what_it_is
from finetune.results import PHASES, PhaseResult, RunResult, metric, read_note, read_result
from finetune.scoring.scores import SCORES, Evaluation, judged_system

HEAD = "| run | what | AR loss / top-10 | NAR loss / top-10 | scores to the base | verdict | note |"
LEGEND = (
    "Losses in nats a target, accuracies from 0 to 1: of training at the best step; in parentheses of the "
    "validation split, best, and of the untouched model. Scores: mean, and difference from the untouched "
    "model with its 95 % interval."
)


def markdown(run_dirs: Sequence[Path]) -> str:
    """A table of runs, with who judged them and what the columns are below."""
    results = [read_result(path) for path in run_dirs]
    rows = [_row(path, result) for path, result in zip(run_dirs, results, strict=True)]
    lines = [HEAD, "| --- " * HEAD.count(" | ") + "| --- |", *rows, "", LEGEND]
    by_judges: dict[str, list[str]] = {}
    for result in results:
        if result.evaluation and (judges := _judges(result.evaluation)):
            by_judges.setdefault(judges, []).append(result.name)
    lines += [f"Judges of {', '.join(map(_plain, names))}: {judges}." for judges, names in by_judges.items()]
    if len(by_judges) > 1:
        lines.append("Scores by different judges are not comparable.")
    if toys := [result.name for result in results if result.toy]:
        lines.append(f"Made with {TOY_MARK}, noise: {', '.join(map(_plain, toys))}.")
    return "\n".join(lines) + "\n"


def _row(run_dir: Path, result: RunResult) -> str:
    name = f"{result.name} ({TOY_MARK})" if result.toy else result.name
    what = what_it_is(run_dir, result)
    if result.init.get("path"):
        what += f"; from {Path(result.init['path']).name}"
    if result.status != "done":
        what += f"; {result.status}" + (f": {result.error}" if result.error else "")
    by_phase = {phase.phase: phase for phase in result.phases}
    losses = [_losses(run_dir, by_phase.get(stage)) for stage in PHASES]
    evaluation = result.evaluation
    scores = _scores(evaluation) if evaluation else ""
    verdict = (evaluation.verdict if evaluation else None) or ""
    cells = [name, what, *losses, scores, verdict, read_note(run_dir) or ""]
    return f"| {' | '.join(map(_plain, cells))} |"


def _losses(run_dir: Path, phase: PhaseResult | None) -> str:
    """`2.113 / .846 (2.292 / .789; untouched 2.986 / .673)`, as far as it is known."""
    if phase is None:
        return ""
    best, base = _pair(phase.best), _pair(phase.base)
    known = [best] if best else []
    known += [f"untouched {base}"] if base else []
    trained = _pair(_train_line(run_dir, phase))
    return f"{trained} ({'; '.join(known)})".strip() if known else trained


def _train_line(run_dir: Path, phase: PhaseResult) -> dict | None:
    """The last line of training up to the best step."""
    step = metric(phase.best, "step")
    lines = read_lines(run_dir / "metrics.jsonl") if step else ()
    own = [line for line in lines if line["stage"] == phase.phase and line["kind"] == "train"]
    return next((line for line in reversed(own) if line["step"] <= step), None)


def _pair(metrics: dict | None) -> str:
    loss, top10 = metric(metrics, "loss"), metric(metrics, "top10")
    return "" if loss is None else f"{number(loss)} / {number(top10).removeprefix('0')}"


def _scores(evaluation: Evaluation) -> str:
    system = judged_system(evaluation)
    if system is None:
        return ""
    said = []
    for name, score in ((name, score) for name, score in SCORES.items() if score.step):
        value = metric(evaluation.systems.get(system, {}).get("means"), name)
        difference = evaluation.differences[system].get(name)
        if value is not None and metric(difference, "mean") is not None:
            said.append(f"{score.title} {number(value)}, {difference_text(difference)}")
    return "; ".join(said)


def _judges(evaluation: Evaluation) -> str:
    return ", ".join(
        f"{SCORES[name].title if name in SCORES else name} {_plain(judge)}"
        for name, judge in evaluation.judges.items()
        if judge
    )


def _plain(text: str) -> str:
    """A text that stays in its cell and is no markup."""
    text = " ".join(str(text).split())
    for char in "\\|`*_<>[]":
        text = text.replace(char, f"\\{char}")
    return text
