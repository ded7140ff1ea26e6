"""From an upload to a prepared set, its results and a blind vote, in a real browser; and hostile zips."""

import io
import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from hands import choose, go_to

import finetune
from finetune.log.votes import Vote, add_vote, read_votes, tally
from finetune.page import engine as engines
from finetune.page import uploads
from finetune.page.datasets import DOCTOR, IMPORT, PREPARE, DataDesk, DataForm
from finetune.page.engine import Engine, SpeakRequest
from finetune.page.tabs.compare import ComparePanel
from finetune.page.uploads import inside, take_files
from finetune.page.voices import VoiceShelf
from vallex.errors import DataError, VallexError

SAMPLE = Path(finetune.__file__).parent / "sample" / "LibriTTS-sample"


@pytest.fixture
def sample_zip(tmp_path) -> Path:
    """Three clips with their texts, and what a Mac leaves in a zip."""
    path = tmp_path / "anna.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part, number in (("train-clean", 2), ("dev-clean", 1)):
            for wav in sorted((SAMPLE / part).rglob("*.wav"))[:number]:
                for file in wav.parent.glob(f"{wav.stem}.*"):
                    archive.write(file, file.relative_to(SAMPLE))
        archive.writestr("__MACOSX/._junk", b"")
    return path


def test_data_when_a_zip_is_uploaded_then_it_is_checked_edited_prepared_and_passed_on(
    open_page, site, sample_zip
):
    tab = open_page()
    go_to(tab, "Data")
    tab.locator("#data-files input[type=file]").set_input_files(sample_zip)
    tab.locator("#data-files").get_by_text("anna").first.wait_for()
    tab.get_by_label("Name of the folder").fill("anna")
    tab.get_by_role("button", name="Keep these recordings").click()
    tab.get_by_text("files as anna").wait_for()
    tab.get_by_role("button", name="2. Check").click()
    tab.locator("#data-report iframe").wait_for()
    assert "anna" in tab.frame_locator("#data-report iframe").locator("h1").inner_text()

    tab.get_by_role("button", name="Transcripts", exact=False).first.click()
    tab.get_by_role("button", name="Show the transcripts").click()
    cell = tab.locator("#texts [data-testid='cell-0-1']").locator("visible=true").first
    cell.dblclick()
    cell.locator("textarea").fill("A text that somebody mended.")
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Save the transcripts").click()
    tab.get_by_text("Saved 1 changed texts").wait_for()
    texts = [path.read_text().strip() for path in (site.folder / "data" / "anna").rglob("*.normalized.txt")]
    assert texts.count("A text that somebody mended.") == 1

    tab.get_by_role("button", name="3. Prepare").click()
    tab.get_by_text("2 clips to train on and 1 to validate").wait_for()
    go_to(tab, "Train")
    assert tab.get_by_label("Prepared set").input_value() == "anna-prepared"


def test_data_when_a_folder_is_uploaded_and_imported_then_the_new_one_is_chosen(open_page, site, tmp_path):
    loose = tmp_path / "loose"
    for number, wav in enumerate(sorted(SAMPLE.rglob("*.wav"))[:2]):
        (loose / "deep" / str(number)).mkdir(parents=True)
        (loose / "deep" / str(number) / "clip.wav").write_bytes(wav.read_bytes())
        (loose / "deep" / str(number) / "clip.txt").write_text(f"This is clip {number}.")
    tab = open_page()
    go_to(tab, "Data")
    tab.get_by_label("A folder", exact=True).check()
    tab.locator("#data-folder input[type=file]").set_input_files(loose)
    tab.locator("#data-folder").get_by_text("clip").first.wait_for()
    tab.get_by_role("button", name="Keep these recordings").click()
    tab.get_by_text("Kept 4 files as loose").wait_for()
    assert (site.folder / "data" / "loose" / "deep" / "1" / "clip.txt").read_text() == "This is clip 1."
    tab.get_by_label("Speaker", exact=True).fill("anna")
    tab.get_by_role("button", name="1. Import").click()
    tab.get_by_text("2 clips with a text are in loose-imported").wait_for()
    assert tab.get_by_label("Folder", exact=True).input_value() == "loose-imported"
    assert len(list((site.folder / "data" / "loose-imported").rglob("*.normalized.txt"))) == 2


