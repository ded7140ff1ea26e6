"""The tab in which a voice is cloned: a text, how it is spoken, and what is heard of it."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import gradio as gr

from finetune.page.checkpoints import FULL_STRENGTH, list_choices
from finetune.page.engine import CANCELLED, DONE, LOADING, WAITING, Engine, Job, SpeakRequest
from finetune.page.pictures import sound_picture
from finetune.page.settings import MAX_BEST_OF, MAX_TEXT_CHARS
from finetune.page.sound import SAVED_KINDS
from finetune.page.tabs.voice import LANGUAGES, VoicePanel
from finetune.page.tabs.words import Opening, bad, connect, empty, good, listed, owner_of, plain, told
from finetune.page.voices import VoiceShelf
from vallex.codec.audio import load_audio
from vallex.files import atomic_write
from vallex.inference.synthesizer import SpeakSettings

AS_WRITTEN = "as written"
ACCENTS = [("As written", AS_WRITTEN), ("English", "en"), ("Chinese", "zh"), ("Japanese", "ja")]
EXAMPLE_TEXTS = (
    ("English", "Good morning. This is a voice that was made from a few seconds of sound."),
    ("中文", "你好。今天天气很好，我们出去走走吧。"),
    ("日本語", "こんにちは。今日はいい天気ですね。"),
    ("Mixed", "[EN]The word for thank you is[EN] [ZH]谢谢，[ZH] [EN]or[EN] [JA]ありがとう。[JA]"),
)
ENDED = {
    "eos": "ended by itself",
    "budget": "ran on and was cut off",
    "loop": "repeats itself",
    "empty": "was not said at all",
}
TAB = "clone"
MAX_SEED = 2**31 - 1
POLL_SEC = 0.25


def build(page: gr.Blocks, engine: Engine, shelf: VoiceShelf) -> Opening:
    """Adds the tab's widgets to the page that is open, and connects them."""
    with gr.Row():
        with gr.Column(min_width=320):
            voice = VoicePanel(engine, shelf)
        with gr.Column(min_width=320):
            speech = SpeechPanel(engine, voice)

    def closed(request: gr.Request) -> None:
        engine.cancel_all_of(request.session_hash or "")

    page.unload(closed)

    def opened(saved, checkpoint):
        checkpoints = [choice.name for choice in list_choices(engine.settings)]
        return listed(shelf.names(), saved), voice.about_voice(saved), listed(checkpoints, checkpoint)

    return Opening(
        function=opened,
        inputs=[voice.saved, speech.checkpoint],
        outputs=[voice.saved, voice.about, speech.checkpoint],
    )


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is chosen beside text, voice and checkpoint, as the widgets hold it; in their order."""

    language: str
    accent: str
    seed: float | None
    is_seed_new: bool
    best_of: float
    temperature: float
    top_p: float
    strength: float

    def settings(self) -> SpeakSettings:
        """How to speak, with a seed that is drawn here where a new one is wanted."""
        return SpeakSettings(
            language=self.language,
            accent=None if self.accent == AS_WRITTEN else self.accent,
            temperature=self.temperature,
            top_p=self.top_p,
            best_of=int(self.best_of),
            seed=secrets.randbelow(MAX_SEED) if self.is_seed_new else int(self.seed or 0),
        )


class SpeechPanel:
    """The widgets of what is said, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, voice: VoicePanel):
        self._engine = engine
        self._voice = voice
        gr.Markdown("### What it says")
        self._text = gr.Textbox(
            label="Text",
            lines=4,
            max_lines=14,
            max_length=MAX_TEXT_CHARS,
            elem_id="text",
            placeholder=(
                "English, Chinese or Japanese, also mixed: [EN]Hello.[EN] [ZH]你好。[ZH]\n"
                "Ctrl+Enter speaks, Escape stops."
            ),
        )
        with gr.Row(elem_classes="examples"):
            examples = [gr.Button(label, size="sm", min_width=60) for label, _ in EXAMPLE_TEXTS]
        names = [choice.name for choice in list_choices(engine.settings)]
        self.checkpoint = gr.Dropdown(
            names,
            value=next(iter(names), None),
            label="Checkpoint",
            info="" if names else "There is none yet: vallex download fetches the released model.",
            elem_id="checkpoint",
        )
        with gr.Accordion("More choices", open=False):
            self._choices = _choice_widgets()
        with gr.Row():
            self._speak = gr.Button(
                "Speak",
                variant="primary",
                scale=3,
                min_width=140,
                elem_id="speak",
                elem_classes="begins-work",
            )
            self._stop = gr.Button(
                "Stop", scale=1, min_width=80, interactive=False, elem_id="stop", elem_classes="ends-work"
            )
        self._status = gr.HTML(plain("Nothing spoken yet."), elem_id="speech-status")
        self._player = gr.HTML(elem_id="player", elem_classes="player")
        self._sound = gr.HTML(elem_id="sound", elem_classes="sound")
        self._files = gr.HTML(elem_id="downloads")
        self._connect(examples)

    def _connect(self, examples: list[gr.Button]) -> None:
        inputs = [*self._voice.inputs, self._text, self.checkpoint, *self._choices.values()]
        outputs = [self._status, self._player, self._sound, self._files, self._choices["seed"], self._stop]
        connect(partial(gr.on, [self._speak.click, self._text.submit]), self._speak_text, inputs, outputs)
        connect(self._stop.click, self._stop_speaking, None, self._status)
        for button, (_, text) in zip(examples, EXAMPLE_TEXTS, strict=True):
            connect(button.click, lambda text=text: text, None, self._text)

    @told
    def _speak_text(self, request: gr.Request, *values) -> Iterator:
        num_voice = len(self._voice.inputs)
        text, checkpoint, *chosen = values[num_voice:]
        choices = Choices(**dict(zip(self._choices, chosen, strict=True)))
        settings = choices.settings()
        asked = SpeakRequest(
            text=text,
            voice=self._voice.voice_of(*values[:num_voice]),
            checkpoint=checkpoint or "",
            settings=settings,
            adapter_scale=choices.strength,
        )
        job = self._engine.submit(asked, owner=owner_of(request, TAB))
        # the player's own download is the stream, without a name and a length
        player = (
            '<audio controls controlslist="nodownload" autoplay aria-label="The speech" '
            f'src="/speech/{job.token}.wav"></audio>'
        )
        yield _progress(self._engine, job), player, "", "", settings.seed, gr.update(interactive=True)
        num_parts = 0
        while not job.is_over:
            job.wait(num_parts, POLL_SEC)
            num_parts = len(job.parts)
            yield _progress(self._engine, job), *[gr.skip()] * 5
        yield outcome_view(job), *_finished(self._engine, job), gr.skip(), gr.update(interactive=False)

    def _stop_speaking(self, request: gr.Request):
        stopped = self._engine.cancel_all_of(owner_of(request, TAB))
        return plain("Stopping …") if stopped else gr.skip()


