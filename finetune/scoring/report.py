"""An evaluation as rich tables, which the command line prints. Toy weights stand in the title.

Cells are Text, never markup: a speaker called `[red]` is shown as it is called.
"""

from rich import box
from rich.table import Table
from rich.text import Text

from finetune.scoring.scores import BETTER, FAULTS, SCORES, UNKNOWN, WORSE, Evaluation

_VERDICT_STYLES = {BETTER: "green", WORSE: "red"}
_SCORE_HEADINGS = {
    "error_rate": "error\nrate",
    "similarity": "speaker\nsimilarity",
    "naturalness": "naturalness",
    "faulty": "with a\nfault",
    "phonemes_per_sec": "phonemes\na second",
}
_VOICES = {"valid": "the validation split", "others": "other voices"}


def evaluation_tables(evaluation: Evaluation) -> list[Table | Text]:
    """What each system scores and who says so, how each checkpoint differs from the base, and the verdict."""
    parts: list[Table | Text] = []
    if evaluation.systems:
        parts += [_means(evaluation), *_faults(evaluation), _judges(evaluation)]
    else:
        why = evaluation.gaps.get("spoken") or "only losses were asked for"
        parts.append(Text(f"Nothing was spoken: {why}"))
    parts += [_differences(name, own) for name, own in evaluation.differences.items()]
    parts += [_teacher_forced(kind, evaluation) for kind in evaluation.teacher_forced]
    gaps = [(name, reason) for name, reason in evaluation.gaps.items() if name != "spoken"]
    parts += [Text(f"{name}: {reason}", style="yellow") for name, reason in gaps]
    if lines := evaluation.left_out:
        more = f", and {len(lines) - 1} more" if lines[1:] else ""
        parts.append(Text(f"left out: {lines[0]}{more}", style="yellow"))
    return [*parts, Text(f"Verdict: {evaluation.why}", style="bold")]


def _means(evaluation: Evaluation) -> Table:
    """A row a system, the ceiling last."""
    title = _titled(evaluation, f"scores, means of {len(evaluation.sentences)} sentences")
    table = _table(title, ["system", *_SCORE_HEADINGS.values(), "real-time\nfactor"])
    for name, system in evaluation.systems.items():
        table.add_row(
            Text(name),
            *(_number(system["means"].get(score)) for score in _SCORE_HEADINGS),
            _number(system.get("real_time_factor")),
        )
    return table


def _faults(evaluation: Evaluation) -> list[Text]:
    """What was wrong with how many of the results, a line for each system that has any."""
    lines = []
    for name, system in evaluation.systems.items():
        shares = {fault: system["faults"].get(fault) for fault in FAULTS}
        said = [f"{fault} {share:.0%}" for fault, share in shares.items() if share]
        lines += [Text(f"{name}: {', '.join(said)}")] if said else []
    return lines


def _judges(evaluation: Evaluation) -> Text:
    named = [f"{SCORES[score].title} by {who or 'nobody'}" for score, who in evaluation.judges.items()]
    return Text("; ".join(named))


def _differences(name: str, own: dict) -> Table:
    """One checkpoint against the base, a row a score. What is over all is in noticeable steps."""
    table = _table(f"{name} against the base", ["score", "difference", "interval", "pairs", "verdict"])
    for score, one in own.items():
        if one["mean"] is not None:
            has_interval = one["low"] is not None and one["high"] is not None
            table.add_row(
                Text(SCORES[score].title if score in SCORES else "over all, in steps"),
                f"{one['mean']:+.3f}",
                f"{one['low']:+.3f} to {one['high']:+.3f}" if has_interval else "-",
                str(one["num_pairs"]),
                Text(one["verdict"].replace(UNKNOWN, "-"), style=_VERDICT_STYLES.get(one["verdict"], "")),
            )
    return table


def _teacher_forced(kind: str, evaluation: Evaluation) -> Table:
    """A row a system; what stands by speaker, language and stage is in the JSON."""
    headings = ["system", "AR loss", "top-1", "top-10", "NAR loss", "top-1", "top-10"]
    title = _titled(evaluation, f"losses on {_VOICES.get(kind, kind)}, nats per target")
    table = _table(title, headings)
    for name, groups in evaluation.teacher_forced[kind]["systems"].items():
        stages = groups.get("all", {})
        halves = [
            _pooled([figures for stage, figures in stages.items() if stage.startswith(half)])
            for half in ("ar", "nar")
        ]
        table.add_row(
            Text(name), *(_number(half[what]) for half in halves for what in ("loss", "top1", "top10"))
        )
    return table


def _pooled(stages: list[dict]) -> dict[str, float | None]:
    """The means of some stages, each target counting once."""
    total = sum(one["num_targets"] for one in stages)
    return {
        what: sum(one[what] * one["num_targets"] for one in stages) / total if total else None
        for what in ("loss", "top1", "top10")
    }


def _titled(evaluation: Evaluation, what: str) -> str:
    return f"Toy weights: {what}" if evaluation.toy else what.capitalize()


def _table(title: str, headings: list[str]) -> Table:
    # no lines between columns: the widest table fits into 80 characters
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        is_text = heading in ("system", "score", "verdict")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
