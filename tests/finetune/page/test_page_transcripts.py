"""Transcripts a page at a time: nothing lost between them, whatever their number."""

import json
from pathlib import Path

import gradio as gr
import pytest

from finetune.page.datasets import DataDesk
from finetune.page.published import Published
from finetune.page.tabs.texts import TextPanel
from finetune.page.transcripts import ROWS_A_PAGE, read_page, save_texts, sound_of
from vallex.errors import DataError

NOWHERE = Path("no-report.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    """251 clips, of which the last has no text; nobody listens to them here."""
    data = tmp_path / "anna"
    chapter = data / "train" / "anna" / "1"
    chapter.mkdir(parents=True)
    for number in range(251):
        (chapter / f"clip-{number:03d}.wav").write_bytes(b"")
        if number < 250:
            (chapter / f"clip-{number:03d}.normalized.txt").write_text(f"This is number {number}.\n")
    return data


def test_texts_when_there_are_more_than_a_page_then_the_201st_is_shown_and_saved(folder):
    pages = [read_page(folder, NOWHERE, "", False, number) for number in range(6)]
    assert [len(page.lines) for page in pages] == [ROWS_A_PAGE] * 5 + [1]
    assert (pages[0].num_pages, pages[0].num_lines) == (6, 251)
    line = pages[4].lines[0]
    assert (line.id, line.text) == ("clip-200", "This is number 200.")
    assert save_texts(folder, [[line.id, "  Two \n hundred. ", ""]]) == 1
    assert line.path.with_name("clip-200.normalized.txt").read_text() == "Two hundred.\n"
    assert read_page(folder, NOWHERE, "", False, 4).lines[0].text == "Two hundred."


def test_texts_when_a_page_is_beyond_the_last_then_the_last_is_shown(folder):
    assert read_page(folder, NOWHERE, "", False, 99).number == 5
    assert read_page(folder, NOWHERE, "", False, -1).number == 0
    none = read_page(folder, NOWHERE, "nobody said this", False, 3)
    assert (none.lines, none.number, none.num_pages, none.num_lines) == ([], 0, 1, 0)


def test_texts_when_a_word_is_looked_for_then_names_and_texts_that_hold_it_are_shown(folder):
    found = read_page(folder, NOWHERE, "NUMBER 24", False, 0)
    assert [line.id for line in found.lines] == ["clip-024", *(f"clip-{n}" for n in range(240, 250))]
    assert [line.text for line in read_page(folder, NOWHERE, "clip-007", False, 0).lines] == [
        "This is number 7."
    ]


def test_texts_when_the_doctor_has_looked_then_the_worst_come_first_and_are_told(folder, tmp_path):
    rows = [
        {"id": "clip-003", "faults": ["clipping"], "error_rate": 0.1, "heard": "clip"},
        {"id": "clip-100", "faults": ["words differ"], "error_rate": 0.9, "heard": "nothing like it"},
        {"id": "clip-101", "faults": ["words differ", "level"], "error_rate": 0.5, "heard": None},
        {"id": "clip-102", "faults": [], "error_rate": None, "heard": None},
    ]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"clips": rows}))
    lines = read_page(folder, report, "", True, 0).lines
    assert [line.id for line in lines[:5]] == [
        "train/anna/1/clip-250.wav",
        "clip-100",
        "clip-101",
        "clip-003",
        "clip-000",
    ]
    assert lines[0].found == "audio without text"
    assert lines[1].found == "words differ; heard: nothing like it (90% of the words differ)"
    assert lines[2].found == "words differ, level; heard: nothing (50% of the words differ)"
    report.write_text("[]")
    assert read_page(folder, report, "", True, 0).lines[1].id == "clip-000"


def test_texts_when_a_clip_has_none_then_one_can_be_written(folder):
    [line] = read_page(folder, NOWHERE, "clip-250", True, 0).lines
    assert save_texts(folder, [[line.id, "", ""]]) == 0
    assert save_texts(folder, [[line.id, "At last.", ""]]) == 1
    assert read_page(folder, NOWHERE, "at last", True, 0).lines[0].id == "clip-250"


@pytest.mark.parametrize(
    ("row", "said"), [(["clip-001", " "], "'clip-001': its text is empty"), (["../x", "y"], "'../x' is not")]
)
def test_texts_when_one_cannot_be_saved_then_none_is(folder, row, said):
    with pytest.raises(DataError, match=said):
        save_texts(folder, [["clip-000", "Changed."], row])
    assert read_page(folder, NOWHERE, "", False, 0).lines[0].text == "This is number 0."


def test_sound_when_a_clip_is_asked_for_then_only_one_of_the_folder_is_found(folder):
    assert sound_of(folder, "clip-001").name == "clip-001.wav"
    assert sound_of(folder, "../../clip-001") is None


def test_panel_when_a_page_is_turned_then_what_was_typed_is_saved_and_what_cannot_be_keeps_it_open(
    folder, settings_of
):
    with gr.Blocks():
        panel = TextPanel(DataDesk(settings_of(data_dir=folder.parent)), Published(), gr.Dropdown([]))
    shown, rows, *_ = panel._show("anna", "", False, (None, 0), [["", "", ""]])
    rows[3][1] = "Typed, and not saved."
    shown, rows, previous, following, _, said, _ = panel._show_next("anna", "", False, shown, rows)
    assert shown == ("anna", 1)
    assert (previous["interactive"], following["interactive"]) == (True, True)
    assert "Saved 1 changed texts. 51 to 100 of 251; page 2 of 6." in said
    assert read_page(folder, NOWHERE, "clip-003", False, 0).lines[0].text == "Typed, and not saved."
    rows[0][1] = ""
    with pytest.raises(gr.Error, match="its text is empty"):
        panel._show_previous("anna", "", False, shown, rows)
    rows[0][1] = "Typed before another folder was chosen."
    (folder.parent / "bella").mkdir()
    with pytest.raises(gr.Error, match="holds no recording"):
        panel._show("bella", "", False, shown, rows)
    assert read_page(folder, NOWHERE, "clip-050", False, 0).lines[0].text == rows[0][1]
