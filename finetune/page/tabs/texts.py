"""The transcripts of a folder: a table to edit, a page at a time, with the clip of a line to listen to.

To turn a page saves it, so that nothing that was typed is lost; what cannot be saved keeps the page open.
"""

import html

import gradio as gr

from finetune.page.datasets import DataDesk
from finetune.page.published import Published
from finetune.page.tabs import words
from finetune.page.tabs.words import good, plain, told
from finetune.page.transcripts import ROWS_A_PAGE, TextPage, read_page, save_texts, sound_of

_HEADINGS = ["Clip", "What is said", "What the check found"]


class TextPanel:
    """The widgets, and what they do; made where Gradio's cursor stands, for the folder that is chosen."""

    def __init__(self, desk: DataDesk, published: Published, folder: gr.Dropdown):
        self._desk = desk
        self._published = published
        self._folder = folder
        self._shown = gr.State((None, 0))  # the folder and the page that the table is of
        with gr.Row():
            self._search = gr.Textbox(
                label="Find", placeholder="a word, or a clip's name", scale=3, min_width=200
            )
            self._worst = gr.Checkbox(
                True, label="The worst first", info="As the last check found.", min_width=200
            )
            self._load = gr.Button("Show the transcripts", min_width=160, scale=1)
        self._table = gr.Dataframe(
            headers=_HEADINGS,
            datatype=["str", "str", "str"],
            type="array",
            column_count=(3, "fixed"),
            static_columns=[0, 2],
            column_widths=["210px", "500px", "370px"],
            wrap=True,
            max_height=420,
            label="Edit a text; choose a line to hear it",
            elem_id="texts",
        )
        self._player = gr.HTML(elem_id="text-player")
        with gr.Row():
            self._previous = gr.Button("Previous page", min_width=110, interactive=False)
            self._next = gr.Button("Next page", min_width=110, interactive=False)
            self._save = gr.Button("Save the transcripts", min_width=160, interactive=False)
        self._said = gr.HTML(elem_id="texts-status")

    def connect(self) -> None:
        """Connects the widgets, when the folder's own are."""
        inputs = [self._folder, self._search, self._worst, self._shown, self._table]
        outputs = [self._shown, self._table, self._previous, self._next, self._save, self._said, self._player]
        for event in (self._load.click, self._search.submit, self._worst.input):
            words.connect(event, self._show, inputs, outputs)
        words.connect(self._previous.click, self._show_previous, inputs, outputs)
        words.connect(self._next.click, self._show_next, inputs, outputs)
        words.connect(self._save.click, self._save_only, [self._shown, self._table], self._said)
        words.connect(self._table.select, self._listen, self._shown, self._player)

    @told
    def _show(self, name, search, is_worst_first, shown, table):
        return self._turned(name, search, is_worst_first, shown, table, 0)

    @told
    def _show_previous(self, name, search, is_worst_first, shown, table):
        return self._turned(shown[0] or name, search, is_worst_first, shown, table, shown[1] - 1)

    @told
    def _show_next(self, name, search, is_worst_first, shown, table):
        return self._turned(shown[0] or name, search, is_worst_first, shown, table, shown[1] + 1)

    @told
    def _save_only(self, shown, table):
        number = self._saved(shown, table)
        return good(f"Saved {number} changed texts.") if number else plain("Nothing was changed.")

    def _turned(self, name, search, is_worst_first, shown, table, number) -> tuple:
        """Saves what is shown, and shows a page."""
        saved = self._saved(shown, table)
        report = self._desk.doctor_report(name or "")
        page = read_page(self._desk.path(name), report, search or "", is_worst_first, number)
        said = f"Saved {saved} changed texts. " if saved else ""
        return (
            (name, page.number),
            [[line.id, line.text, line.found] for line in page.lines] or [[""] * len(_HEADINGS)],
            gr.update(interactive=page.number > 0),
            gr.update(interactive=page.number < page.num_pages - 1),
            gr.update(interactive=bool(page.lines)),
            plain(said + _place_of(page)),
            "",
        )

    def _saved(self, shown, table) -> int:
        name = shown[0]
        return save_texts(self._desk.path(name), table) if name is not None else 0

    def _listen(self, shown, event: gr.SelectData):
        """A player of the clip whose line was chosen."""
        name, clip_id = shown[0], str(event.row_value[0]) if event.row_value else ""
        if name not in self._desk.folders() or not clip_id:
            return ""
        path = sound_of(self._desk.path(name), clip_id)
        if path is None:
            return ""
        called = html.escape(clip_id)
        return (
            f'<div class="player"><p>{called}</p><audio controls preload="none" aria-label="{called}" '
            f'src="{self._published.url(path)}"></audio></div>'
        )


def _place_of(page: TextPage) -> str:
    if not page.num_lines:
        return "No transcript holds that."
    first = page.number * ROWS_A_PAGE + 1
    last = first + len(page.lines) - 1
    return f"{first} to {last} of {page.num_lines}; page {page.number + 1} of {page.num_pages}."
