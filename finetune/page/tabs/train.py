"""The tab in which a run is begun, watched, stopped and gone on with."""

import html
import re
from contextlib import closing

import gradio as gr

from finetune.config import preset_about, preset_names
from finetune.log.curves import curves_svg, stage_curves
from finetune.log.words import format_seconds
from finetune.page.checkpoints import list_choices
from finetune.page.engine import Engine
from finetune.page.published import Published
from finetune.page.tabs.fields import SettingFields
from finetune.page.tabs.words import Opening, bad, connect, empty, good, listed, plain, told
from finetune.page.training import STAGE_CHOICES, RunState, TrainForm, TrainingDesk, loss_of
from finetune.results import PhaseResult
from vallex.errors import ConfigError, VallexError

STAGES = list(zip(("As the preset says", "Both", "AR only", "NAR only"), STAGE_CHOICES, strict=True))
FIRST_PRESET = "small"
MAX_SAMPLES_SHOWN = 12
_POLL_SEC = 2.0
_NEW = ""  # no run whose state is gone on from
_NO_RUNS = "No runs yet. Begin one here; it is found again whenever this page is opened."


def build(
    page: gr.Blocks, engine: Engine, desk: TrainingDesk, published: Published
) -> tuple[gr.Dropdown, Opening]:
    """Adds the widgets and connects them; returns the choice of the prepared set, for other tabs to set."""
    panel = TrainPanel(engine, desk, published)
    page.unload(panel.forget)
    return panel.prepared, Opening(
        function=panel.opened,
        inputs=[panel.prepared, panel.init, panel.branch, panel.run],
        outputs=[panel.prepared, panel.init, panel.branch, panel.run, *panel.views, *panel.buttons],
    )


