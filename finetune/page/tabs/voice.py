"""The voice of the Clone tab: recordings and what is said in them, or one that is saved; keeping voices."""

import html
import secrets
from pathlib import Path

import gradio as gr

import finetune
from finetune.page.engine import Engine
from finetune.page.published import Published
from finetune.page.recordings import take_recording
from finetune.page.settings import MAX_TRANSCRIPT_CHARS
from finetune.page.tabs.words import bad, connect, empty, good, owner_of, plain, told
from finetune.page.voices import VoiceShelf
from vallex.errors import CheckpointError, PromptError, WeightsError
from vallex.inference.prompts import VoicePrompt
from vallex.inference.voices import MAX_PROMPT_SEC, join_voices

RECORDING, SAVED, NO_VOICE = "A recording", "A saved voice", "No voice: the model makes one up"
SAMPLE = Path(finetune.__file__).parent / "sample" / "LibriTTS-sample"
LANGUAGES = [("Automatic", "auto"), ("English", "en"), ("Chinese", "zh"), ("Japanese", "ja")]
CONSENT = (
    "Clone only your own voice, or one whose owner has agreed. What is made here is marked as synthetic in "
    "its file."
)
_ASK_TO_DELETE = "(name) => confirm(`Delete the voice ${name} for good?`) ? name : null"


