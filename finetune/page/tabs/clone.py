"""The tab in which a voice is cloned: a recording or a saved voice, a text, and what is heard of it."""

import html
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

import finetune
from finetune.page.checkpoints import FULL_STRENGTH, list_choices
from finetune.page.engine import AS_WRITTEN, CANCELLED, DONE, LOADING, WAITING, Engine, Job, SpeakRequest
from finetune.page.pictures import sound_picture
from finetune.page.recordings import hear, take_recording
from finetune.page.settings import MAX_TEXT_CHARS
from finetune.page.tabs.words import Opening, bad, empty, good, listed, plain, told
from finetune.page.voices import VoiceShelf
from vallex.codec.audio import load_audio
from vallex.errors import PromptError
from vallex.files import atomic_write
from vallex.inference.prompts import VoicePrompt
from vallex.inference.synthesizer import SpeakSettings

RECORDING, SAVED, NO_VOICE = "A recording", "A saved voice", "No voice: the model makes one up"
SAMPLE = Path(finetune.__file__).parent / "sample" / "LibriTTS-sample"
LANGUAGES = [("Found by itself", "auto"), ("English", "en"), ("Chinese", "zh"), ("Japanese", "ja")]
ACCENTS = [("As written", AS_WRITTEN), ("English", "en"), ("Chinese", "zh"), ("Japanese", "ja")]
EXAMPLE_TEXTS = (
    ("English", "Good morning. This is a voice that was made from a few seconds of sound."),
    ("中文", "你好。今天天气很好，我们出去走走吧。"),
    ("日本語", "こんにちは。今日はいい天気ですね。"),
    ("Mixed", "[EN]The word for thank you is[EN] [ZH]谢谢，[ZH] [EN]or[EN] [JA]ありがとう。[JA]"),
)
CONSENT = (
    "Clone only your own voice, or one whose owner has agreed. What is made here is marked as synthetic in "
    "its file."
)
MAX_SEED = 2**31 - 1
_POLL_SEC = 0.25


def build(page: gr.Blocks, engine: Engine, shelf: VoiceShelf) -> Opening:
    """Adds the widgets to the page that is open, and connects them."""
    with gr.Row():
        with gr.Column(min_width=320):
            voice = _voice_widgets(shelf)
        with gr.Column(min_width=320):
            said = _text_widgets(engine)
    _connect_voice(voice, engine, shelf)
    _connect_text(page, voice, said, engine, shelf)

    def opened(saved, checkpoint):
        checkpoints = [choice.name for choice in list_choices(engine.settings)]
        return listed(shelf.names(), saved), _about(shelf, saved), listed(checkpoints, checkpoint)

    return Opening(
        function=opened,
        inputs=[voice["saved"], said["checkpoint"]],
        outputs=[voice["saved"], voice["about"], said["checkpoint"]],
    )


def _voice_widgets(shelf: VoiceShelf) -> dict[str, gr.Blocks]:
    names = shelf.names()
    start = SAVED if names else RECORDING
    w: dict = {}
    gr.Markdown("### The voice")
    w["source"] = gr.Radio([RECORDING, SAVED, NO_VOICE], value=start, label="Where it comes from")
    with gr.Column(visible=start == RECORDING) as w["recording_box"]:
        w["audio"] = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="3 to 15 seconds of one voice, without noise",
            elem_id="recording",
            buttons=[],
        )
        w["example"] = gr.Button("Use an example recording", size="sm")
        w["note"] = gr.HTML(elem_id="recording-note")
        w["transcript"] = gr.Textbox(
            label="What is said in it",
            lines=2,
            placeholder="Word for word; the model reads it with the sound.",
        )
        w["language"] = gr.Dropdown(LANGUAGES, value="auto", label="Language of the recording")
        with gr.Row():
            w["name"] = gr.Textbox(label="Name", placeholder="anna", scale=2, min_width=120)
            w["save"] = gr.Button("Save this voice", scale=1, min_width=120)
        gr.HTML(f'<p class="note">{CONSENT}</p>')
    with gr.Column(visible=start == SAVED) as w["saved_box"]:
        w["saved"] = gr.Dropdown(
            names, value=names[0] if names else None, label="Voice", elem_id="saved-voice"
        )
        w["about"] = gr.HTML()
        with gr.Accordion("Add, rename or delete voices", open=False):
            w["npz"] = gr.File(label="A voice file (.npz)", file_types=[".npz"], height=110)
            w["new_name"] = gr.Textbox(label="New name of the chosen voice")
            with gr.Row():
                w["rename"] = gr.Button("Rename", size="sm")
                w["delete"] = gr.Button("Delete the chosen voice", size="sm", variant="stop")
    w["voice_status"] = gr.HTML(elem_id="voice-status")
    w["taken"] = gr.State()
    return w


