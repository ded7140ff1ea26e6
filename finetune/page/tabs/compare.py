"""The tab in which the same text and seed are heard by several checkpoints, side by side or blind."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr

from finetune.log.votes import Vote, add_vote, now, read_votes, shuffled, tally
from finetune.page.checkpoints import list_choices
from finetune.page.engine import DONE, Engine, Job
from finetune.page.requests import SpeakRequest
from finetune.page.tabs.choices import MAX_SEED
from finetune.page.tabs.outcome import stopping_line
from finetune.page.tabs.words import Opening, bad, connect, empty, good, listed, owner_of, plain, told
from finetune.page.voices import VoiceShelf
from vallex.errors import ConfigError, VallexError
from vallex.inference.synthesizer import SpeakSettings

MAX_COMPARED = 4
NO_VOICE = "No voice"
LETTERS = "ABCD"
TAB = "compare"
POLL_SEC = 0.25
NONE_BETTER = "No difference"


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was spoken by all, until it is voted on. order, tokens: checkpoint and sound of each player."""

    text: str
    voice: str
    seed: int
    blind: bool
    order: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """What stands for each until the vote."""
        return list(LETTERS[: len(self.order)]) if self.blind else list(self.order)


def build(engine: Engine, shelf: VoiceShelf) -> Opening:
    """Adds the tab's widgets to the page that is open, and connects them."""
    panel = ComparePanel(engine, shelf)
    return Opening(
        function=panel.opened, inputs=[panel.voice], outputs=[panel.names, panel.voice, panel.tally]
    )