def test_data_when_the_page_is_closed_then_a_check_goes_on_and_is_found_and_stopped(
    open_page, site, tmp_path
):
    chapter = tmp_path / "many" / "train" / "anna" / "1"
    chapter.mkdir(parents=True)
    wav = next(SAMPLE.rglob("*.wav"))
    (chapter / "clip.wav").write_bytes(wav.read_bytes())
    for number in range(5000):
        os.link(chapter / "clip.wav", chapter / f"clip-{number}.wav")
    (chapter / "all.trans.tsv").write_text("".join(f"clip-{n}\tIt is one of many.\n" for n in range(5000)))
    tab = open_page()
    go_to(tab, "Data")
    tab.get_by_label("A folder of this machine", exact=True).check()
    tab.get_by_label("Its whole path").fill(str(tmp_path / "many"))
    tab.get_by_role("button", name="Keep these recordings").click()
    tab.get_by_text("many stands for").wait_for()
    tab.get_by_role("button", name="2. Check").click()
    tab.get_by_text("many: checking").first.wait_for()
    tab.close()

    again = open_page()
    go_to(again, "Data")
    assert again.get_by_label("Folder", exact=True).input_value() == "many"
    again.get_by_text(re.compile(r"many: checking: .* of \d+ …")).first.wait_for()
    assert again.get_by_role("button", name="3. Prepare").is_disabled()
    again.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
    again.get_by_text("many: stopped").wait_for()
    assert again.get_by_role("button", name="3. Prepare").is_enabled()


@pytest.mark.parametrize("verb", [IMPORT, DOCTOR, PREPARE])
def test_data_desk_when_a_folder_is_not_listed_then_it_is_no_path(settings_of, verb):
    with pytest.raises(DataError, match=r"'\.\./prompts' is not known"):
        DataDesk(settings_of()).begin(verb, DataForm(folder="../prompts"))


def test_data_desk_when_it_is_not_said_whose_recordings_they_are_then_it_asks(settings_of, tmp_path):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "clip.wav").write_bytes(b"")
    desk = DataDesk(settings_of(data_dir=tmp_path))
    with pytest.raises(DataError, match="loose: whose recordings are these"):
        desk.begin(IMPORT, DataForm(folder="loose"))
    assert desk.job("loose") is None


def test_compare_when_blind_then_names_are_told_after_the_vote(open_page, site):
    tab = open_page()
    go_to(tab, "Compare")
    for name in ("toy", "tiny.pt"):
        tab.locator("#compared").get_by_label(name, exact=True).check()
    choose(tab, "Voice of all", "acou_1")
    tab.locator("#compare-text textarea").fill("Good morning, my friend.")
    tab.get_by_role("button", name="Speak by all").click()
    tab.get_by_text("Listen to all").wait_for(timeout=60_000)
    players = tab.locator("#compare-players")
    assert "tiny.pt" not in players.inner_text()
    assert players.locator("audio").count() == 2
    tab.locator("#vote").get_by_label("B", exact=True).check()
    tab.get_by_role("button", name="Vote", exact=True).click()
    tab.get_by_text("Voted for").wait_for()
    assert "tiny.pt" in players.inner_text()
    vote = read_votes(site.folder / "runs")[-1]
    assert (sorted(vote.checkpoints), vote.winner) == (["tiny.pt", "toy"], vote.checkpoints[1])


@pytest.fixture
def engine(settings_of) -> Engine:
    return Engine(settings_of())


def comparing(engine: Engine, names: list[str]) -> Iterator:
    """What the Compare tab does for the page "a" when it is told to speak."""
    with gr.Blocks():
        panel = ComparePanel(engine, VoiceShelf(engine.settings.prompts_dir, toy_codec=True))
    return panel._compare(SimpleNamespace(session_hash="a"), names, None, "Compared by ear.", 0, False)


def test_compare_when_the_queue_takes_not_all_then_none_of_them_waits_on(engine, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Engine, "_speak", lambda self, job: gate.wait(30))
    monkeypatch.setattr(engines, "MAX_WAITING", 2)
    other = engine.submit(SpeakRequest(text="Spoken by another tab.", voice=None, checkpoint="toy"), "a")
    while engine._running is not other:
        pass
    with pytest.raises(gr.Error, match="2 texts are waiting"):
        list(comparing(engine, ["toy", "tiny.pt", "toy"]))
    assert not engine._waiting
    gate.set()
    assert other.wait(10**6, timeout_sec=30)
    assert other.status == "done"


