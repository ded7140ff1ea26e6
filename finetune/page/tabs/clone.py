"""The tab in which a voice is cloned: what is said, how, and what is heard of it."""

from collections.abc import Iterator
from functools import partial

import gradio as gr

from finetune.page.checkpoints import list_choices
from finetune.page.engine import Engine
from finetune.page.published import Published
from finetune.page.requests import (
    LIST_SUFFIXES,
    ContinueRequest,
    ListRequest,
    SpeakRequest,
    listed_texts,
    named_voices,
)
from finetune.page.settings import MAX_LIST_CHARS, MAX_TEXT_CHARS
from finetune.page.tabs.choices import Choices, choice_widgets
from finetune.page.tabs.outcome import (
    downloads_view,
    outcome_view,
    picture_view,
    progress_view,
    reading_view,
    streaming_player,
)
from finetune.page.tabs.voice import VoicePanel
from finetune.page.tabs.weights import WeightsPanel
from finetune.page.tabs.words import Opening, connect, listed, owner_of, plain, told
from finetune.page.voices import VoiceShelf
from finetune.page.weights import WeightsDesk
from vallex.inference.voices import MAX_PROMPT_SEC, MIN_PROMPT_SEC

EXAMPLE_TEXTS = (
    ("English", "Good morning. This is a voice that was made from a few seconds of sound."),
    ("中文", "你好。今天天气很好，我们出去走走吧。"),
    ("日本語", "こんにちは。今日はいい天気ですね。"),
    ("Mixed", "[EN]The word for thank you is[EN] [ZH]谢谢，[ZH] [EN]or[EN] [JA]ありがとう。[JA]"),
)
TEXT, LIST, ON = "A text", "A list of texts", "On from the recording"
TAB = "clone"
POLL_SEC = 0.25


def build(page: gr.Blocks, engine: Engine, shelf: VoiceShelf, published: Published) -> Opening:
    """Adds the tab's widgets to the page that is open, and connects them."""
    weights = WeightsPanel(WeightsDesk(engine.settings))
    with gr.Row():
        with gr.Column(min_width=320):
            voice = VoicePanel(engine, shelf, published)
        with gr.Column(min_width=320):
            speech = SpeechPanel(engine, shelf, voice)

    def closed(request: gr.Request) -> None:
        engine.cancel_all_of(request.session_hash or "")
        voice.forget(owner_of(request, "voice"))

    page.unload(closed)

    weights.connect(speech.opened, [speech.checkpoint], speech.outputs)

    def opened(saved, checkpoint):
        voices = listed(shelf.names(), saved), voice.about_voice(saved)
        return *voices, *speech.opened(checkpoint), *weights.opened()

    return Opening(
        function=opened,
        inputs=[voice.saved, speech.checkpoint],
        outputs=[voice.saved, voice.about, *speech.outputs, *weights.outputs],
    )


