"""What is done with a run that there is: it is scored, exported and noted on; and disk is freed."""

import html

import gradio as gr

from finetune.log.prune import Pruning
from finetune.page.jobs import DONE, RUNNING, Job
from finetune.page.published import Published
from finetune.page.runs import EVALUATE, EXPORT, ExportForm, RunDesk
from finetune.page.tabs.words import connect, empty, good, job_view, listed, plain, told
from finetune.results import read_result
from vallex.errors import VallexError
from vallex.model.checkpoint import DTYPES, FORMATS

SIZES = [
    ("10 sentences", "quick"),
    ("20 sentences", "standard"),
    ("50 sentences, by every checkpoint that was kept", "full"),
]
DOING = {EVALUATE: "scoring", EXPORT: "exporting"}
_SHIPPED = ""
_POLL_SEC = 1.5
_FORMATS = dict(zip(FORMATS, ("vallex (safetensors)", "the original code (released)"), strict=True))


class OneRunPanel:
    """The widgets, and what they do; made where Gradio's cursor stands. `scored` changes with new scores."""

    def __init__(self, desk: RunDesk, published: Published):
        self._desk = desk
        self._published = published
        self.scored = gr.State(0)
        self._watched = gr.State(None)  # the job whose end this page waits for
        self._planned = gr.State([])
        with gr.Row(elem_classes="middle"):
            self.run = gr.Dropdown([], label="Run", elem_id="one-run", scale=3)
            self._stop = gr.Button("Stop", interactive=False, min_width=90, elem_classes="ends-work")
        self._status = gr.HTML(elem_id="one-run-status")
        with gr.Accordion("Is it better? Score it", open=False):
            self._build_score()
        with gr.Accordion("Export its model", open=False):
            self._build_export()
        with gr.Accordion("A note on it", open=False):
            self._note = gr.Textbox(
                label="What you think of it", info="It stands in the log and in exports.", lines=2
            )
            self._keep_note = gr.Button("Keep the note", min_width=120)
            self._noted = gr.HTML()
        with gr.Accordion("Free disk, of all runs", open=False):
            self._look = gr.Button("What could go?", min_width=120)
            self._could_go = gr.HTML(elem_id="could-go")
            self._prune = gr.Button("Remove these files", interactive=False, min_width=120)
        self._shown = [self._status, self._exported, self._stop, self._score, self._export]
        self._timer = gr.Timer(_POLL_SEC)
        self._connect()

    def opened(self, name: str | None) -> tuple:
        """The runs as they are now; for `outputs`."""
        names = self._desk.names()
        chosen = name if name in names else next(iter(names), None)
        job = self._desk.job(chosen)
        watched = job.begun if job is not None and job.status == RUNNING else None
        return listed(names, name), watched, *self._of_run(chosen)

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `opened` fills."""
        return [self.run, self._watched, self._which, self._note, self._others, *self._shown]

    def _build_score(self) -> None:
        self._size = gr.Radio(SIZES, value="standard", label="What both models say")
        with gr.Row():
            self._seed = gr.Number(0, label="Seed of the sentences", precision=0, minimum=0, min_width=140)
            self._others = gr.Dropdown(
                [("The shipped two", _SHIPPED)],
                value=_SHIPPED,
                label="Other voices",
                info="Of which it tells what was forgotten.",
                min_width=220,
            )
        self._score = gr.Button("Score it", variant="primary", min_width=120)

    def _build_export(self) -> None:
        with gr.Row():
            self._which = gr.Dropdown([], label="Which of its checkpoints", min_width=160)
            self._format = gr.Dropdown(
                [(called, name) for name, called in _FORMATS.items()],
                value=FORMATS[0],
                label="For",
                min_width=270,
            )
            self._dtype = gr.Dropdown(list(DTYPES), value="float32", label="Precision", min_width=120)
        self._force = gr.Checkbox(False, label="Even where the original code would load it wrongly")
        self._export = gr.Button("Export it", min_width=120)
        self._exported = gr.HTML(elem_id="exported")

    def _connect(self) -> None:
        connect(self.run.change, self._of_run, self.run, self.outputs[2:])
        begun = [self._watched, *self._shown]
        connect(self._score.click, self._begin_score, [self.run, self._size, self._seed, self._others], begun)
        form = [self.run, self._which, self._format, self._dtype, self._force]
        connect(self._export.click, self._begin_export, form, begun)
        connect(self._stop.click, self._end, self.run, self._shown)
        connect(self._keep_note.click, self._write_note, [self.run, self._note, self.scored], self._said_note)
        connect(self._look.click, self._plan, None, [self._planned, self._could_go, self._prune])
        connect(self._prune.click, self._remove, self._planned, [self._planned, self._could_go, self._prune])
        before = [self.run, self._watched, self.scored, self._status, self._exported]
        connect(self._timer.tick, self._refreshed, before, [self._watched, self.scored, *self._shown])

    @property
    def _said_note(self) -> list[gr.components.Component]:
        return [self._noted, self.scored]

    def _of_run(self, name: str | None) -> tuple:
        """What is told of a run that is chosen: its checkpoints, its note, and what is done with it."""
        which = self._desk.checkpoints(name)
        sets = [("The shipped two", _SHIPPED), *((one, one) for one in self._desk.sets())]
        choices = gr.update(choices=which, value=next(iter(which), None))
        return choices, self._desk.note(name), gr.update(choices=sets), *self._state(name)

    def _state(self, name: str | None) -> tuple:
        """How the work with a run stands, its files, and which of the buttons can do something."""
        job = self._desk.job(name)
        is_busy = job is not None and job.status == RUNNING
        view = job_view(job, DOING, self._outcome(job)) if job else ""
        can = gr.update(interactive=bool(name) and not is_busy)
        stop = gr.update(interactive=is_busy and not job.is_stopping)
        return view, self._exported_view(name), stop, can, can

    @told
    def _begin_score(self, name, size, seed, others):
        self._desk.score(name, size, int(seed or 0), others or "")
        return self._desk.job(name).begun, *self._state(name)

    @told
    def _begin_export(self, name, which, format, dtype, force):
        form = ExportForm(which=which or "", format=format, dtype=dtype, force=bool(force))
        self._desk.export(name, form)
        return self._desk.job(name).begun, *self._state(name)

    @told
    def _end(self, name):
        self._desk.stop(name)
        return self._state(name)

    @told
    def _write_note(self, name, text, scored):
        self._desk.write_note(name, text or "")
        return good("Kept." if (text or "").strip() else "There is no note on it any more."), scored + 1

    @told
    def _plan(self):
        plans = self._desk.plan_pruning()
        paths = [path for plan in plans for path in plan.paths]
        megabytes = sum(plan.num_bytes for plan in plans) / 1e6
        called = f"Remove these files for good ({megabytes:.1f} MB)" if paths else "Remove these files"
        return paths, pruning_view(plans), gr.update(value=called, interactive=bool(paths))

    @told
    def _remove(self, planned):
        freed = self._desk.prune(planned)
        said = good(f"Freed {freed / 1e6:.1f} MB.")
        return [], said, gr.update(value="Remove these files", interactive=False)

    def _refreshed(self, name, watched, scored, *before) -> list:
        view, exported, *buttons = self._state(name)
        drawn = [gr.skip() if new == old else new for new, old in zip((view, exported), before, strict=True)]
        buttons = [gr.skip()] * 3 if view == before[0] else buttons
        job = self._desk.job(name)
        if watched is None or job is None or job.begun != watched or job.status == RUNNING:
            return [gr.skip(), gr.skip(), *drawn, *buttons]
        is_scored = job.verb == EVALUATE and job.status == DONE
        return [None, scored + 1 if is_scored else gr.skip(), *drawn, *buttons]

    def _outcome(self, job: Job) -> str:
        """What came of a job, where it is done."""
        if job.status != DONE:
            return ""
        if job.verb == EXPORT:
            return "Exported; the file stands under “Export its model”."
        try:
            result = read_result(self._desk.path(job.name))
        except VallexError as error:
            return str(error)
        scores = result.evaluation
        return result.evaluation_note or (f"Scored: {scores.why}" if scores else "It has no scores.")

    def _exported_view(self, name: str | None) -> str:
        """Links to what a run was exported to, with their places on the machine that serves the page."""
        files = self._desk.exported(name) if name in self._desk.names() else []
        links = [
            f'<a href="{self._published.url(path)}" download="{html.escape(path.name)}">'
            f"{html.escape(path.name)}</a><span>{path.stat().st_size / 1e6:.1f} MB, in "
            f"{html.escape(str(path.parent))}</span>"
            for path in files
        ]
        return "".join(f'<div class="downloads">{link}</div>' for link in links)


def pruning_view(plans: list[Pruning]) -> str:
    """What would go of each run, and what stays and why."""
    rows = []
    for plan in plans:
        gone = ", ".join(str(path.relative_to(plan.run_dir)) for path in plan.paths) or "nothing"
        stays = "; ".join(f"{name} ({why})" for name, why in plan.kept.items())
        cells = plan.run_dir.name, gone, f"{plan.num_bytes / 1e6:.1f}", plan.left_alone or stays
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    if not rows:
        return empty("No runs yet.")
    head = "<tr><th>Run</th><th>Would go</th><th>MB</th><th>Stays, and why</th></tr>"
    said = "" if any(plan.paths for plan in plans) else plain("There is nothing to free.")
    return f'{said}<div class="scroll"><table class="plain">{head}{"".join(rows)}</table></div>'