class TrainPanel:
    """The widgets of the tab, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, desk: TrainingDesk, published: Published):
        self._engine = engine
        self._desk = desk
        self._published = published
        self._measuring: dict[str, object] = {}
        with gr.Row():
            with gr.Column(min_width=320):
                self._build_form()
            with gr.Column(min_width=320):
                self._build_runs()
        self._connect()

    def opened(self, prepared, init, branch, chosen) -> tuple:
        """Sets, checkpoints and runs as they are now, and how the chosen run stands."""
        runs, saved = self._desk.names(), self._desk.with_state()
        inits = [choice.name for choice in list_choices(self._engine.settings)]
        run = chosen if chosen in runs else next(iter(runs), None)
        return (
            listed(self._desk.prepared_sets(), prepared),
            listed(inits, init),
            gr.update(choices=_branches(saved), **({} if branch in [_NEW, *saved] else {"value": _NEW})),
            listed(runs, chosen),
            *self._shown(run),
        )

    def _build_form(self) -> None:
        gr.Markdown("### A new run")
        self.prepared = gr.Dropdown(
            self._desk.prepared_sets(), label="Prepared set", info="Made in the Data tab.", elem_id="prepared"
        )
        self._preset = gr.Dropdown(list(preset_names()), value=FIRST_PRESET, label="Preset")
        self._about = gr.HTML(_about(FIRST_PRESET))
        inits = [choice.name for choice in list_choices(self._engine.settings)]
        self.init = gr.Dropdown(
            inits, label="Begin with", info="Where the released model is missing, the Clone tab fetches it."
        )
        self._name = gr.Textbox(label="Name of the run", placeholder="anna-1", elem_id="run-name")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self._build_settings()
        with gr.Row():
            self._plan = gr.Button("Show the plan", min_width=120)
            self._cancel = gr.Button("Cancel", min_width=80, visible=False, elem_classes="ends-work")
            self._start = gr.Button("Start training", variant="primary", min_width=120)
        self._said = gr.HTML(elem_id="train-said")

    def _build_settings(self) -> None:
        self._stage = gr.Dropdown(STAGES, value=STAGE_CHOICES[0], label="What is trained")
        self.branch = gr.Dropdown(
            _branches(self._desk.with_state()),
            value=_NEW,
            label="Go on from the state of another run",
            info="In a run of its own: weights, optimizer and place in the data are those of that run, and "
            "so are set, preset and stages. “Begin with” takes weights alone.",
        )
        self._fields = SettingFields(FIRST_PRESET)
        with gr.Accordion("One stage, languages, processes", open=False):
            self._set = gr.Textbox(
                label="Other settings, one a line",
                placeholder="ar.max_epochs=10\nnar.lr=2e-5",
                info="For one stage alone: ar.NAME or nar.NAME.",
                lines=2,
            )
            self._languages = gr.Textbox(
                label="Languages to teach, one a line",
                placeholder="ko=ja",
                info="A code, and the language that it begins as.",
                lines=1,
            )
            self._processes = gr.Number(
                1, label="Processes, one a GPU", precision=0, minimum=1, maximum=64, min_width=120
            )

    def _build_runs(self) -> None:
        gr.Markdown("### Runs")
        self.run = gr.Dropdown(self._desk.names(), label="Run", elem_id="run")
        with gr.Row():
            self._stop = gr.Button("Stop and save", min_width=100, interactive=False)
            self._resume = gr.Button("Go on", min_width=100, interactive=False)
        self.buttons = [self._stop, self._resume]
        self.views = [
            gr.HTML(elem_id="run-state"),
            gr.HTML(elem_id="run-curves"),
            gr.HTML(elem_id="run-samples"),
        ]
        self._timer = gr.Timer(_POLL_SEC)

    def _connect(self) -> None:
        form = [self.prepared, self._preset, self.init, self._name, self._stage, self.branch]
        form += [self._set, self._languages, self._processes, *self._fields.fields]
        shown = [*self.views, *self.buttons]
        connect(self._preset.change, self._presets, self._preset, [self._about, *self._fields.fields])
        connect(self._plan.click, self._show_plan, form, [self._said, self._cancel])
        connect(self._cancel.click, self.forget)
        for event in (self._start.click, self._name.submit):
            connect(event, self._start_run, form, [self._said, self.run, *shown])
        connect(self._stop.click, self._stop_run, self.run, [self._said, *shown])
        connect(self._resume.click, self._resume_run, self.run, [self._said, *shown])
        connect(self.run.change, self._shown, self.run, shown)
        connect(self._timer.tick, self._refreshed, [self.run, *self.views], shown)

    def forget(self, request: gr.Request) -> None:
        """Ends the measuring that a page asked for."""
        self._measuring.pop(request.session_hash or "", None)

    def _presets(self, preset) -> list:
        return [_about(preset), *self._fields.changed(preset)]

    @told
    def _show_plan(self, request: gr.Request, *values):
        form = self._form_of(*values)
        found = self._desk.plan(form)
        clips = f"On {found.num_train} clips, {found.num_valid} for validation."
        owner, mark = request.session_hash or "", object()
        self._measuring[owner] = mark  # another one of this page takes its place
        idle = gr.update(visible=False)
        yield plain(f"{clips} Measuring what it takes …"), gr.update(visible=True)
        try:
            with closing(self._desk.measure(form)) as measuring:
                for lines in measuring:
                    if self._measuring.get(owner) is not mark:
                        yield plain(f"{clips} Not measured."), idle
                        return
                    if lines:
                        yield plain(" ".join([clips, *(f"{line}." for line in lines)])), idle
        except VallexError:
            yield plain(""), idle
            raise

    @told
    def _start_run(self, *values):
        form = self._form_of(*values)
        self._desk.start(form)
        said = good(f"{form.name} is started. It goes on when this page is closed.")
        choice = gr.update(choices=self._desk.names(), value=form.name)
        return said, choice, *self._shown(form.name)

    @told
    def _stop_run(self, name):
        self._desk.stop(name or "")
        return "", *self._shown(name)

    @told
    def _resume_run(self, name):
        self._desk.resume(name or "")
        return good(f"{name} goes on."), *self._shown(name)

    def _shown(self, name: str | None) -> tuple:
        """How a run stands, its curves and its samples, and which of the buttons can do something."""
        idle = gr.update(interactive=False)
        if not name:
            return empty(_NO_RUNS), "", "", idle, idle
        try:
            state = self._desk.state(name)
        except VallexError as error:  # whatever a strange folder holds, the page stays
            return bad(str(error)), "", "", idle, idle
        views = state_view(state), curves_view(state), samples_view(state, self._published)
        can_stop = state.is_going and not state.is_stopping
        return *views, gr.update(interactive=can_stop), gr.update(interactive=state.can_go_on)

    def _refreshed(self, name, *before) -> list:
        # what is as it was is not drawn again: a reader, or a screen reader, keeps the place
        *views, stop, resume = self._shown(name)
        drawn = [gr.skip() if new == old else new for new, old in zip(views, before, strict=True)]
        return [*drawn, *([gr.skip()] * 2 if views[0] == before[0] else [stop, resume])]

    def _form_of(self, prepared, preset, init, name, stage, branch, lines, languages, processes, *settings):
        if not prepared and not branch:
            raise ConfigError("choose a prepared set; if there is none yet, make one in the Data tab")
        if not (name or "").strip():
            raise ConfigError("give the run a name, such as anna-1")
        return TrainForm(
            name=name.strip(),
            prepared=prepared or "",
            preset=preset,
            init=init or "",
            stage=stage,
            overrides=(*self._fields.overrides(settings), *_lines_of(lines)),
            languages=_lines_of(languages),
            resume_from=branch or "",
            num_processes=int(processes or 1),
        )


def state_view(state: RunState) -> str:
    """How a run stands, in words and a table."""
    line = f"<b>{html.escape(state.name)}</b>: {html.escape(state.status)}"
    if state.seconds_left is not None:
        line += f", about {format_seconds(state.seconds_left)} left"
    if state.is_stopping:
        line += ", and ends when it has saved"
    if state.scored:
        line += f": {html.escape(state.scored)}"
    parts = [f'<div class="status" role="status">{line}</div>']
    result = state.result
    if result is not None:
        if result.error:
            parts.append(bad(result.error))
        if result.toy:
            parts.append('<div class="note">Toy weights: the losses say nothing about a voice.</div>')
        rows = [
            f"<tr><td>{phase.phase.upper()}</td><td>{html.escape(_status_of(state, phase))}</td>"
            f"<td>{_steps_done(state, phase)}</td><td>{loss_of(phase.base)}</td>"
            f"<td>{loss_of(phase.best)}</td></tr>"
            for phase in result.phases
        ]
        head = "<tr><th>Stage</th><th>Status</th><th>Steps</th><th>Untouched</th><th>Best</th></tr>"
        parts.append(f'<div class="scroll"><table class="plain">{head}{"".join(rows)}</table></div>')
    if state.error:
        parts.append(bad(state.error))
    if result is None and state.log_tail:
        printed = f"<pre>{html.escape(state.log_tail)}</pre>"
        parts.append(f'<details class="printed"><summary>What it printed</summary>{printed}</details>')
    return "".join(parts)


def curves_view(state: RunState) -> str:
    """The losses of each stage as pictures."""
    return "".join(
        curves_svg(stage_curves(state.lines, stage), f"{stage.upper()} loss", "step", "nats a target")
        for stage in ("ar", "nar")
    )


def samples_view(state: RunState, published: Published) -> str:
    """Players of what the run has spoken so far, the newest first."""
    players = [
        f'<div class="player"><p>{html.escape(f"{group}: {path.stem}")}</p><audio controls preload="none" '
        f'aria-label="{html.escape(f"{group}, {path.stem}")}" src="{published.url(path)}"></audio></div>'
        for group, paths in state.samples.items()
        for path in paths
    ]
    if not players:
        return ""
    more = len(players) - MAX_SAMPLES_SHOWN
    note = f'<p class="note">{more} older ones are in the run\'s folder.</p>' if more > 0 else ""
    shown = "".join(players[:MAX_SAMPLES_SHOWN])
    return f'<h4>Samples</h4><div class="side">{shown}</div>{note}'


def _branches(runs: list[str]) -> list[tuple[str, str]]:
    return [("None: begin anew", _NEW), *((run, run) for run in runs)]


def _lines_of(text: str | None) -> tuple[str, ...]:
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def _status_of(state: RunState, phase: PhaseResult) -> str:
    """How a stage stands; one before which another has not ended only waits."""
    before = state.result.phases[: state.result.phases.index(phase)]
    is_next = all(one.status == "done" for one in before)
    return phase.status if is_next or phase.steps else "waits"


def _steps_done(state: RunState, phase: PhaseResult) -> str:
    own = [line["step"] for line in state.lines if line["stage"] == phase.phase]
    done = max([phase.steps, *own])
    return f"{done} of {state.steps[phase.phase]}" if phase.phase in state.steps else str(done)


def _about(preset: str) -> str:
    """When to take a preset; why its values are what they are is folded below."""
    when, *why = re.split(r"(?<=[.])\s+", preset_about(preset), maxsplit=1)
    more = f"<details><summary>More of it</summary>{html.escape(why[0])}</details>" if why else ""
    return f'<div class="note">{html.escape(when)}{more}</div>'