def test_compare_when_one_fails_then_the_rest_of_it_ends_and_nothing_else(engine, monkeypatch):
    begun, told = threading.Event(), threading.Event()

    def speaking(self, job):
        if job.request.text.startswith("Compared"):
            begun.wait(30)
            raise VallexError("out of breath")
        told.wait(30)
        self._check()

    monkeypatch.setattr(Engine, "_speak", speaking)
    comparison = comparing(engine, ["toy", "tiny.pt"])
    next(comparison)
    other = engine.submit(SpeakRequest(text="Spoken by another tab.", voice=None, checkpoint="toy"), "a")
    begun.set()
    assert "toy: out of breath" in list(comparison)[-1][0]
    told.set()
    assert other.wait(10**6, timeout_sec=30)
    assert other.status == "done"


def zipped(entries: dict, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        entry = zipfile.ZipInfo("secret.txt")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return file.getvalue()


def with_huge_directory() -> bytes:
    content = bytearray(zipped({"a.wav": b"x"}))
    content[-10:-6] = (20_000_001).to_bytes(4, "little")  # its size, in the record at the end
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 no zip", "not a zip that can be read"),
        (zipped({"../out.wav": b"x"}), "'../out.wav': not a name that is taken"),
        (zipped({"/etc/cron.wav": b"x"}), "'/etc/cron.wav': not a name"),
        (zipped({"a\\..\\..\\out.wav": b"x"}), "not a name that is taken"),
        (zipped({"run.sh": b"x"}), "'run.sh': not a recording and not a text"),
        (zipped({"bomb.txt": b"0" * 21_000_000}), "unpacked it takes more than is allowed"),
        (zipped({"readme.md": b"x"}), "holds no recording"),
        (zipped({"bomb.TXT": b"0" * 21_000_000}), "unpacked it takes more than is allowed"),
        (linked(), "is a link or encrypted"),
        (zipped({"bomb.wav": b"x"}, zipfile.ZIP_BZIP2), "'bomb.wav' is packed by zip method 12"),
        (zipped({"bomb.wav": b"x"}, zipfile.ZIP_LZMA), "'bomb.wav' is packed by zip method 14"),
        (with_huge_directory(), "its list of files takes 20000001 bytes; at most 20000000 are read"),
    ],
)
def test_upload_when_a_zip_is_hostile_then_it_is_refused_and_nothing_stays(tmp_path, content, said):
    (tmp_path / "in.zip").write_bytes(content)
    with pytest.raises(DataError, match=said.replace("\\", "\\\\").replace("(", r"\(")):
        take_files([tmp_path / "in.zip"], tmp_path / "data", "anna")
    assert list((tmp_path / "data").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"in.zip", "data"}


def test_upload_when_loose_files_are_too_large_many_or_alike_then_none_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UNPACKED_MB", 3)
    monkeypatch.setattr(uploads, "MAX_TEXT_MB", 1)
    monkeypatch.setattr(uploads, "MAX_FILES", 4)
    for name, num_bytes in (("a/1.wav", 1), ("b/1.wav", 1), ("2.wav", 2 * 10**6), ("3.wav", 2 * 10**6)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(num_bytes))
    (tmp_path / "long.TXT").write_bytes(bytes(10**6 + 1))
    refused = {
        ("a/1.wav", "b/1.wav"): "'1.wav' was sent twice; give the files names of their own, or send a zip",
        ("2.wav", "3.wav"): "'3.wav' goes over what is allowed",
        ("a/1.wav", "long.TXT"): "'long.TXT' goes over what is allowed",
        ("2.wav",) * 5: "5 files were sent; at most 4 are taken",
    }
    for names, said in refused.items():
        with pytest.raises(DataError, match=said):
            take_files([tmp_path / name for name in names], tmp_path / "data", "anna")
        assert list((tmp_path / "data").iterdir()) == []
    assert take_files([tmp_path / "a/1.wav", tmp_path / "2.wav"], tmp_path / "data", "anna")[1] == 2


