"""Downloads, against a server of our own that misbehaves as it is told to."""

import errno
import hashlib
import os
import re
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vallex import download
from vallex.cli import add_verbs
from vallex.download import Outcome, fetch, obtain
from vallex.errors import ConfigError, WeightsError
from vallex.sources import COMPONENTS, DEFAULT_COMPONENTS, HUB, WeightFile

CONTENT = bytes(range(256)) * 2000
SUM = hashlib.sha256(CONTENT).hexdigest()
BIG = WeightFile(name="big.pt", path="some/repository/resolve/main/big.pt")


class Server(ThreadingHTTPServer):
    """Sends CONTENT under every path, in ranges too; `script` says how to spoil the next answers.

    A step of the script: a status code to answer with, ("cut", n) to hang up after n bytes, or a function
    of the handler that answers itself. `asked` keeps (path, Range) of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.headers, self.script, self.asked = CONTENT, {}, [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Clients hang up when they have seen enough."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        self.server.asked.append((self.path, self.headers["Range"]))
        step = self.server.script.pop(0) if self.server.script else None
        if callable(step):
            step(self)
        elif isinstance(step, int):
            self.reply(step, b"")
        else:
            self.send_content(step[1] if step else None)

    def send_content(self, max_bytes):
        content, wanted = self.server.content, self.headers["Range"]
        if wanted is None:
            return self.reply(200, content[:max_bytes], num_bytes=len(content))
        start, total = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), len(content)
        if start >= total:
            return self.reply(416, b"", {"Content-Range": f"bytes */{total}"})
        described = {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        return self.reply(206, content[start:][:max_bytes], described, total - start)

    def reply(self, code, body, headers=None, num_bytes=None):
        self.send_response(code)
        for name, value in {**self.server.headers, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if num_bytes is None else num_bytes))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "RETRY_DELAYS_SEC", (0.01, 0.02))
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
        running.shutdown()


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def summed(content: bytes) -> WeightFile:
    """A file whose sum is known beforehand."""
    return WeightFile(name="big.pt", path="big.pt", sha256=hashlib.sha256(content).hexdigest())


def test_fetch_when_absent_then_whole_and_nothing_else_left(server, tmp_path):
    seen = []
    outcome = fetch([BIG], tmp_path / "new", on_progress=lambda file, done, total: seen.append((done, total)))
    assert outcome == {BIG: Outcome.FETCHED}
    assert (tmp_path / "new" / "big.pt").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["new/big.pt"]
    assert server.asked == [("/some/repository/resolve/main/big.pt", None)]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


def test_fetch_when_there_and_right_then_not_sent_again(server, tmp_path):
    (tmp_path / "big.pt").write_bytes(CONTENT)
    assert fetch([BIG], tmp_path) == {BIG: Outcome.THERE}
    server.headers["X-Linked-ETag"] = f'"{SUM}"'
    assert fetch([BIG], tmp_path) == {BIG: Outcome.THERE}
    asked = len(server.asked)
    assert fetch([summed(CONTENT)], tmp_path) == {summed(CONTENT): Outcome.THERE}
    assert len(server.asked) == asked


@pytest.mark.parametrize("wrong", [b"half", CONTENT[::-1]], ids=["size", "sum"])
def test_fetch_when_there_and_wrong_then_fetched_again(server, tmp_path, wrong):
    server.headers["X-Linked-ETag"] = f'"{SUM}"'
    (tmp_path / "big.pt").write_bytes(wrong)
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}
    assert (tmp_path / "big.pt").read_bytes() == CONTENT


def test_fetch_when_connection_is_cut_then_goes_on_from_there(server, tmp_path):
    server.script = [("cut", 100_000), *[("cut", 50_000)] * 4]  # more often than it tries without a byte
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}
    assert (tmp_path / "big.pt").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked][:3] == [None, "bytes=100000-", "bytes=150000-"]


def test_fetch_when_cut_for_good_then_part_is_kept_and_the_next_call_goes_on(server, tmp_path):
    server.script = [("cut", 100_000), *[503] * 9]
    with pytest.raises(WeightsError, match=r"big\.pt from http\S+big\.pt \(it answers 503 .*3 times"):
        fetch([BIG], tmp_path)
    assert names_in(tmp_path) == ["big.pt.part"]
    server.script, server.asked = [], []
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}
    assert server.asked[0][1] == "bytes=100000-"
    assert (tmp_path / "big.pt").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["big.pt"]


def test_fetch_when_part_is_whole_then_only_renamed(server, tmp_path):
    (tmp_path / "big.pt.part").write_bytes(CONTENT)
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}
    assert (tmp_path / "big.pt").read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_fetch_when_part_is_of_another_file_then_begun_anew(server, tmp_path):
    (tmp_path / "big.pt.part").write_bytes(b"something else" * 1000)
    assert fetch([summed(CONTENT)], tmp_path)
    assert (tmp_path / "big.pt").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=14000-", None]


def test_fetch_when_source_knows_no_ranges_then_begun_anew(server, tmp_path):
    server.script = [("cut", 1000), lambda handler: handler.reply(200, CONTENT)]
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}
    assert (tmp_path / "big.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("sent", [CONTENT[:-1], CONTENT + b"!"], ids=["short", "long"])
def test_fetch_when_size_is_not_as_announced_then_refused_and_not_kept(server, tmp_path, sent):
    server.headers["X-Linked-Size"] = str(len(CONTENT))
    server.content = sent
    with pytest.raises(WeightsError, match=rf"wrong size: {len(sent):,} bytes, it should be 512,000"):
        fetch([BIG], tmp_path)
    assert names_in(tmp_path) == []


def test_fetch_when_sum_is_wrong_then_refused_and_not_kept(server, tmp_path):
    wanted = hashlib.sha256(b"other").hexdigest()
    for file, headers in [(summed(b"other"), {}), (BIG, {"ETag": f'"{wanted}"'})]:
        server.headers = headers
        with pytest.raises(WeightsError, match=f"wrong sum: SHA-256 {SUM}, it should be {wanted}"):
            fetch([file], tmp_path)
        assert names_in(tmp_path) == []


def test_fetch_when_redirected_then_the_first_answer_says_the_sum(server, tmp_path):
    def redirect(handler):
        place = {"Location": "/store", "X-Linked-ETag": f'"{"0" * 64}"', "X-Linked-Size": str(len(CONTENT))}
        handler.reply(302, b"", place)

    server.script = [redirect]
    server.headers = {"ETag": f'"{SUM}"'}  # of the store: not what the hub says
    with pytest.raises(WeightsError, match=f"wrong sum: SHA-256 {SUM}, it should be {'0' * 64}"):
        fetch([BIG], tmp_path)
    assert [path for path, _ in server.asked] == ["/some/repository/resolve/main/big.pt", "/store"]


def test_fetch_when_redirected_without_a_sum_then_the_tag_of_the_store_is_none(server, tmp_path):
    server.script = [lambda handler: handler.reply(302, b"", {"Location": "/store"})]
    server.headers = {"ETag": f'"{"0" * 64}"'}
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}


def test_fetch_when_not_found_then_one_line_at_once(server, tmp_path):
    server.script = [404] * 9
    with pytest.raises(WeightsError) as info:
        fetch([BIG], tmp_path)
    message = str(info.value)
    for part in (
        str(tmp_path / "big.pt"),
        f"{server.url}/{BIG.path}",
        "404 Not Found",
        "by hand",
        "--mirror",
    ):
        assert part in message
    assert "\n" not in message
    assert len(server.asked) == 1
    assert names_in(tmp_path) == []


def test_fetch_when_busy_then_tried_again(server, tmp_path):
    server.script = [503, 429]
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}
    assert len(server.asked) == 3


def test_fetch_when_it_answers_with_a_page_then_refused(server, tmp_path):
    server.headers = {"Content-Type": "text/html"}
    with pytest.raises(WeightsError, match="a web page, not a file"):
        fetch([BIG], tmp_path)


def test_fetch_when_it_answers_another_range_then_refused(server, tmp_path):
    (tmp_path / "big.pt.part").write_bytes(CONTENT[:100])
    server.script = [lambda handler: handler.reply(206, CONTENT, {"Content-Range": "bytes 7-9/512000"})]
    with pytest.raises(WeightsError, match=r"asked for bytes 100- and answers 'bytes 7-9/512000'"):
        fetch([BIG], tmp_path)


def test_fetch_when_disk_fills_up_then_says_so_and_goes_on_later(server, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Full(opened(path, mode)))
    with pytest.raises(WeightsError, match=r"big\.pt cannot be written \(No space left on device; make room"):
        fetch([BIG], tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert fetch([BIG], tmp_path) == {BIG: Outcome.FETCHED}


def test_fetch_when_it_would_not_fit_then_nothing_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(WeightsError, match=r"No space left on device: 512,000 bytes are needed"):
        fetch([BIG], tmp_path)
    assert names_in(tmp_path) == []


def test_fetch_when_folder_is_read_only_then_says_so(server, tmp_path, monkeypatch):
    def refuse(path, **_):  # permissions do not stop root, who runs many a CI
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WeightsError, match=r"fixed/big\.pt cannot be written \(Permission denied; "):
        fetch([BIG], tmp_path / "fixed")


def test_fetch_when_folder_is_a_file_then_says_so(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"file/big\.pt cannot be written \((File exists|Not a directory)"):
        fetch([BIG], tmp_path / "file")


def test_fetch_when_two_at_once_then_both_end_well_and_it_is_sent_once(server, tmp_path):
    def slow(handler):
        handler.reply(200, CONTENT[:1000], num_bytes=len(CONTENT))
        time.sleep(0.2)
        handler.wfile.write(CONTENT[1000:])

    server.headers["X-Linked-ETag"] = f'"{SUM}"'
    server.script = [slow]
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(fetch([BIG], tmp_path)[BIG])) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.name for outcome in outcomes) == ["FETCHED", "THERE"]
    assert (tmp_path / "big.pt").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["big.pt"]


def test_fetch_when_nobody_listens_then_all_files_named_and_the_host_asked_once(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    asked = []
    open_ = download._open
    monkeypatch.setattr(download, "_open", lambda *given: asked.append(given) or open_(*given))
    with pytest.raises(WeightsError) as info:
        fetch(COMPONENTS["vocoder"].files, tmp_path)
    message = str(info.value)
    for path in COMPONENTS["vocoder"].paths(tmp_path):
        assert (
            f"{path} from http://127.0.0.1:{port}/charactr/vocos-encodec-24khz/resolve/main/{path.name}"
            in message
        )
    assert message.count("no answer: [Errno 111] Connection refused") == 2
    assert "by hand" in message and "\n" not in message
    assert len(asked) == 1


def test_fetch_when_source_is_silent_then_gives_up(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT_SEC", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(WeightsError, match="no answer: timed out"):
            fetch([BIG], tmp_path, mirror=address)


def test_fetch_when_there_and_source_is_silent_then_kept_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    (tmp_path / "big.pt").write_bytes(CONTENT)
    assert fetch([BIG], tmp_path, mirror=address) == {BIG: Outcome.UNCHECKED}
    with pytest.raises(WeightsError, match="no answer"):  # what is known to be wrong is not passed
        fetch([summed(b"other")], tmp_path, mirror=address)


def test_fetch_when_mirror_is_given_then_before_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert fetch([BIG], tmp_path, mirror=f"{server.url}/hub/") == {BIG: Outcome.FETCHED}
    assert server.asked == [(f"/hub/{BIG.path}", None)]


def test_fetch_when_mirror_has_no_file_of_another_host_then_from_that_host(server, tmp_path):
    elsewhere = WeightFile(name="a.th", path="v0/a.th", host=f"{server.url}/own", sha256=SUM)
    server.script = [404]
    assert fetch([elsewhere], tmp_path, mirror=f"{server.url}/mirror") == {elsewhere: Outcome.FETCHED}
    assert [path for path, _ in server.asked] == ["/mirror/v0/a.th", "/own/v0/a.th"]


@pytest.mark.parametrize("address", ["huggingface.co", "file:///etc", "https://"])
def test_fetch_when_mirror_is_no_address_then_refused(tmp_path, address):
    with pytest.raises(ConfigError, match=f"{re.escape(address.rstrip('/'))}.*--mirror and HF_ENDPOINT"):
        fetch([BIG], tmp_path, mirror=address)


def test_obtain_when_a_part_of_a_component_is_there_then_only_the_rest(server, tmp_path):
    config, weights = COMPONENTS["vocoder"].paths(tmp_path)
    config.parent.mkdir()
    config.write_bytes(b"by hand")
    assert obtain(COMPONENTS["vocoder"], tmp_path) == [config, weights]
    assert config.read_bytes() == b"by hand" and weights.read_bytes() == CONTENT
    assert len(server.asked) == 1
    assert COMPONENTS["vocoder"].is_present(tmp_path)


def test_sources_when_nothing_is_set_then_the_hub(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert BIG.urls() == [f"{HUB}/{BIG.path}"]
    assert set(DEFAULT_COMPONENTS) < set(COMPONENTS)


def test_sources_when_named_in_the_readme_then_every_file_and_licence():
    readme = (Path(__file__).parents[2] / "checkpoints" / "README.md").read_text(encoding="utf-8")
    for component in COMPONENTS.values():
        assert component.licence in readme
        for file in component.files:
            assert Path(file.name).name in readme, file.name


def run_verb(*words: str):
    app = typer.Typer()
    add_verbs(app, lambda name, runs: Path(name), lambda path, options: False)
    return CliRunner().invoke(app, ["download", *words], catch_exceptions=True)


def test_verb_when_nothing_is_named_then_what_speaking_needs(server, tmp_path, monkeypatch):
    codec = COMPONENTS["codec"]
    file = replace(codec.files[0], host=server.url, sha256=SUM)
    monkeypatch.setitem(COMPONENTS, "codec", replace(codec, files=(file,)))
    result = run_verb("--to", str(tmp_path))
    assert result.exit_code == 0
    assert names_in(tmp_path) == [
        "encodec_24khz-d7cc33bc.th",
        "vallex-checkpoint.pt",
        "vocos-encodec-24khz/config.yaml",
        "vocos-encodec-24khz/pytorch_model.bin",
    ]


def test_verb_when_one_is_named_then_only_that(server, tmp_path):
    result = run_verb("--only", "vocoder", "--to", str(tmp_path))
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{path}: fetched" for path in COMPONENTS["vocoder"].paths(tmp_path)
    ]


def test_verb_when_the_name_is_not_known_then_the_known_ones(tmp_path):
    result = run_verb("--only", "vocos", "--to", str(tmp_path))
    assert isinstance(result.exception, ConfigError)
    assert "--only vocos: not known; it is one of checkpoint, codec, vocoder, asr, speaker" in str(
        result.exception
    )
