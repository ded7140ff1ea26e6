"""A page that is served from a folder of its own, and a browser that looks at it."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
VOICES = ("acou_1", "acou_2", "alan")


@dataclass(kw_only=True)
class Site:
    """A page that is served: where, from which folder, and what serves it."""

    url: str
    folder: Path
    engine: object


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory, shared) -> Path:
    """Checkpoints and voices as a person has them, on whom nothing may depend but these tests."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("checkpoints", "prompts", "runs", "data"):
        (folder / name).mkdir()
    shutil.copyfile(shared / "reference" / "tiny_released.pt", folder / "checkpoints" / "tiny.pt")
    for name in VOICES:
        shutil.copyfile(shared / "data" / "prompts" / f"{name}.npz", folder / "prompts" / f"{name}.npz")
    return folder


def page_settings(folder: Path, **changes):
    """Settings of a page in a folder; changes are fields of PageSettings."""
    from finetune.page.settings import PageSettings

    folders = {f"{name}_dir": folder / name for name in ("runs", "prompts", "data", "checkpoints")}
    return PageSettings(**{"offline_toy": True, "port": 0, "asr": "none", **folders, **changes})


@pytest.fixture(scope="session")
def settings_of(page_folder) -> Callable:
    """Settings of a page in that folder; what is given are fields of PageSettings."""
    return partial(page_settings, page_folder)


@contextmanager
def served(folder: Path, **changes) -> Iterator[Site]:
    """A page in a folder, served on a free port; changes are fields of PageSettings."""
    import uvicorn

    from finetune.page.server import build_server, open_socket, served_url

    settings = page_settings(folder, **changes)
    listening = open_socket(settings.host, 0)
    app = build_server(settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield Site(url=served_url(listening, settings.host), folder=folder, engine=app.state.engine)
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="session")
def site(page_folder) -> Iterator[Site]:
    """The page with toy weights and the tiny checkpoint."""
    with served(page_folder) as site:
        yield site


@pytest.fixture
def bare_site(tmp_path) -> Iterator[Site]:
    """The page as it is at first: no weights at all, and no toy ones."""
    with served(tmp_path, offline_toy=False) as site:
        yield site


@pytest.fixture(scope="session")
def prepared(site) -> str:
    """The name of a prepared set of five clips of the shipped sample."""
    import finetune
    from finetune.data.prepare import PrepareSettings, prepare
    from vallex.text import PhonemeTokenizer

    sample = Path(finetune.__file__).parent / "sample" / "LibriTTS-sample"
    few = site.folder / "few"
    for part, num_clips in (("train-clean", 4), ("dev-clean", 1)):
        for wav in sorted((sample / part).rglob("*.wav"))[:num_clips]:
            for file in wav.parent.glob(f"{wav.stem}.*"):
                copy = few / file.relative_to(sample)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
    out = site.folder / "data" / "five"
    prepare(few, out, PrepareSettings(), site.engine.codec, PhonemeTokenizer())
    return out.name


@dataclass
class Complaints:
    """What a browser complained about, and what it asked others than the page for."""

    lines: list[str] = field(default_factory=list)
    expected: str = ""

    def watch(self, tab, url: str) -> None:
        tab.on("console", lambda m: self._read(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: self.lines.append(str(error)))
        tab.on("request", lambda r: self._check(r.url, url))

    def _read(self, text: str) -> None:
        if not self.expected or self.expected not in text:
            self.lines.append(text)

    def _check(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.lines.append(f"asked for {asked}")


@pytest.fixture(scope="session")
def chromium():
    """Chromium by Playwright: Debian's on the PATH, else Playwright's own."""
    reason = ""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        reason = "playwright is not installed (pip install '.[dev]')"
    else:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        with sync_playwright() as playwright:
            try:
                browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
            except Error as error:
                reason = f"no Chromium (apt-get install chromium): {str(error).splitlines()[0]}"
            else:
                yield browser
                browser.close()
                return
    if os.environ.get("CI"):
        pytest.fail(f"the page is not tested: {reason}")
    pytest.skip(f"the page is not tested in a browser: {reason}")


@pytest.fixture
def open_page(chromium, site):
    """Opens the page in a browser of its own; the test fails where one complained."""
    complaints, contexts = Complaints(), []

    def opened(width: int = 1280, dark: bool = False, expected: str = "", url: str = site.url):
        complaints.expected = expected
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            permissions=["microphone"],
            accept_downloads=True,
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        tab = context.new_page()
        complaints.watch(tab, url)
        tab.goto(url)
        tab.locator("html[data-ready]").wait_for()
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints.lines == []
