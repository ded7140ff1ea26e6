"""The results log as rich tables, which the command line prints. Toy runs are marked in every one of them.

Cells are Text, never markup: a run called `[red]` is shown as it is called.
"""

from collections.abc import Sequence
from itertools import zip_longest

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from finetune.results import Comparison, PhaseResult, RunLog, RunResult, metric, rows
from vallex.model.runs import ADAPTER_FILE

TOY_MARK = "toy weights"
TOY_NOTE = "toy weights: what you hear is noise, and the losses say nothing about a voice"
_STATUS_STYLES = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}


def runs_table(log: RunLog) -> Group:
    """A row a run and phase, the oldest run first; what was passed over stands below."""
    # no lines between columns: the name of a run that was given none fits into 80 characters
    table = Table(title="Runs", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for heading in ("phase", "status"):
        table.add_column(heading)
    for heading in ("steps", "base\nloss", "best\nloss", "base\ntop-10", "best\ntop-10"):
        table.add_column(heading, justify="right")
    for result in log.results:
        for row in _runs_rows(result):
            table.add_row(*row)
    below = [*_toy_note(log.results), *[Text(f"passed over: {line}") for line in log.damaged]]
    if not log.results:
        return Group(Text("No runs here yet. Begin one: vallex finetune PREPARED --preset smoke"), *below)
    return Group(table, *below)


def run_tables(result: RunResult) -> Group:
    """One run: what was run on what, and what came of each phase."""
    facts = _table("", show_header=False)
    facts.add_column("fact", style="bold")
    facts.add_column("value", overflow="fold")
    facts.add_row("run", run_label(result))
    facts.add_row("status", _status(result.status))
    if result.error:
        facts.add_row("error", Text(result.error, style="red"))
    facts.add_row("created", Text(result.created))
    facts.add_row("time", format_seconds(result.seconds))
    facts.add_row("preset", Text(result.preset))
    if result.chosen:
        facts.add_row("chosen", Text(result.chosen))
    for name, values in (("init", result.init), ("data", result.data), ("versions", result.versions)):
        known = [f"{key}: {value}" for key, value in values.items() if value is not None]
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
    return Group(facts, phases, *_toy_note([result]))


def comparison_tables(comparison: Comparison) -> Group:
    """Two runs: the settings that differ with both values, and the metrics side by side."""
    runs = (comparison.a, comparison.b)
    settings = _table("Settings that differ")
    metrics = _table("Metrics")
    settings.add_column("setting", overflow="fold")
    metrics.add_column("phase")
    metrics.add_column("metric")
    for run in runs:
        settings.add_column(run_label(run), overflow="fold")
        metrics.add_column(run_label(run), justify="right")
    for name, values in comparison.settings.items():
        settings.add_row(Text(name), *[Text("-" if value is None else str(value)) for value in values])
    for row in comparison.metrics:
        cells = [_metric_cell(row["metric"], row[side]) for side in ("a", "b")]
        name = row["metric"].replace("_", " ").replace("top10", "top-10").replace("seconds", "time")
        metrics.add_row(row["phase"], name, *cells)
    differing = settings if comparison.settings else Text("No setting differs.")
    return Group(differing, metrics, *_toy_note(runs))


def run_label(result: RunResult) -> Text:
    """The name of a run, and whether it was made with toy weights."""
    label = Text(result.name)
    return label.append(" ").append_text(_toy_mark(result)) if result.toy else label


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _table(title: str, show_header: bool = True) -> Table:
    return Table(title=title or None, title_justify="left", show_header=show_header)


def _toy_note(results: Sequence[RunResult]) -> list[Text]:
    return [Text(TOY_NOTE, style="yellow")] if any(result.toy for result in results) else []


def _toy_mark(result: RunResult) -> Text:
    return Text(f"({TOY_MARK})" if result.toy else "", style="yellow")


def _runs_rows(result: RunResult) -> list[Sequence[str | Text]]:
    """The rows of a run; its toy mark is below its name, beside the second phase where there is one."""
    figures = [
        (
            Text(row["phase"]),
            _status(row["status"]),
            str(row["steps"]),
            *(_number(row[key]) for key in ("base_loss", "best_loss", "base_top10", "best_top10")),
        )
        for row in rows([result])
    ] or [("-", _status(result.status), *["-"] * 5)]
    labels = [Text(result.name), *([_toy_mark(result)] if result.toy else [])]
    return [(label or "", *row) for label, row in zip_longest(labels, figures, fillvalue=())]


def _phase_rows(phase: PhaseResult) -> list[Sequence[str | Text]]:
    """The untouched, best and last weights of a phase, as far as they are there."""
    table_rows = []
    for weights, metrics in (("base", phase.base), ("best", phase.best), ("last", phase.last)):
        lead = ("", "") if table_rows else (Text(phase.phase), _status(phase.status))
        if metrics is not None:
            step = "0" if weights == "base" else str(metrics.get("step", "-"))
            numbers = (_number(metric(metrics, "loss")), _number(metric(metrics, "top10")))
            # best may be an average of the weights
            kind = metrics.get("weights", "raw")
            weights = Text(weights if kind == "raw" else f"{weights} ({kind})")
            table_rows.append((*lead, weights, step, *numbers, Text(_checkpoint_name(metrics))))
    return table_rows or [(Text(phase.phase), _status(phase.status), "-", str(phase.steps), "-", "-", "")]


def _checkpoint_name(metrics: dict) -> str:
    """As it stands in `checkpoints/`: an adapter by its folder."""
    return str(metrics.get("checkpoint") or "").removesuffix(f"/{ADAPTER_FILE}")


def _metric_cell(name: str, value: object) -> str | Text:
    if value is None:
        return "-"
    if name == "seconds":
        return format_seconds(value)
    return _number(value) if name.endswith(("loss", "top10")) else Text(str(value))


def _status(status: str) -> Text:
    return Text(status, style=_STATUS_STYLES.get(status, ""))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
