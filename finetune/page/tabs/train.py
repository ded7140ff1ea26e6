"""The tab in which a run is begun, watched, stopped and gone on with."""

import html
from collections.abc import Callable

import gradio as gr

from finetune.config import preset_about, preset_names
from finetune.log.curves import curves_svg, stage_curves
from finetune.log.words import format_seconds
from finetune.page.checkpoints import list_choices
from finetune.page.engine import Engine
from finetune.page.tabs.words import Opening, bad, empty, good, listed, plain, told
from finetune.page.training import STAGE_CHOICES, RunState, TrainForm, TrainingDesk, loss_of
from vallex.errors import ConfigError

STAGES = list(zip(("As the preset says", "Both", "AR only", "NAR only"), STAGE_CHOICES, strict=True))
FIRST_PRESET = "small"
_POLL_SEC = 2.0


def build(engine: Engine, desk: TrainingDesk) -> tuple[gr.Dropdown, Opening]:
    """Adds the widgets and connects them; returns the choice of the prepared set, for other tabs to set."""
    w: dict = {}
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("### A new run")
            w["prepared"] = gr.Dropdown(
                desk.prepared_sets(), label="Prepared set", info="Made in the Data tab.", elem_id="prepared"
            )
            w["preset"] = gr.Dropdown(list(preset_names()), value=FIRST_PRESET, label="Preset")
            w["about"] = gr.HTML(_about(FIRST_PRESET))
            w["init"] = gr.Dropdown([c.name for c in list_choices(engine.settings)], label="Begin with")
            w["name"] = gr.Textbox(label="Name of the run", placeholder="anna-1", elem_id="run-name")
            with gr.Accordion("Settings", open=False):
                w["stage"] = gr.Dropdown(STAGES, value=STAGE_CHOICES[0], label="What is trained")
                w["set"] = gr.Textbox(
                    label="Other settings, one a line",
                    placeholder="lr=2e-5\nar.max_epochs=10",
                    info="Left out, the preset's hold.",
                    lines=3,
                )
            with gr.Row():
                w["plan"] = gr.Button("Show the plan", min_width=120)
                w["start"] = gr.Button("Start training", variant="primary", min_width=120)
            w["said"] = gr.HTML(elem_id="train-said")
        with gr.Column(min_width=320):
            gr.Markdown("### Runs")
            w["run"] = gr.Dropdown(desk.names(), label="Run", elem_id="run")
            with gr.Row():
                w["stop"] = gr.Button("Stop and save", min_width=100)
                w["resume"] = gr.Button("Go on", min_width=100)
            w["state"] = gr.HTML(elem_id="run-state")
            w["curves"] = gr.HTML(elem_id="run-curves")
            w["timer"] = gr.Timer(_POLL_SEC)
    opened = _connect(w, engine, desk)
    return w["prepared"], Opening(
        function=opened,
        inputs=[w[key] for key in ("prepared", "init", "run")],
        outputs=[w[key] for key in ("prepared", "init", "run", "state", "curves")],
    )