def _text_widgets(engine: Engine) -> dict[str, gr.Blocks]:
    names = [choice.name for choice in list_choices(engine.settings)]
    w: dict = {}
    gr.Markdown("### What it says")
    w["text"] = gr.Textbox(
        label="Text",
        lines=4,
        max_lines=14,
        max_length=MAX_TEXT_CHARS,
        elem_id="text",
        placeholder="English, Chinese or Japanese, also mixed: [EN]Hello.[EN] [ZH]你好。[ZH]",
    )
    with gr.Row(elem_classes="examples"):
        w["texts"] = [gr.Button(label, size="sm", min_width=60) for label, _ in EXAMPLE_TEXTS]
    w["checkpoint"] = gr.Dropdown(
        names,
        value=names[0] if names else None,
        label="Checkpoint",
        info="" if names else "There is none yet: vallex download fetches the released model.",
        elem_id="checkpoint",
    )
    with gr.Accordion("More choices", open=False):
        with gr.Row():
            w["text_language"] = gr.Dropdown(
                LANGUAGES, value="auto", label="Language of the text", min_width=140
            )
            w["accent"] = gr.Dropdown(ACCENTS, value=AS_WRITTEN, label="Accent", min_width=140)
        with gr.Row():
            w["seed"] = gr.Number(
                0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=140, elem_id="seed"
            )
            w["fresh"] = gr.Checkbox(True, label="A new seed each time", min_width=140)
        w["temperature"] = gr.Slider(0, 2, value=1.0, step=0.05, label="Temperature")
        w["top_p"] = gr.Slider(0.05, 1, value=1.0, step=0.05, label="Top-p")
        w["strength"] = gr.Slider(
            0, 1.5, value=FULL_STRENGTH, step=0.05, label="Adapter strength", info="Of LoRA checkpoints only."
        )
    with gr.Row():
        w["speak"] = gr.Button("Speak", variant="primary", scale=3, min_width=140, elem_id="speak")
        w["stop"] = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
    w["status"] = gr.HTML(plain("Nothing spoken yet."), elem_id="speech-status")
    w["player"] = gr.HTML(elem_id="player", elem_classes="player")
    w["sound"] = gr.HTML(elem_id="sound", elem_classes="sound")
    w["file"] = gr.DownloadButton("Download the wav", visible=False, elem_id="download")
    return w