def _choice_widgets() -> dict[str, gr.components.Component]:
    """By the names of Choices, in its order."""
    w: dict[str, gr.components.Component] = {}
    with gr.Row():
        w["language"] = gr.Dropdown(LANGUAGES, value="auto", label="Language of the text", min_width=140)
        w["accent"] = gr.Dropdown(ACCENTS, value=AS_WRITTEN, label="Accent", min_width=140)
    with gr.Row():
        w["seed"] = gr.Number(
            0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=140, elem_id="seed"
        )
        w["is_seed_new"] = gr.Checkbox(True, label="A new seed each time", min_width=140)
    w["best_of"] = gr.Slider(
        1,
        MAX_BEST_OF,
        value=1,
        step=1,
        label="Best of",
        info="Each sentence is drawn as often, and the likeliest one is kept.",
    )
    w["temperature"] = gr.Slider(0, 2, value=1.0, step=0.05, label="Temperature")
    w["top_p"] = gr.Slider(0.05, 1, value=1.0, step=0.05, label="Top-p")
    w["strength"] = gr.Slider(
        0, 1.5, value=FULL_STRENGTH, step=0.05, label="Adapter strength", info="Of LoRA checkpoints only."
    )
    return w


def stopping_line(job: Job) -> str:
    """That a job is at its end soon."""
    if job.status == LOADING:
        return f"Stopping as soon as {job.request.checkpoint} has been loaded …"
    return "Stopping …"


def _progress(engine: Engine, job: Job) -> str:
    if job.is_stopping:
        return plain(stopping_line(job))
    if job.status == WAITING:
        before = engine.num_before(job)
        return plain(f"Waiting: {before} before you." if before else "Waiting.")
    if job.status == LOADING:
        return plain(f"Loading {job.request.checkpoint} …")
    return plain(f"Speaking: {len(job.parts)} of {job.num_sentences} sentences, {job.seconds:.1f} s so far.")


def outcome_view(job: Job) -> str:
    """How it ended, in words."""
    if job.status == CANCELLED:
        return plain(f"Stopped after {job.seconds:.1f} s.")
    if job.status != DONE:
        return bad(str(job.error))
    unwell = [part for part in job.parts if part.ended != "eos"]
    how = ENDED["eos"]
    if unwell:
        how = "; ".join(f"“{_plain_text(p.text)}” {ENDED.get(p.ended, p.ended)}" for p in unwell)
        how += " (try another seed)"
    line = f"{job.seconds:.1f} s by {job.request.checkpoint}, seed {job.request.settings.seed}: {how}."
    unsaid = list(dict.fromkeys(word for part in job.parts for word in part.unsaid))
    if unsaid:
        line += f" Not in any dictionary, or without sound: {' '.join(unsaid)}."
    return good(line) if not unwell else plain(line)


def _finished(engine: Engine, job: Job) -> tuple:
    """Player (left as it is), picture and file of what was spoken, as far as it went."""
    if not job.seconds:
        return "", empty("No sound was made."), ""
    path = engine.save(job)
    with atomic_write(path.with_suffix(".png")) as temporary:
        temporary.write_bytes(sound_picture(load_audio(path)))
    picture = (
        f'<img src="/speech/{job.token}.png" width="900" height="260" '
        f'alt="Waveform and spectrogram of {job.seconds:.1f} seconds of speech">'
    )
    return gr.skip(), picture, downloads_view(job)


def downloads_view(job: Job) -> str:
    """Links to what was spoken, a file of each kind."""
    links = [
        f'<a id="download-{kind}" href="/speech/{job.token}.{kind}" download="{file_name(job, kind)}" '
        f'aria-label="Download as {kind}">{kind}</a>'
        for kind in SAVED_KINDS
    ]
    return f'<div class="downloads"><span>Download as</span>{"".join(links)}</div>'


def file_name(job: Job, kind: str) -> str:
    """What a downloaded file is called: by its first words, who spoke them, and the seed."""
    words = "-".join(re.findall(r"\w+", _plain_text(job.request.text)))[:40].strip("-_")
    checkpoint = re.sub(r"[^\w.@-]", "-", job.request.checkpoint)
    return f"{words or 'speech'}_{checkpoint}_seed-{job.request.settings.seed}.{kind}"


def _plain_text(tagged: str) -> str:
    return re.sub(r"\[[A-Z]{2}\]", "", tagged).strip()