class ComparePanel:
    """The widgets of the tab, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, shelf: VoiceShelf):
        self._engine = engine
        self._shelf = shelf
        with gr.Row():
            with gr.Column(min_width=320):
                self.names = gr.CheckboxGroup(
                    [choice.name for choice in list_choices(engine.settings)],
                    label=f"Checkpoints, 2 to {MAX_COMPARED}",
                    elem_id="compared",
                )
                self.voice = gr.Dropdown(
                    [NO_VOICE, *shelf.names()], label="Voice of all", elem_id="compare-voice"
                )
            with gr.Column(min_width=320):
                self._text = gr.Textbox(
                    label="Text of all", lines=3, placeholder="One or two sentences.", elem_id="compare-text"
                )
                with gr.Row():
                    self._seed = gr.Number(
                        0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed of all", min_width=120
                    )
                    self._blind = gr.Checkbox(True, label="Blind: say which afterwards", min_width=160)
        with gr.Row():
            self._go = gr.Button("Speak by all", variant="primary", scale=3, elem_classes="begins-work")
            self._stop = gr.Button("Stop", scale=1, min_width=80, interactive=False, elem_classes="ends-work")
        self._status = gr.HTML(elem_id="compare-status")
        self._players = gr.HTML(elem_id="compare-players")
        with gr.Column(visible=False) as self._vote_box:
            self._choice = gr.Radio([], label="Which is best?", elem_id="vote")
            self._vote = gr.Button("Vote")
        self.tally = gr.HTML(elem_id="tally")
        self._heard = gr.State()
        self._connect()

    def opened(self, voice: str | None) -> tuple:
        """Checkpoints, voices and votes as they are now."""
        choices = [choice.name for choice in list_choices(self._engine.settings)]
        voices = [NO_VOICE, *self._shelf.names()]
        info = "" if len(choices) > 1 else "There are not two to compare yet: train one in the Train tab."
        return gr.update(choices=choices, info=info), listed(voices, voice), tally_view(self._engine)

    def _connect(self) -> None:
        asked = [self.names, self.voice, self._text, self._seed, self._blind]
        shown = [self._status, self._players, self._vote_box, self._choice, self._heard, self._stop]
        connect(partial(gr.on, [self._go.click, self._text.submit]), self._compare, asked, shown)
        after_vote = [self._status, self._players, self._vote_box, self.tally, self._heard]
        connect(self._vote.click, self._take_vote, [self._heard, self._choice], after_vote)
        connect(self._stop.click, self._stop_speaking)

    @told
    def _compare(self, request: gr.Request, names, voice, text, seed, blind) -> Iterator:
        if not 2 <= len(names or []) <= MAX_COMPARED:
            raise ConfigError(f"{len(names or [])} checkpoints are chosen; choose 2 to {MAX_COMPARED}")
        prompt = None if voice in (None, NO_VOICE) else self._shelf.load(voice)
        order = shuffled(names, blind)
        settings = SpeakSettings(seed=int(seed or 0))
        owner = owner_of(request, TAB)
        asked = [
            SpeakRequest(text=text or "", voice=prompt, checkpoint=name, settings=settings) for name in order
        ]
        jobs = self._submitted(asked, owner)
        hidden = gr.update(visible=False)
        for place, job in enumerate(jobs, start=1):
            while not job.wait(10**9, POLL_SEC):
                line = plain(_progress(self._engine, job, place, len(jobs)))
                yield line, "", hidden, gr.skip(), None, gr.update(interactive=True)
            if job.status != DONE:
                self._cancel(jobs)
                said = plain("Stopped.") if job.error is None else bad(f"{order[place - 1]}: {job.error}")
                yield said, "", hidden, gr.skip(), None, gr.update(interactive=False)
                return
            self._engine.save(job)
        heard = Heard(
            text=text,
            voice=voice or NO_VOICE,
            seed=settings.seed,
            blind=bool(blind),
            order=tuple(order),
            tokens=tuple(job.token for job in jobs),
        )
        line = good("Listen to all, then say which is best.")
        radio = gr.update(choices=[*heard.labels, NONE_BETTER], value=None)
        players = players_view(heard, told_names=not blind)
        yield line, players, gr.update(visible=True), radio, heard, gr.update(interactive=False)

    def _submitted(self, asked: list[SpeakRequest], owner: str) -> list[Job]:
        """A job each, or none where one is refused."""
        jobs = []
        try:
            for each in asked:
                jobs.append(self._engine.submit(each, owner))
        except VallexError:
            self._cancel(jobs)
            raise
        return jobs

    def _cancel(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._engine.cancel(job)

    @told
    def _take_vote(self, heard: Heard | None, choice):
        if heard is None:
            raise ConfigError("nothing was spoken yet, or this was voted on already")
        if not choice:
            raise ConfigError("choose one of the answers first")
        winner = heard.order[heard.labels.index(choice)] if choice in heard.labels else ""
        vote = Vote(
            time=now(),
            text=heard.text,
            voice=heard.voice,
            seed=heard.seed,
            checkpoints=heard.order,
            winner=winner,
            blind=heard.blind,
        )
        add_vote(self._engine.settings.runs_dir, vote)
        said = good(f"Voted for {winner}." if winner else "Voted: no difference.")
        players = players_view(heard, told_names=True)
        return said, players, gr.update(visible=False), tally_view(self._engine), None

    def _stop_speaking(self, request: gr.Request) -> None:
        self._engine.cancel_all_of(owner_of(request, TAB))


def players_view(heard: Heard, *, told_names: bool) -> str:
    """A player each; blind ones are named by letters until the vote."""
    rows = []
    for place, token in enumerate(heard.tokens):
        name = heard.order[place] if told_names else ""
        title = " ".join(part for part in (LETTERS[place] if heard.blind else "", name) if part)
        rows.append(
            f'<div class="player"><p><b>{html.escape(title)}</b></p><audio controls preload="metadata" '
            f'aria-label="{html.escape(title)}" src="/speech/{token}.wav"></audio></div>'
        )
    return f'<div class="side">{"".join(rows)}</div>'


def tally_view(engine: Engine) -> str:
    """Who won how many blind votes."""
    rows = tally(read_votes(engine.settings.runs_dir))
    if not rows:
        return empty("No blind votes yet. Choose two checkpoints, speak, listen, and vote.")
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{won} of {heard}</td></tr>" for name, won, heard in rows
    )
    return f'<table class="plain"><tr><th>Checkpoint</th><th>Blind votes won</th></tr>{cells}</table>'


def _progress(engine: Engine, job: Job, place: int, num_jobs: int) -> str:
    if job.is_stopping:
        return stopping_line(job)
    before = engine.num_before(job) if place == 1 else 0
    return f"Waiting: {before} before you." if before else f"Speaking {place} of {num_jobs} …"
