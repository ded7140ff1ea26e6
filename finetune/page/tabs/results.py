"""The tab of the results log: a table to sort and search, and the report of the runs that are chosen.

The report is the page that `vallex runs export --html` writes, in a frame: what is seen is what is exported.
"""

import hashlib
import html
from pathlib import Path

import gradio as gr

from finetune.log.listing import DEFAULT_COLUMNS, Entry, entries, parse_columns, rows, select, to_csv
from finetune.log.markdown import markdown
from finetune.log.report import write_report
from finetune.page.engine import Engine
from finetune.page.published import Published
from finetune.page.runs import RunDesk
from finetune.page.tabs.one_run import OneRunPanel
from finetune.page.tabs.words import bad, connect, empty, told
from finetune.results import RunLog, list_runs, resolve_run
from vallex.files import atomic_write

HEADINGS = {
    "name": "Run",
    "phase": "Stage",
    "status": "Status",
    "verdict": "Verdict",
    "steps": "Steps",
    "base_loss": "Untouched loss",
    "best_loss": "Best loss",
    "base_top10": "Untouched top-10",
    "best_top10": "Best top-10",
    "votes_won": "Votes won",
    "votes_heard": "Votes cast",
    "note": "Note",
}
"""The columns of the table, as the results log calls them and as people do."""
EXPORTED = (*DEFAULT_COLUMNS, "verdict", "votes_won", "votes_heard", "note")
MAX_SHOWN = 8
_MAX_SOUNDS_MB = 12.0


class ResultsPanel:
    """The widgets of the tab, and what they do; made where Gradio's cursor stands."""

    def __init__(self, tab: gr.Tab, engine: Engine, published: Published):
        self._engine = engine
        self._runs_dir = engine.settings.runs_dir
        self._published = published
        self._hint = gr.HTML()
        with gr.Accordion("Columns, filter and order", open=False), gr.Row():
            self._columns = gr.Textbox(
                label="Columns",
                placeholder="name, lr, best_loss, verdict",
                info="Any of the log, and any setting; left out, those below.",
                min_width=220,
            )
            self._filters = gr.Textbox(
                label="Only where",
                placeholder="phase=nar, best_loss<3",
                info="= != < <= > >=, and ~ for contains; all must hold.",
                min_width=220,
            )
            self._sort = gr.Textbox(
                label="Sorted by",
                placeholder="-verdict, best_loss",
                info="A minus turns it round; left out, the newest first.",
                min_width=220,
            )
        self._table = gr.Dataframe(
            headers=list(HEADINGS.values()),
            interactive=False,
            show_search="filter",
            max_height=420,
            label="Runs and stages",
            elem_id="results",
        )
        gr.Markdown("### One run")
        self._one = OneRunPanel(RunDesk(engine.settings), published)
        gr.Markdown("### Side by side")
        self._runs = gr.Dropdown(
            [], multiselect=True, max_choices=MAX_SHOWN, label="Runs to look at", elem_id="looked"
        )
        with gr.Row():
            self._refresh = gr.Button("Read the log again", size="sm", min_width=140)
            self._csv = gr.DownloadButton("All as CSV", size="sm", min_width=140, elem_id="as-csv")
            self._markdown = gr.DownloadButton("As Markdown", size="sm", min_width=140, elem_id="as-markdown")
            self._html = gr.DownloadButton("As a page (HTML)", size="sm", min_width=140, elem_id="as-html")
        self._report = gr.HTML(elem_id="report")
        self._connect(tab)

    def _connect(self, tab: gr.Tab) -> None:
        looked_at = [self._report, self._markdown, self._html]
        shape = [self._columns, self._filters, self._sort]
        everything = [self._hint, self._table, self._runs, self._csv, *looked_at]
        for event in (tab.select, self._refresh.click, self._one.scored.change):
            connect(event, self._read, [self._runs, *shape], everything)
        for event in (tab.select, self._refresh.click):
            connect(event, self._one.opened, self._one.run, self._one.outputs)
        for field in shape:
            connect(field.submit, self._read, [self._runs, *shape], everything)
        connect(self._runs.input, self._look, self._runs, looked_at)

    @told
    def _read(self, chosen, columns, filters, sort):
        log = list_runs(self._runs_dir)
        everyone = entries(log.results, self._runs_dir)
        shown = parse_columns(columns, everyone) if (columns or "").strip() else list(HEADINGS)
        tests = [test.strip() for test in (filters or "").split(",") if test.strip()]
        sort = (sort or "").strip() or None
        found = select(everyone, sort, tests)
        if sort is None:
            found = found[::-1]
        names = [result.name for result in log.results][::-1]
        chosen = [name for name in chosen or [] if name in names] or names[:2]
        exported = EXPORTED if shown == list(HEADINGS) else shown
        csv = self._file("runs.csv", to_csv(found if sort else found[::-1], exported))
        choice = gr.update(choices=names, value=chosen)
        table = {"headers": [HEADINGS.get(name, name) for name in shown], "data": _cells(found, shown)}
        return _hint_view(log), table, choice, csv, *self._look(chosen)

    @told
    def _look(self, chosen):
        """The report of runs, and their exports."""
        if not chosen:
            said = empty("Choose one run or more to see scores, curves, samples and settings side by side.")
            return said, gr.update(value=None), gr.update(value=None)
        paths = [resolve_run(name, self._runs_dir) for name in chosen]
        report = self._report_of(paths)
        frame = f'<iframe class="report" sandbox title="Report" src="{self._published.url(report)}"></iframe>'
        return frame, self._file("runs.md", markdown(paths)), str(report)

    def _report_of(self, paths: list[Path]) -> Path:
        """The report of runs, written anew where one of them has changed."""
        files = [file for path in paths for file in sorted(path.glob("*.*")) if file.is_file()]
        state = "\n".join(f"{file} {file.stat().st_mtime_ns}" for file in files)
        report = self._place("results.html", state)
        if not report.is_file():
            write_report(paths, report, _MAX_SOUNDS_MB)
        return report

    def _file(self, name: str, content: str) -> str:
        path = self._place(name, content)
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
        return str(path)

    def _place(self, name: str, content: str) -> Path:
        """Where a file of this content goes: it keeps its name when it is downloaded."""
        folder = self._engine.work_dir / hashlib.sha256(f"{name}\n{content}".encode()).hexdigest()[:20]
        folder.mkdir(exist_ok=True)
        return folder / name


def _cells(found: list[Entry], columns: list[str]) -> list[list]:
    cells = [[_cell(value) for value in own.values()] for own in rows(found, columns)]
    return cells or [[""] * len(columns)]


def _cell(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.5g}")  # a rate of 1e-5 as well as a loss
    return "" if value is None else value


def _hint_view(log: RunLog) -> str:
    parts = [bad(f"Passed over: {line}") for line in log.damaged]
    if not log.results:
        parts.append(empty("No runs yet. Begin one in the Train tab; each becomes a row here."))
    if any(result.toy for result in log.results):
        toys = ", ".join(result.name for result in log.results if result.toy)
        parts.append(
            f'<p class="note">Made with toy weights, so that losses say nothing: {html.escape(toys)}</p>'
        )
    return "".join(parts)