def _connect(w: dict, engine: Engine, desk: TrainingDesk) -> Callable:
    def form_of(prepared, preset, init, name, stage, lines) -> TrainForm:
        overrides = tuple(line.strip() for line in (lines or "").splitlines() if line.strip())
        if not prepared:
            raise ConfigError("choose a prepared set; if there is none yet, make one in the Data tab")
        if not (name or "").strip():
            raise ConfigError("give the run a name, such as anna-1")
        return TrainForm(
            name=name.strip(),
            prepared=prepared,
            preset=preset,
            init=init or "",
            stage=stage,
            overrides=overrides,
        )

    @told
    def plan(*values):
        found = desk.plan(form_of(*values))
        steps = ", ".join(f"{stage.upper()} {number} steps" for stage, number in found.steps.items())
        return plain(
            f"{steps}, on {found.num_train} clips, {found.num_valid} for validation; at most about "
            f"{found.memory_gb:.1f} GB for weights and optimizer, and what a batch takes. The time left is "
            "shown after the first steps."
        )

    @told
    def start(*values):
        form = form_of(*values)
        desk.plan(form)
        desk.start(form)
        choice = gr.update(choices=desk.names(), value=form.name)
        return (
            good(f"{form.name} is started. It goes on when this page is closed."),
            choice,
            *shown(form.name),
        )

    @told
    def stop(name):
        desk.stop(name or "")
        return plain("Asked to save and end …"), *shown(name)

    @told
    def resume(name):
        desk.resume(name or "")
        return good(f"{name} goes on."), *shown(name)

    def shown(name):
        if not name:
            return empty("No runs yet. Begin one here; it is found again whenever this page is opened."), ""
        try:
            state = desk.state(name)
        except Exception as error:  # whatever a strange folder holds, the page stays
            return bad(str(error)), ""
        return state_view(state), curves_view(state)

    def refreshed(name, before_state, before_curves):
        state, curves = shown(name)
        # what is as it was is not drawn again: a reader, or a screen reader, keeps the place
        return (
            gr.skip() if state == before_state else state,
            gr.skip() if curves == before_curves else curves,
        )

    def opened(prepared, init, chosen):
        sets, runs = desk.prepared_sets(), desk.names()
        inits = [choice.name for choice in list_choices(engine.settings)]
        run = chosen if chosen in runs else next(iter(runs), None)
        return (
            listed(sets, prepared),
            listed(inits, init),
            listed(runs, chosen),
            *shown(run),
        )

    private, hidden = "private", "hidden"
    form = [w[key] for key in ("prepared", "preset", "init", "name", "stage", "set")]
    state = [w["state"], w["curves"]]
    w["preset"].change(_about, w["preset"], w["about"], api_visibility=private, show_progress=hidden)
    w["plan"].click(plan, form, w["said"], api_visibility=private, show_progress=hidden)
    w["start"].click(start, form, [w["said"], w["run"], *state], api_visibility=private, show_progress=hidden)
    w["stop"].click(stop, w["run"], [w["said"], *state], api_visibility=private, show_progress=hidden)
    w["resume"].click(resume, w["run"], [w["said"], *state], api_visibility=private, show_progress=hidden)
    w["run"].change(shown, w["run"], state, api_visibility=private, show_progress=hidden)
    w["timer"].tick(
        refreshed, [w["run"], *state], state, api_visibility=private, show_progress=hidden, queue=False
    )
    return opened


def state_view(state: RunState) -> str:
    """How a run stands, in words and a table."""
    line = f"<b>{html.escape(state.name)}</b>: {html.escape(state.status)}"
    if state.seconds_left is not None:
        line += f", about {format_seconds(state.seconds_left)} left"
    parts = [f'<div class="status" role="status">{line}</div>']
    result = state.result
    if result is not None:
        if result.error:
            parts.append(bad(result.error))
        if result.toy:
            parts.append('<div class="note">Toy weights: the losses say nothing about a voice.</div>')
        rows = [
            f"<tr><td>{phase.phase.upper()}</td><td>{html.escape(phase.status)}</td>"
            f"<td>{_steps_done(state, phase)}</td><td>{loss_of(phase.base)}</td>"
            f"<td>{loss_of(phase.best)}</td></tr>"
            for phase in result.phases
        ]
        head = "<tr><th>Stage</th><th>Status</th><th>Steps</th><th>Untouched</th><th>Best</th></tr>"
        parts.append(f'<div class="scroll"><table class="plain">{head}{"".join(rows)}</table></div>')
    elif state.log_tail:
        parts.append(f'<pre class="scroll">{html.escape(state.log_tail[-1200:])}</pre>')
    return "".join(parts)


def curves_view(state: RunState) -> str:
    """The losses of each stage as pictures."""
    return "".join(
        curves_svg(stage_curves(state.lines, stage), f"{stage.upper()} loss", "step", "nats a target")
        for stage in ("ar", "nar")
    )


def _steps_done(state: RunState, phase) -> str:
    own = [line["step"] for line in state.lines if line["stage"] == phase.phase]
    done = max([phase.steps, *own])
    return f"{done} of {state.steps[phase.phase]}" if phase.phase in state.steps else str(done)


def _about(preset: str) -> str:
    return f'<p class="note">{html.escape(preset_about(preset))}</p>'
