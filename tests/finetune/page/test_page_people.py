"""The page as people use it: by keyboard, several at once, gone before it is done, with the wrong files."""

import io
import shutil
import zipfile

import numpy as np
import pytest
from hands import begin_to_speak, choose, choose_recording, go_to, outcome, write

LONG = "This is one sentence of many that are spoken. " * 30


def focused(tab) -> str:
    """What a screen reader would call the element that has the focus."""
    return tab.evaluate(
        """() => { const e = document.activeElement;
        return e.getAttribute('aria-label') || e.labels?.[0]?.innerText.trim() || e.innerText.trim() }"""
    ).partition("\n")[0]


def test_page_when_only_keys_are_used_then_a_text_is_spoken_and_stopped(open_page):
    tab = open_page()
    tab.get_by_label("Text", exact=True).focus()
    tab.keyboard.insert_text(LONG)
    names = []
    while "Speak" not in names and len(names) < 12:
        tab.keyboard.press("Tab")
        names.append(focused(tab))
    assert [name for name in names if name.isascii()] == [
        *("English", "Mixed", "Show how it is read", "Checkpoint", "More choices", "Rarely needed", "Speak"),
    ]
    tab.get_by_label("Checkpoint", exact=True).focus()
    tab.get_by_role("option", name="tiny.pt", exact=True).wait_for()  # the list opens with the focus
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelector('#checkpoint input').value === 'tiny.pt'")
    tab.get_by_label("Text", exact=True).focus()
    tab.keyboard.press("Control+Enter")
    tab.locator("#speech-status").get_by_text("Speaking").wait_for()
    assert tab.locator("#stop").is_enabled()
    tab.keyboard.press("Escape")
    tab.locator("#speech-status").get_by_text("Stopped after").wait_for()
    assert tab.locator("#stop").is_disabled()


def test_page_when_it_is_closed_then_its_speech_ends_and_who_waited_is_next(open_page, site):
    first, second = open_page(), open_page()
    choose_recording(first)
    before = set(site.engine.work_dir.glob("voice-*"))
    first.get_by_role("button", name="Use an example recording").click()
    first.locator("#recording-note").get_by_text("1.9 s").wait_for()
    [recording] = set(site.engine.work_dir.glob("voice-*")) - before
    first.get_by_label("A saved voice", exact=True).check()
    write(first, LONG, "toy")
    write(second, "Good morning, my friend.")
    begin_to_speak(first)
    first.locator("#speech-status").get_by_text("Speaking").wait_for()
    running = site.engine._running
    begin_to_speak(second)
    second.locator("#speech-status").get_by_text("Waiting: 1 before you.").wait_for()
    first.close()
    assert "by tiny.pt" in outcome(second)
    assert not recording.exists()
    assert running.status == "cancelled"
    assert len(running.parts) < 30


def test_endpoint_when_the_client_hangs_up_then_the_work_ends(site):
    import httpx

    body = {"model": "toy", "input": LONG, "response_format": "pcm"}
    with httpx.stream("POST", f"{site.url}/v1/audio/speech", json=body, timeout=60) as answer:
        assert next(answer.iter_bytes())
        running = site.engine._running
    assert running.request.text == LONG
    assert running.wait(10**9, timeout_sec=30)
    assert running.status == "cancelled"


def pickled_voice() -> bytes:
    file = io.BytesIO()
    np.savez(file, audio_tokens=np.array([{"a": print}], dtype=object))
    return file.getvalue()


def huge_voice() -> bytes:
    """A small file that unpacks to 400 MB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "<i8", "fortran_order": False, "shape": (1, 6_250_000, 8)}
        )
        with archive.open("audio_tokens.npy", "w") as entry:
            entry.write(head.getvalue())
            for _ in range(400):
                entry.write(bytes(10**6))
    return file.getvalue()


def climbing_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../out.wav", b"x")
    return file.getvalue()


@pytest.fixture
def tab(open_page):
    return open_page()


def test_page_when_files_are_hostile_then_each_is_refused_with_a_sentence(tab, site, tmp_path):
    tab.get_by_text("Add, rename or delete voices").click()
    before = sorted((site.folder / "prompts").iterdir())
    for name, content in (("pickled", pickled_voice()), ("huge", huge_voice()), ("none", b"PK\3\4")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        tab.locator("#npz input[type=file]").set_input_files(tmp_path / f"{name}.npz")
        tab.locator("#voice-status .bad").get_by_text(f"{name}.npz: the file: ").wait_for()
    assert sorted((site.folder / "prompts").iterdir()) == before
    go_to(tab, "Data")
    (tmp_path / "climbing.zip").write_bytes(climbing_zip())
    tab.locator("#data-files input[type=file]").set_input_files(tmp_path / "climbing.zip")
    tab.locator("#data-files").get_by_text("climbing").first.wait_for()
    tab.get_by_label("Name of the folder").fill("climbing")
    tab.get_by_role("button", name="Keep these recordings").click()
    tab.get_by_text("'../../out.wav': not a name that is taken").wait_for()
    assert not (site.folder / "data" / "climbing").exists()


def test_page_when_a_voice_or_a_checkpoint_is_new_then_the_other_tabs_offer_it(tab, site):
    new = [site.folder / "prompts" / "passed on.npz", site.folder / "checkpoints" / "passed.pt"]
    folder = site.folder / "data" / "passed on"
    try:
        shutil.copyfile(site.folder / "prompts" / "alan.npz", new[0])
        shutil.copyfile(site.folder / "checkpoints" / "tiny.pt", new[1])
        go_to(tab, "Compare")
        tab.get_by_label("passed.pt", exact=True).check()
        choose(tab, "Voice of all", "passed on")
        go_to(tab, "Train")
        choose(tab, "Begin with", "passed.pt")
        go_to(tab, "Clone")
        choose(tab, "Checkpoint", "passed.pt")
        choose(tab, "Voice", "passed on")
        folder.mkdir()
        (folder / "a.wav").touch()
        go_to(tab, "Data")
        choose(tab, "Folder", "passed on")
        # what was chosen stays
        go_to(tab, "Compare")
        assert tab.get_by_label("passed.pt", exact=True).is_checked()
        assert tab.get_by_label("Voice of all", exact=True).input_value() == "passed on"
    finally:
        for path in new:
            path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


NAMELESS = """() => {
    const nameOf = e => e.getAttribute('aria-label') || e.title || e.alt || e.innerText?.trim()
        || [...(e.labels || [])].map(l => l.innerText.trim()).join('')
        || e.closest('label')?.innerText.trim();
    const parts = 'input, textarea, select, button, [role=button], a[href], audio, iframe, img';
    return [...document.querySelectorAll(parts)]
        .filter(e => e.checkVisibility() && e.type !== 'file' && !e.closest('[aria-hidden=true]'))
        .filter(e => !nameOf(e)).map(e => e.outerHTML.slice(0, 160)) }"""


@pytest.mark.parametrize("dark", [False, True])
def test_tabs_when_narrow_then_nothing_sticks_out_and_everything_has_a_name(open_page, prepared, dark):
    tab = open_page(width=390, dark=dark)
    for name in ("Clone", "Compare", "Data", "Train", "Results"):
        go_to(tab, name)
        tab.get_by_role("tab", name=name, selected=True).wait_for()
        if name == "Clone":
            for section in ("Add, rename or delete voices", "More choices", "Rarely needed"):
                tab.get_by_text(section).click()
            tab.get_by_label("A list of texts", exact=True).check()
            tab.get_by_label("Texts, one a line").wait_for()
        tab.wait_for_timeout(200)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert tab.evaluate(NAMELESS) == [], name
