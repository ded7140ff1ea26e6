"""The tab in which the same text and seed are heard by several checkpoints, side by side or blind."""

import html
import secrets
from collections.abc import Iterator

import gradio as gr

from finetune.page.checkpoints import list_choices
from finetune.page.engine import DONE, Engine, SpeakRequest
from finetune.page.tabs.words import Opening, bad, empty, good, listed, plain, told
from finetune.page.voices import VoiceShelf
from finetune.page.votes import Vote, add_vote, now, read_votes, shuffled, tally
from vallex.errors import ConfigError
from vallex.inference.synthesizer import SpeakSettings

MAX_COMPARED = 4
NO_VOICE = "No voice"
LETTERS = "ABCD"
NONE_BETTER = "No difference"
_POLL_SEC = 0.25


def build(engine: Engine, shelf: VoiceShelf) -> Opening:
    """Adds the widgets and connects them."""
    w: dict = {}
    with gr.Row():
        with gr.Column(min_width=320):
            w["names"] = gr.CheckboxGroup(
                [c.name for c in list_choices(engine.settings)],
                label=f"Checkpoints, 2 to {MAX_COMPARED}",
                elem_id="compared",
            )
            w["voice"] = gr.Dropdown(
                [NO_VOICE, *shelf.names()], label="Voice of all", elem_id="compare-voice"
            )
        with gr.Column(min_width=320):
            w["text"] = gr.Textbox(
                label="Text of all", lines=3, placeholder="One or two sentences.", elem_id="compare-text"
            )
            with gr.Row():
                w["seed"] = gr.Number(0, precision=0, minimum=0, label="Seed of all", min_width=120)
                w["blind"] = gr.Checkbox(True, label="Blind: say which afterwards", min_width=160)
    with gr.Row():
        w["go"] = gr.Button("Speak by all", variant="primary", scale=3)
        w["stop"] = gr.Button("Stop", scale=1, min_width=80)
    w["status"] = gr.HTML(elem_id="compare-status")
    w["players"] = gr.HTML(elem_id="compare-players")
    with gr.Column(visible=False) as w["vote_box"]:
        w["choice"] = gr.Radio([], label="Which is best?", elem_id="vote")
        w["vote"] = gr.Button("Vote")
    w["tally"] = gr.HTML(elem_id="tally")
    w["heard"] = gr.State()
    _connect(w, engine, shelf)

    def opened(voice):
        choices = [choice.name for choice in list_choices(engine.settings)]
        return gr.update(choices=choices), listed([NO_VOICE, *shelf.names()], voice), _tally(engine)

    return Opening(
        function=opened, inputs=[w["voice"]], outputs=[w[key] for key in ("names", "voice", "tally")]
    )


def _connect(w: dict, engine: Engine, shelf: VoiceShelf) -> None:
    @told
    def compare(request: gr.Request, names, voice, text, seed, blind) -> Iterator:
        if not 2 <= len(names or []) <= MAX_COMPARED:
            raise ConfigError(f"{len(names or [])} checkpoints are chosen; choose 2 to {MAX_COMPARED}")
        prompt = None if voice in (None, NO_VOICE) else shelf.load(voice)
        order = shuffled(names, blind)
        settings = SpeakSettings(seed=int(seed or 0))
        owner = request.session_hash or ""
        asked = [
            SpeakRequest(text=text or "", voice=prompt, checkpoint=name, settings=settings) for name in order
        ]
        jobs = [engine.submit(each, owner) for each in asked]
        hidden = gr.update(visible=False)
        for place, job in enumerate(jobs, start=1):
            while not job.wait(10**9, _POLL_SEC):
                yield plain(f"Speaking {place} of {len(jobs)} …"), "", hidden, gr.skip(), None
            if job.status != DONE:
                engine.cancel_all_of(owner)
                said = "Stopped." if job.error is None else f"{order[place - 1]}: {job.error}"
                yield (plain if job.error is None else bad)(said), "", hidden, gr.skip(), None
                return
            engine.save(job)
        heard = {
            "text": text,
            "voice": voice or NO_VOICE,
            "seed": settings.seed,
            "order": order,
            "blind": bool(blind),
            "tokens": [job.token for job in jobs],
            "id": secrets.token_hex(4),
        }
        choices = [_label(heard, place) for place in range(len(order))] + [NONE_BETTER]
        line = good("Listen to all, then say which is best.")
        radio = gr.update(choices=choices, value=None)
        yield line, _players(heard, told_names=not blind), gr.update(visible=True), radio, heard

    @told
    def vote(heard, choice):
        if not heard:
            raise ConfigError("nothing was spoken yet, or this was voted on already")
        if not choice:
            raise ConfigError("choose one of the answers first")
        labels = [_label(heard, place) for place in range(len(heard["order"]))]
        winner = heard["order"][labels.index(choice)] if choice in labels else ""
        add_vote(
            engine.settings.runs_dir,
            Vote(
                time=now(),
                text=heard["text"],
                voice=heard["voice"],
                seed=heard["seed"],
                checkpoints=tuple(heard["order"]),
                winner=winner,
                blind=heard["blind"],
            ),
        )
        said = good(f"Voted for {winner}." if winner else "Voted: no difference.")
        return said, _players(heard, told_names=True), gr.update(visible=False), _tally(engine), None

    def stop(request: gr.Request):
        stopped = engine.cancel_all_of(request.session_hash or "")
        return plain("Stopping …" if stopped else "Nothing is being spoken.")

    private, hidden = "private", "hidden"
    w["go"].click(
        compare,
        [w[key] for key in ("names", "voice", "text", "seed", "blind")],
        [w[key] for key in ("status", "players", "vote_box", "choice", "heard")],
        api_visibility=private,
        show_progress=hidden,
        concurrency_limit=None,
    )
    w["vote"].click(
        vote,
        [w["heard"], w["choice"]],
        [w[key] for key in ("status", "players", "vote_box", "tally", "heard")],
        api_visibility=private,
        show_progress=hidden,
    )
    w["stop"].click(stop, None, w["status"], api_visibility=private, show_progress=hidden, queue=False)


def _label(heard: dict, place: int) -> str:
    return LETTERS[place] if heard["blind"] else heard["order"][place]


def _players(heard: dict, *, told_names: bool) -> str:
    """A player each; blind ones are named by letters until the vote."""
    rows = []
    for place, token in enumerate(heard["tokens"]):
        name = heard["order"][place] if told_names else ""
        title = " ".join(part for part in (LETTERS[place] if heard["blind"] else "", name) if part)
        rows.append(
            f'<div class="player"><p><b>{html.escape(title)}</b></p><audio controls preload="metadata" '
            f'aria-label="{html.escape(title)}" src="/speech/{token}.wav"></audio></div>'
        )
    return f'<div class="side">{"".join(rows)}</div>'


def _tally(engine: Engine) -> str:
    rows = tally(read_votes(engine.settings.runs_dir))
    if not rows:
        return empty("No blind votes yet. Choose two checkpoints, speak, listen, and vote.")
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{won} of {heard}</td></tr>" for name, won, heard in rows
    )
    return f'<table class="plain"><tr><th>Checkpoint</th><th>Blind votes won</th></tr>{cells}</table>'
