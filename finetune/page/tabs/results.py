"""The tab of the results log: a table to sort and search, curves over runs, and how two runs differ."""

import html
import secrets

import gradio as gr

from finetune.log.comparison import compare
from finetune.log.curves import Curve, curves_svg, read_lines
from finetune.log.listing import Entry, entries, rows, to_csv
from finetune.log.words import format_seconds
from finetune.page.engine import Engine
from finetune.page.tabs.words import Opening, bad, empty, told
from finetune.results import RunLog, list_runs, resolve_run
from vallex.errors import RunError
from vallex.files import atomic_write

HEADINGS = (
    "Run",
    "Stage",
    "Status",
    "Steps",
    "Untouched loss",
    "Untouched top-10",
    "Best loss",
    "Best top-10",
)
"""Of listing.DEFAULT_COLUMNS."""
MAX_CURVES = 8


def build(engine: Engine) -> Opening:
    """Adds the widgets and connects them."""
    w: dict = {}
    w["empty"] = gr.HTML()
    w["table"] = gr.Dataframe(
        headers=list(HEADINGS),
        interactive=False,
        show_search="filter",
        max_height=420,
        label="Runs and stages",
        elem_id="results",
    )
    with gr.Row():
        w["refresh"] = gr.Button("Read the log again", size="sm")
        w["csv"] = gr.DownloadButton("Export as CSV", size="sm", elem_id="export")
    w["runs"] = gr.Dropdown(
        [], multiselect=True, max_choices=MAX_CURVES, label="Runs to look at", elem_id="looked"
    )
    w["curves"] = gr.HTML(elem_id="result-curves")
    w["differences"] = gr.HTML(elem_id="differences")
    return _connect(w, engine)


def _connect(w: dict, engine: Engine) -> Opening:
    runs_dir = engine.settings.runs_dir

    def read(chosen):
        log = list_runs(runs_dir)
        names = [result.name for result in log.results][::-1]
        chosen = [name for name in chosen or [] if name in names] or names[:2]
        return (
            _hint(log),
            _cells(entries(log.results, runs_dir)),
            gr.update(choices=names, value=chosen),
            *look(chosen),
        )

    @told
    def look(chosen):
        return _curves(engine, chosen or []), _differences(engine, chosen or [])

    def export():
        path = engine.work_dir / f"runs-{secrets.token_hex(4)}.csv"
        with atomic_write(path) as temporary:
            temporary.write_text(to_csv(entries(list_runs(runs_dir).results, runs_dir)), encoding="utf-8")
        return str(path)

    private, hidden = "private", "hidden"
    outputs = [w[key] for key in ("empty", "table", "runs", "curves", "differences")]
    w["refresh"].click(read, w["runs"], outputs, api_visibility=private, show_progress=hidden)
    w["refresh"].click(export, None, w["csv"], api_visibility=private, show_progress=hidden)
    w["runs"].input(
        look, w["runs"], [w["curves"], w["differences"]], api_visibility=private, show_progress=hidden
    )
    return Opening(
        function=lambda chosen: [*read(chosen), export()], inputs=[w["runs"]], outputs=[*outputs, w["csv"]]
    )


def _cells(found: list[Entry]) -> list[list]:
    cells = [
        [round(value, 4) if isinstance(value, float) else value for value in row.values()]
        for row in reversed(rows(found))
    ]
    return cells or [[""] * len(HEADINGS)]


def _hint(log: RunLog) -> str:
    parts = [bad(f"Passed over: {line}") for line in log.damaged]
    if not log.results:
        parts.append(empty("No runs yet. Begin one in the Train tab; each becomes a row here."))
    if any(result.toy for result in log.results):
        toys = ", ".join(result.name for result in log.results if result.toy)
        parts.append(
            f'<p class="note">Made with toy weights, so that losses say nothing: {html.escape(toys)}</p>'
        )
    return "".join(parts)


def _curves(engine: Engine, names: list[str]) -> str:
    pictures = []
    for stage in ("ar", "nar"):
        curves = []
        for name in names[:MAX_CURVES]:
            lines = read_lines(resolve_run(name, engine.settings.runs_dir) / "metrics.jsonl")
            points = [(x["step"], x["loss"]) for x in lines if x["stage"] == stage and x["kind"] == "valid"]
            curves.append(Curve(name=name, points=points))
        pictures.append(curves_svg(curves, f"{stage.upper()} validation loss", "step", "nats a target"))
    return "".join(pictures)


def _differences(engine: Engine, names: list[str]) -> str:
    if len(names) != 2:
        return empty("Choose two runs to see in which settings and scores they differ.")
    try:
        found = compare(*(resolve_run(name, engine.settings.runs_dir) for name in names))
    except RunError as error:
        return bad(str(error))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    settings = "".join(
        f"<tr><td>{html.escape(key)}</td>"
        + "".join(f"<td>{html.escape(str(v))}</td>" for v in values)
        + "</tr>"
        for key, values in found.settings.items()
    )
    scores = "".join(
        f"<tr><td>{row['phase'].upper()} {html.escape(row['metric'].replace('_', ' '))}</td>"
        + "".join(f"<td>{html.escape(_shown(row['metric'], value))}</td>" for value in row["values"])
        + "</tr>"
        for row in found.metrics
    )
    return (
        f'<div class="scroll"><table class="plain"><tr><th>Score</th>{head}</tr>{scores}'
        f"<tr><th>Setting</th>{head}</tr>{settings}</table></div>"
    )


def _shown(name: str, value: object) -> str:
    if value is None:
        return "–"
    if name == "seconds":
        return format_seconds(value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
