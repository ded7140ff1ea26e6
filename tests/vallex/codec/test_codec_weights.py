"""Fetching weights, and refusing what is not weights."""

import hashlib
import socket
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import encodec.model
import huggingface_hub
import pytest
import torch

from vallex.codec import load_codec, load_vocoder, weights
from vallex.codec.weights import obtain_encodec, obtain_vocos, read_state_dict
from vallex.errors import WeightsError

CONTENT = b"these are the weights"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)


@pytest.fixture
def server(monkeypatch):
    """A source of EnCodec that answers every name with CONTENT."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(encodec.model, "ROOT_URL", f"http://127.0.0.1:{running.server_port}/")
        yield
        running.shutdown()


def test_codec_when_absent_and_offline_then_file_source_and_ways_out(tmp_path, offline):
    with pytest.raises(WeightsError) as info:
        load_codec(checkpoints_dir=tmp_path)
    message = str(info.value)
    assert str(tmp_path / "encodec_24khz-d7cc33bc.th") in message
    assert encodec.model.ROOT_URL + "encodec_24khz-d7cc33bc.th" in message
    assert "Name or service not known" in message
    assert "by hand" in message
    assert "--offline-toy" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_vocoder_when_absent_and_offline_then_file_source_and_ways_out(tmp_path, offline, toy_codec):
    with pytest.raises(
        WeightsError,
        match=r"vocos-encodec-24khz/config\.yaml: not there.*charactr/vocos-encodec-24khz.*--offline-toy",
    ):
        load_vocoder(codec=toy_codec, checkpoints_dir=tmp_path)


def test_codec_when_source_never_answers_then_gives_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(encodec.model, "ROOT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setattr(weights, "PROBE_TIMEOUT_SEC", 0.1)
        with pytest.raises(WeightsError, match="timed out"):
            load_codec(checkpoints_dir=tmp_path)


def test_codec_when_download_has_another_hash_then_refused_and_not_kept(tmp_path, server):
    with pytest.raises(WeightsError, match=r"d7cc33bc\.th: .*invalid hash value \(expected \"d7cc33bc\""):
        obtain_encodec(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_codec_when_download_has_its_hash_then_kept_under_its_name(tmp_path, server, monkeypatch):
    name = f"encodec_24khz-{hashlib.sha256(CONTENT).hexdigest()[:8]}.th"
    monkeypatch.setattr(weights, "ENCODEC_FILE", name)
    assert obtain_encodec(None, tmp_path / "checkpoints") == tmp_path / "checkpoints" / name
    assert (tmp_path / "checkpoints" / name).read_bytes() == CONTENT


def test_vocoder_when_source_answers_then_both_files_into_the_folder(tmp_path, server, monkeypatch):
    def download(repository, name, local_dir):
        assert repository == "charactr/vocos-encodec-24khz"
        (local_dir / name).write_bytes(CONTENT)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda _, name: encodec.model.ROOT_URL + name)
    folder = obtain_vocos(None, tmp_path)
    assert folder == tmp_path / "vocos-encodec-24khz"
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "pytorch_model.bin"]


def test_codec_when_path_is_wrong_then_named_and_nothing_fetched(tmp_path, offline):
    with pytest.raises(
        WeightsError, match=r"mine\.th: there is no such file; it should be the EnCodec weights"
    ):
        load_codec(tmp_path / "mine.th")


class Intruder:
    """Runs code when it is unpickled by someone careless."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_state_dict_when_it_holds_code_then_refused_and_not_run(tmp_path):
    torch.save({"a": Intruder(tmp_path / "run")}, tmp_path / "a.th")
    with pytest.raises(WeightsError, match=r"a\.th: cannot be read as weights"):
        read_state_dict(tmp_path / "a.th")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 10, b"hello " * 50, b"\x80\x02."])
def test_state_dict_when_not_weights_then_one_line(tmp_path, content):
    (tmp_path / "a.th").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.th: cannot be read as weights.*Delete it") as info:
        read_state_dict(tmp_path / "a.th")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}])
def test_state_dict_when_of_no_tensors_then_says_so(tmp_path, content):
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(WeightsError, match=r"a\.th: is not a state dict of tensors"):
        read_state_dict(tmp_path / "a.th")