class SpeechPanel:
    """The widgets of what is said, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, shelf: VoiceShelf, voice: VoicePanel):
        self._engine = engine
        self._shelf = shelf
        self._voice = voice
        gr.Markdown("### What it says")
        self._build_texts()
        names = [choice.name for choice in list_choices(engine.settings)]
        first = next(iter(names), None)
        self.checkpoint = gr.Dropdown(names, value=first, label="Checkpoint", elem_id="checkpoint")
        self._choices = choice_widgets(engine.settings)
        with gr.Row():
            self._speak = gr.Button(
                "Speak",
                variant=_variant(names),
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
        self._connect()

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `opened` fills."""
        return [self.checkpoint, self._speak]

    def opened(self, checkpoint: str | None) -> tuple:
        """The checkpoints as they are now; where there is none, another button than Speak stands out."""
        names = [choice.name for choice in list_choices(self._engine.settings)]
        info = "" if names else "There is none yet: download the released model above, or train one."
        return listed(names, checkpoint) | {"info": info}, gr.update(variant=_variant(names))

    def _build_texts(self) -> None:
        self._task = gr.Radio([TEXT, LIST, ON], value=TEXT, label="What is spoken", elem_id="task")
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
        with gr.Row(elem_classes="examples") as self._examples_box:
            self._examples = [gr.Button(label, size="sm", min_width=60) for label, _ in EXAMPLE_TEXTS]
        self._read = gr.Button("Show how it is read", size="sm")
        self._reading = gr.HTML(elem_id="reading")
        self._keep_sec = gr.Slider(
            MIN_PROMPT_SEC,
            MAX_PROMPT_SEC,
            value=3,
            step=0.1,
            label="Seconds of the recording that are kept",
            info="The text is what the whole says; left empty, it is what is said in the recording.",
            visible=False,
        )
        with gr.Column(visible=False) as self._list_box:
            self._lines = gr.Textbox(
                label="Texts, one a line",
                lines=6,
                max_lines=14,
                max_length=MAX_LIST_CHARS,
                elem_id="lines",
                placeholder="Good morning.\nGood evening.||anna",
                info="Each becomes a wav of its own. A saved voice of its own stands behind two bars.",
            )
            self._file = gr.UploadButton(
                "Take them from a file (txt, csv, tsv)", size="sm", file_types=list(LIST_SUFFIXES)
            )

    def _connect(self) -> None:
        asked = [self._task, self._text, self._lines, self._keep_sec, self.checkpoint]
        inputs = [*self._voice.inputs, *asked, *self._choices.values()]
        outputs = [self._status, self._player, self._sound, self._files, self._choices["seed"], self._stop]
        begun = partial(gr.on, [self._speak.click, self._text.submit, self._lines.submit])
        connect(begun, self._speak_asked, inputs, outputs)
        connect(self._stop.click, self._stop_speaking)
        how = [self._text, self._choices["language"], self._choices["unknown_words"]]
        connect(self._read.click, told(self._show_reading), how, self._reading)
        boxes = [self._text, self._examples_box, self._read, self._reading, self._keep_sec, self._list_box]
        connect(self._task.change, _shown_boxes, self._task, boxes)
        connect(self._file.upload, told(listed_texts), self._file, self._lines)
        for button, (_, text) in zip(self._examples, EXAMPLE_TEXTS, strict=True):
            connect(button.click, lambda text=text: text, None, self._text)

    @told
    def _speak_asked(self, request: gr.Request, *values) -> Iterator:
        asked = self._request(*values)
        job = self._engine.submit(asked, owner=owner_of(request, TAB))
        can_stop = gr.update(interactive=True)
        begun = progress_view(self._engine, job), streaming_player(job)
        yield *begun, "", "", asked.settings.seed, can_stop
        num_parts = 0
        while not job.is_over:
            job.wait(num_parts, POLL_SEC)
            num_parts = len(job.parts)
            yield progress_view(self._engine, job), *[gr.skip()] * 5
        player = gr.skip() if job.seconds else ""
        shown = player, picture_view(self._engine, job), downloads_view(job)
        yield outcome_view(job), *shown, gr.skip(), gr.update(interactive=False)

    def _request(self, *values) -> SpeakRequest:
        """What the widgets ask for; VallexErrors where something is missing."""
        num_voice = len(self._voice.inputs)
        voice, (task, text, lines, keep_sec, checkpoint, *chosen) = values[:num_voice], values[num_voice:]
        choices = Choices(**dict(zip(self._choices, chosen, strict=True)))
        how = {
            "checkpoint": checkpoint or "",
            "settings": choices.settings(),
            "adapter_scale": choices.strength,
            "precision": choices.precision,
            "vocoder": choices.vocoder,
            "unknown_words": choices.unknown_words,
            "mode": choices.mode,
        }
        if task == ON:
            recording, said = self._voice.recording_of(*voice)
            beginning = self._engine.beginning(recording, keep_sec)
            return ContinueRequest(text=(text or "").strip() or said, beginning=beginning, **how)
        if task == LIST:
            named = named_voices(lines or "", self._shelf.load)
            return ListRequest(text=lines or "", voice=self._voice.voice_of(*voice), voices=named, **how)
        return SpeakRequest(text=text or "", voice=self._voice.voice_of(*voice), **how)

    def _show_reading(self, text: str, language: str, unknown_words: str) -> str:
        return reading_view(self._engine.read(text or "", language, unknown_words))

    def _stop_speaking(self, request: gr.Request) -> None:
        # says nothing: its answer may come after the last word of what it stops
        self._engine.cancel_all_of(owner_of(request, TAB))


def _variant(checkpoints: list[str]) -> str:
    return "primary" if checkpoints else "secondary"


def _shown_boxes(task: str) -> tuple:
    """Text, examples, how it is read, seconds to keep, and the list, as a task needs them."""
    label = "What the whole says" if task == ON else "Text"
    return (
        gr.update(visible=task != LIST, label=label),
        gr.update(visible=task == TEXT),
        gr.update(visible=task != LIST),
        "",
        gr.update(visible=task == ON),
        gr.update(visible=task == LIST),
    )
