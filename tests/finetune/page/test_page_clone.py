"""The Clone tab in a real browser: from an upload, a microphone or a saved voice to a wav that is heard."""

import io
import re
import shutil
import threading
import wave
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from hands import begin_to_speak, choose, choose_recording, downloaded, downloaded_file, outcome, speak, write


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args): ...


def test_clone_when_a_saved_voice_speaks_then_the_wav_is_whole_and_marked(open_page, site):
    tab = open_page()
    assert downloaded_file(tab, "#download-voice") == (
        "acou_1.npz",
        (site.folder / "prompts" / "acou_1.npz").read_bytes(),
    )
    write(tab, "Good morning. How are you today, my friend?", seed=1)
    tab.get_by_role("button", name="Show how it is read").click()
    tab.locator("#reading").get_by_role("row", name="Languages en").wait_for()
    said = speak(tab)
    assert "by tiny.pt, seed 1: " in said
    content = downloaded(tab)
    with wave.open(io.BytesIO(content)) as wav:
        assert (wav.getframerate(), wav.getnchannels(), wav.getsampwidth()) == (24000, 1, 2)
        seconds = wav.getnframes() / 24000
    assert f"{seconds:.1f} s" in said
    for kind in ("wav", "flac", "ogg", "mp3"):
        name, file = downloaded_file(tab, f"#download-{kind}")
        assert name == f"Good-morning-How-are-you-today-my-friend_tiny.pt_seed-1.{kind}"
        sound = soundfile.SoundFile(io.BytesIO(file))
        assert sound.comment == "synthetic speech by vallex, tiny.pt (toy weights: what you hear is noise)"
        assert sound.frames == pytest.approx(24000 * seconds, abs=1 if kind != "mp3" else 2400)
    assert tab.locator("#sound img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 900
    assert speak(tab).splitlines()[-1] == said.splitlines()[-1]
    assert downloaded(tab) == content
    # a new seed is shown, so that it can be taken again
    tab.get_by_label("A new seed each time").check()
    tab.get_by_role("button", name="Speak", exact=True).click()
    tab.wait_for_function("document.querySelector('#seed input').value > 100")


def test_clone_when_a_text_is_long_then_it_plays_before_all_is_spoken(open_page):
    tab = open_page()
    choose(tab, "Checkpoint", "toy")
    tab.get_by_label("Text", exact=True).fill("This is one sentence of many that are spoken. " * 30)
    tab.get_by_role("button", name="Speak", exact=True).click()
    playing = "() => { const a = document.querySelector('#player audio'); return a && a.currentTime > 0.1 }"
    tab.wait_for_function(playing)
    assert "of 30 sentences" in tab.locator("#speech-status").inner_text()
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("Stopped after").wait_for()


def test_clone_when_a_recording_is_uploaded_then_its_voice_can_be_saved_and_speaks(open_page, site):
    tab = open_page()
    choose_recording(tab)
    tab.get_by_role("button", name="Use an example recording").click()
    tab.locator("#recording-note").get_by_text(re.compile(r"\d\.\d s")).wait_for()
    assert len(tab.get_by_label("What is said in it").input_value()) > 10
    tab.get_by_label("Name", exact=True).fill("my voice")
    tab.get_by_role("button", name="Save this voice").click()
    tab.get_by_text("Saved as my voice").wait_for()
    assert (site.folder / "prompts" / "my voice.npz").is_file()
    write(tab, "Hello from a saved recording.")
    assert "tiny.pt" in speak(tab)
    tab.get_by_label("A saved voice", exact=True).check()
    tab.get_by_text("Add, rename or delete voices").click()
    tab.get_by_label("New name of the chosen voice").fill("another")
    tab.get_by_role("button", name="Rename", exact=True).click()
    tab.get_by_text("is called another now").wait_for()
    tab.once("dialog", lambda dialog: dialog.accept())
    tab.get_by_role("button", name="Delete the chosen voice", exact=True).click()
    tab.get_by_text("Deleted another").wait_for()
    assert {path.stem for path in (site.folder / "prompts").glob("*.npz")} == {"acou_1", "acou_2", "alan"}


def test_clone_when_recordings_are_one_voice_then_a_list_is_a_zip_and_one_is_spoken_on_from(open_page):
    tab = open_page()
    choose_recording(tab)
    for added in (True, False):
        tab.get_by_role("button", name="Use an example recording").click()
        tab.locator("#recording-note").get_by_text(re.compile(r"\d\.\d s")).wait_for()
        if added:
            tab.get_by_role("button", name="Add another recording of this voice").click()
            tab.locator("#added").get_by_text("at most 13.1 s").wait_for()
            tab.locator("#recording-note").get_by_text(re.compile(r"\d\.\d s")).wait_for(state="detached")
    write(tab, "")
    tab.get_by_label("A list of texts", exact=True).check()
    tab.locator("input[type=file][accept*=csv]").last.set_input_files(
        {
            "name": "texts.csv",
            "mimeType": "text/csv",
            "buffer": b'"Good morning, my friend."\nHello.,,acou_1\n',
        }
    )
    lines = tab.get_by_label("Texts, one a line")
    tab.wait_for_function("document.querySelector('#lines textarea').value.includes('acou_1')")
    tab.get_by_role("button", name="Speak", exact=True).click()
    assert "s by tiny.pt, seed 1" in outcome(tab)
    name, content = downloaded_file(tab, "#download-zip")
    assert name == "Good-morning-my-friend-Hello-acou_1_tiny.pt_seed-1.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sounds = [soundfile.SoundFile(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    assert {"synthetic speech by vallex, tiny.pt" in sound.comment for sound in sounds} == {True}
    assert tab.locator("#sound audio").count() == len(sounds)
    tab.locator("#sound audio").first.evaluate("a => { a.load(); return a.play() }")
    lines.fill("Hello.||nobody")
    tab.get_by_role("button", name="Speak", exact=True).click()
    tab.get_by_text("line 1: voice 'nobody' is not saved here").wait_for()
    tab.get_by_label("On from the recording", exact=True).check()
    tab.get_by_label("What the whole says", exact=True).wait_for()
    tab.get_by_role("spinbutton", name=re.compile("Seconds of the recording")).fill("1")
    begin_to_speak(tab)
    assert "s by tiny.pt, seed 1" in outcome(tab)
    assert downloaded_file(tab, "#download-wav")[0].startswith(
        "The-judge-enjoyed-a-cup-of-ginger-tea_tiny.pt"
    )


def test_clone_when_a_recording_is_longer_than_15_s_then_it_is_cut_at_a_pause(open_page, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * 20).astype("float32")
    noise[16000 * 11 : 16000 * 12] = 0
    soundfile.write(tmp_path / "long.flac", np.stack([noise, noise], axis=1), 16000)
    tab = open_page()
    choose_recording(tab)
    tab.locator("#recording input[type=file]").set_input_files(tmp_path / "long.flac")
    tab.locator("#recording-note").get_by_text("Longer than 15 s").wait_for()
    assert "11." in tab.locator("#recording-note").inner_text()


def test_clone_when_a_microphone_records_then_it_is_taken(open_page):
    tab = open_page()
    choose_recording(tab)
    tab.get_by_role("button", name="Record audio").click()
    tab.locator("#recording").get_by_role("button", name="Record", exact=True).click()
    tab.wait_for_timeout(1500)
    tab.locator("#recording").get_by_role("button", name="Stop", exact=True).click()
    tab.locator("#recording-note").get_by_text(re.compile(r"1\.\d s")).wait_for()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.wav", b"these are no samples", "notes.wav: not a recording that can be read"),
        ("half.flac", b"fLaC\0\0\0\x22", "half.flac: not a recording that can be read"),
    ],
)
def test_clone_when_a_file_is_no_recording_then_it_says_so(open_page, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    tab = open_page(expected="Waveform load error")
    choose_recording(tab)
    tab.locator("#recording input[type=file]").set_input_files(tmp_path / name)
    tab.get_by_text(said).wait_for()


def test_clone_when_there_are_no_weights_then_it_offers_them_and_fetches_them(
    open_page, bare_site, shared, tmp_path, monkeypatch
):
    (tmp_path / "Plachta/VALL-E-X/resolve/main").mkdir(parents=True)
    hub = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    tab = open_page(url=bare_site.url)
    assert tab.locator("#missing input").evaluate_all("all => all.map(one => one.checked)") == [
        *(True, True, True, False, False)
    ]
    tab.get_by_text("The released VALL-E X model (1,482 MB, MIT)").wait_for()
    tab.locator("#speak.secondary").wait_for()
    for name in ("EnCodec", "Vocos"):
        tab.locator("#missing").get_by_label(re.compile(name)).uncheck()
    fetch = tab.get_by_role("button", name="Download", exact=True)
    fetch.click()
    tab.locator("#weights-status .bad").get_by_text("Is this machine connected").wait_for()
    assert "vallex-checkpoint.pt" in tab.locator("#weights-status details").text_content()
    shutil.copyfile(
        shared / "reference" / "tiny_released.pt",
        tmp_path / "Plachta/VALL-E-X/resolve/main/vallex-checkpoint.pt",
    )
    fetch.click()
    tab.locator("#weights-status .good").get_by_text("It is here now").wait_for()
    hub.shutdown()
    hub.server_close()
    tab.wait_for_function("document.querySelector('#checkpoint input').value === 'released'")
    tab.wait_for_function("document.querySelectorAll('#missing input').length === 4")
    tab.locator("#speak.primary").wait_for()


def test_clone_when_two_pages_speak_at_once_then_each_hears_its_own(open_page):
    one, other = open_page(), open_page()
    texts = ("The first page says this and nothing else.", "The second one has other things to tell.")
    for tab, text, checkpoint in zip((one, other), texts, ("tiny.pt", "toy"), strict=True):
        write(tab, text, checkpoint)
    for tab in (one, other):
        begin_to_speak(tab)
    assert "by tiny.pt" in outcome(one)
    assert "by toy" in outcome(other)
    comments = [soundfile.SoundFile(io.BytesIO(downloaded(tab))).comment for tab in (one, other)]
    assert ["tiny.pt" in comment for comment in comments] == [True, False]
    assert "vallex, toy" in comments[1]
