"""The tab in which recordings become a prepared set: upload, import, doctor, transcripts, prepare."""

import html
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import gradio as gr

from finetune.data.prepare import PrepareSettings
from finetune.data.segmentation import CutSettings
from finetune.page.datasets import (
    DOCTOR,
    IMPORT,
    IMPORT_CHOICES,
    PREPARE,
    SPLIT_CHOICES,
    DataDesk,
    DataForm,
    prepared_sets,
)
from finetune.page.engine import Engine
from finetune.page.jobs import DONE, RUNNING, Job
from finetune.page.published import Published
from finetune.page.settings import MAX_UPLOAD_MB
from finetune.page.tabs.choices import UNKNOWN_WORDS
from finetune.page.tabs.texts import TextPanel
from finetune.page.tabs.voice import LANGUAGES
from finetune.page.tabs.words import Opening, connect, empty, good, job_view, listed, told
from finetune.page.uploads import AUDIO_SUFFIXES, TEXT_SUFFIXES, inside, take_files
from vallex.errors import DataError, VallexError

FILES, FOLDER, PLACE = "Files, or a zip", "A folder", "A folder of this machine"
DOING = {IMPORT: "importing", DOCTOR: "checking", PREPARE: "preparing"}
_POLL_SEC = 1.0
# Gradio tells no more of a file's place than its name, which layout.HEAD makes its path in the browser
_WITH_PLACES = """(...given) => {
    const places = JSON.stringify((given[2] || []).map((file) => file.orig_name));
    return [...given.slice(0, -1), places];
}"""
_EMPTY = "Nothing looked at yet. Upload recordings, choose their folder, and check it."
_STEPS = (
    '<p class="note">Import cuts long recordings and finds texts; a folder in LibriTTS layout '
    "needs none. Check looks for faults. Prepare makes what a run trains on. Each goes on when this page is "
    "closed.</p>"
)


def build(engine: Engine, desk: DataDesk, published: Published, prepared: gr.Dropdown) -> Opening:
    """Adds the widgets and connects them; what is prepared here is chosen in `prepared`, of the Train tab."""
    panel = DataPanel(engine, desk, published, prepared)
    return Opening(
        function=panel.opened,
        inputs=[panel.folder, panel.is_picked],
        outputs=[panel.folder, panel.watched, *panel.views, *panel.buttons],
    )


