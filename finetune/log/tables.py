"""The results log as rich tables, which the command line prints. Toy runs are marked in every one of them.

Cells are Text, never markup: a run called `[red]` is shown as it is called.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from finetune.log.comparison import Comparison, verdict
from finetune.log.listing import DEFAULT_COLUMNS, Entry, rows
from finetune.log.words import TOY_MARK, difference_text, format_seconds, number, plain
from finetune.results import MACHINE, PhaseResult, RunLog, RunResult, metric, read_note
from finetune.scoring.report import evaluation_tables
from finetune.scoring.scores import SCORES
from vallex.model.runs import ADAPTER_FILE

TOY_NOTE = f"{TOY_MARK}: what you hear is noise, and the losses say nothing about a voice"
_STATUS_STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "yellow",
    "better": "green",
    "worse": "red",
}


def runs_table(log: RunLog, found: Sequence[Entry], columns: Sequence[str] | None = None) -> Group:
    """The rows of the log; errors, notes and what was passed over stand below.

    columns: None for the usual ones, with the verdict where a run has one
    """
    if not log.results:
        hint = Text("No runs here yet. Begin one: vallex finetune PREPARED --preset smoke")
        return Group(hint, *_passed_over(log))
    if columns is None:
        has_verdict = any(entry.result.evaluation for entry in found)
        columns = (*DEFAULT_COLUMNS, "verdict") if has_verdict else DEFAULT_COLUMNS
    # without lines and padding, the name of a run that was given none and a verdict fit into 80 characters
    table = Table(title="Runs", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name in columns:
        title = "run" if name == "name" else name.replace("top10", "top-10").replace("_", "\n")
        is_figure = name.endswith(("steps", "loss", "top10"))
        width = len("difference") if name == "verdict" else None
        table.add_column(title, justify="right" if is_figure else "left", overflow="fold", max_width=width)
    for _, own in groupby(found, key=lambda entry: entry.result.name):
        for row in _runs_rows(list(own), columns):
            table.add_row(*row)
    if not found:
        table = Text(f"None of {len(log.results)} runs is let through by --filter.")
    shown = {entry.result.name: entry for entry in found}.values()
    return Group(table, *_toy_note([entry.result for entry in shown]), *_remarks(shown), *_passed_over(log))


def run_tables(result: RunResult, note: str | None = None) -> Group:
    """One run: what was run on what, what came of each phase, and its scores."""
    facts = _table("", show_header=False)
    facts.add_column("fact", style="bold")
    facts.add_column("value", overflow="fold")
    facts.add_row("run", run_label(result))
    facts.add_row("status", _marked(result.status))
    if result.error:
        facts.add_row("error", Text(result.error, style="red"))
    if note:
        facts.add_row("note", Text(note))
    facts.add_row("created", Text(result.created))
    facts.add_row("time", format_seconds(result.seconds))
    facts.add_row("preset", Text(result.preset))
    if result.seed is not None:
        facts.add_row("seed", str(result.seed))
    if result.chosen:
        facts.add_row("chosen", Text(result.chosen))
    facts_of = {name: getattr(result, name) for name in ("init", "data", *MACHINE)}
    facts_of |= {f"{name}, resumed": value for name, value in (result.resumed_on or {}).items()}
    for name, values in facts_of.items():
        known = [f"{key}: {_shown(value)}" for key, value in (values or {}).items() if value is not None]
        if known:
            facts.add_row(name, Text("\n".join(known)))

    phases = _table("Validation, loss in nats per target")
    for heading in ("phase", "status", "weights"):
        phases.add_column(heading)
    for heading in ("step", "loss", "top-10"):
        phases.add_column(heading, justify="right")
    phases.add_column("checkpoint", overflow="fold")
    for phase in result.phases:
        for row in _phase_rows(phase):
            phases.add_row(*row)
    scores = evaluation_tables(result.evaluation) if result.evaluation else []
    missing = [Text(result.evaluation_note, style="yellow")] if result.evaluation_note else []
    return Group(facts, phases, *scores, *missing, *_toy_note([result]))


def comparison_tables(comparison: Comparison) -> Group:
    """Runs side by side: settings that differ, metrics, scores, verdicts, and what is not compared."""
    runs = comparison.runs
    settings, metrics = _table("Settings that differ"), _table("Metrics")
    settings.add_column("setting", overflow="fold")
    metrics.add_column("phase")
    metrics.add_column("metric")
    for run in runs:
        settings.add_column(run_label(run), overflow="fold")
        metrics.add_column(run_label(run), justify="right")
    for name, values in comparison.settings.items():
        settings.add_row(Text(name), *[Text(plain(value)) for value in values])
    for row in comparison.metrics:
        cells = [_metric_cell(row["metric"], value) for value in row["values"]]
        name = row["metric"].replace("_", " ").replace("top10", "top-10").replace("seconds", "time")
        metrics.add_row(row["phase"], name, *cells)
    differing = settings if comparison.settings else Text("No setting differs.")
    below = [Text(f"{run.name}: {text}") for run, text in zip(runs, comparison.notes, strict=True) if text]
    below += [Text(line, style="yellow") for line in comparison.gaps]
    return Group(differing, metrics, *_score_tables(comparison), *below, *_toy_note(runs))


def _score_tables(comparison: Comparison) -> list[Table]:
    """Means and verdicts; below them the differences from the base, and from the first run."""
    if not comparison.scores:
        return []
    runs = comparison.runs
    means = _scores_table("Scores", runs, "base")
    for row in comparison.scores:
        if any(value is not None for value in (row.base, *row.values)):
            title = f"{row.title}\n({row.judge})" if row.judge else row.title
            means.add_row(Text(title), number(row.base), *map(number, row.values))
    said = [verdict(run.evaluation) for run in runs]
    checkpoints = [Text(f"\n{one['checkpoint']}") if one else Text() for one in said]
    verdicts = [_marked(one["verdict"]) if one else Text("-") for one in said]
    cells = [word.append_text(name) for word, name in zip(verdicts, checkpoints, strict=True)]
    means.add_row(Text("verdict", style="bold"), "", *cells)
    to_base = _scores_table("Differences from the base, and their 95 % intervals", runs)
    to_first = _scores_table(f"Differences from {runs[0].name}", runs)
    for row in comparison.scores:
        for table, found in ((to_base, row.to_base), (to_first, row.to_first)):
            if any(found):
                table.add_row(row.title, *map(_difference, found))
    return [means, to_base, *([to_first] if to_first.row_count else [])]


def _scores_table(title: str, runs: Sequence[RunResult], *more: str) -> Table:
    table = _table(title)
    table.add_column("score", overflow="fold")
    for name in (*more, *map(run_label, runs)):
        table.add_column(name, justify="right")
    return table


def _difference(one: dict | None) -> Text:
    """A difference above its interval, in the colour of its verdict."""
    text = difference_text(one).replace(" (", "\n").rstrip(")")
    return Text(text, style=_STATUS_STYLES.get((one or {}).get("verdict"), ""))


def run_label(result: RunResult) -> Text:
    """The name of a run, and whether it was made with toy weights."""
    label = Text(result.name)
    return label.append(" ").append_text(_toy_mark(result)) if result.toy else label


def _table(title: str, show_header: bool = True) -> Table:
    return Table(title=title or None, title_justify="left", show_header=show_header)


def _toy_note(results: Sequence[RunResult]) -> list[Text]:
    return [Text(TOY_NOTE, style="yellow")] if any(result.toy for result in results) else []


def _toy_mark(result: RunResult) -> Text:
    return Text(f"({TOY_MARK})" if result.toy else "", style="yellow")


def _remarks(shown: Iterable[Entry]) -> list[Text]:
    """Why runs failed, and what was noted on them."""
    lines = []
    for entry in shown:
        if entry.result.error:
            lines.append(Text(f"{entry.result.name} failed: {entry.result.error}", style="red"))
        if note := read_note(entry.run_dir):
            lines.append(Text(f"{entry.result.name}: {note}"))
    return lines


def _passed_over(log: RunLog) -> list[Text]:
    return [Text(f"passed over: {line}") for line in log.damaged]


def _runs_rows(own: Sequence[Entry], columns: Sequence[str]) -> list[Sequence[str | Text]]:
    """The rows of a run; its toy mark is below its name, beside the second phase where there is one."""
    result = own[0].result
    labels = [Text(result.name), *([_toy_mark(result)] if result.toy else [])]
    made = []
    for place, (label, row) in enumerate(zip_longest(labels, rows(own, columns))):
        cells = {name: _list_cell(name, value) for name, value in (row or {}).items()}
        if place and "verdict" in cells:
            cells["verdict"] = ""  # it is the run's
        made.append([(label or "") if name == "name" else cells.get(name, "") for name in columns])
    # without its name in the row, a mark would stand alone
    return made if "name" in columns else made[: len(own)]


def _list_cell(name: str, value: object) -> str | Text:
    if value is None:
        return "-"
    if name == "seconds":
        return format_seconds(value)
    if name in ("status", "verdict"):
        return _marked(str(value))
    is_fraction = isinstance(value, float) and name.endswith(("loss", "top10", "difference", *SCORES))
    return number(value) if is_fraction else Text(_shown(value))


def _shown(value: object) -> str:
    """A fact in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items() if one is not None)
    return plain(value)


