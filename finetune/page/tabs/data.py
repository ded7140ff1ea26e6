"""The tab in which recordings become a prepared set: upload, import, doctor, transcripts, prepare."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr

from finetune.page.datasets import DataDesk, Task
from finetune.page.engine import Engine
from finetune.page.settings import MAX_UPLOAD_MB
from finetune.page.tabs.clone import LANGUAGES
from finetune.page.tabs.words import Opening, empty, good, listed, plain, told
from finetune.page.uploads import AUDIO_SUFFIXES, TEXT_SUFFIXES, take_files

_POLL_SEC = 0.3
_EMPTY = "Nothing looked at yet. Upload recordings, choose their folder, and check it."


def build(engine: Engine, desk: DataDesk, prepared: gr.Dropdown) -> Opening:
    """Adds the widgets and connects them; what is prepared here is chosen in `prepared`, of the Train tab."""
    w: dict = {}
    with gr.Row():
        with gr.Column(min_width=320):
            gr.Markdown("### Recordings")
            w["files"] = gr.File(
                label=f"A zip, or recordings and texts, to {MAX_UPLOAD_MB} MB",
                file_count="multiple",
                file_types=[".zip", *AUDIO_SUFFIXES, *TEXT_SUFFIXES],
                height=140,
                elem_id="data-files",
            )
            w["name"] = gr.Textbox(label="Name of the folder", placeholder="anna", elem_id="folder-name")
            w["upload"] = gr.Button("Keep these recordings")
        with gr.Column(min_width=320):
            gr.Markdown("### From recordings to a prepared set")
            w["folder"] = gr.Dropdown(desk.folders(), label="Folder", elem_id="folder")
            with gr.Row():
                w["speaker"] = gr.Textbox(label="Speaker", placeholder="anna", min_width=120)
                w["language"] = gr.Dropdown(LANGUAGES, value="auto", label="Language", min_width=140)
            with gr.Row():
                w["import"] = gr.Button("1. Import", min_width=115)
                w["doctor"] = gr.Button("2. Check", min_width=115)
                w["prepare"] = gr.Button("3. Prepare", variant="primary", min_width=115)
                w["stop"] = gr.Button("Stop", min_width=80)
            gr.HTML(
                '<p class="note">Import cuts long recordings and finds texts; a folder in LibriTTS layout '
                "needs none. Check looks for faults. Prepare makes what a run trains on.</p>"
            )
            w["status"] = gr.HTML(elem_id="data-status")
    w["report"] = gr.HTML(empty(_EMPTY), elem_id="data-report")
    with gr.Accordion("Transcripts", open=False):
        w["texts"] = gr.Dataframe(
            headers=["Clip", "What is said"],
            datatype=["str", "str"],
            column_count=(2, "fixed"),
            static_columns=[0],
            wrap=True,
            max_height=360,
            label="Edit a text, then save",
            elem_id="texts",
        )
        with gr.Row():
            w["load"] = gr.Button("Show the transcripts", min_width=120)
            w["save"] = gr.Button("Save the transcripts", min_width=120)
    _connect(w, engine, desk, prepared)
    return Opening(
        function=lambda name: [listed(desk.folders(), name)], inputs=[w["folder"]], outputs=[w["folder"]]
    )


def _connect(w: dict, engine: Engine, desk: DataDesk, prepared: gr.Dropdown) -> None:
    tasks: dict[str, Task] = {}

    def followed(request: gr.Request, task: Task) -> Iterator[str]:
        """Status lines while a task runs; the error that ended it is raised."""
        owner = request.session_hash or ""
        tasks[owner] = task
        try:
            while not task.wait(_POLL_SEC):
                of = f" {task.done} of {task.total}" if task.total else ""
                yield plain(f"{task.what.capitalize()}{of} …")
        finally:
            tasks.pop(owner, None)
        if task.error is not None:
            raise task.error

    def working(start: Callable, finish: Callable) -> Callable:
        """A callback: follows what `start` begins; `finish` says what came of it."""

        @told
        def run(request: gr.Request, *values) -> Iterator:
            task = start(*values)
            for line in followed(request, task):
                yield line, gr.skip(), gr.skip(), gr.skip()
            if task.is_stopped:
                yield plain("Stopped. What is done is kept."), gr.skip(), gr.skip(), gr.skip()
            else:
                yield finish(task.result, *values)

        return run

    @told
    def upload(files, name):
        folder, number = take_files([Path(file) for file in files or []], engine.settings.data_dir, name)
        said = good(f"Kept {number} files as {folder.name}.")
        return said, gr.update(choices=desk.folders(), value=folder.name), None

    def imported(summary, name, *_):
        new = f"{name}-imported"
        line = f"{summary.num_clips} clips, {summary.seconds:.0f} s, are in {new}. {summary.deaf}"
        return good(line), gr.skip(), gr.update(choices=desk.folders(), value=new), gr.skip()

    def looked_at(diagnosis, *_):
        from finetune.data.doctor_page import page_of

        number = len(diagnosis.faults)
        line = (
            good("No faults.") if not number else plain(f"{number} faults in {len(diagnosis.reports)} clips.")
        )
        # a page of its own in a frame that may run nothing: its styles stay there, and so does what files say
        frame = (
            '<iframe class="report" sandbox title="What the doctor found" '
            f'srcdoc="{html.escape(page_of(diagnosis))}"></iframe>'
        )
        return line, frame, gr.skip(), gr.skip()

    def was_prepared(summary, name, *_):
        new = desk.prepared_name(name)
        skipped = sum(summary.skipped.values())
        line = (
            f"{summary.train.num_cuts} clips to train on and {summary.valid.num_cuts} to validate "
            f"({(summary.train.hours + summary.valid.hours) * 60:.1f} min) are in {new}"
            + (f"; {skipped} files were left out" if skipped else "")
            + ". Go on in the Train tab."
        )
        sets = sorted(path.parent.name for path in engine.settings.data_dir.glob("*/prepared.json"))
        return good(line), gr.skip(), gr.skip(), gr.update(choices=sets, value=new)

    def stop(request: gr.Request):
        task = tasks.get(request.session_hash or "")
        if task is None:
            return plain("Nothing is being done.")
        task.stop.set()
        return plain("Stopping after this clip …")

    @told
    def show_texts(name):
        return desk.texts(name)

    @told
    def save_texts(name, table):
        number = desk.save_texts(name, table.values.tolist())
        return good(f"Saved {number} changed texts." if number else "Nothing was changed.")

    private, hidden = "private", "hidden"
    outputs = [w["status"], w["report"], w["folder"], prepared]
    steps = (
        ("import", working(desk.import_task, imported), [w["folder"], w["speaker"], w["language"]]),
        ("doctor", working(desk.doctor_task, looked_at), [w["folder"]]),
        ("prepare", working(desk.prepare_task, was_prepared), [w["folder"], w["language"]]),
    )
    for name, run, inputs in steps:
        w[name].click(run, inputs, outputs, api_visibility=private, show_progress=hidden)
    w["upload"].click(
        upload,
        [w["files"], w["name"]],
        [w["status"], w["folder"], w["files"]],
        api_visibility=private,
        show_progress="minimal",
    )
    w["stop"].click(stop, None, w["status"], api_visibility=private, show_progress=hidden, queue=False)
    w["load"].click(show_texts, w["folder"], w["texts"], api_visibility=private, show_progress=hidden)
    w["save"].click(
        save_texts, [w["folder"], w["texts"]], w["status"], api_visibility=private, show_progress=hidden
    )