def test_upload_when_a_folder_is_sent_then_its_files_keep_their_places(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.wav").write_bytes(b"x" * number)
    paths = [tmp_path / "1" / "a.wav", tmp_path / "2" / "a.wav"]
    root, places = inside(["phone/one/a.wav", "phone/two/a.wav"])
    assert (root, places) == ("phone", ["one/a.wav", "two/a.wav"])
    folder, number = take_files(paths, tmp_path / "data", root, places)
    assert (number, (folder / "two" / "a.wav").read_bytes()) == (2, b"xx")
    assert inside(["a.wav", "phone/b.wav"]) == ("", ["a.wav", "phone/b.wav"])
    for place in ("../../out.wav", "/etc/out.wav", "..\\..\\out.wav", "a/.hidden/b.wav", "a:b.wav"):
        with pytest.raises(DataError, match="not a name that is taken"):
            take_files(paths, tmp_path / "data", "anna", ["fine/a.wav", place])
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["phone"]


def test_link_when_a_folder_of_this_machine_is_named_then_it_stays_where_it_is(settings_of, tmp_path):
    (tmp_path / "wavs").mkdir()
    desk = DataDesk(settings_of(data_dir=tmp_path / "data"))
    assert desk.link(str(tmp_path / "wavs"), "") == "wavs"
    assert desk.link(f" {tmp_path / 'wavs'} ", "anna") == "anna"
    assert desk.folders() == ["anna", "wavs"]
    assert desk.path("anna").resolve() == tmp_path / "wavs"


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        ("wavs", "anna", "'wavs': not a folder of this machine"),
        ("{tmp}/nowhere", "anna", "not a folder of this machine"),
        ("", "anna", "give its whole path"),
        ("{tmp}", "anna", "holds the page's own folder"),
        ("{tmp}/data/own", "anna", "or lies in it"),
        ("{tmp}/wavs", "own", "there is a folder of this name already"),
        ("{tmp}/wavs", "../out", "name '../out'"),
    ],
)
def test_link_when_it_is_no_good_then_nothing_is_made(settings_of, tmp_path, place, name, said):
    for folder in ("wavs", "data/own"):
        (tmp_path / folder).mkdir(parents=True)
    desk = DataDesk(settings_of(data_dir=tmp_path / "data"))
    with pytest.raises(DataError, match=re.escape(said)):
        desk.link(place.format(tmp=tmp_path), name)
    assert desk.folders() == ["own"]


@pytest.mark.parametrize("changes", [{"password": "x"}, {"host": "0.0.0.0", "password": "x", "api_key": "y"}])
def test_link_when_others_may_reach_the_page_then_no_path_is_taken(settings_of, tmp_path, changes):
    (tmp_path / "wavs").mkdir()
    desk = DataDesk(settings_of(data_dir=tmp_path / "data", **changes))
    assert not desk.takes_paths
    with pytest.raises(DataError, match="no other machine reaches"):
        desk.link(str(tmp_path / "wavs"), "anna")


def test_upload_when_a_name_is_too_long_for_a_disk_then_it_is_refused(tmp_path):
    (tmp_path / "in.wav").write_bytes(b"x")
    with pytest.raises(DataError, match="123 bytes; at most 120 are taken"):
        take_files([tmp_path / "in.wav"], tmp_path / "data", "声" * 41)
    (tmp_path / "in.zip").write_bytes(zipped({"声" * 67 + ".wav": b"x"}))
    with pytest.raises(DataError, match="not a name that is taken"):
        take_files([tmp_path / "in.zip"], tmp_path / "data", "anna")


@pytest.mark.parametrize("name", ["../anna", "/anna", "", ".hidden", "a/b", "anna."])
def test_upload_when_its_name_would_be_a_path_then_it_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="name"):
        take_files([tmp_path / "in.wav"], tmp_path / "data", name)


def test_votes_when_lines_are_damaged_then_they_are_passed_over_and_only_blind_ones_count(tmp_path):
    said = {"time": "t", "text": "x", "voice": "v", "seed": 0, "checkpoints": ("a", "b")}
    for winner, blind in (("a", True), ("b", False), ("", True)):
        add_vote(tmp_path, Vote(**said, winner=winner, blind=blind))
    with (tmp_path / "votes.jsonl").open("a") as file:
        file.write('{"time": 1\n[]\n')
    assert tally(read_votes(tmp_path)) == [("a", 1, 2), ("b", 0, 2)]