def _connect_voice(w: dict, engine: Engine, shelf: VoiceShelf) -> None:
    def show_source(source):
        return gr.update(visible=source == RECORDING), gr.update(visible=source == SAVED)

    @told
    def take(path):
        if path is None:
            return None, "", "", "auto"
        name = Path(path).name
        taken = take_recording(Path(path), name, engine.work_dir / f"voice-{secrets.token_hex(8)}.wav")
        note = f"{taken.seconds:.1f} s. {taken.note}".strip() + ("." if taken.note else "")
        said = _text_beside(Path(path))
        if said:
            return str(taken.path), plain(note), said, "auto"
        heard = hear(taken.path, engine.settings.asr, engine.settings.checkpoints_dir)
        if heard is None:
            note += " Nobody here can listen (no Whisper, no pocketsphinx): write what is said."
            return str(taken.path), plain(note), "", "auto"
        note += f" Heard by {heard.source}: read it through, and mend it."
        return str(taken.path), plain(note), heard.text, heard.language

    @told
    def save(name, taken, transcript, language):
        if taken is None:
            raise PromptError("there is no recording yet: upload one, or record one")
        shelf.save(name, engine.make_voice(Path(taken), transcript, language))
        return (
            good(f"Saved as {name.strip()}; it is among the saved voices now."),
            gr.update(choices=shelf.names(), value=name.strip()),
        )

    @told
    def add(path):
        if path is None:
            return plain(""), gr.update(), None
        name = Path(path).stem
        shelf.take(Path(path), name)
        return good(f"Added {name}."), gr.update(choices=shelf.names(), value=name), None

    @told
    def rename(name, new_name):
        shelf.rename(name or "", new_name)
        updated = gr.update(choices=shelf.names(), value=new_name.strip())
        return good(f"{name} is called {new_name.strip()} now."), updated, ""

    @told
    def delete(name):
        shelf.delete(name or "")
        names = shelf.names()
        return good(f"Deleted {name}."), gr.update(choices=names, value=names[0] if names else None)

    def example():
        return str(next(iter(sorted(SAMPLE.rglob("*.wav")))))

    boxes = [w["recording_box"], w["saved_box"]]
    taken = [w["taken"], w["note"], w["transcript"], w["language"]]
    status, saved = w["voice_status"], w["saved"]
    private = "private"
    w["source"].change(show_source, w["source"], boxes, api_visibility=private, show_progress="hidden")
    w["audio"].change(take, w["audio"], taken, api_visibility=private, show_progress="minimal")
    w["example"].click(example, None, w["audio"], api_visibility=private)
    w["save"].click(
        save,
        [w["name"], w["taken"], w["transcript"], w["language"]],
        [status, saved],
        api_visibility=private,
    )
    w["npz"].upload(add, w["npz"], [status, saved, w["npz"]], api_visibility=private)
    w["rename"].click(rename, [saved, w["new_name"]], [status, saved, w["new_name"]], api_visibility=private)
    w["delete"].click(
        delete,
        saved,
        [status, saved],
        api_visibility=private,
        js="(name) => confirm(`Delete the voice ${name} for good?`) ? name : null",
    )
    saved.change(lambda name: _about(shelf, name), saved, w["about"], api_visibility=private)


def _connect_text(page: gr.Blocks, voice: dict, w: dict, engine: Engine, shelf: VoiceShelf) -> None:
    def voice_of(source, taken, transcript, language, saved) -> VoicePrompt | None:
        if source == NO_VOICE:
            return None
        if source == SAVED:
            if not saved:
                raise PromptError("no voice is saved yet: record or upload one first")
            return shelf.load(saved)
        if taken is None:
            raise PromptError("there is no recording yet: upload one, record one, or use the example")
        return engine.make_voice(Path(taken), transcript, language)

    @told
    def speak(request: gr.Request, *values) -> Iterator:
        *voice_values, text, checkpoint, language, accent, seed, fresh, temperature, top_p, scale = values
        seed = secrets.randbelow(MAX_SEED) if fresh else int(seed or 0)
        settings = SpeakSettings(language=language, temperature=temperature, top_p=top_p, seed=seed)
        asked = SpeakRequest(
            text=text,
            voice=voice_of(*voice_values),
            checkpoint=checkpoint or "",
            settings=settings,
            accent=accent,
            adapter_scale=scale,
        )
        job = engine.submit(asked, owner=request.session_hash or "")
        player = f'<audio controls autoplay aria-label="The speech" src="/speech/{job.token}.wav"></audio>'
        yield _progress(engine, job), player, "", gr.update(visible=False), seed
        num_parts = 0
        while not job.is_over:
            job.wait(num_parts, _POLL_SEC)
            num_parts = len(job.parts)
            yield _progress(engine, job), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        yield _outcome(job), *_finished(engine, job), gr.skip()

    def stop(request: gr.Request):
        stopped = engine.cancel_all_of(request.session_hash or "")
        return plain("Stopping …" if stopped else "Nothing is being spoken.")

    def forget(request: gr.Request):
        engine.cancel_all_of(request.session_hash or "")

    private = "private"
    inputs = [voice[key] for key in ("source", "taken", "transcript", "language", "saved")]
    keys = "text checkpoint text_language accent seed fresh temperature top_p strength"
    inputs += [w[key] for key in keys.split()]
    outputs = [w[key] for key in ("status", "player", "sound", "file", "seed")]
    w["speak"].click(
        speak, inputs, outputs, api_visibility=private, show_progress="hidden", concurrency_limit=None
    )
    w["stop"].click(stop, None, w["status"], api_visibility=private, show_progress="hidden", queue=False)
    for button, (_, text) in zip(w["texts"], EXAMPLE_TEXTS, strict=True):
        button.click(lambda text=text: text, None, w["text"], api_visibility=private, show_progress="hidden")
    page.unload(forget)


