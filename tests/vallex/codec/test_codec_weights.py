"""Where weights are looked for, and refusing what is not weights. Downloads: test_download.py."""

import socket

import encodec.model
import pytest
import torch

from vallex.codec import load_codec, load_vocoder
from vallex.codec.weights import ENCODEC, read_state_dict
from vallex.errors import WeightsError


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


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
        match=r"vocos-encodec-24khz/config\.yaml from .*charactr/vocos-encodec-24khz.*--offline-toy",
    ):
        load_vocoder(codec=toy_codec, checkpoints_dir=tmp_path)


def test_codec_source_when_compared_with_the_package_then_the_same_address_and_sum():
    (file,) = ENCODEC.files
    assert file.urls() == [encodec.model.ROOT_URL + file.name]
    assert file.sha256[:8] in file.name  # by this prefix the package's own loader checks


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