def _phase_rows(phase: PhaseResult) -> list[Sequence[str | Text]]:
    """The untouched, best and last weights of a phase, as far as they are there."""
    table_rows = []
    for weights, metrics in (("base", phase.base), ("best", phase.best), ("last", phase.last)):
        lead = ("", "") if table_rows else (Text(phase.phase), _marked(phase.status))
        if metrics is not None:
            step = "0" if weights == "base" else str(metrics.get("step", "-"))
            numbers = (number(metric(metrics, "loss")), number(metric(metrics, "top10")))
            # best may be an average of the weights
            kind = metrics.get("weights", "raw")
            weights = Text(weights if kind == "raw" else f"{weights} ({kind})")
            table_rows.append((*lead, weights, step, *numbers, Text(_checkpoint_name(metrics))))
    return table_rows or [(Text(phase.phase), _marked(phase.status), "-", str(phase.steps), "-", "-", "")]


def _checkpoint_name(metrics: dict) -> str:
    """As it stands in `checkpoints/`: an adapter by its folder."""
    return str(metrics.get("checkpoint") or "").removesuffix(f"/{ADAPTER_FILE}")


def _metric_cell(name: str, value: object) -> str | Text:
    if value is None:
        return "-"
    if name == "seconds":
        return format_seconds(value)
    return number(value) if name.endswith(("loss", "top10")) else Text(str(value))


def _marked(status: str) -> Text:
    """A status or verdict in its colour."""
    return Text(status, style=_STATUS_STYLES.get(status, ""))