class DataPanel:
    """The widgets of the tab, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, desk: DataDesk, published: Published, prepared: gr.Dropdown):
        self._data_dir = engine.settings.data_dir
        self._desk = desk
        self._published = published
        self._prepared = prepared
        self._outcomes: dict[tuple, str] = {}
        self.is_picked = gr.State(False)  # whether the folder was chosen by hand
        self.watched = gr.State(None)  # the job whose end this page waits for
        with gr.Row():
            with gr.Column(min_width=320):
                self._build_upload()
            with gr.Column(min_width=320):
                self._build_steps()
        self._report = gr.HTML(empty(_EMPTY), elem_id="data-report")
        self.views = [self._status, self._report]
        with gr.Accordion("Transcripts", open=False):
            texts = TextPanel(desk, published, self.folder)
        self._timer = gr.Timer(_POLL_SEC)
        self._connect()
        texts.connect()

    def opened(self, name, is_picked) -> tuple:
        """The folders as they are now, and how the chosen one stands: one that is at work, to begin with."""
        folders, at_work = self._desk.folders(), self._desk.at_work()
        chosen = name if name in folders else next(iter(folders), None)
        if at_work and not is_picked and name not in at_work:
            chosen = at_work[0]
        job = self._desk.job(chosen)
        watched = job.begun if job is not None and job.status == RUNNING else None
        update = listed(folders, name) if chosen == name else gr.update(choices=folders, value=chosen)
        return update, watched, *self._shown(chosen)

    def _build_upload(self) -> None:
        gr.Markdown("### Recordings")
        sources = [FILES, FOLDER, *([PLACE] if self._desk.takes_paths else [])]
        self._source = gr.Radio(sources, value=FILES, label="Where they are")
        self._files = gr.File(
            label=f"A zip, or recordings and texts, to {MAX_UPLOAD_MB} MB",
            file_count="multiple",
            file_types=[".zip", *AUDIO_SUFFIXES, *TEXT_SUFFIXES],
            height=170,
            elem_id="data-files",
        )
        self._sent = gr.File(
            label=f"All that is in it, to {MAX_UPLOAD_MB} MB a file",
            file_count="directory",
            height=170,
            visible=False,
            elem_id="data-folder",
        )
        self._places = gr.Textbox(visible=False)  # what its files are called in it, from the browser
        self._place = gr.Textbox(
            label="Its whole path",
            placeholder="/home/anna/recordings",
            info="It stays where it is; texts that are edited here are edited there.",
            visible=False,
            elem_id="data-place",
        )
        self._name = gr.Textbox(
            label="Name of the folder",
            placeholder="anna",
            info="What it is called here.",
            elem_id="folder-name",
        )
        self._upload = gr.Button("Keep these recordings")
        self._said = gr.HTML(elem_id="upload-status")

    def _build_steps(self) -> None:
        gr.Markdown("### From recordings to a prepared set")
        self.folder = gr.Dropdown(self._desk.folders(), label="Folder", elem_id="folder")
        with gr.Row():
            self._speaker = gr.Textbox(label="Speaker", placeholder="anna", min_width=120)
            self._language = gr.Dropdown(LANGUAGES, value="auto", label="Language", min_width=140)
        with gr.Accordion("How it is cut and split", open=False):
            self._build_choices()
        with gr.Row():
            self._import = gr.Button("1. Import", min_width=110, size="md")
            self._doctor = gr.Button("2. Check", min_width=110, size="md")
            self._prepare = gr.Button("3. Prepare", variant="primary", min_width=110, size="md")
            self._stop = gr.Button(
                "Stop", min_width=80, size="md", interactive=False, elem_classes="ends-work"
            )
        self.buttons = [self._import, self._doctor, self._prepare, self._stop]
        gr.HTML(_STEPS)
        self._status = gr.HTML(elem_id="data-status")

    def _build_choices(self) -> None:
        cut, split = CutSettings(), PrepareSettings()
        with gr.Row():
            self._corpus = gr.Dropdown(
                list(IMPORT_CHOICES), value="auto", label="Import as", info="A corpus knows its speakers."
            )
            self._min_sec = gr.Number(cut.min_clip_sec, label="Cut no shorter (s)", min_width=120)
            self._max_sec = gr.Number(cut.max_clip_sec, label="Cut no longer (s)", min_width=120)
        with gr.Row():
            self._split = gr.Dropdown(
                list(SPLIT_CHOICES),
                value="auto",
                label="Validation is",
                info="By itself: parts named dev, else a share.",
            )
            self._share = gr.Number(split.valid_share, label="Share for validation", min_width=120)
            self._seed = gr.Number(split.seed, label="Seed of the share", precision=0, min_width=120)
        self._unknown = gr.Dropdown(
            UNKNOWN_WORDS, value=UNKNOWN_WORDS[0][1], label="Words in no dictionary are read"
        )

    def _connect(self) -> None:
        shown = [*self.views, *self.buttons]
        form = [self.folder, self._speaker, self._language, self._corpus, self._min_sec, self._max_sec]
        form += [self._split, self._share, self._seed, self._unknown]
        for button, verb in ((self._import, IMPORT), (self._doctor, DOCTOR), (self._prepare, PREPARE)):
            connect(button.click, self._beginning(verb), form, [self.watched, *shown])
        connect(self._stop.click, self._stop_job, self.folder, shown)
        connect(self.folder.input, lambda: True, None, self.is_picked)
        connect(self.folder.change, self._shown, self.folder, shown)
        passed_on = [self.watched, self.folder, self._prepared]
        connect(
            self._timer.tick, self._refreshed, [self.folder, self.watched, *self.views], [*passed_on, *shown]
        )
        where = [self._files, self._sent, self._place]
        connect(self._source.change, _only, self._source, where)
        given = [self._source, *where, self._name, self._places]
        for event in (self._upload.click, self._name.submit, self._place.submit):
            connect(event, self._keep, given, [self._said, self.folder, *where], js=_WITH_PLACES)

    def _beginning(self, verb: str) -> Callable:
        """A callback that begins something with the folder."""

        @told
        def begin(name, speaker, language, corpus, min_sec, max_sec, split, share, seed, unknown):
            form = DataForm(
                folder=name or "",
                speaker=(speaker or "").strip(),
                language=language,
                corpus=corpus,
                min_clip_sec=min_sec,
                max_clip_sec=max_sec,
                split=split,
                valid_share=share,
                seed=seed,
                unknown_words=unknown,
            )
            self._desk.begin(verb, form)
            return self._desk.job(name).begun, *self._shown(name)

        return begin

    @told
    def _stop_job(self, name):
        self._desk.stop(name)
        return self._shown(name)

    @told
    def _keep(self, source, files, sent, place, name, places):
        if source == PLACE:
            new = self._desk.link(place or "", name or "")
            said = good(f"{new} stands for {place.strip()}.")
        else:
            paths = [Path(file) for file in (sent if source == FOLDER else files) or []]
            root, called = _called(places, len(paths)) if source == FOLDER else ("", None)
            folder, number = take_files(paths, self._data_dir, name or root, called)
            new, said = folder.name, good(f"Kept {number} files as {folder.name}.")
        return said, gr.update(choices=self._desk.folders(), value=new), None, None, ""

    def _refreshed(self, name, watched, *before) -> list:
        # what is as it was is not drawn again: a reader, or a screen reader, keeps the place
        *views, import_, doctor, prepare, stop = self._shown(name)
        same = views[0] == before[0]
        drawn = [gr.skip() if new == old else new for new, old in zip(views, before, strict=True)]
        buttons = [gr.skip()] * 4 if same else [import_, doctor, prepare, stop]
        return [*self._passed_on(name, watched), *drawn, *buttons]

    def _passed_on(self, name, watched) -> list:
        """What the end of a job that this page waits for changes: what is waited for, the folder, the set."""
        job = self._desk.job(name)
        if watched is None or job is None or job.begun != watched or job.status == RUNNING:
            return [gr.skip()] * 3
        folders, sets = self._desk.folders(), prepared_sets(self._data_dir)
        folder, prepared = gr.update(choices=folders), gr.update(choices=sets)
        if job.status == DONE and job.verb == IMPORT:
            new = self._desk.imported_name(job.name)
            folder = gr.update(choices=folders, value=new) if new in folders else folder
            prepared = gr.update(choices=sets, value=new) if new in sets else prepared
        if job.status == DONE and job.verb == PREPARE:
            prepared = gr.update(choices=sets, value=self._desk.prepared_name(job.name))
        return [None, folder, prepared]

    def _shown(self, name: str | None) -> tuple:
        """What is done with a folder, what was found in it, and which of the buttons can do something."""
        job = self._desk.job(name)
        is_busy = job is not None and job.status == RUNNING
        others = [other for other in self._desk.at_work() if other != name]
        lines = [job_view(job, DOING, self._outcome(job))] if job else []
        lines += [f'<p class="note">At work too: {html.escape(", ".join(others))}</p>'] if others else []
        idle = gr.update(interactive=bool(name) and not is_busy)
        stop = gr.update(interactive=is_busy and not job.is_stopping)
        return "".join(lines), self._report_view(name), idle, idle, idle, stop

    def _outcome(self, job: Job) -> str:
        """What came of a job; it is looked for once, for it may have to read a whole folder."""
        if job.status != DONE:
            return ""
        key = job.name, job.begun
        if key not in self._outcomes:
            try:
                self._outcomes[key] = self._desk.outcome(job)
            except VallexError as error:  # what it made is gone by now
                return str(error)
        return self._outcomes[key]

    def _report_view(self, name: str | None) -> str:
        """The page of what the doctor found, in a frame that may run nothing."""
        page = self._desk.doctor_page(name)
        if page is None:
            return empty(_EMPTY)
        address = f"{self._published.url(page)}?{page.stat().st_mtime_ns}"
        return f'<iframe class="report" sandbox title="What the doctor found" src="{address}"></iframe>'


def _called(places: str, num_files: int) -> tuple[str, list[str]]:
    """The name of a folder that was sent, and what its files are called in it, as the browser tells."""
    try:
        called = [str(place) for place in json.loads(places)]
    except (ValueError, TypeError):
        called = []
    if len(called) != num_files:
        raise DataError("the folder did not come as a whole: choose it again, or send it as a zip")
    return inside(called)


def _only(source: str) -> Iterable[dict]:
    """Shows the field of a source, and hides the others."""
    return [gr.update(visible=source == one) for one in (FILES, FOLDER, PLACE)]