def _progress(engine: Engine, job: Job) -> str:
    if job.status == WAITING:
        before = engine.num_before(job)
        return plain(f"Waiting: {before} before you." if before else "Waiting.")
    if job.status == LOADING:
        return plain(f"Loading {job.request.checkpoint} …")
    return plain(f"Speaking: {len(job.parts)} of {job.num_sentences} sentences, {job.seconds:.1f} s so far.")


def _outcome(job: Job) -> str:
    """How it ended, in words."""
    if job.status == CANCELLED:
        return plain(f"Stopped after {job.seconds:.1f} s.")
    if job.status != DONE:
        return bad(str(job.error))
    words = {"eos": "ended by itself", "budget": "was cut off at its longest", "loop": "ran in a loop"}
    unwell = [part for part in job.parts if part.ended != "eos"]
    if not unwell:
        how = "ended by itself"
    else:
        how = "; ".join(f"“{_plain_text(p.text)}” {words.get(p.ended, p.ended)}" for p in unwell)
        how += " (try another seed)"
    line = f"{job.seconds:.1f} s by {job.request.checkpoint}, seed {job.request.settings.seed}: {how}."
    unsaid = list(dict.fromkeys(word for part in job.parts for word in part.unsaid))
    if unsaid:
        line += f" Not in any dictionary, or without sound: {' '.join(unsaid)}."
    return good(line) if not unwell else plain(line)


def _finished(engine: Engine, job: Job) -> tuple:
    """Player (left as it is), picture and file of what was spoken, as far as it went."""
    if not job.parts:
        return "", empty("No sound was made."), gr.update(visible=False)
    path = engine.save(job)
    with atomic_write(path.with_suffix(".png")) as temporary:
        temporary.write_bytes(sound_picture(load_audio(path)))
    picture = (
        f'<img src="/speech/{job.token}.png" width="900" height="260" '
        f'alt="Waveform and spectrogram of {job.seconds:.1f} seconds of speech">'
    )
    return gr.skip(), picture, gr.update(value=str(path), visible=True)


def _about(shelf: VoiceShelf, name: str | None) -> str:
    row = next((row for row in shelf.rows() if row.name == name), None)
    if row is None:
        return empty("No voice is saved yet. Choose “A recording”, and save it under a name.")
    if row.fault:
        return bad(f"This voice cannot be used: {row.fault}")
    toy = ", made with toy weights" if row.is_toy else ""
    said = f" “{html.escape(row.transcript)}”" if row.transcript else ""
    return f'<p class="note">{row.seconds:.1f} s, {html.escape(row.language)}{toy}.{said}</p>'


def _text_beside(path: Path) -> str:
    """The words of the shipped example, which nobody needs to hear out."""
    for sample in SAMPLE.rglob(path.name):
        text = sample.with_name(f"{sample.stem}.normalized.txt")
        if text.is_file() and sample.read_bytes() == path.read_bytes():
            return text.read_text(encoding="utf-8").strip()
    return ""


def _plain_text(tagged: str) -> str:
    return re.sub(r"\[[A-Z]{2}\]", "", tagged)
