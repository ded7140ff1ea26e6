"""What a person does with the page, for the browser tests."""

import re

SPOKEN = re.compile(r"\d s by ")


def go_to(tab, name: str) -> None:
    """Opens a tab of the page; what does not fit into the window is in the menu beside the tabs."""
    if tab.get_by_role("tab", name=name).is_visible():
        tab.get_by_role("tab", name=name).click()
    else:
        tab.locator(".overflow-menu > button").click()
        tab.locator(".overflow-dropdown").get_by_text(name).click()


def choose(tab, label: str, name: str) -> None:
    """Takes an answer of a list."""
    tab.get_by_label(label, exact=True).click()
    tab.get_by_role("option", name=name, exact=True).click()


def choose_recording(tab) -> None:
    """Says that the voice comes from a recording."""
    tab.get_by_label("A recording", exact=True).check()


def write(tab, text: str, checkpoint: str = "tiny.pt", seed: int = 1) -> None:
    """Chooses a checkpoint and a seed (with some, the tiny checkpoint says nothing), and types a text."""
    choose(tab, "Checkpoint", checkpoint)
    if not tab.get_by_label("Seed", exact=True).is_visible():
        tab.get_by_text("More choices").click()
    tab.get_by_label("A new seed each time").uncheck()
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    tab.get_by_label("Text", exact=True).fill(text)


def speak(tab) -> str:
    """Speaks what is written, and returns how it ended."""
    begin_to_speak(tab)
    return outcome(tab)


def begin_to_speak(tab) -> None:
    """Presses Speak, and waits until the speech before it, if there was one, has made room for this one."""
    player = "document.querySelector('#player audio')?.src"
    before = tab.evaluate(player)
    tab.get_by_role("button", name="Speak", exact=True).click()
    tab.wait_for_function(f"before => {player} && {player} !== before", arg=before)


def outcome(tab) -> str:
    """How the speech ended; a failure is told at once, in the page's words."""
    status = tab.locator("#speech-status")
    status.get_by_text(SPOKEN).or_(status.locator(".bad")).first.wait_for()
    assert SPOKEN.search(status.inner_text()), status.inner_text()
    return status.inner_text()


def downloaded(tab, button: str = "#download-wav") -> bytes:
    """What a button gives."""
    return downloaded_file(tab, button)[1]


def downloaded_file(tab, button: str) -> tuple[str, bytes]:
    """What a button gives: the name that it is kept under, and what is in it."""
    with tab.expect_download() as download:
        tab.locator(button).click()
    return download.value.suggested_filename, download.value.path().read_bytes()
