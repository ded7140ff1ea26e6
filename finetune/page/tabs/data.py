"""The tab in which recordings become a prepared set: upload, import, doctor, transcripts, prepare."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr

from finetune.page.datasets import DataDesk, Task, prepared_sets
from finetune.page.engine import Engine
from finetune.page.settings import MAX_UPLOAD_MB
from finetune.page.tabs.voice import LANGUAGES
from finetune.page.tabs.words import Opening, connect, empty, good, listed, plain, told
from finetune.page.uploads import AUDIO_SUFFIXES, TEXT_SUFFIXES, take_files

_POLL_SEC = 0.3
_EMPTY = "Nothing looked at yet. Upload recordings, choose their folder, and check it."
_STEPS = (
    '<p class="note">Import cuts long recordings and finds texts; a folder in LibriTTS layout '
    "needs none. Check looks for faults. Prepare makes what a run trains on.</p>"
)


def build(engine: Engine, desk: DataDesk, prepared: gr.Dropdown) -> Opening:
    """Adds the widgets and connects them; what is prepared here is chosen in `prepared`, of the Train tab."""
    panel = DataPanel(engine, desk, prepared)
    return Opening(
        function=lambda name: [listed(desk.folders(), name)], inputs=[panel.folder], outputs=[panel.folder]
    )


class DataPanel:
    """The widgets of the tab, and what they do; made where Gradio's cursor stands."""

    def __init__(self, engine: Engine, desk: DataDesk, prepared: gr.Dropdown):
        self._engine = engine
        self._desk = desk
        self._prepared = prepared
        self._tasks: dict[str, Task] = {}
        with gr.Row():
            with gr.Column(min_width=320):
                self._build_upload()
            with gr.Column(min_width=320):
                self._build_steps()
        self._report = gr.HTML(empty(_EMPTY), elem_id="data-report")
        with gr.Accordion("Transcripts", open=False):
            self._build_texts()
        self._connect()

    def _build_upload(self) -> None:
        gr.Markdown("### Recordings")
        self._files = gr.File(
            label=f"A zip, or recordings and texts, to {MAX_UPLOAD_MB} MB",
            file_count="multiple",
            file_types=[".zip", *AUDIO_SUFFIXES, *TEXT_SUFFIXES],
            height=140,
            elem_id="data-files",
        )
        self._name = gr.Textbox(label="Name of the folder", placeholder="anna", elem_id="folder-name")
        self._upload = gr.Button("Keep these recordings")

    def _build_steps(self) -> None:
        gr.Markdown("### From recordings to a prepared set")
        self.folder = gr.Dropdown(self._desk.folders(), label="Folder", elem_id="folder")
        with gr.Row():
            self._speaker = gr.Textbox(label="Speaker", placeholder="anna", min_width=120)
            self._language = gr.Dropdown(LANGUAGES, value="auto", label="Language", min_width=140)
        with gr.Row():
            self._import = gr.Button("1. Import", min_width=110, size="md")
            self._doctor = gr.Button("2. Check", min_width=110, size="md")
            self._prepare = gr.Button("3. Prepare", variant="primary", min_width=110, size="md")
            self._stop = gr.Button(
                "Stop", min_width=80, size="md", interactive=False, elem_classes="ends-work"
            )
        gr.HTML(_STEPS)
        self._status = gr.HTML(elem_id="data-status")

    def _build_texts(self) -> None:
        self._texts = gr.Dataframe(
            headers=["Clip", "What is said"],
            datatype=["str", "str"],
            column_count=(2, "fixed"),
            static_columns=[0],
            column_widths=["35%", "65%"],
            wrap=True,
            max_height=360,
            label="Edit a text, then save",
            elem_id="texts",
        )
        with gr.Row():
            self._load = gr.Button("Show the transcripts", min_width=120)
            self._save = gr.Button("Save the transcripts", min_width=120)

    def _connect(self) -> None:
        desk, folder = self._desk, self.folder
        outputs = [self._status, self._report, folder, self._prepared, self._stop]
        begun = [folder, self._speaker, self._language]
        connect(self._import.click, self._working(desk.import_task, self._imported), begun, outputs)
        connect(self._doctor.click, self._working(desk.doctor_task, self._looked_at), folder, outputs)
        connect(
            self._prepare.click,
            self._working(desk.prepare_task, self._was_prepared),
            [folder, self._language],
            outputs,
        )
        kept = [self._status, folder, self._files]
        for event in (self._upload.click, self._name.submit):
            connect(event, self._keep, [self._files, self._name], kept)
        connect(self._stop.click, self._stop_task, None, self._status)
        connect(self._load.click, told(desk.texts), folder, self._texts)
        connect(self._save.click, self._save_texts, [folder, self._texts], self._status)

    def _working(self, start: Callable, finish: Callable) -> Callable:
        """A callback: follows what `start` begins; `finish` says what came of it, but for the Stop button."""
        nothing_new = [gr.skip()] * 3

        @told
        def run(request: gr.Request, *values) -> Iterator:
            task = start(*values)
            for line in self._followed(request, task):
                yield line, *nothing_new, gr.update(interactive=True)
            idle = gr.update(interactive=False)
            if task.error is not None:
                yield plain(""), *nothing_new, idle
                raise task.error
            if task.is_stopped:
                yield plain("Stopped. What is done is kept."), *nothing_new, idle
            else:
                yield *finish(task.result, *values), idle

        return run

    def _followed(self, request: gr.Request, task: Task) -> Iterator[str]:
        """Status lines while a task runs."""
        owner = request.session_hash or ""
        self._tasks[owner] = task
        try:
            while not task.wait(_POLL_SEC):
                of = f" {task.done} of {task.total}" if task.total else ""
                yield plain(f"{task.what.capitalize()}{of} …")
        finally:
            self._tasks.pop(owner, None)

    def _imported(self, summary, name, *_) -> tuple:
        new = f"{name}-imported"
        line = f"{summary.num_clips} clips, {summary.seconds:.0f} s, are in {new}. {summary.deaf}"
        return good(line), gr.skip(), gr.update(choices=self._desk.folders(), value=new), gr.skip()

    def _looked_at(self, diagnosis, *_) -> tuple:
        from finetune.data.doctor_page import page_of

        number = len(diagnosis.faults)
        found = plain(f"{number} faults in {len(diagnosis.reports)} clips.") if number else good("No faults.")
        # a page of its own in a frame that may run nothing: its styles stay there, and so does what files say
        frame = (
            '<iframe class="report" sandbox title="What the doctor found" '
            f'srcdoc="{html.escape(page_of(diagnosis))}"></iframe>'
        )
        return found, frame, gr.skip(), gr.skip()

    def _was_prepared(self, summary, name, *_) -> tuple:
        new = self._desk.prepared_name(name)
        skipped = sum(summary.skipped.values())
        line = (
            f"{summary.train.num_cuts} clips to train on and {summary.valid.num_cuts} to validate "
            f"({(summary.train.hours + summary.valid.hours) * 60:.1f} min) are in {new}"
            + (f"; {skipped} files were left out" if skipped else "")
            + ". Go on in the Train tab."
        )
        choice = gr.update(choices=prepared_sets(self._engine.settings.data_dir), value=new)
        return good(line), gr.skip(), gr.skip(), choice

    @told
    def _keep(self, files, name):
        data_dir = self._engine.settings.data_dir
        folder, number = take_files([Path(file) for file in files or []], data_dir, name)
        said = good(f"Kept {number} files as {folder.name}.")
        return said, gr.update(choices=self._desk.folders(), value=folder.name), None

    def _stop_task(self, request: gr.Request):
        task = self._tasks.get(request.session_hash or "")
        if task is None:
            return gr.skip()
        task.stop.set()
        return plain("Stopping after this clip …")

    @told
    def _save_texts(self, name, table):
        number = self._desk.save_texts(name, table.values.tolist())
        return good(f"Saved {number} changed texts." if number else "Nothing was changed.")