class VoicePanel:
    """The widgets that a voice comes from, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, shelf: VoiceShelf, published: Published):
        self._engine = engine
        self._published = published
        self._files: dict[str, Path] = {}  # the recording of each page
        self._shelf = shelf
        names = shelf.names()
        start = SAVED if names else RECORDING
        gr.Markdown("### The voice")
        self._source = gr.Radio([RECORDING, SAVED, NO_VOICE], value=start, label="Where it comes from")
        with gr.Column(visible=start == RECORDING) as self._recording_box:
            self._build_recording()
        with gr.Column(visible=start == SAVED) as self._saved_box:
            self._build_saved(names)
        self._status = gr.HTML(elem_id="voice-status")
        self._taken = gr.State()
        self._others = gr.State(())
        self._connect_recording()
        self._connect_saved()

    @property
    def inputs(self) -> list[gr.components.Component]:
        """What `voice_of` takes the values of."""
        return [self._source, self._taken, self._transcript, self._language, self.saved, self._others]

    def voice_of(self, source, taken, transcript, language, saved, others) -> VoicePrompt | None:
        """The chosen voice; None where the model shall make one up. PromptError where there is none."""
        if source == NO_VOICE:
            return None
        if source == SAVED:
            if not saved:
                raise PromptError("no voice is saved yet: record or upload one first")
            return self._shelf.load(saved)
        return self._joined(taken, transcript, language, others)

    def recording_of(self, source, taken, transcript, language, saved, others) -> tuple[Path, str]:
        """The recording that is spoken on from, and what is said in it. PromptError where there is none."""
        if source != RECORDING or taken is None:
            raise PromptError("there is no recording to speak on from: choose “A recording”, and upload one")
        return Path(taken), transcript.strip()

    def _joined(self, taken, transcript, language, others) -> VoicePrompt:
        """The recording and those that were added before it as one voice."""
        voices = list(others)
        if taken is not None:
            voices.append(self._engine.make_voice(Path(taken), transcript, language))
        if not voices:
            raise PromptError("there is no recording yet: upload one, record one, or use the example")
        return join_voices(voices, [f"recording {number}" for number, _ in enumerate(voices, 1)])

    def about_voice(self, name: str | None) -> str:
        """A saved voice in words."""
        row = next((row for row in self._shelf.rows() if row.name == name), None)
        if row is None:
            return empty("No voice is saved yet. Choose “A recording”, and save it under a name.")
        if row.fault:
            return bad(f"This voice cannot be used: {row.fault}")
        toy = ", made with toy weights" if row.is_toy else ""
        said = f" “{html.escape(row.transcript)}”" if row.transcript else ""
        kept = html.escape(f"{row.name}.npz")
        return (
            f'<p class="note">{row.seconds:.1f} s, {html.escape(row.language)}{toy}.{said} '
            f'<a id="download-voice" href="{self._published.url(self._shelf.path(row.name))}" '
            f'download="{kept}">Download {kept}</a></p>'
        )

    def _build_recording(self) -> None:
        self._audio = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="3 to 15 seconds of one voice, without noise",
            elem_id="recording",
            buttons=[],
        )
        self._example = gr.Button("Use an example recording", size="sm")
        self._note = gr.HTML(elem_id="recording-note")
        self._transcript = gr.Textbox(
            label="What is said in it",
            lines=2,
            max_length=MAX_TRANSCRIPT_CHARS,
            placeholder="Word for word; the model reads it with the sound.",
        )
        self._language = gr.Dropdown(LANGUAGES, value="auto", label="Language of the recording")
        with gr.Row():
            self._add_one = gr.Button("Add another recording of this voice", size="sm", min_width=160)
            self._drop = gr.Button("Without those added", size="sm", min_width=120, visible=False)
        self._added = gr.HTML(elem_id="added")
        with gr.Row(elem_classes="middle"):
            self._name = gr.Textbox(label="Name", placeholder="anna", scale=2, min_width=120)
            self._save = gr.Button("Save this voice", scale=1, min_width=120)
        gr.HTML(f'<p class="note">{CONSENT}</p>')

    def _build_saved(self, names: list[str]) -> None:
        self.saved = gr.Dropdown(names, value=next(iter(names), None), label="Voice", elem_id="saved-voice")
        self.about = gr.HTML()
        with gr.Accordion("Add, rename or delete voices", open=False):
            self._npz = gr.File(label="A voice file (.npz)", file_types=[".npz"], height=150, elem_id="npz")
            self._new_name = gr.Textbox(label="New name of the chosen voice")
            with gr.Row():
                self._rename = gr.Button("Rename", size="sm")
                self._delete = gr.Button("Delete the chosen voice", size="sm", variant="stop")

    def _connect_recording(self) -> None:
        taken = [self._taken, self._note, self._transcript, self._language]
        typed = [self._name, self._taken, self._transcript, self._language, self._others]
        added = [self._others, self._added, self._drop, self._audio]
        connect(self._add_one.click, self._add_recording, typed[1:], added)
        connect(self._drop.click, lambda: ((), "", gr.update(visible=False)), None, added[:-1])
        connect(self._source.change, _shown_boxes, self._source, [self._recording_box, self._saved_box])
        # hearing a recording takes a while: here Gradio shows that something is under way
        self._audio.change(self._take, self._audio, taken, api_visibility="private", show_progress="minimal")
        connect(self._example.click, _example, None, self._audio)
        for event in (self._save.click, self._name.submit):
            connect(event, self._save_voice, typed, [self._status, self.saved])

    def _connect_saved(self) -> None:
        status, saved = self._status, self.saved
        connect(saved.change, self.about_voice, saved, self.about)
        connect(self._npz.upload, self._add, self._npz, [status, saved, self._npz])
        for event in (self._rename.click, self._new_name.submit):
            connect(event, self._rename_voice, [saved, self._new_name], [status, saved, self._new_name])
        self._delete.click(
            self._delete_voice, saved, [status, saved], api_visibility="private", js=_ASK_TO_DELETE
        )

    def forget(self, owner: str) -> None:
        """Lets the recording of a page go, which may have sent another one or be closed."""
        if (path := self._files.pop(owner, None)) is not None:
            path.unlink(missing_ok=True)

    @told
    def _take(self, path, request: gr.Request):
        """A recording that was sent: cut, looked at, and heard."""
        owner = owner_of(request, "voice")
        self.forget(owner)
        if path is None:
            return None, "", "", "auto"
        out = self._files[owner] = self._engine.work_dir / f"voice-{secrets.token_hex(8)}.wav"
        taken = take_recording(Path(path), Path(path).name, out)
        note = f"{taken.seconds:.1f} s. {taken.note}".strip() + ("." if taken.note else "")
        said = _text_beside(Path(path))
        if said:
            return str(taken.path), plain(note), said, "auto"
        try:
            heard = self._engine.hear(taken.path)
        except WeightsError:
            note += " Nobody here can listen (no Whisper, no pocketsphinx): write what is said."
            return str(taken.path), plain(note), "", "auto"
        except CheckpointError as error:
            return str(taken.path), plain(f"{note} Write what is said: {error}."), "", "auto"
        note += f" Heard by {heard.source}: read it through, and mend it."
        return str(taken.path), plain(note), heard.text, heard.language

    @told
    def _add_recording(self, taken, transcript, language, others):
        if taken is None:
            raise PromptError("there is no recording to add another one to: upload one, or record one")
        self._joined(taken, transcript, language, others)  # refuses what would be too long together
        others = (*others, self._engine.make_voice(Path(taken), transcript, language))
        return others, added_view(others), gr.update(visible=True), None

    @told
    def _save_voice(self, name, taken, transcript, language, others):
        self._shelf.save(name, self._joined(taken, transcript, language, others))
        said = good(f"Saved as {name.strip()}; it is among the saved voices now.")
        return said, gr.update(choices=self._shelf.names(), value=name.strip())

    def _add(self, path):
        name = Path(path).stem
        try:
            self._shelf.take(Path(path), name)
        except PromptError as error:
            return bad(str(error)), gr.skip(), None  # which makes room for another file
        return good(f"Added {name}."), gr.update(choices=self._shelf.names(), value=name), None

    @told
    def _rename_voice(self, name, new_name):
        self._shelf.rename(name or "", new_name)
        updated = gr.update(choices=self._shelf.names(), value=new_name.strip())
        return good(f"{name} is called {new_name.strip()} now."), updated, ""

    @told
    def _delete_voice(self, name):
        if name is None:  # asked, and not sure
            return gr.skip(), gr.skip()
        self._shelf.delete(name)
        names = self._shelf.names()
        return good(f"Deleted {name}."), gr.update(choices=names, value=next(iter(names), None))


def added_view(voices: tuple[VoicePrompt, ...]) -> str:
    """The recordings that are added, and how much room is left."""
    rows = "".join(f"<li>{v.seconds:.1f} s “{html.escape(v.transcript)}”</li>" for v in voices)
    left = MAX_PROMPT_SEC - sum(voice.seconds for voice in voices)
    return (
        f'<div class="note" role="status">One voice with what comes next (at most {left:.1f} s):'
        f"<ul>{rows}</ul></div>"
    )


def _shown_boxes(source):
    return gr.update(visible=source == RECORDING), gr.update(visible=source == SAVED)


def _example() -> str:
    return str(next(iter(sorted(SAMPLE.rglob("*.wav")))))


def _text_beside(path: Path) -> str:
    """The words of the shipped example, which nobody needs to hear out."""
    for sample in SAMPLE.rglob(path.name):
        text = sample.with_name(f"{sample.stem}.normalized.txt")
        if text.is_file() and sample.read_bytes() == path.read_bytes():
            return text.read_text(encoding="utf-8").strip()
    return ""
